"""What to say about tasks that no worker can run: they ask for a worker, or for resources, that do not exist.

Such a task is no error, because a worker like that may still come. If none has come after a while, the
cluster says once what it is waiting for. Runs on the scheduler's I/O thread, and only while such tasks exist.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from localdask.processes.scheduler import Scheduler
from localdask.state.tasks import Restriction, SchedulerState, TaskState

__all__ = ["Hints", "explain"]

#: How long a worker may take to come before somebody is told, in seconds: one that is replaced is back by then.
GRACE_S = 3.0


class Hints:
    """What one scheduler says about its tasks without a worker. ``on_log`` takes (source, stream, line)."""

    def __init__(self, scheduler: Scheduler, on_log: Callable[[str, int, str], None]) -> None:
        self._scheduler = scheduler
        self._on_log = on_log
        self._is_planned = False
        #: What was told of: each kind of restriction once.
        self._told: set[Restriction] = set()
        scheduler.state.on_park = self._parked

    def _parked(self, restriction: Restriction) -> None:
        """A task waits for a worker that is not there. Under the scheduler's lock."""
        if not self._is_planned and restriction not in self._told:
            self._is_planned = True
            self._scheduler.loop.call_soon_threadsafe(self._plan)

    def _plan(self) -> None:
        self._scheduler.loop.call_at(time.monotonic() + GRACE_S, self._look)

    def _look(self) -> None:
        for line in self._scheduler.decide(self._find):
            self._on_log("scheduler", 2, line)

    def _find(self, state: SchedulerState) -> list[str]:
        """Return what is to be said now. Under the lock."""
        self._is_planned = False
        lines = []
        for restriction in [*state.restrictions.values(), state.unrestricted]:
            if not restriction.parked or restriction in self._told:
                continue
            if not any(worker.is_running for worker in state.workers.values()):
                self._parked(restriction)  # a cluster that grows again will see
                continue
            self._told.add(restriction)
            lines.append(explain(state, restriction))
        return lines


def explain(state: SchedulerState, restriction: Restriction) -> str:
    """Return which tasks wait, what for, and what there is instead."""
    tasks: list[TaskState] = list(restriction.parked.values())
    more = f" (and {len(tasks) - 1} more)" if len(tasks) > 1 else ""
    wants = []
    if restriction.workers and not restriction.allow_other_workers:
        wants.append(f"worker {' or '.join(sorted(restriction.workers))}")
    if restriction.resources:
        wants.append("resources " + ", ".join(f"{name}={amount:g}" for name, amount in restriction.resources))
    there = ", ".join(
        worker.name + "".join(f" {name}={amount:g}" for name, amount in worker.resources.items()) for worker in state.workers.values()
    )
    return f"task {tasks[0].key}{more} waits for {' with '.join(wants)}, and no worker is that; there are {there}"
