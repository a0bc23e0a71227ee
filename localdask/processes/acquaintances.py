"""Whom the scheduler's shell knows: each worker's way, and who wants to be told of workers, clients and attempts.

Held by ``processes/scheduler.py``, in the user's process. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from localdask.messages import FromClient, FunctionRan, PluginAnswered, TaskDone, TaskErred, TaskRescheduled, WorkerSpent, WorkerTold
from localdask.state.tasks import WorkerState
from localdask.system.loop import Loop

if TYPE_CHECKING:
    from localdask.system.memory_channel import AnyChannel

__all__ = ["BESIDE_TASKS", "WatchedAttempts", "WorkerLink", "WorkerObserver"]

#: What a worker says that is not of its tasks.
BESIDE_TASKS = frozenset({FromClient, FunctionRan, PluginAnswered, WorkerSpent, WorkerTold})

_ENDS = frozenset({TaskDone, TaskErred, TaskRescheduled})


class WorkerLink:
    """The scheduler's end of one worker's data pipe. ``lock`` is the scheduler's.

    Attributes
    ----------
    worker : WorkerState or None
        Its state; None until it has registered.
    unheard : list of message
        What a thread that led has read, and could not deal with.
    clients : set of str
        The clients that live in its tasks.
    """

    __slots__ = ("_is_writing", "_lock", "_loop", "channel", "clients", "is_paused", "life", "name", "pid", "unheard", "worker")

    def __init__(self, name: str, life: int, pid: int, channel: AnyChannel, loop: Loop, lock: AbstractContextManager[None]) -> None:
        self.name = name
        self.life = life
        self.pid = pid
        self.channel = channel
        self.worker: WorkerState | None = None
        self.is_paused = False
        self.unheard: list[Any] = []
        self.clients: set[str] = set()
        self._loop = loop
        self._lock = lock
        self._is_writing = False

    def put(self, messages: list[Any]) -> None:
        """Put words on the pipe; what it does not take now, the I/O thread sends as soon as it does. Under the lock."""
        self.channel.send(messages)
        if self.channel.has_unsent and not self._is_writing:
            self._is_writing = True
            self._loop.call_soon_threadsafe(self._write_when_possible)

    def _write_when_possible(self) -> None:
        if self.channel.fileno() >= 0:
            self._loop.add_writer(self.channel.fileno(), self._write)

    def _write(self) -> None:
        with self._lock:
            is_done = self.channel.flush()
        if is_done:
            self.stop_writing()

    def stop_writing(self) -> None:
        """Wait no more for room in the pipe. On the I/O thread."""
        if self._is_writing:
            self._loop.remove_writer(self.channel.fileno())
            self._is_writing = False


class WorkerObserver(Protocol):
    """Who is told of workers that come and go. On the I/O thread, without the lock."""

    def worker_came(self, name: str, life: int) -> None: ...
    def worker_joined(self, name: str, life: int) -> None: ...
    def worker_left(self, name: str, life: int, is_expected: bool) -> None: ...


class WatchedAttempts:
    """Who is called, once, when an attempt at a task has ended by itself. On the I/O thread."""

    def __init__(self) -> None:
        self._calls: dict[int, Callable[[], None]] = {}

    def __bool__(self) -> bool:
        return bool(self._calls)

    def watch(self, attempt: int, call: Callable[[], None]) -> None:
        """Have this called; in place of what was to be called."""
        self._calls[attempt] = call

    def ended(self, words: Iterable[Any]) -> list[Callable[[], None]]:
        """Return whom to call for what a worker said."""
        attempts = [word.attempt for word in words if type(word) in _ENDS and word.attempt in self._calls]
        return [self._calls.pop(attempt) for attempt in attempts]
