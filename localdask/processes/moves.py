"""What a worker's plugins are told of its tasks: each move, in Dask's words, in order.

A task goes *released → waiting → ready → executing → memory → released → forgotten*, by way of
*error*, *rescheduled* or *long-running* if it must. The moves are noted where they happen,
under the worker's lock, and told without it, by whichever thread comes by, but by one at a
time. A worker has this only while a plugin asks; without one no task costs anything.

It knows nothing of pipes and decides nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from localdask.messages import RunTask, TaskDone, TaskErred

__all__ = ["WATCHING_HOOKS", "Moves"]

#: The hooks for whose sake moves are noted.
WATCHING_HOOKS = ("transition", "release_key", "release_dep")


class Moves:
    """The moves of one worker's tasks.

    Parameters
    ----------
    notify : callable
        Calls a hook, by its name, of every plugin that has it.
    """

    def __init__(self, notify: Callable[..., Any]) -> None:
        self._notify = notify
        self._states: dict[str, str] = {}
        self._news: deque[tuple[Any, ...]] = deque()
        self._telling = threading.Lock()

    @property
    def is_telling(self) -> bool:
        """Whether plugins are being told, in whatever thread."""
        return self._telling.locked()

    # ── noting, under the worker's lock ──────────────────────────────────────

    def came(self, task: RunTask, *, is_whole: bool) -> None:
        """A task came, with all its inputs or not."""
        self._move(task.key, "memory", "released", only=True)
        self._move(task.key, "released", "waiting")
        if is_whole:
            self._move(task.key, "waiting", "ready")

    def began(self, task: RunTask) -> None:
        """A task is about to run."""
        self._move(task.key, "waiting", "ready", only=True)
        self._move(task.key, "ready", "executing")

    def seceded(self, key: str) -> None:
        """A running task gave up its slot."""
        self._move(key, "executing", "long-running")

    def rejoined(self, key: str) -> None:
        """A running task took a slot again."""
        self._move(key, "long-running", "executing")

    def ended(self, task: RunTask, word: Any) -> None:
        """A task ran, and this is what is said of it."""
        finish = {TaskDone: "memory", TaskErred: "error"}.get(type(word), "rescheduled")
        self._move(task.key, "executing", finish)
        for key, payload in task.inputs:
            if payload is not None:
                self._news.append(("release_dep", key, "memory", False))

    def dropped(self, task: RunTask) -> None:
        """A task that has no value is not this worker's any more."""
        self._forget(task.key, "ready")

    def forgot(self, keys: Iterable[str]) -> None:
        """Values are forgotten."""
        for key in keys:
            self._forget(key, "memory")

    def _forget(self, key: str, state: str) -> None:
        state = self._states.get(key, state)
        self._move(key, state, "released")
        self._move(key, "released", "forgotten")
        del self._states[key]
        self._news.append(("release_key", key, state, None, None, False))

    def _move(self, key: str, start: str, finish: str, *, only: bool = False) -> None:
        """Note a move, from ``start`` unless another state is known; with ``only``, not from any other."""
        known = self._states.get(key)
        if only and known != start:
            return
        start = known or start
        if start != finish:
            self._states[key] = finish
            self._news.append(("transition", key, start, finish))

    # ── telling, without the lock ────────────────────────────────────────────

    @property
    def has_news(self) -> bool:
        return bool(self._news)

    def tell(self) -> None:
        """Call the hooks for what was noted, unless another thread is at it. What one raises is told, not raised."""
        while self._news and self._telling.acquire(blocking=False):
            try:
                while self._news:
                    self._notify(*self._news.popleft())
            finally:
                self._telling.release()
