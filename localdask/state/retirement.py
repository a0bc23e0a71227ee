"""How a worker leaves without losing anything: no new tasks, queued ones go elsewhere, what only it holds is published.

Pure. The shell is ``processes/retiring.py``, which asks ``advance`` again until the worker has
nothing left, or its time is up. Published values lie in segments, which outlive their worker.
"""

from __future__ import annotations

from localdask.records import field, record
from localdask.state import placement
from localdask.state.scheduler import set_leaving, take_back_all
from localdask.state.tasks import MEMORY, SchedulerState, TaskState, WorkerState


@record
class Retirement:
    """One worker on its way out, and the keys that it was asked to publish."""

    worker: WorkerState
    asked: set[str] = field(default_factory=set)


def begin(state: SchedulerState, worker: WorkerState, now: float) -> Retirement:
    """Send a worker nothing more, and ask back what it has not started."""
    state.now = now
    set_leaving(state, worker, now)
    take_back_all(state, worker)
    return Retirement(worker)


def advance(state: SchedulerState, retirement: Retirement) -> bool:
    """Have published what only this worker holds; return whether it runs nothing and holds nothing alone."""
    worker = retirement.worker
    if state.workers.get(worker.name) is not worker:
        return True
    alone = [task for task in map(state.tasks.get, worker.has) if task is not None and _holds_alone(worker, task)]
    for task in alone:
        # Once each: what cannot be pickled stays where it is, and is made again from its recipe.
        if task.key not in retirement.asked:
            retirement.asked.add(task.key)
            placement.publish(state, task)
    return not (worker.in_flight or worker.leaving or any(task.is_publishing for task in alone))


def _holds_alone(worker: WorkerState, task: TaskState) -> bool:
    return task.state == MEMORY and task.payload is None and task.holders == (worker,)
