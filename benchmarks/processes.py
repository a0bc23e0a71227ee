"""What Linux says about the processes of a sample: who they are, their memory, their processor time.

Reads /proc itself: a library for it would be weighed together with the system that
is measured. Elsewhere than on Linux the rows that need it have no value.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")


def parents() -> dict[int, int]:
    """Return the parent of each living process."""
    found = {}
    for entry in os.listdir(PROC):
        if entry.isdigit():
            try:
                state, parent = (PROC / entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state not in "ZX":
                found[int(entry)] = int(parent)
    return found


def descendants(root: int | None = None) -> set[int]:
    """Return the living processes below one (below this one), zombies left out."""
    children = defaultdict(list)
    for pid, parent in parents().items():
        children[parent].append(pid)
    found: set[int] = set()
    waiting = [root or os.getpid()]
    while waiting:
        for child in children[waiting.pop()]:
            found.add(child)
            waiting.append(child)
    return found


def children() -> set[int]:
    """Return this process's own children."""
    return {pid for pid, parent in parents().items() if parent == os.getpid()}


def command_of(pid: int) -> str:
    try:
        return (PROC / str(pid) / "cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def pss_mb(pids: Iterable[int]) -> float:
    """Return the memory of these processes; pages that several share are counted once."""
    total = 0
    for pid in pids:
        try:
            lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def cpu_s(pids: Iterable[int]) -> float:
    """Return the processor time of these processes so far, all threads, in nanosecond steps."""
    total = 0
    for pid in pids:
        for thread in (PROC / str(pid) / "task").glob("*/schedstat"):
            try:
                total += int(thread.read_text().split()[0])
            except OSError:
                continue
    return total / 1e9


def wait_until_gone(pids: Iterable[int], timeout_s: float = 30.0) -> None:
    """Return when none of these processes runs any more."""
    deadline = time.monotonic() + timeout_s
    left = set(pids)
    while left and time.monotonic() < deadline:
        left &= set(parents())
        time.sleep(0.0005)
    if left:
        raise TimeoutError(f"still there after {timeout_s} s: {[command_of(pid) for pid in left]}")
