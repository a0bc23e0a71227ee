"""Every planted fault turns some test of the state machine red."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.planted.faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]

JUDGES = (
    [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/state/test_tasks.py", "tests/state/test_interrupts.py"],
    [sys.executable, "-m", "tests.sim", "-x", "--seed", "0", "--worlds", "60"],
    [sys.executable, "-m", "tests.sim", "-x", "--seed", "1000", "--worlds", "250"],
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_caught(fault: Fault, tmp_path: Path) -> None:
    for folder in ("localdask", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder)  # what is compiled already stays valid, but for the room with the fault
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    room = tmp_path / "localdask" / fault.room
    text = room.read_text()
    assert text.count(fault.old) == 1, f"the line of {fault.name!r} stands {text.count(fault.old)} times in {fault.room}"
    room.write_text(text.replace(fault.old, fault.new))
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    for judge in JUDGES:
        try:
            if subprocess.run(judge, cwd=tmp_path, env=environ, capture_output=True, timeout=40).returncode:
                return
        except subprocess.TimeoutExpired:
            return  # it went round in circles for ever: that is noticed too
    pytest.fail(f"nobody noticed that {fault.name}")
