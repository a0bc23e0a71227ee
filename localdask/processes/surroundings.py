"""What a task may spoil for those after it: put back when the task is done.

A worker's process remembers its working directory, its signal handlers and its standard streams once its
preloads are set up, and again after each function that ``run`` called there, because those change them on
purpose. So a task that moves, closes or replaces one of them harms nobody but itself. Only for workers that
have a process of their own: a user's process is the user's to change.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # its functions cost a tenth of those in signal, which make enums
import fcntl
import os
import signal
import sys
from typing import Any

from localdask.system.streams import Tee

__all__ = ["Surroundings"]

#: Copies of the standard descriptors go above this, out of the way of programs that count from 3.
_SPARE_FD_MIN = 64
_FDS = (0, 1, 2)
_STREAMS = {"stdout": 1, "stderr": 2}
_SIGNALS = (int(signal.SIGTERM), int(signal.SIGINT))


class Surroundings:
    """A process's working directory, signal handlers and standard streams, as they should be.

    Parameters
    ----------
    refuge : str
        Where to go when the working directory was deleted.
    """

    def __init__(self, refuge: str = "/") -> None:
        self._refuge = refuge
        self._cwd = ""
        self._handlers: tuple[Any, ...] = ()
        self._spares: dict[int, int] = {}
        self._identities: dict[int, tuple[int, int]] = {}
        self._streams: dict[str, Any] = {}
        self.remember()

    def look(self) -> tuple[Any, ...]:
        """Return everything as it is now, to compare."""
        return (_cwd(), tuple(map(_signal.getsignal, _SIGNALS)), tuple(map(_identity, _FDS)))

    def remember(self, before: tuple[Any, ...] | None = None) -> None:
        """Take everything as it is now for what it should be; with ``before``, only what changed since."""
        cwd, handlers, identities = self.look()
        if before is None or cwd != before[0]:
            self._cwd = cwd
        if before is None or handlers != before[1]:
            self._handlers = handlers
        for fd, identity in zip(_FDS, identities, strict=True):
            if identity is None or identity == self._identities.get(fd) or (before is not None and identity == before[2][fd]):
                continue
            if fd in self._spares:
                os.close(self._spares[fd])
            self._spares[fd] = _spare(fd)
            self._identities[fd] = identity
        self._streams = {name: getattr(sys, name) for name in _STREAMS}

    def restore(self, *, with_signals: bool = True) -> bool:
        """Put back what was changed; return whether anything was. Handlers can be set in the main thread only."""
        changed = False
        found = _cwd()
        if found != self._cwd and self._cwd:
            self._go_back()
            changed = found != _cwd()
        if with_signals and tuple(map(_signal.getsignal, _SIGNALS)) != self._handlers:
            for signum, handler in zip(_SIGNALS, self._handlers, strict=True):
                signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
            changed = True
        for fd, identity in self._identities.items():
            if _identity(fd) != identity:
                os.dup2(self._spares[fd], fd)
                changed = True
        for name, fd in _STREAMS.items():
            if not _is_open(getattr(sys, name)):
                setattr(sys, name, self._opened(name, fd))
                changed = True
        return changed

    def _opened(self, name: str, fd: int) -> Any:
        """Return the remembered stream, open again if it was closed; or a new one."""
        stream = self._streams[name]
        if _is_open(stream):
            return stream
        opened = open(fd, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        if isinstance(stream, Tee):
            stream.replace(opened)
            return stream
        return opened

    def _go_back(self) -> None:
        for place in (self._cwd, self._refuge, "/"):
            try:
                os.chdir(place)
                return
            except OSError:
                continue  # deleted, or not ours to enter any more

    def close(self) -> None:
        """Let go of the copies."""
        for fd in self._spares.values():
            os.close(fd)
        self._spares.clear()
        self._identities.clear()


def _is_open(stream: Any) -> bool:
    return stream is not None and not getattr(stream, "closed", False)


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


def _spare(fd: int) -> int:
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _SPARE_FD_MIN)
    except OSError:
        return os.dup(fd)  # the process may not have so many open (ulimit -n 64)


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino
