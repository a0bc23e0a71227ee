"""Workers on their way out: watched until they have nothing left, then handed to whoever ends them.

``state/retirement.py`` decides what a leaving worker still has to do. Runs on the scheduler's I/O thread, for
the supervisor, and only while somebody retires. Nothing here waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from localdask.processes.scheduler import Scheduler
from localdask.state import retirement
from localdask.state.retirement import Retirement

__all__ = ["Retirements"]

#: How long between two looks at a leaving worker, in seconds: first, and at most.
_FIRST_LOOK_S = 0.002
_LOOK_S_MAX = 0.05


class Retirements:
    """Drains workers of one scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def begin(self, name: str, grace_s: float, then: Callable[[bool], None]) -> None:
        """Drain a worker; ``then(is_drained)`` is called once it has nothing left, or ``grace_s`` seconds later."""
        worker = self._scheduler.workers.get(name)
        if worker is None:
            then(True)
            return
        now = time.monotonic()
        self._look(Retirement(worker), now + grace_s, _FIRST_LOOK_S, then)

    def _look(self, going: Retirement, deadline: float, pause_s: float, then: Callable[[bool], None]) -> None:
        now = time.monotonic()
        is_drained = self._scheduler.decide(lambda state: retirement.advance(state, going, now, is_last=now >= deadline))
        if is_drained or now >= deadline:
            then(is_drained)
            return
        at = min(deadline, now + pause_s)
        self._scheduler.loop.call_at(at, partial(self._look, going, deadline, min(2 * pause_s, _LOOK_S_MAX), then))
