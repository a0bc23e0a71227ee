"""Reloads under a running map leave nothing behind; ``make soak ARGS="--reloads 1000"`` does it at length.

In a file of its own: this process is counted too, and no other cluster may live in it meanwhile.
"""

from __future__ import annotations

import time
from pathlib import Path

from tests.conftest import WAIT_S
from tests.soak import ReloadSoak, grown


def test_reloads_under_a_running_map_leave_nothing_behind(tmp_path: Path) -> None:
    soak = ReloadSoak(tmp_path, n_workers=2)
    try:
        soak.save(5)
        before = soak.counts()
        soak.save(15)
        deadline = time.monotonic() + WAIT_S
        while left := [line for line in grown(before, soak.counts(), 15) if not line.startswith("rss")]:
            assert time.monotonic() < deadline, left
    finally:
        soak.close()
