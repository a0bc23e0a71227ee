"""Shared-memory files: where large values lie while several processes read them.

The worker that made a value publishes it; the user's process publishes what is
scattered; whoever needs it maps it. The cluster's process makes the folder, sweeps what
dead clusters left, and unlinks a key's segment when the key is released. Nothing here
counts readers: the kernel keeps the pages of an unlinked file until the last mapping goes.

A cluster's segments lie in one folder in shared memory, with a second one on disk for when
that is full. Bytes are written by ``writev``: a page that cannot be had is then an error of that call
and never a SIGBUS, and faulting fresh pages of a mapping in would take half as long again, as
would asking for all of them by ``posix_fallocate`` first. A file gets its name when it is whole, so a half-written
one is never read. A reader's mapping is private and writable: what it changes, only it sees.

The owner of a folder holds a lock on a file in it for as long as it lives. The kernel lets
go of the lock however the owner dies, so a sweep removes a folder only when it could take the
lock. A process id would prove nothing, because the next process may have it.

Any thread may use a folder: it has no state that two calls could tangle.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import resource
import stat
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias
from weakref import WeakSet

from localdask.errors import DataLostError
from localdask.system.free_segments import FreeSegments, Later
from localdask.system.segment_bytes import ALIGNMENT, WRITE_MAX, padded, write_all, write_zeros
from localdask.system.unfinished_segments import UnfinishedSegment, find_unfinished

__all__ = [
    "SegmentFolder",
    "SegmentPayload",
    "check_private",
    "find_disk_folder",
    "map_payload",
    "open_mapping",
    "result_prefix",
    "sweep_stale",
    "temporary_places",
    "views_of",
]

#: ``messages.Payload`` when it is no inline pickle: path, header, lengths of the buffers.
SegmentPayload: TypeAlias = "tuple[str, bytes, tuple[int, ...]]"
Buffer: TypeAlias = "bytes | bytearray | memoryview"

SHARED_MEMORY = "/dev/shm"
#: A larger header goes into the segment too, so that it never travels through the scheduler.
MAX_HEADER = 16 * 1024
_COMPARED = 1 << 18
_LOCK = "owner.lock"
_SPARE = "spare"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG})
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


def temporary_places() -> list[str]:
    """Return the folders for files on disk, best first (``tempfile`` would take 10 ms to import)."""
    named = [os.environ.get(name, "") for name in ("TMPDIR", "TEMP", "TMP")]
    return [os.path.abspath(place) for place in (*named, "/tmp", "/var/tmp", "/usr/tmp") if place]


def _prefix() -> str:
    return f"localdask-data-{os.getuid()}-"


def result_prefix(name: str, life: int) -> str:
    """Return how the names of the files begin that one life of a worker publishes or spills results to."""
    return f"held-{name}-{life}-"


def reserve_space(fd: int, nbytes: int) -> None:
    """Raise ``OSError`` when a file plainly cannot have so much; whatever else goes wrong is an error of the writing."""
    room = os.fstatvfs(fd)
    if room.f_blocks and room.f_bavail * room.f_frsize < nbytes:  # a file system without blocks has no limit
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class SegmentFolder:
    """One cluster's folder of segments. ``create`` makes and owns one; ``SegmentFolder(path)`` joins it from another process.

    ``tell`` is called once, with a sentence, when data goes to disk because shared memory is
    full, missing or not writable. ``reserve`` is ``reserve_space``, or a test's way to run out. With
    ``later``, which calls back after so many seconds, released segments are kept for a moment and written over.
    """

    def __init__(
        self,
        path: str,
        *,
        tell: Callable[[str], None] | None = None,
        reserve: Callable[[int, int], None] = reserve_space,
        later: Later | None = None,
    ) -> None:
        check_private(path)
        self.path = path
        self._tell = tell
        self._reserve = reserve
        self._owner_pid = 0
        self._lock_fds: list[int] = []
        self._free = FreeSegments(path, later)
        try:
            self._spare = os.readlink(os.path.join(path, _SPARE))
        except OSError:  # this one is on disk itself
            self._spare = ""

    @classmethod
    def create(
        cls,
        *,
        tell: Callable[[str], None] | None = None,
        reserve: Callable[[int, int], None] = reserve_space,
        shared_memory: str = SHARED_MEMORY,
        places: Sequence[str] | None = None,
        later: Later | None = None,
    ) -> SegmentFolder:
        """Make a new folder and own it until ``close``."""
        places = temporary_places() if places is None else places
        locks: list[int] = []
        made: list[str] = []
        try:
            spare, path, told = _make_both(shared_memory, places, made, locks)
            if spare:
                os.symlink(spare, os.path.join(path, _SPARE))
            folder = cls(path, tell=tell, reserve=reserve, later=later if spare else None)
        except BaseException:
            for place in made:
                _remove(place)
            for fd in locks:
                os.close(fd)
            raise
        folder._owner_pid = os.getpid()
        folder._lock_fds = locks
        if told:
            folder._tell_once(told)
        return folder

    def publish(self, header: bytes, buffers: Sequence[Buffer], *, on_disk: bool = False, prefix: str = "") -> SegmentPayload:
        """Write a value where other processes can map it, in a file whose name begins so; raise ``OSError`` when there is room nowhere."""
        in_file = [memoryview(buffer).cast("B") for buffer in buffers]
        if len(header) > MAX_HEADER:
            in_file.insert(0, memoryview(header))
            header = b""  # no pickle is empty, so this says where it went
        lengths = tuple(piece.nbytes for piece in in_file)
        unfinished = find_unfinished(in_file[0]) if len(in_file) == 1 and header and not on_disk else None
        if unfinished is not None:
            path = self._new_path(prefix)
            if unfinished.finish(path):
                return (path, header, lengths)
        folders = [self._spare] if on_disk and self._spare else [self.path, self._spare]
        for folder in filter(None, folders):
            try:
                return (self._write(folder, in_file, prefix), header, lengths)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                full = error
            if folder == self.path and self._spare and full.errno != errno.EFBIG:
                self._tell_once(f"{os.path.dirname(self.path)} is full; large data goes to {self._spare}, which is slower")
        if full.errno == errno.EFBIG:
            text = f"no file of {sum(lengths)} bytes may be written; raise the limit on files (`ulimit -f`)"
            raise OSError(full.errno, text) from full
        text = f"no room for {sum(lengths)} bytes in {' or '.join(filter(None, folders))}"
        raise OSError(full.errno, f"{text}; free some space, or set TMPDIR to a larger disk") from full

    def begin(self, nbytes: int, prefix: str = "") -> UnfinishedSegment | None:
        """Return memory that ``publish`` will not have to copy, or None where that is not to be had."""
        if not self._spare or not hasattr(mmap, "MAP_POPULATE") or not _may_hold_another():  # on disk, or not on Linux
            return None
        path = f"{self._new_path(prefix)}.part"
        size = nbytes + -nbytes % ALIGNMENT
        fd = -1
        try:
            fd = self._open(path, size)
            missing = size - os.lseek(fd, 0, os.SEEK_END)
            self._make_room(fd, missing)
            write_zeros(fd, missing)  # an array that meets a page that cannot be had would be a SIGBUS
            segment = UnfinishedSegment(fd, nbytes, path)
        except BaseException as error:
            if fd >= 0:
                os.close(fd)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
            if isinstance(error, OSError):  # no room, or the cluster is closed
                return None
            raise
        if sys.version_info < (3, 13):
            _mapped.add(segment)
        return segment

    def _new_path(self, prefix: str, folder: str = "") -> str:
        return os.path.join(folder or self.path, prefix + os.urandom(8).hex())

    def _open(self, path: str, nbytes: int) -> int:
        """Return the descriptor of a file to be written, which may have old bytes in it."""
        fd = self._free.take(nbytes, path) if os.path.dirname(path) == self.path else -1
        return fd if fd >= 0 else os.open(path, _CREATE, 0o600)

    def _tell_once(self, text: str) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(text)

    def _write(self, folder: str, pieces: list[memoryview], prefix: str) -> str:
        path = self._new_path(prefix, folder)
        unfinished = f"{path}.part"
        pieces = padded(pieces)
        nbytes = sum(piece.nbytes for piece in pieces)
        fd = self._open(unfinished, nbytes)
        try:
            if nbytes:
                self._make_room(fd, nbytes - os.fstat(fd).st_size)
                write_all(fd, pieces)
            os.rename(unfinished, path)
        except BaseException:
            for left in (unfinished, path):  # an interrupt may come right after the renaming
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(left)
            raise
        finally:
            os.close(fd)
        return path

    def _make_room(self, fd: int, nbytes: int) -> None:
        try:
            self._reserve(fd, nbytes)
        except OSError:
            if not self._free.drain():
                raise
            self._reserve(fd, nbytes)

    def unlink(self, path: str) -> None:
        """Remove a segment; who has it mapped keeps it. One that is gone already is fine."""
        folder = os.path.dirname(path)
        if folder not in (self.path, self._spare):
            raise ValueError(f"{path} is no segment of {self.path}")
        with contextlib.suppress(FileNotFoundError):
            if folder != self.path or not self._free.keep(path):
                os.unlink(path)

    def sweep(self, prefix: str, kept: Callable[[], set[str]]) -> None:
        """Remove the files whose names begin so, but those that ``kept`` returns; it is asked only if there are any."""
        folders = filter(None, (self.path, self._spare))
        names = [(folder, name) for folder in folders for name in os.listdir(folder) if name.startswith(prefix)]
        # What follows a prefix has no dash: else the files of a worker "a-1" would pass for those of the first life of "a".
        paths = [os.path.join(folder, name) for folder, name in names if "-" not in name[len(prefix) :]]
        for path in set(paths) - kept() if paths else ():
            self.unlink(path)

    def close(self) -> None:
        """Remove the folder and all that is in it, if this process made it; otherwise do nothing."""
        locks, self._lock_fds = self._lock_fds, []
        if self._owner_pid == os.getpid():  # a forked copy of the owner lets go of the lock and no more
            self._free.close()
            for place in filter(None, (self._spare, self.path)):
                _remove(place)
        for fd in locks:
            os.close(fd)

    def __enter__(self) -> SegmentFolder:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


# ── folders ──────────────────────────────────────────────────────────────────


def _make_both(shared_memory: str, places: Sequence[str], made: list[str], locks: list[int]) -> tuple[str, str, str]:
    """Return the folder on disk (or ""), the one to use first, and what to tell about it."""
    try:
        spare = _make_anywhere(places, made, locks)
    except OSError:
        spare = ""
    try:
        return spare, _make_anywhere([shared_memory], made, locks), ""
    except OSError as error:
        if not spare:
            text = f"no folder for large data could be made in {shared_memory} or in any of {', '.join(places)}"
            raise OSError(error.errno, f"{text}; set TMPDIR to a writable one") from error
        told = f"{shared_memory} cannot be used ({error.strerror}); large data goes to {spare}, which is slower"
        return "", spare, told if sys.platform == "linux" else ""  # elsewhere nobody expects shared memory


def _make_anywhere(places: Sequence[str], made: list[str], locks: list[int]) -> str:
    error = OSError(errno.ENOENT, "no place was named")
    for place in places:
        try:
            path, fd = _make(place)
        except OSError as failure:
            error = failure
            continue
        made.append(path)
        locks.append(fd)
        return path
    raise error


def _make(place: str) -> tuple[str, int]:
    """Make a locked folder and return its path and the lock's descriptor."""
    for _ in range(100):
        path = os.path.join(place, _prefix() + os.urandom(6).hex())
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            continue
        fd = -1
        try:
            fd = os.open(os.path.join(path, _LOCK), _CREATE, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.stat(os.path.join(path, _LOCK))  # a sweep may have come between: then begin again
        except (BlockingIOError, FileNotFoundError):
            if fd >= 0:
                os.close(fd)
            continue
        except OSError:
            if fd >= 0:
                os.close(fd)
            _remove(path)
            raise
        return path, fd
    raise OSError(errno.EEXIST, f"no new folder could be made in {place}")


def find_disk_folder(path: str) -> str:
    """Return the part on disk of a folder of segments: a place for other files that go with the cluster."""
    try:
        return os.readlink(os.path.join(path, _SPARE))
    except OSError:  # it is on disk itself
        return path


def check_private(path: str) -> None:
    """Refuse a folder that another user could have made or could write to."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{path} is not a private folder of this user (it must be a directory, owned by you, mode 0700)")


def _remove(path: str) -> None:
    """Remove a folder, the lock file last; what others remove meanwhile is fine."""
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return
    for name in (*(name for name in names if name != _LOCK), _LOCK):
        try:
            os.unlink(os.path.join(path, name))
        except FileNotFoundError:
            continue
        except (IsADirectoryError, PermissionError):  # a killed worker's own folder
            import shutil  # noqa: PLC0415 - 4 ms, and rarely needed

            shutil.rmtree(os.path.join(path, name), ignore_errors=True)
    try:
        os.rmdir(path)
    except OSError as error:  # a worker on its way out has written another file: the next sweep has it
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise


def sweep_stale(places: Sequence[str] | None = None) -> list[str]:
    """Remove this user's folders whose owners are dead, and return their paths."""
    removed = []
    prefix = _prefix()
    for place in dict.fromkeys((SHARED_MEMORY, *temporary_places()) if places is None else places):
        try:
            names = sorted(os.listdir(place))
        except OSError:  # no such place here, or not ours to see
            continue
        for name in names:
            path = os.path.join(place, name)
            if name.startswith(prefix) and _sweep(path):
                removed.append(path)
    return removed


def _sweep(path: str) -> bool:
    try:
        check_private(path)
    except OSError:
        return False
    try:
        fd = os.open(os.path.join(path, _LOCK), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        # Its maker died, or is about to make the lock file; an empty folder may go, because makers begin again.
        try:
            os.rmdir(path)
        except OSError:
            return False
        return True
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)
    except OSError:  # held: the owner lives
        return False
    finally:
        os.close(fd)
    return True


# ── bytes ────────────────────────────────────────────────────────────────────


#: The mappings that hold a descriptor, which Python does before 3.13 for as long as the memory is used.
_mapped: WeakSet[mmap.mmap] = WeakSet()


def map_payload(payload: SegmentPayload) -> tuple[Buffer, list[memoryview]]:
    """Return a segment's header and buffers, which are writable and this reader's own.

    Raises ``FileNotFoundError`` when the segment was unlinked, and ``DataLostError`` when it is shorter than its payload says.
    """
    return views_of(payload, memoryview(open_mapping(payload)))


def open_mapping(payload: SegmentPayload) -> mmap.mmap | bytearray:
    """Map a segment privately, if it is not empty; raises as ``map_payload`` does."""
    path, _, lengths = payload
    nbytes = sum(length + -length % ALIGNMENT for length in lengths)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if os.fstat(fd).st_size < nbytes:  # touching what is not there would be a SIGBUS
            raise DataLostError(f"{path} has {os.fstat(fd).st_size} bytes where {nbytes} were published; publish the value again")
        return _map(fd, nbytes) if nbytes else bytearray()
    finally:
        os.close(fd)


def views_of(payload: SegmentPayload, whole: memoryview) -> tuple[Buffer, list[memoryview]]:
    """Return the header and the buffers of a segment that is mapped as a whole."""
    _, header, lengths = payload
    views, start = [], 0
    for length in lengths:
        views.append(whole[start : start + length])
        start += length + -length % ALIGNMENT
    return (header, views) if header else (views[0], views[1:])


def holds(payload: SegmentPayload, header: bytes, buffers: Sequence[Buffer]) -> bool:
    """Whether a segment holds this very value, byte for byte; not when it is gone."""
    path, kept_header, lengths = payload
    pieces = [memoryview(buffer).cast("B") for buffer in buffers]
    if not kept_header:
        pieces.insert(0, memoryview(header))
    elif kept_header != header:
        return False
    if lengths != tuple(piece.nbytes for piece in pieces):
        return False
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        start = 0
        for piece in pieces:
            if not _has_at(fd, start, piece):
                return False
            start += piece.nbytes + -piece.nbytes % ALIGNMENT
        return True
    finally:
        os.close(fd)


def _has_at(fd: int, start: int, piece: memoryview) -> bool:
    """Compare by what fits a processor's cache; mapping the file would take its pages in one by one."""
    read = bytearray(_COMPARED)
    for done in range(0, piece.nbytes, _COMPARED):
        wanted = piece[done : done + _COMPARED]
        n_read = os.preadv(fd, [memoryview(read)[: wanted.nbytes]], start + done)
        if n_read != wanted.nbytes or not read.startswith(wanted):
            return False
    return True


def _may_hold_another() -> bool:
    """Whether there are descriptors to spare for one more mapping."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return limit == resource.RLIM_INFINITY or len(_mapped) < limit // 4


def _map(fd: int, nbytes: int) -> mmap.mmap:
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, nbytes, access=mmap.ACCESS_COPY, trackfd=False)
    if not _may_hold_another():
        return _copied(fd, nbytes)  # the descriptors that are left are needed elsewhere
    mapped = mmap.mmap(fd, nbytes, access=mmap.ACCESS_COPY)
    _mapped.add(mapped)
    return mapped


def _copied(fd: int, nbytes: int) -> mmap.mmap:
    copy = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view, start = memoryview(copy), 0
    while start < nbytes:
        n_read = os.readv(fd, [view[start : start + WRITE_MAX]])
        if not n_read:
            raise DataLostError(f"a segment ended after {start} of {nbytes} bytes; publish the value again")
        start += n_read
    return copy
