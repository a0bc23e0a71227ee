"""The board on which a worker's threads note what they execute, in memory that its nanny shares.

A death comes without a word; what the dead was doing stands here. The nanny makes the
board and reads it afterwards, the worker's runners write. A place holds the number of an
attempt, or 0, and is written in one piece.

One more place is the nanny's: there it notes that it looks at the worker no more until it is told that there is work.
"""

from __future__ import annotations

import mmap
import os
import struct

__all__ = ["SLOTS", "map_board", "note_unwatched", "open_board", "private_board", "read_board"]

#: Attempts that a board has room for: one for each thread that runs tasks.
SLOTS = 512
_NBYTES = 8 * (SLOTS + 1)


def open_board() -> int:
    """Return a descriptor of an empty board."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("localdask-board")
    else:
        import tempfile  # noqa: PLC0415 — 4 ms, and Linux needs none

        fd, path = tempfile.mkstemp(prefix="localdask-board-")
        os.unlink(path)
    os.ftruncate(fd, _NBYTES)
    return fd


def map_board(fd: int) -> mmap.mmap:
    """Map a board, and close its descriptor."""
    board = mmap.mmap(fd, _NBYTES)
    os.close(fd)
    return board


def private_board() -> memoryview:
    """Return a board that nobody else reads."""
    return memoryview(bytearray(_NBYTES)).cast("Q")


def read_board(board: mmap.mmap) -> tuple[int, ...]:
    """Return the attempts that execute, or did when the process died."""
    return tuple(attempt for attempt in struct.unpack_from(f"@{SLOTS}Q", board) if attempt)


def note_unwatched(board: mmap.mmap, is_unwatched: bool) -> None:
    """Note whether the worker is to tell its nanny of work; the worker finds it in place ``SLOTS``."""
    struct.pack_into("@Q", board, 8 * SLOTS, is_unwatched)
