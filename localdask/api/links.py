"""How a client reaches its scheduler: by a call in the same process, or from within a task; ``socket_link.py`` has the third way.

A link has one lock, under which the client's words are delivered and its future states
change. Clients hold one and do not care which.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from localdask.messages import ClientGone
from localdask.system.shield import Deferral, ShieldedLock

if TYPE_CHECKING:
    from localdask.processes.scheduler import Scheduler
    from localdask.system.segments import SegmentFolder

#: What both ends must share for functions to travel: the same bytecode.
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"

#: How long what has no hurry may wait for company, in seconds.
SOON_S = 0.02


class Sleeper(Protocol):
    """What one thread waits at."""

    #: Wakes the thread where it waits for something else as well.
    ring: Callable[[], None] | None

    @property
    def is_done(self) -> bool:
        """Whether ``wait`` would return at once."""

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is done; return whether it was in time."""


class Link(Protocol):
    """What a client needs of the way to its scheduler."""

    lock: Any
    #: Where large values are published; None where they travel in the words.
    segments: SegmentFolder | None
    #: How the cluster is reached, for people to read.
    address: str

    def connect(self, client: str, deliver: Callable[[list[Any]], None]) -> None:
        """Begin: ``deliver`` is called under ``lock`` with each batch of words."""

    def post(self, messages: list[Any]) -> None:
        """Say these words; returns at once."""

    def call_soon(self, call: Callable[[], None]) -> None:
        """Run ``call`` on another thread within ``SOON_S``, from wherever this is."""

    def blocking(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which a wait happens."""

    def wait(self, waiter: Sleeper, timeout_s: float | None) -> bool:
        """Wait as the waiter does."""

    def close(self) -> None:
        """End: all that the client wanted is released."""


class SchedulerLink:
    """A client in the scheduler's own process: the submitting thread runs the transition itself."""

    def __init__(self, scheduler: Scheduler, segments: SegmentFolder | None) -> None:
        self.scheduler = scheduler
        self.segments = segments
        self.address = scheduler.address
        self.lock = scheduler.lock
        self._client = ""

    def connect(self, client: str, deliver: Callable[[list[Any]], None]) -> None:
        self._client = client
        self.scheduler.connect(client, deliver)

    def post(self, messages: list[Any]) -> None:
        self.scheduler.post(self._client, messages)

    def call_soon(self, call: Callable[[], None]) -> None:
        loop = self.scheduler.loop
        loop.call_soon_threadsafe(lambda: loop.call_at(time.monotonic() + SOON_S, call))

    def blocking(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def wait(self, waiter: Sleeper, timeout_s: float | None) -> bool:
        """Wait, and read what workers say meanwhile, if no other thread does: one thread less to wake for an answer."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        pipes = self.scheduler.pipes
        waiter.ring = pipes.ring
        deferral = Deferral(pipes.ring_anyway)
        if deferral.begin():
            try:
                pipes.lead(lambda: waiter.is_done or deferral.is_noted, timeout_s, self._is_quiet)
            finally:
                deferral.end()
        return waiter.wait(None if deadline is None else deadline - time.monotonic())

    def _is_quiet(self) -> bool:
        """Whether no worker owes an answer."""
        return not any(worker.in_flight for worker in list(self.scheduler.workers.values()))

    def close(self) -> None:
        self.scheduler.disconnect(self._client)


class TaskLink:
    """A client within a worker's tasks: its words travel on the worker's data pipe."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self.lock = ShieldedLock()
        self.segments: SegmentFolder | None = worker.segments
        self.address = f"the cluster of task's worker {worker.name}"
        self._post: Callable[[list[Any]], None] = lambda words: None

    def connect(self, client: str, deliver: Callable[[list[Any]], None]) -> None:
        def deliver_locked(words: list[Any]) -> None:
            with self.lock:
                deliver(words)

        self._client = client
        self._post = self._worker.connect_client(client, deliver_locked)

    def post(self, messages: list[Any]) -> None:
        self._post(messages)

    def call_soon(self, call: Callable[[], None]) -> None:
        timer = threading.Timer(SOON_S, call)
        timer.name, timer.daemon = "localdask-release", True
        timer.start()

    def blocking(self) -> contextlib.AbstractContextManager[Any]:
        from localdask.processes import runner  # noqa: PLC0415 - what only a worker has

        return runner.blocking()

    def wait(self, waiter: Sleeper, timeout_s: float | None) -> bool:
        return waiter.wait(timeout_s)

    def close(self) -> None:
        self._post([ClientGone(self._client)])


def check_same_cluster(mine: Link, other: Link, key: str) -> None:
    """Refuse a future that a client of another cluster made, as far as their addresses tell: a task's client has none."""
    if type(mine) is type(other) and not isinstance(mine, TaskLink) and mine.address != other.address:
        raise ValueError(
            f"future {key!r} is of the cluster at {other.address}, and this client's is at {mine.address}: give its result() instead"
        )
