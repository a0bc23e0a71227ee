"""The one place that waits: descriptors, timers, words from other threads, and signals.

Every process of a cluster runs one of these (in the user's process, the I/O thread
does). The launcher, nannies, workers and the scheduler's shell register callbacks and
call ``run``. It never knows what a descriptor means, never starts a thread, never
looks at the wall clock, and while nothing happens it takes no processor time.

How another thread, a signal handler or a ``__del__`` wakes the loop: it appends to a
deque and, when nobody has signalled yet, sets a flag and writes one byte to a pipe.
There is no lock, because the code that is interrupted might hold it. The loop reads
the pipe *first*, clears the flag *second* and empties the deque *last*. In this order
a word that came between any two of these steps is either emptied now or writes a
byte of its own; in any other order it could lie there unseen.
"""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeAlias

__all__ = ["Loop", "Timer"]

Callback: TypeAlias = Callable[[], object]

_READ = selectors.EVENT_READ
_WRITE = selectors.EVENT_WRITE
#: As many wake-up bytes as one read takes; there are more than a few only after many signals.
_WAKE_BYTES = 4096
#: Cancelled timers are swept out of the heap when there are more than this many, and they are the majority.
_CANCELLED_MAX = 64


class Timer:
    """A callback at a time; ``cancel`` makes it never happen."""

    __slots__ = ("_callback", "_loop", "when")

    def __init__(self, when: float, callback: Callback, loop: Loop) -> None:
        self.when = when
        self._callback: Callback | None = callback
        self._loop = loop

    def cancel(self) -> None:
        """Forget the callback; harmless when it already ran or was cancelled."""
        if self._callback is not None:
            self._callback = None
            self._loop._note_cancelled()

    def take(self) -> Callback | None:
        """Return the callback and forget it; None when the timer was cancelled."""
        callback, self._callback = self._callback, None
        return callback

    @property
    def is_cancelled(self) -> bool:
        """Whether the callback will not be called any more."""
        return self._callback is None


class _Watch:
    """What to call for one descriptor. Emptied on removal, so that an event already collected calls nobody."""

    __slots__ = ("reader", "writer")

    def __init__(self) -> None:
        self.reader: Callback | None = None
        self.writer: Callback | None = None

    def events(self) -> int:
        return (_READ if self.reader is not None else 0) | (_WRITE if self.writer is not None else 0)


class _WakeEnd:
    """The writing end of the self-pipe, closed when its last user has let go.

    A thread that is just waking the loop while another closes it holds a reference;
    so its byte can never reach a stranger that was given the same number.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


def _tell(error: BaseException) -> None:
    """Print the traceback to stderr and go on; what means to end the process, ends ``run``."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        raise error
    sys.__excepthook__(type(error), error, error.__traceback__)


class Loop:
    """A single-threaded loop over descriptors, timers and signals.

    All methods belong to the thread that runs the loop, but for ``call_soon_threadsafe``,
    ``wake`` and ``stop``, which any thread, signal handler or ``__del__`` may call at any
    time, also after ``close``.

    Parameters
    ----------
    on_error : callable
        Called with what a callback raised. The loop goes on, unless ``on_error`` raises:
        that ends ``run`` and nothing that was registered is lost. By default the traceback
        is printed to stderr, and KeyboardInterrupt and SystemExit are raised again.

    Attributes
    ----------
    before_wait : list of callables
        Called before each wait, in order; for instance to flush what was posted.
    """

    def __init__(self, on_error: Callable[[BaseException], None] = _tell) -> None:
        self.before_wait: list[Callback] = []
        self._on_error = on_error
        self._selector = selectors.DefaultSelector()
        self._watches: dict[int, _Watch] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._n_cancelled = 0
        self._soon: deque[Callback] = deque()
        self._is_stopping = False
        self._replaced: dict[int, Any] = {}
        self._replaced_wakeup_fd = -1
        self._wake_reader, writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(writer, False)
        self._wake_end: _WakeEnd | None = _WakeEnd(writer)
        self._is_signalled = False
        self.add_reader(self._wake_reader, self._drain)

    # ── descriptors ──────────────────────────────────────────────────────────

    def add_reader(self, fd: int, callback: Callback) -> None:
        """Call back whenever ``fd`` can be read, or is at its end; a second callback replaces the first."""
        self._watch(fd).reader = callback
        self._register(fd)

    def add_writer(self, fd: int, callback: Callback) -> None:
        """Call back whenever ``fd`` takes bytes; a second callback replaces the first."""
        self._watch(fd).writer = callback
        self._register(fd)

    def remove_reader(self, fd: int) -> None:
        """Stop watching for something to read; to be called before ``fd`` is closed, harmless when it was not watched."""
        watch = self._watches.get(fd)
        if watch is not None:
            watch.reader = None
            self._register(fd)

    def remove_writer(self, fd: int) -> None:
        """Stop watching for room to write; to be called before ``fd`` is closed, harmless when it was not watched."""
        watch = self._watches.get(fd)
        if watch is not None:
            watch.writer = None
            self._register(fd)

    def _watch(self, fd: int) -> _Watch:
        watch = self._watches.get(fd)
        if watch is None:
            watch = self._watches[fd] = _Watch()
        return watch

    def _register(self, fd: int) -> None:
        """Tell the selector what the watch of ``fd`` wants now."""
        watch = self._watches[fd]
        events = watch.events()
        known = self._selector.get_map().get(fd)
        try:
            if not events:
                del self._watches[fd]
                if known is not None:
                    self._selector.unregister(fd)
            elif known is None:
                self._selector.register(fd, events, watch)
            elif known.events != events:
                self._selector.modify(fd, events, watch)
        except BaseException:
            self._watches.pop(fd, None)
            raise

    # ── timers ───────────────────────────────────────────────────────────────

    def call_at(self, when: float, callback: Callback) -> Timer:
        """Call back once ``time.monotonic()`` has reached ``when``; those due together go by time, then by order."""
        timer = Timer(when, callback, self)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def _note_cancelled(self) -> None:
        self._n_cancelled += 1
        if self._n_cancelled > max(_CANCELLED_MAX, len(self._timers) // 2):
            self._timers = [entry for entry in self._timers if not entry[2].is_cancelled]
            heapq.heapify(self._timers)
            self._n_cancelled = 0

    def _wait_s(self, timeout_s: float | None) -> float | None:
        """Return how long to wait at most: until the next timer, or the caller's own limit."""
        if self._soon or self._is_stopping:
            return 0.0
        while self._timers and self._timers[0][2].is_cancelled:
            heapq.heappop(self._timers)
            self._n_cancelled = max(0, self._n_cancelled - 1)
        if not self._timers:
            return timeout_s
        until_timer_s = max(0.0, self._timers[0][0] - time.monotonic())
        return until_timer_s if timeout_s is None else min(timeout_s, until_timer_s)

    # ── words from elsewhere ─────────────────────────────────────────────────

    def call_soon_threadsafe(self, callback: Callback) -> None:
        """Have the loop call back as soon as it can; from any thread, signal handler or ``__del__``. Dropped after ``close``."""
        if self._wake_end is not None:
            self._soon.append(callback)
            self.wake()

    def call_later_threadsafe(self, seconds: float, callback: Callback) -> None:
        """Have the loop call back after so many seconds; as callable as ``call_soon_threadsafe``."""
        when = time.monotonic() + seconds
        self.call_soon_threadsafe(lambda: self.call_at(when, callback))

    def wake(self) -> None:
        """Make the loop's present wait, or its next, return at once; as callable as ``call_soon_threadsafe``."""
        wake_end = self._wake_end
        if self._is_signalled or wake_end is None:
            return
        try:
            self._is_signalled = True
            os.write(wake_end.fd, b"\0")
        except BlockingIOError:
            return  # a full pipe wakes as well as one more byte
        except BaseException:
            # Ctrl-C between the flag and the byte: with the flag set and no byte, nobody would ever wake the loop again.
            self._is_signalled = False
            raise

    def _drain(self) -> None:
        try:
            os.read(self._wake_reader, _WAKE_BYTES)
        except BlockingIOError:
            return
        finally:
            self._is_signalled = False

    def on_signal(self, signum: int, callback: Callback) -> None:
        """Call back in the loop, not in the handler, after each signal; several that come at once may count as one.

        To be called in the main thread, whichever thread runs the loop. ``close`` restores what this replaced.
        """
        wake_end = self._wake_end
        if wake_end is None:
            raise RuntimeError(f"this loop is closed and can watch no signal {signum}: make a new one")

        def handle(_signum: int, _frame: FrameType | None) -> None:
            self.call_soon_threadsafe(callback)

        try:
            # The byte that C writes wakes a wait that began just before the handler could run.
            replaced_fd = signal.set_wakeup_fd(wake_end.fd, warn_on_full_buffer=False)
        except ValueError as error:
            raise RuntimeError(f"signal {signum} can be watched from the main thread only: call on_signal there") from error
        if replaced_fd != wake_end.fd:
            self._replaced_wakeup_fd = replaced_fd
        self._replaced.setdefault(signum, signal.getsignal(signum))
        signal.signal(signum, handle)

    # ── running ──────────────────────────────────────────────────────────────

    def run(self) -> None:
        """Run until ``stop``; a ``stop`` that came earlier counts."""
        try:
            while not self._is_stopping:
                self.run_once(None)
        finally:
            self._is_stopping = False

    def stop(self) -> None:
        """Make ``run`` return after the round it is in; from any thread or signal handler."""
        self._is_stopping = True
        self.wake()

    def run_once(self, timeout_s: float | None) -> None:
        """Wait once, at most ``timeout_s`` seconds (None: as long as it takes), and call what is due."""
        for hook in tuple(self.before_wait):
            self._call(hook)
        for key, events in self._selector.select(self._wait_s(timeout_s)):
            watch: _Watch = key.data
            if events & _READ and watch.reader is not None:
                self._call(watch.reader)
            if events & _WRITE and watch.writer is not None:
                self._call(watch.writer)
        # Only as many as there are now: a callback that calls for itself again must not keep the others waiting.
        for _ in range(len(self._soon)):
            self._call(self._soon.popleft())
        if self._timers:
            self._call_timers()

    def _call_timers(self) -> None:
        # Taken out all at once, so that a timer that a callback sets for now waits for the next round.
        now = time.monotonic()
        due: deque[tuple[float, int, Timer]] = deque()
        while self._timers and self._timers[0][0] <= now:
            due.append(heapq.heappop(self._timers))
        try:
            while due:
                callback = due.popleft()[2].take()
                if callback is None:
                    self._n_cancelled = max(0, self._n_cancelled - 1)
                else:
                    self._call(callback)
        finally:
            for entry in due:  # on_error raised: the others are as due as before
                heapq.heappush(self._timers, entry)

    def _call(self, callback: Callback) -> None:
        try:
            callback()
        except BaseException as error:  # whatever a callback raises is told by on_error, which decides whether to go on
            self._on_error(error)

    def close(self) -> None:
        """Restore the signal handlers and let go of everything; the watched descriptors themselves stay open.

        In the main thread if signals were watched. In a forked child it leaves the parent's loop as it is.
        """
        wake_end, self._wake_end = self._wake_end, None
        if wake_end is None:
            return
        if self._replaced:
            try:
                signal.set_wakeup_fd(self._replaced_wakeup_fd)
            except ValueError as error:
                self._wake_end = wake_end
                raise RuntimeError("this loop watches signals, which only the main thread can restore: close it there") from error
            for signum, handler in self._replaced.items():
                # None stands for a handler that C installed, and that Python cannot put back.
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
            self._replaced.clear()
        self._selector.close()
        os.close(self._wake_reader)
        self._watches.clear()
        self._timers.clear()
        self._soon.clear()
        self.before_wait.clear()
