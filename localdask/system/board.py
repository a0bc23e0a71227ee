"""The board on which a worker's threads note what they execute, in memory that its nanny shares.

A death comes without a word; what the dead was doing stands here. The nanny makes the
board and reads it afterwards, the worker's runners write. A place holds the number of an
attempt, or 0, and is written in one piece.
"""

from __future__ import annotations

import mmap
import os
import struct

__all__ = ["SLOTS", "map_board", "open_board", "private_board", "read_board"]

#: Attempts that a board has room for: one for each thread that runs tasks.
SLOTS = 512


def open_board() -> int:
    """Return a descriptor of an empty board."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("localdask-board")
    else:
        import tempfile  # noqa: PLC0415 — 4 ms, and Linux needs none

        fd, path = tempfile.mkstemp(prefix="localdask-board-")
        os.unlink(path)
    os.ftruncate(fd, 8 * SLOTS)
    return fd


def map_board(fd: int) -> mmap.mmap:
    """Map a board, and close its descriptor."""
    board = mmap.mmap(fd, 8 * SLOTS)
    os.close(fd)
    return board


def private_board() -> memoryview:
    """Return a board that nobody else reads."""
    return memoryview(bytearray(8 * SLOTS)).cast("Q")


def read_board(board: mmap.mmap) -> tuple[int, ...]:
    """Return the attempts that execute, or did when the process died."""
    return tuple(attempt for attempt in struct.unpack(f"@{SLOTS}Q", board[:]) if attempt)
