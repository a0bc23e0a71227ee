"""Seeded worlds of crashes, losses and reordering: every promise is kept, and nothing is left."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.driver import Driver

REGRESSIONS = [int(line.split()[0]) for line in (Path(__file__).parent / "regressions.txt").read_text().splitlines() if line.strip()]


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_two_hundred_worlds_keep_every_promise(first: int) -> None:
    for seed in range(first, first + 20):
        Driver(seed).run()


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_worlds_that_once_failed_keep_every_promise(seed: int) -> None:
    Driver(seed).run()


def test_the_same_seed_says_the_same_words_under_any_hash_seed() -> None:
    said = set()
    for hash_seed in ("0", "1", "4711"):
        answer = subprocess.run(
            [sys.executable, "-m", "tests.sim", "--seed", "7", "--worlds", "15", "--no-validate"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        said.add(re.search(r"said (\w+)", answer.stdout).group(1))
    assert len(said) == 1, said
