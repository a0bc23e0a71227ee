"""What Linux says about the processes of a sample: who they are, their memory, their processor time.

Reads /proc itself: a library for it would be weighed together with the system that
is measured. Elsewhere than on Linux the rows that need it have no value.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")
SHARED_MEMORY = Path("/dev/shm")


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


def memory_mb(root: int) -> float:
    """Return the memory of a process and all below it, with the whole of what they keep in shared memory, mapped just now or not."""
    pids = {root, *descendants(root)}
    mapped, copied = _mappings(pids)
    sizes = _sizes_of_shared_files(pids)
    # A file's share would come out too large while another process begins to read it.
    kb = (sizes[inode] + copied[inode] if inode in sizes else mapped[inode] for inode in {*mapped, *sizes})
    return sum(kb) / 1024


def _mappings(pids: Iterable[int]) -> tuple[dict[int, int], dict[int, int]]:
    """Return the kB mapped, and those of them that are private copies, by the file's inode in shared memory; 0 is all else."""
    mapped: defaultdict[int, int] = defaultdict(int)
    copied: defaultdict[int, int] = defaultdict(int)
    inode = 0
    for pid in pids:
        with contextlib.suppress(OSError), (PROC / str(pid) / "smaps").open() as lines:
            for line in lines:
                words = line.split(maxsplit=5)
                if words[0] == "Pss:":
                    mapped[inode] += int(words[1])
                elif words[0] == "Anonymous:":
                    copied[inode] += int(words[1])
                elif not words[0].endswith(":"):  # a mapping begins: addresses, rights, offset, device, inode, path
                    inode = int(words[4]) if words[-1].startswith(str(SHARED_MEMORY)) else 0
    return mapped, copied


def _sizes_of_shared_files(pids: Iterable[int]) -> dict[int, int]:
    """Return the kB of each file in shared memory that these have open, or that lies in a folder where they have one open."""
    paths: set[Path] = set()
    for pid in pids:
        for link in (PROC / str(pid) / "fd").glob("*"):
            with contextlib.suppress(OSError):
                path = Path(os.readlink(link))
                if SHARED_MEMORY in path.parents:
                    paths |= {link, *(SHARED_MEMORY / path.relative_to(SHARED_MEMORY).parts[0]).rglob("*")}
    sizes = {}
    for path in paths:
        with contextlib.suppress(OSError):
            status = path.stat()
            sizes[status.st_ino] = status.st_blocks // 2
    return sizes


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
