"""How a cluster is doing, as plain dicts in the shapes that ``distributed`` gives.

Called by ``api/cluster.py`` and ``api/reception.py``; reads the scheduler's state and changes nothing.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from localdask.state.description import describe_state
from localdask.system.memory import private_nbytes

if TYPE_CHECKING:
    from localdask.processes.questions import Question
    from localdask.processes.scheduler import Scheduler
    from localdask.state.tasks import TaskState, WorkerState


def describe(scheduler: Scheduler) -> dict[str, Any]:
    """Return the scheduler and its workers, in the shape of ``distributed``'s ``scheduler_info``."""
    now = time.time()  # a worker that is known has its pipe open
    workers = {
        scheduler.worker_address(worker.name): {
            "type": "Worker",
            "id": worker.name,
            "name": worker.name,
            "host": "127.0.0.1",
            "pid": worker.pid,
            "life": worker.life,
            "nthreads": worker.nthreads,
            "memory_limit": worker.memory_limit,
            "resources": dict(worker.resources),
            "status": worker.status,
            "services": {},
            "last_seen": now,
            "processing": len(worker.in_flight),
            "done": worker.n_done,
            "metrics": {"memory": private_nbytes(worker.pid), **_held_nbytes(scheduler, worker)},
        }
        for worker in list(scheduler.workers.values())
    }
    return {
        "type": "Scheduler",
        "id": scheduler.id,
        "address": scheduler.address,
        "services": {},
        "started": scheduler.started_at,
        "n_workers": len(workers),
        "total_threads": sum(worker["nthreads"] for worker in workers.values()),
        "total_memory": sum(worker["memory_limit"] for worker in workers.values()),
        "workers": workers,
    }


def _held_nbytes(scheduler: Scheduler, worker: WorkerState) -> dict[str, Any]:
    held = [task for key in list(worker.has) if (task := scheduler.state.tasks.get(key)) is not None]
    on_disk = sum(task.nbytes for task in held if task.is_spilled)
    return {"managed_bytes": sum(task.nbytes for task in held) - on_disk, "spilled_bytes": {"memory": on_disk, "disk": on_disk}}


def list_processes(cluster: Any) -> list[dict[str, Any]]:
    """Return a row for the scheduler and each nanny and worker; memory and CPU are for who looks to measure, by ``pid``."""
    scheduler: Scheduler = cluster.scheduler
    failed = cluster.failed_reload
    more = {"watching": cluster.watching, "last": "" if failed is None else str(failed).partition("\n")[0]}
    rows = [_row("scheduler", "scheduler", os.getpid(), "running", tasks=len(scheduler.state.tasks), **more)]
    for name, handle in cluster.workers.items():
        if handle.pid is not None:
            rows.append(_row(handle.name, "nanny", handle.pid, handle.status, generation=cluster.generation_of(handle.name)))
        worker = scheduler.workers.get(name)
        rows.append(
            _row(
                name,
                "worker",
                handle.worker_pid,
                handle.status if worker is None else worker.status,
                generation=cluster.generation_of(name),
                tasks=0 if worker is None else len(worker.in_flight),
                done=0 if worker is None else worker.n_done,
                limit=0 if worker is None else worker.memory_limit,
                restarts=handle.n_restarts,
                last="" if worker is not None and handle.last_event == "starting" else handle.last_event,
            )
        )
    return rows


def inspections(scheduler: Scheduler) -> dict[str, Callable[[Question], None]]:
    """Return the answers to what ``api/looking.py`` asks, by name. On the I/O thread."""
    state = scheduler.state

    def answering(look: Callable[..., Any]) -> Callable[[Question], None]:
        def answer(question: Question) -> None:
            question.answer(scheduler.decide(lambda _: look(*question.arguments)))

        return answer

    def tasks_of(keys: list[str] | None) -> list[TaskState]:
        return list(state.tasks.values()) if keys is None else [state.tasks[key] for key in keys if key in state.tasks]

    def workers_of(names: tuple[str, ...]) -> list[WorkerState]:
        return [worker for worker in state.workers.values() if not names or worker.name in names]

    def who_has(keys: list[str] | None) -> dict[str, list[str]]:
        held = {task.key: [worker.address for worker in task.holders] for task in tasks_of(keys)}
        return {key: held.get(key, []) for key in (held if keys is None else keys)}

    def nbytes(keys: list[str] | None, is_summary: bool) -> dict[str, int]:
        sizes: Counter[str] = Counter()
        for task in tasks_of(keys):
            if task.nbytes:
                sizes[key_prefix(task.key) if is_summary else task.key] += task.nbytes
        return dict(sizes)

    def task_output(key: str) -> str | None:
        """Return what a task wrote, or None when it runs, or is to run again: then its client has been told, and waits."""
        task = state.tasks.get(key)
        return "" if task is None else task.output if task.is_done else None

    looks: dict[str, Callable[..., Any]] = {
        "who_has": who_has,
        "has_what": lambda names: {worker.address: [key for key in worker.has if key in state.tasks] for worker in workers_of(names)},
        "processing": lambda names: {worker.address: [task.key for task in worker.in_flight.values()] for worker in workers_of(names)},
        "nbytes": nbytes,
        "task_output": task_output,
        "story": lambda keys: state.story(*keys),
        "state": lambda: describe_state(state),
    }
    return {name: answering(look) for name, look in looks.items()}


def key_prefix(key: str) -> str:
    """Return the part of a key that names its function: all before the last dash."""
    return key.rpartition("-")[0] or key


def _row(name: str, role: str, pid: int | None, state: str, **more: Any) -> dict[str, Any]:
    blank = {"generation": None, "tasks": 0, "done": 0, "limit": 0, "restarts": 0, "last": "", "watching": ""}
    return {"name": name, "role": role, "pid": pid, "state": state, **blank, **more}
