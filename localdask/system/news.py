"""Who brings the news that something changed in a directory: the kernel, ``watchfiles``, or nobody.

Each messenger is aimed at directories, waits, and returns the names that changed in them;
``system/watcher.py`` aims it and waits on its own thread in the cluster's process. A messenger never reads a file
and never decides whether a change matters. What it may lose, it says (``None``: anything may
have changed), and what it cannot watch, it returns.
"""

from __future__ import annotations

import errno
import os
import select
import struct
import sys
import time
from collections.abc import Iterable
from typing import Any, Protocol

STEP_MS = 5

#: File systems on which other machines, or the host of this one, write without this kernel's knowing.
_SILENT = frozenset({"9p", "afs", "beegfs", "ceph", "cifs", "drvfs", "glusterfs", "gpfs", "lustre", "ncpfs"})
_SILENT |= frozenset({"nfs", "nfs4", "prl_fs", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs"})


class Messenger(Protocol):
    """Waits for changes in directories. Only the watcher's thread calls it, but for ``wake``."""

    word: str

    def aim(self, directories: list[str]) -> dict[str, OSError]:
        """Watch these directories, and no others; return those that could not be watched, and why."""

    def wait(self, timeout_s: float) -> set[tuple[str, str]] | None:
        """Return what changed, as (directory, name); None when anything may have, or a directory is not what it was."""

    def wake(self) -> None:
        """End a wait, from any thread."""

    def close(self) -> None:
        """Release everything."""


class _Bell:
    """A pipe that ends a wait from another thread."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        os.set_blocking(self.read_end, False)
        os.set_blocking(self.write_end, False)

    def ring(self) -> None:
        try:
            os.write(self.write_end, b"!")
        except BlockingIOError:
            return  # it rings already

    def silence(self) -> None:
        try:
            while os.read(self.read_end, 4096):
                continue
        except BlockingIOError:
            return

    def close(self) -> None:
        os.close(self.read_end)
        os.close(self.write_end)


class NoNews:
    """The messenger of the poller: nothing but the bell ever ends its wait."""

    word = "polling"

    def __init__(self) -> None:
        self._bell = _Bell()
        self._poll = select.poll()
        self._poll.register(self._bell.read_end, select.POLLIN)

    def aim(self, directories: list[str]) -> dict[str, OSError]:
        return {}

    def wait(self, timeout_s: float) -> set[tuple[str, str]] | None:
        if self._poll.poll(max(0.0, timeout_s) * 1000):
            self._bell.silence()
        return set()

    def wake(self) -> None:
        self._bell.ring()

    def close(self) -> None:
        self._bell.close()


class Inotify(NoNews):
    """The kernel's own news, without a helper thread and without waking for nothing."""

    word = "inotify"
    _HEADER = struct.Struct("iIII")
    _ATTRIB, _CLOSE_WRITE, _MOVED, _CREATE, _DELETE = 0x4, 0x8, 0x40 | 0x80, 0x100, 0x200
    _SELF, _ONLY_DIRECTORIES = 0x400 | 0x800, 0x01000000
    _GONE = _SELF | 0x2000 | 0x4000 | 0x8000  # deleted or moved, unmounted, overflow, no longer watched
    # A write without a close is left to the heartbeat: waiting for the close is what keeps half-written files out.
    _MASK = _ATTRIB | _CLOSE_WRITE | _MOVED | _CREATE | _DELETE | _SELF | _ONLY_DIRECTORIES

    def __init__(self) -> None:
        import ctypes  # noqa: PLC0415 - 4 ms, which only who watches pays

        self._ctypes = ctypes
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
        self._fd = self._checked(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")
        try:
            super().__init__()
        except OSError:
            os.close(self._fd)
            raise
        self._poll.register(self._fd, select.POLLIN)
        self._directories: dict[int, str] = {}

    def _checked(self, number: int, what: str) -> int:
        if number < 0:
            code = self._ctypes.get_errno()
            raise OSError(code, os.strerror(code), what)
        return number

    def aim(self, directories: list[str]) -> dict[str, OSError]:
        failed: dict[str, OSError] = {}
        aimed: dict[int, str] = {}
        for directory in directories:
            try:
                aimed[self._checked(self._libc.inotify_add_watch(self._fd, os.fsencode(directory), self._MASK), directory)] = directory
            except OSError as error:
                failed[directory] = error
        for number in self._directories.keys() - aimed.keys():
            self._libc.inotify_rm_watch(self._fd, number)
        self._directories = aimed
        return failed

    def wait(self, timeout_s: float) -> set[tuple[str, str]] | None:
        super().wait(timeout_s)
        found: set[tuple[str, str]] = set()
        is_gone = False
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return None if is_gone else found
            at = 0
            while at < len(data):
                number, mask, _, length = self._HEADER.unpack_from(data, at)
                name = data[at + 16 : at + 16 + length].rstrip(b"\0")
                at += 16 + length
                if number in self._directories:
                    found.add((self._directories[number], os.fsdecode(name)))
                # What is no longer watched because nobody wants it says so too, and is no news.
                is_gone |= bool(mask & self._GONE) and (number in self._directories or number == -1)

    def close(self) -> None:
        os.close(self._fd)
        super().close()


class WatchfilesNews:
    """News by way of ``watchfiles``: for systems without inotify."""

    word = "watchfiles"

    def __init__(self) -> None:
        from watchfiles._rust_notify import RustNotify  # noqa: PLC0415 - 37 ms

        self._make: Any = RustNotify
        self._notify: Any = None
        self._directories: list[str] = []
        self._is_woken = False
        self._deadline = 0.0

    def aim(self, directories: list[str]) -> dict[str, OSError]:
        self.close()
        self._directories = directories
        failed: dict[str, OSError] = {}
        while directories:
            try:
                # No debug output, no polling of its own, not recursive, and a directory without permission is an error.
                self._notify = self._make(directories, False, False, 300, False, False)
                return failed
            except (OSError, RuntimeError) as error:
                bad = [directory for directory in directories if not os.path.isdir(directory)] or directories
                reason = error if isinstance(error, OSError) else OSError(errno.EIO, str(error))
                failed.update(dict.fromkeys(bad, reason))
                directories = [directory for directory in directories if directory not in bad]
        return failed

    def is_set(self) -> bool:
        """What ``watchfiles`` asks at every step. Its own timeout goes by the wall clock, which may be set back."""
        return self._is_woken or time.monotonic() > self._deadline

    def wait(self, timeout_s: float) -> set[tuple[str, str]] | None:
        timeout_ms = max(1, round(timeout_s * 1000))
        self._deadline = time.monotonic() + timeout_s + 0.1
        if self._notify is None:
            while not self.is_set() and time.monotonic() < self._deadline - 0.1:
                time.sleep(min(0.02, max(0.0, timeout_s)))
            found: Any = "stop"
        else:
            found = self._notify.watch(50, min(STEP_MS, timeout_ms), timeout_ms, self)
        if found == "timeout":
            return set()
        if isinstance(found, str):
            # It forgets what it had gathered when it is stopped.
            self._is_woken = False
            return None
        places = {os.path.split(path) for _, path in found}
        return None if any(os.path.join(*place) in self._directories for place in places) else places

    def wake(self) -> None:
        self._is_woken = True

    def close(self) -> None:
        if self._notify is not None:
            self._notify.close()
            self._notify = None


def make_messenger(mode: str) -> Messenger:
    """Return who brings the news in this mode: by itself the kernel on Linux, ``watchfiles`` elsewhere."""
    if mode == "poll":
        return NoNews()
    if mode == "watchfiles" or (mode == "auto" and not sys.platform.startswith("linux")):
        return WatchfilesNews()
    return Inotify()


# ── where no news comes from ─────────────────────────────────────────────────


def is_silent(directory: str, mounts: Iterable[tuple[str, str]]) -> bool:
    """Whether changes to a directory may come without an event; ``mounts`` are (place, file system), as they were mounted."""
    best, kind = "", ""
    for place, file_system in mounts:
        is_above = place == "/" or directory == place or directory.startswith(place + "/")
        if is_above and len(place) >= len(best):
            best, kind = place, file_system
    return kind in _SILENT or kind.startswith("fuse.")


def read_mounts() -> list[tuple[str, str]]:
    """Return (place, file system) of every mount, where the kernel tells."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            rows = [line.split() for line in lines]
    except OSError:
        return []
    return [(row[4].replace("\\040", " "), row[row.index("-") + 1]) for row in rows if "-" in row]
