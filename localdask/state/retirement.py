"""Which workers leave first, and how one leaves without losing anything.

It gets no new tasks, its queue goes elsewhere, and what only it holds is published. Pure. The shell is
``processes/retiring.py``, which asks ``advance`` again until the worker has nothing left, or its time is
up. Published values lie in segments, which outlive their worker.
"""

from __future__ import annotations

from collections.abc import Iterable

from localdask.records import field, record
from localdask.state import placement
from localdask.state.actors import homes
from localdask.state.scheduler import set_leaving, take_back_all, worker_joined
from localdask.state.tasks import MEMORY, SchedulerState, TaskState, WorkerState


def by_staying(state: SchedulerState, names: Iterable[str]) -> list[str]:
    """Return workers, given oldest first, in the order of who stays longest.

    Those that have not started yet go first, then the youngest; those where actors live go last, because they take them along.
    """
    living = homes(state)
    return sorted(names, key=lambda name: (name not in living) + (name not in state.workers))


def spare(state: SchedulerState, names: Iterable[str]) -> list[str]:
    """Return those workers that could leave at once: they have started, run nothing, and no actor lives there."""
    living = homes(state)
    return [name for name in names if name in state.workers and not state.workers[name].n_occupied and name not in living]


@record
class Retirement:
    """One worker on its way out: whether it gets no more, which attempts have waited there, and which keys it was asked to publish."""

    worker: WorkerState
    is_begun: bool = False
    waited: set[int] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)


def advance(state: SchedulerState, retirement: Retirement, now: float, *, is_last: bool = False) -> bool:
    """Send a worker nothing more, and have published what only it holds; return whether it runs nothing and holds nothing alone.

    While a task there may need it, that does not begin, or the worker is taken back, until the call that ``is_last``.
    """
    worker = retirement.worker
    if state.workers.get(worker.name) is not worker:
        return True
    if not is_last and _is_needed(state, retirement):
        if retirement.is_begun:
            retirement.is_begun = worker.is_leaving = False
            worker_joined(state, worker, now)
        return False
    if not retirement.is_begun:
        retirement.is_begun = True
        set_leaving(state, worker, now)
        take_back_all(state, worker)
    alone = [task for task in map(state.tasks.get, worker.has) if task is not None and _holds_alone(worker, task)]
    for task in alone:
        # Once each: what cannot be pickled stays where it is, and is made again from its recipe.
        if task.key not in retirement.asked:
            retirement.asked.add(task.key)
            placement.publish(state, task)
    return not (worker.in_flight or worker.leaving or any(task.is_publishing for task in alone))


def _holds_alone(worker: WorkerState, task: TaskState) -> bool:
    return task.state == MEMORY and task.payload is None and task.holders == (worker,)


def _is_needed(state: SchedulerState, retirement: Retirement) -> bool:
    """Whether a task there has waited for others, which could run nowhere else: it would stand still until the grace is over."""
    worker = retirement.worker
    retirement.waited |= worker.seceded
    has_waiting = any(attempt in worker.in_flight for attempt in retirement.waited)
    return has_waiting and not any(other.is_running for other in state.workers.values() if other is not worker)
