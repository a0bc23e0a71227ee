"""A lock whose holder cannot be interrupted half-way.

Ctrl-C raises ``KeyboardInterrupt`` in the main thread between any two instructions.
Where several structures must change together, or half a frame has been written, that
would leave them torn. While the main thread holds a ``ShieldedLock`` an interrupt is
noted, and raised as soon as the lock is let go. Used by the scheduler in the user's
process and by the clients of a worker's tasks.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

#: How long a thread waits at most before it looks up, in seconds. Python hears of an interrupt before a wait and within it, and of
#: one that comes right between the two when the wait is over.
LOOK_UP_S = 1.0

_MAIN = threading.main_thread().ident
_default_handler = signal.default_int_handler
_get_ident = threading.get_ident


#: Signals whose handlers a user may have set to raise something: an alarm, mostly.
_OTHERS = tuple(
    getattr(signal, name) for name in ("SIGALRM", "SIGVTALRM", "SIGPROF", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGCHLD")
)


class Deferral:
    """``KeyboardInterrupt`` held back in the main thread, for longer than a lock is held: it is noted, and ``on_note`` called.

    Between ``begin`` and ``end`` no other handler of the user's can raise anything either;
    where one could, ``begin`` refuses. In other threads there is nothing to hold back.
    """

    __slots__ = ("_on_note", "is_noted")

    def __init__(self, on_note: Callable[[], None]) -> None:
        self._on_note = on_note
        self.is_noted = False

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.is_noted = True
        self._on_note()

    def begin(self) -> bool:
        """Return whether from now on nothing interrupts this thread half-way."""
        if _get_ident() != _MAIN:
            return True
        if _signal.getsignal(signal.SIGINT) is not _default_handler or any(map(callable, map(_signal.getsignal, _OTHERS))):
            return False
        _signal.signal(signal.SIGINT, self._note)
        return True

    def end(self) -> None:
        """Let interrupts through again, first the one that was noted."""
        if _get_ident() == _MAIN:
            _signal.signal(signal.SIGINT, _default_handler)
        if self.is_noted:
            raise KeyboardInterrupt


class ShieldedLock:
    """A lock that knows its owner, and defers ``KeyboardInterrupt`` while the main thread holds it.

    Only Python's own SIGINT handler is held back; a handler that the user installed is
    left alone. The C functions of the signal module are called directly, because the
    Python ones cost ten times as much and this is on the path of every submit.
    """

    __slots__ = ("_is_interrupted", "_is_shielded", "_lock", "owner")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: The ident of the thread that holds the lock, or 0.
        self.owner = 0
        self._is_shielded = False
        self._is_interrupted = False

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread holds the lock."""
        return self.owner == _get_ident()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._is_interrupted = True

    def __enter__(self) -> None:
        me = _get_ident()
        if me == _MAIN and _signal.getsignal(signal.SIGINT) is _default_handler:
            _signal.signal(signal.SIGINT, self._note)
            self._lock.acquire()
            self._is_shielded = True
        else:
            self._lock.acquire()
        self.owner = me

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.owner = 0
        is_shielded, self._is_shielded = self._is_shielded, False
        self._lock.release()
        if is_shielded:
            _signal.signal(signal.SIGINT, _default_handler)
            # The note is the main thread's alone: it may come while that waits for the lock, and who holds it then must leave it.
            if self._is_interrupted:
                self._is_interrupted = False
                raise KeyboardInterrupt
