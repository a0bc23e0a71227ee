"""Segments that are filled in place: memory of a file that nobody else reads before it is published.

Whoever fills one maps its file shared, so that what is written lands in the pages that others will
read. Publishing it gives the file its name and copies nothing. What was published must not
change any more, though its maker may go on writing to its array. So before the file has its name, a
private mapping of it takes the place of the shared one, at the same address: the kernel swaps them in
one step, and from then on copies each page that the maker changes, as it does for every reader.

A forked child gets private mappings too, or else it would write into what its parent publishes.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
from weakref import WeakSet

__all__ = ["UnfinishedSegment", "find_unfinished"]

_MREMAP_MAYMOVE_FIXED = 1 | 2
_PRIVATE = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0)
_SHARED = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # page by page, as they are touched, takes four times as long
#: An array leads to its segment in so many steps at most: numpy keeps no longer chains of bases.
_STEPS = 3

_unfinished: WeakSet[UnfinishedSegment] = WeakSet()
#: Held while a segment is finished, and over a fork: the child sees each either shared or private.
_finishing = threading.RLock()


class UnfinishedSegment(mmap.mmap):
    """The memory of a file that it was given the descriptor and the path of; both go with it, unless it is finished."""

    _fd = -1
    _path = ""

    def __new__(cls, fd: int, nbytes: int, path: str) -> UnfinishedSegment:
        """Map a file of at least this size, with room for all of it."""
        if sys.version_info >= (3, 13):
            segment = super().__new__(cls, fd, nbytes, flags=_SHARED, trackfd=False)
        else:
            segment = super().__new__(cls, fd, nbytes, flags=_SHARED)
        segment._fd, segment._path = fd, path
        _unfinished.add(segment)
        return segment

    def finish(self, path: str) -> bool:
        """Let go of the file as it is now, under this name; return False when that was done before."""
        with _finishing:
            if not self._path:
                return False
            self._become_private()
            unfinished, self._path = self._path, ""
            try:
                os.rename(unfinished, path)
            except BaseException:  # what the maker changes now does not reach the file: nothing may be published of it any more
                for left in (unfinished, path):
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(left)
                raise
            finally:
                self._close()
        return True

    def _become_private(self) -> None:
        """Map the file privately where it was mapped shared, so that what is changed here from now on stays here."""
        import ctypes  # noqa: PLC0415 - 4 ms, which only large arrays pay

        libc = ctypes.CDLL(None, use_errno=True)
        for call in (libc.mmap, libc.mremap):
            call.restype = ctypes.c_void_p
        size, word, address = ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p
        libc.mmap.argtypes = [address, size, word, word, word, ctypes.c_long]
        libc.mremap.argtypes = [address, size, size, word, address]
        failed = ctypes.c_void_p(-1).value
        here = ctypes.addressof(ctypes.c_char.from_buffer(self))
        # Elsewhere first: if there is no memory for it, the array is as it was.
        private = libc.mmap(None, len(self), mmap.PROT_READ | mmap.PROT_WRITE, _PRIVATE, self._fd, 0)
        if private == failed or libc.mremap(private, len(self), len(self), _MREMAP_MAYMOVE_FIXED, here) == failed:
            error = ctypes.get_errno()
            raise OSError(error, f"an array of {len(self)} bytes cannot be mapped privately: {os.strerror(error)}")

    def become_a_childs(self) -> None:
        """Leave the file to the parent, in a forked child."""
        if self._path:
            self._become_private()
            self._path = ""
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        os.close(fd)

    def __del__(self) -> None:
        """Remove the file, which nobody will read any more."""
        if self._path:
            with contextlib.suppress(FileNotFoundError):  # the cluster was closed
                os.unlink(self._path)
            self._close()


def find_unfinished(buffer: memoryview) -> UnfinishedSegment | None:
    """Return the segment that is filled in place and of which these are all the bytes, or None."""
    owner = buffer.obj if _unfinished else None
    for _ in range(_STEPS):
        if isinstance(owner, UnfinishedSegment):
            return owner if buffer.nbytes == len(owner) else None
        owner = getattr(owner, "base", None)
    return None


def _begin_child() -> None:
    try:
        for segment in list(_unfinished):
            segment.become_a_childs()
    finally:
        _finishing.release()


os.register_at_fork(before=_finishing.acquire, after_in_parent=_finishing.release, after_in_child=_begin_child)
