"""Segments that were released a moment ago, kept so that the next large value is written over their pages.

What a fresh file in shared memory costs is its pages: the kernel finds, clears and accounts for
each, and takes it back in the end. Writing over pages that are there takes a third of the
time. A program that gives or returns large arrays again and again therefore uses the same few files.

A file is written over only when it is proven that nobody reads it any more, because a mapping outlives
the name that it was made by. The proof is a lease: the kernel grants one for writing only while no
other open file, and so no mapping, of the file exists in any process. Where there are no leases,
as on macOS, nothing is kept. Who opened the file by its old name just before it was kept is
seen in the same way.

The owner of a folder of segments keeps and expires; whoever publishes there takes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable

__all__ = ["FreeSegments"]

#: For how long a released segment is kept, in seconds: memory that nobody asks for goes back soon.
KEPT_S = 1.0
#: Smaller ones are not kept, in bytes: a fresh file costs less than the looking.
KEPT_MIN = 256 << 10
#: How much is kept at most, in bytes, in files, and as one part in so many of the file system.
KEPT_MAX = 256 << 20
KEPT_FILES_MAX = 256
KEPT_PART = 16
#: A file that is larger than what is to be written by more than this factor is left to others.
TOO_LARGE = 4

Later = Callable[[float, Callable[[], None]], None]


class FreeSegments:
    """The released segments of one folder. ``later(seconds, callback)`` makes it the owner's, which keeps."""

    def __init__(self, folder: str, later: Later | None = None) -> None:
        self._folder = os.path.join(folder, "free")
        self._later = later
        self._ages: dict[str, float] = {}

    def keep(self, path: str) -> bool:
        """Take a released segment in and return True, or return False when it is to be removed. It may be gone already."""
        if self._later is None or not hasattr(fcntl, "F_SETLEASE"):
            return False
        found = os.lstat(path)
        if found.st_size < KEPT_MIN:
            return False
        room = os.statvfs(path)
        listed = self._listed()
        kept = sum(size for size, _name in listed)
        if len(listed) >= KEPT_FILES_MAX or kept + found.st_size > min(KEPT_MAX, room.f_blocks * room.f_frsize // KEPT_PART):
            return False
        with contextlib.suppress(FileExistsError):
            os.mkdir(self._folder, 0o700)
        name = f"{found.st_size}-{os.path.basename(path)}"
        os.rename(path, os.path.join(self._folder, name))
        self._ages[name] = time.monotonic()
        self._later(KEPT_S, self._expire)
        return True

    def _expire(self) -> None:
        oldest = time.monotonic() - KEPT_S
        for name in [name for name, kept_at in self._ages.items() if kept_at <= oldest]:
            del self._ages[name]
            self._remove(name)

    def take(self, nbytes: int, path: str) -> int:
        """Move a file of about this size to ``path`` and return its descriptor, open for writing; or -1 when there is none."""
        if nbytes < KEPT_MIN:
            return -1
        listed = [(size, name) for size, name in self._listed() if size <= TOO_LARGE * nbytes]
        # The smallest that has room for it all; failing that, the largest.
        for size, name in sorted(listed, key=lambda entry: (entry[0] < nbytes, abs(entry[0] - nbytes))):
            try:
                os.rename(os.path.join(self._folder, name), path)
            except FileNotFoundError:  # somebody else has it, or its time was over
                continue
            try:
                fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:  # no descriptor is left
                os.unlink(path)
                raise
            if _is_unread(fd):
                if size > nbytes:
                    os.ftruncate(fd, nbytes)
                return fd
            os.close(fd)
            os.unlink(path)
        return -1

    def drain(self) -> bool:
        """Remove all that is kept, because its room is needed; return whether there was any."""
        return any([self._remove(name) for _size, name in self._listed()])

    def close(self) -> None:
        """Remove it all, for the owner."""
        self.drain()
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)

    def _listed(self) -> list[tuple[int, str]]:
        try:
            names = os.listdir(self._folder)
        except OSError:  # there is none on disk, and none any more once the cluster is closed
            return []
        return [(int(name.partition("-")[0]), name) for name in names]

    def _remove(self, name: str) -> bool:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._folder, name))
            return True
        return False


def _is_unread(fd: int) -> bool:
    """Whether this descriptor is all that is open of its file, in any process: neither another one nor a mapping."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:  # it is read, or leases are not to be had here
        return False
    return True
