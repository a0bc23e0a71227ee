"""The scheduler's state as plain data, for somebody who looks into why a cluster does what it does.

``client.dump_cluster_state`` writes it to a file. It is made under the scheduler's lock, so all of it is of
one moment.
"""

from __future__ import annotations

from typing import Any

from localdask.state.tasks import SchedulerState, TaskState, WorkerState

__all__ = ["describe_state"]


def describe_state(state: SchedulerState) -> dict[str, Any]:
    """Return tasks by key, workers by address, clients by name, and the moves that are remembered."""
    return {
        "tasks": {str(task.key): _task(task) for task in state.tasks.values()},
        "workers": {worker.address: _worker(worker) for worker in state.workers.values()},
        "clients": {client.client: {"wants_what": list(map(str, client.wants))} for client in state.clients.values()},
        "transition_log": [[str(key), *row, list(generations)] for key, *row, generations in state.log],
    }


def _task(task: TaskState) -> dict[str, Any]:
    restriction = task.restriction
    return {
        "key": str(task.key),
        "function": "" if task.function is None else task.function.name,
        "state": task.state,
        "attempt": task.attempt,
        "priority": list(task.priority),
        "dependencies": [str(other.key) for other in task.dependencies],
        "dependents": [str(other.key) for other in task.dependents or ()],
        "waiting_on": task.n_missing,
        "processing_on": None if task.worker is None else task.worker.address,
        "who_has": [worker.address for worker in task.holders],
        "who_wants": list(task.clients),
        "nbytes": task.nbytes,
        "type": task.type_name,
        "spilled": task.is_spilled,
        "actor": task.is_actor,
        "retries": task.retries_left,
        "suspicious": task.n_deaths,
        "worker_restrictions": sorted(restriction.workers),
        "resource_restrictions": dict(restriction.resources),
        "loose_restrictions": restriction.allow_other_workers,
    }


def _worker(worker: WorkerState) -> dict[str, Any]:
    return {
        "name": worker.name,
        "life": worker.life,
        "pid": worker.pid,
        "status": worker.status,
        "nthreads": worker.nthreads,
        "memory_limit": worker.memory_limit,
        "resources": dict(worker.resources),
        "free_resources": dict(worker.free_resources),
        "occupancy": worker.occupancy_s,
        "done": worker.n_done,
        "generations": list(worker.generations),
        "processing": {str(task.key): attempt for attempt, task in worker.in_flight.items()},
        "leaving": {str(task.key): attempt for attempt, task in worker.leaving.items()},
        "long_running": sorted(worker.seceded),
        "has_what": list(map(str, worker.has)),
    }
