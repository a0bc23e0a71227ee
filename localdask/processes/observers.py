"""Who is told by the scheduler of workers that come and go, and of attempts at tasks that end.

Called by ``processes/scheduler.py``, in the user's process. Nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from localdask.messages import TaskDone, TaskErred, TaskRescheduled

__all__ = ["WatchedAttempts", "WorkerObserver"]

_ENDS = frozenset({TaskDone, TaskErred, TaskRescheduled})


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
