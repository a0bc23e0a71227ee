"""Ends workers that live for a limited time, for a number of tasks, or up to a size.

Runs on the scheduler's I/O thread, for the cluster. How long each worker has is decided by
``state/lifetimes.py``. One timer a worker, and none where time is not limited; that its tasks are
run or its memory is taken, a worker says itself, once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial

from localdask.messages import WorkerSpent
from localdask.processes.scheduler import Scheduler
from localdask.state.lifetimes import Endings, Lifetime, length_s
from localdask.system.loop import Timer

__all__ = ["Lifetimes"]


class Lifetimes:
    """Calls ``end(name, life, is_followed)``, once for each life, when a worker's time is over or it is spent."""

    def __init__(self, scheduler: Scheduler, lifetime: Lifetime, end: Callable[[str, int, bool], None]) -> None:
        self._loop = scheduler.loop
        self._lifetime = lifetime
        self._end = end
        self._timers: dict[str, Timer] = {}
        self._endings = Endings()
        scheduler.on_worker_word[WorkerSpent] = self._spent

    def began(self, name: str, life: int) -> None:
        """A worker is there, and its time runs."""
        self.left(name)
        self._endings.began(name)
        seconds = length_s(self._lifetime, int.from_bytes(os.urandom(6), "big") / 2**48)
        if seconds is not None:
            self._timers[name] = self._loop.call_at(time.monotonic() + seconds, partial(self._over, name, life))

    def left(self, name: str) -> None:
        """It is gone already."""
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _over(self, name: str, life: int) -> None:
        self._timers.pop(name, None)
        if self._endings.is_first(name, life):
            self._end(name, life, self._lifetime.is_followed)

    def _spent(self, name: str, life: int, word: WorkerSpent) -> None:
        if self._endings.is_first(name, life):
            self.left(name)
            self._end(name, life, True)
