"""Where actors live, and what their loss means: an actor's state cannot be computed again, so what depends on it fails.

An actor is a task whose value stays in the one worker that made it; what others have is a small
proxy. Pure. Called by ``state/lineage.py``, by ``processes/actor_calls.py`` for calls of methods, and by
``state/retirement.py``, because workers where actors live leave last.
"""

from __future__ import annotations

from localdask.errors import ActorLostError
from localdask.state.tasks import MEMORY, SchedulerState, TaskState, WorkerState


def home_of(state: SchedulerState, key: str) -> WorkerState:
    """Return the worker in which an actor lives; ``ActorLostError`` when it is in none, any more or yet."""
    task = state.tasks.get(key)
    if task is None:
        raise ActorLostError(key, "", "it was released, or the cluster was restarted")
    if isinstance(task.error, tuple) and task.error[0] == "actor-lost":
        raise ActorLostError(*task.error[1:])
    if task.state != MEMORY or not task.holders:
        raise ActorLostError(key, "", f"it is {task.state}")
    return task.holders[0]


def homes(state: SchedulerState) -> set[str]:
    """Return the names of the workers in which actors live: these leave last, because they take them along."""
    tasks = state.tasks
    return {worker.name for worker in state.workers.values() if any(key in tasks and tasks[key].is_actor for key in worker.has)}


def is_lost(task: TaskState) -> bool:
    """Whether a task's value is an actor, and the worker that it lived in has just left."""
    return task.is_actor and task.state == MEMORY and not task.holders
