"""How the bytes of a segment are written: aligned, in as few calls as the system allows, whatever their number.

Knows descriptors and buffers, and neither folders nor names; whoever writes a segment uses it.
"""

from __future__ import annotations

import os

__all__ = ["ALIGNMENT", "WRITE_MAX", "padded", "write_all", "write_zeros"]

ALIGNMENT = 64
WRITE_MAX = 1 << 30  # macOS refuses to write 2 GiB at once, Linux writes less than asked for
_PADDING = bytes(ALIGNMENT)
_ZEROS = 1 << 20  # bytes at a time: they stay in the processor's cache
_PIECES_MAX = 512  # at least this many every POSIX system's writev takes: Linux and macOS take 1024


def padded(pieces: list[memoryview]) -> list[memoryview]:
    """Return what is written: each piece, and what aligns the next one."""
    pieces_and_gaps = []
    for piece in pieces:
        pieces_and_gaps.append(piece)
        pieces_and_gaps.append(memoryview(_PADDING)[: -piece.nbytes % ALIGNMENT])
    return [piece for piece in pieces_and_gaps if piece.nbytes]


def write_all(fd: int, pieces: list[memoryview]) -> None:
    """Write these pieces one after the other."""
    first = 0
    while first < len(pieces):
        batch: list[memoryview] = []
        n_bytes = 0
        while first + len(batch) < len(pieces) and len(batch) < _PIECES_MAX and n_bytes < WRITE_MAX:
            piece = pieces[first + len(batch)][: WRITE_MAX - n_bytes]
            batch.append(piece)
            n_bytes += piece.nbytes
        n_written = os.writev(fd, batch)
        while n_written:
            n_taken = min(n_written, pieces[first].nbytes)
            n_written -= n_taken
            if n_taken == pieces[first].nbytes:
                first += 1
            else:
                pieces[first] = pieces[first][n_taken:]


def write_zeros(fd: int, nbytes: int) -> None:
    """Write so many zeros, which takes less time than having the kernel clear pages when they are first touched."""
    zeros = memoryview(bytes(min(nbytes, _ZEROS)))
    write_all(fd, [zeros[: nbytes - start] for start in range(0, nbytes, _ZEROS)])
