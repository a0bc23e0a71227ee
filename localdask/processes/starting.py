"""How long the hooks of a worker or nanny may take, and word of them to whoever waits for its start.

A start may take as long as all its bodies and hooks together, of which only the process
itself knows how many there are. So each one that begins while the start takes a while is
told upwards, with its limit. A start that is over in a moment says nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from localdask.messages import BootGoesOn
from localdask.sizing import SETUP_S, TEARDOWN_S

__all__ = ["hook_limits"]

#: A start that takes longer is told of.
QUIET_S = 1.0


def hook_limits(service: Any, settings: Mapping[str, Any], say: Callable[[BootGoesOn], None]) -> dict[str, Any]:
    """Return what ``Preloads`` and ``Plugins`` of a service are given: their limits, and whom to tell of a hook that begins."""
    born = time.monotonic()

    def hook_begins(limit_s: float) -> None:
        if service.status == "init" and time.monotonic() - born > QUIET_S:
            say(BootGoesOn(limit_s))

    return {
        "setup_s": settings.get("setup_timeout_s") or SETUP_S,
        "teardown_s": settings.get("teardown_timeout_s") or TEARDOWN_S,
        "on_hook": hook_begins,
    }
