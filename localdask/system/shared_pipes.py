"""Pipes that are read by a loop's thread, or, for as long as it waits anyway, by a thread that wants what they bring.

A thread that waits for an answer used to be woken by the loop's thread, which had been
woken by the answer. Here the waiting thread may *lead*: it waits for the pipes itself,
and the loop's thread sleeps meanwhile. One thread leads at a time, and what it cannot deal
with it leaves to the loop's thread.

The pipes are in one epoll, which the loop watches through another, the gate; who leads
shuts the gate, which takes a microsecond. When a thread leads again and again, as in a loop
of calls, the gate stays shut between two turns, for some milliseconds at most: else the
answer would come before the thread has begun to wait, and wake the loop's thread after
all. And when the last turn was brief, the next begins without sleep: to fall asleep and be
woken costs two processors as much as the answer does, and a third of the round trip. Where
there is no epoll nobody leads.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterator

from localdask.system.loop import Loop

__all__ = ["SharedPipes"]

#: Reads a pipe in a leading thread; False leaves what is there to the loop's thread.
TryRead = Callable[[], bool]
#: Who leads again within this time, in seconds, finds the gate still shut.
LINGER_S = 0.002
#: Who leads again after a turn that was over within this time, in seconds, first asks for so long without sleeping.
SPIN_S = 0.0002
#: For so long one call of the kernel waits, in seconds; it knows no more than 24 days.
WAIT_MAX_S = 3600.0
#: How many pipes are looked at in one go: for so many the kernel is given room each time.
EVENTS_MAX = 32
_HAS_ANOTHER = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1
_CAN_LEAD = hasattr(select, "epoll") and hasattr(os, "eventfd")


class SharedPipes:
    """The pipes of one loop that other threads may read.

    All methods but ``lead`` and ``ring`` belong to the loop's thread, or to who ends it.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._readers: dict[int, tuple[Callable[[], object], TryRead]] = {}
        #: Held by whoever reads. It can be taken twice, because a reader may end another's pipe.
        self._reading = threading.RLock()
        #: The ident of the thread that leads, or 0.
        self._leader = 0
        self._n_claims = 0
        self._is_shut = False
        self._led_at = 0.0
        #: Whether the last turn was over in ``SPIN_S``, and another processor could have worked meanwhile.
        self._was_brief = False
        #: Whether the loop's thread comes to open the gate.
        self._is_watched = False
        self._is_open = _CAN_LEAD
        if _CAN_LEAD:
            self._pipes, self._gate = select.epoll(), select.epoll()
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._pipes.register(self._bell, select.EPOLLIN)
            self._gate.register(self._pipes.fileno(), select.EPOLLIN)
            loop.add_reader(self._gate.fileno(), self._read_ready)

    def add(self, fd: int, read: Callable[[], object], try_read: TryRead) -> None:
        """Have a pipe read by the loop's thread with ``read``, or by one that leads with ``try_read``."""
        self._readers[fd] = (read, try_read)
        if _CAN_LEAD:
            self._pipes.register(fd, select.EPOLLIN)
        else:
            self._loop.add_reader(fd, read)

    def remove(self, fd: int) -> None:
        """Read a pipe no more; to be called before it is closed, and harmless when it was not read."""
        if self._readers.pop(fd, None) is None:
            return
        if _CAN_LEAD:
            self._pipes.unregister(fd)
        else:
            self._loop.remove_reader(fd)

    def _read_ready(self) -> None:
        if not self._reading.acquire(blocking=False):
            return  # somebody is about to open the gate, or has just shut it
        try:
            for fd, _ in self._pipes.poll(0):
                if fd == self._bell:
                    self._hush()
                elif fd in self._readers:
                    self._readers[fd][0]()
        finally:
            self._reading.release()

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Have no other thread read meanwhile; one that leads stops."""
        self._n_claims += 1
        try:
            while not self._reading.acquire(blocking=False):
                self.ring()
                if self._reading.acquire(timeout=1.0):
                    break
            try:
                yield
            finally:
                self._reading.release()
        finally:
            self._n_claims -= 1

    # ── leading ──────────────────────────────────────────────────────────────

    def lead(self, is_done: Callable[[], bool], timeout_s: float | None, is_quiet: Callable[[], bool]) -> None:
        """Read in this thread until ``is_done``, if nobody else does; returns earlier when the loop's thread must take over.

        What makes ``is_done`` true in another thread must ``ring`` afterwards. ``is_quiet`` says whether
        nothing more is expected, so that nobody minds if the gate stays shut for a moment.
        """
        if self._leader or self._n_claims or not self._reading.acquire(blocking=False):
            return
        if not self._is_open:  # asked now that nobody closes it
            self._reading.release()
            return
        is_again = False
        try:
            self._leader = threading.get_ident()
            began_at = time.monotonic()
            is_again = began_at - self._led_at < LINGER_S
            self._shut()
            self._lead_until(is_done, timeout_s, began_at + SPIN_S if self._was_brief else began_at)
            self._was_brief = _HAS_ANOTHER and time.monotonic() - began_at < SPIN_S
        finally:
            self._leader = 0
            self._led_at = time.monotonic()
            if not is_again or not is_quiet():
                self._open()
            elif not self._is_watched:
                self._is_watched = True
                self._loop.call_soon_threadsafe(self._watch)
            self._reading.release()

    def _shut(self) -> None:
        if not self._is_shut:
            self._is_shut = True
            self._gate.modify(self._pipes.fileno(), 0)

    def _open(self) -> None:
        if self._is_shut and self._is_open:
            self._is_shut = False
            self._gate.modify(self._pipes.fileno(), select.EPOLLIN)

    def _watch(self) -> None:
        """Open the gate soon, unless somebody leads again by then."""
        seen_at = self._led_at

        def look() -> None:
            if self._led_at == seen_at and self._reading.acquire(blocking=False):
                self._is_watched = False
                self._open()
                self._reading.release()
                return
            # Who leads now, perhaps for hours, sees to the gate when it is done: it says first that it does not
            # lead any more, and then looks whether somebody watches, so one of the two comes.
            self._is_watched = False
            if not self._leader:
                self._is_watched = True
                self._watch()

        self._loop.call_at(time.monotonic() + LINGER_S, look)

    def _lead_until(self, is_done: Callable[[], bool], timeout_s: float | None, sleep_at: float) -> None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        readers, pipes, bell = self._readers, self._pipes, self._bell
        while not is_done() and not self._n_claims:
            remaining_s = None if deadline is None else deadline - time.monotonic()
            if remaining_s is not None:
                if remaining_s <= 0:
                    return
                remaining_s = min(remaining_s, WAIT_MAX_S)
            events: list[tuple[int, int]] = []
            while not events and time.monotonic() < sleep_at:
                events = pipes.poll(0, EVENTS_MAX)
            for fd, _ in events or pipes.poll(remaining_s, EVENTS_MAX):
                if fd == bell:
                    self._hush()
                elif fd in readers and not readers[fd][1]():
                    return

    def ring(self) -> None:
        """Have a thread that leads, unless it is this one, look again at what it waits for. From any thread."""
        if self._leader and self._leader != threading.get_ident():
            self.ring_anyway()

    def ring_anyway(self) -> None:
        """As ``ring``, also when this thread leads: from a signal handler."""
        with contextlib.suppress(OSError):  # it rings already, or is closed
            os.eventfd_write(self._bell, 1)

    def _hush(self) -> None:
        with contextlib.suppress(OSError):  # nobody rang after all
            os.eventfd_read(self._bell)

    def close(self) -> None:
        """Let go of the descriptors, once the loop does not run any more; the pipes themselves stay open."""
        with self.claimed():
            if self._is_open:
                self._is_open = False
                self._loop.remove_reader(self._gate.fileno())
                self._pipes.close()
                self._gate.close()
                os.close(self._bell)
                self._bell = -1  # no other descriptor that gets its number is rung
