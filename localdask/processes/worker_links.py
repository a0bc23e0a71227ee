"""The scheduler's end of each worker's data pipe.

Held by ``processes/scheduler.py``, in the user's process. Nothing is decided here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from localdask.messages import FromClient, FunctionRan, PluginAnswered, WorkerSpent, WorkerTold
from localdask.state.tasks import WorkerState
from localdask.system.loop import Loop

if TYPE_CHECKING:
    from localdask.system.memory_channel import AnyChannel

__all__ = ["BESIDE_TASKS", "WorkerLink"]

#: What a worker says that is not of its tasks.
BESIDE_TASKS = frozenset({FromClient, FunctionRan, PluginAnswered, WorkerSpent, WorkerTold})


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
