"""The laws that a scheduler's state obeys after every step, for tests, the simulator and debugging.

``validate`` raises ``AssertionError`` with the law and the culprit. It looks at
everything, so it is for small states.
"""

from __future__ import annotations

from localdask.state.tasks import (
    ERRED,
    FORGOTTEN,
    IN_FLIGHT,
    MEMORY,
    MOVES,
    NO_WORKER,
    PROCESSING,
    PUBLISHING,
    QUEUED,
    RELEASED,
    STAGED,
    UNFINISHED,
    WAITING,
    SchedulerState,
    TaskState,
    WorkerState,
)


def validate(state: SchedulerState) -> None:
    """Raise ``AssertionError`` when a law is broken."""
    for task in state.tasks.values():
        _validate_task(state, task)
    for worker in state.workers.values():
        _validate_worker(state, worker)
    for client in state.clients.values():
        for key in client.wants:
            assert key in state.tasks, f"{client.client} wants {key}, which is not known"
            assert client.client in state.tasks[key].clients, f"{key} does not know that {client.client} wants it"
    for attempt, entry in state.interrupts.items():
        assert attempt in entry.worker.in_flight or attempt in entry.worker.leaving, (
            f"attempt {attempt} is over and still to be interrupted"
        )
    for _, start, finish, *_ in state.log:
        assert finish in MOVES[start], f"impossible move {start} → {finish}"


def _validate_task(state: SchedulerState, task: TaskState) -> None:
    name = f"{task!r}"
    assert task.state != FORGOTTEN, f"{name} is forgotten and still in the tables"
    unfinished = [d for d in task.dependents or () if d.state in UNFINISHED]
    assert task.n_waiters == len(unfinished), f"{name} counts {task.n_waiters} waiters, {len(unfinished)} are there"
    for dependency in task.dependencies:
        assert state.tasks.get(dependency.key) is dependency, f"{name} has an input that was forgotten: {dependency}"
        assert dependency.dependents is not None and task in dependency.dependents, f"{dependency} does not know its reader {name}"
    missing = [d for d in task.dependencies if d.state != MEMORY]
    if task.state in (WAITING, STAGED):
        assert task.n_missing == len(missing), f"{name} counts {task.n_missing} missing inputs, {len(missing)} are: {missing}"
        assert missing, f"{name} lacks nothing and still is {task.state}"
    if task.state in (PUBLISHING, QUEUED, NO_WORKER):
        assert not missing, f"{name} lacks {missing}"
    if task.state in UNFINISHED:
        for dependency in missing:
            if task.state != PROCESSING:
                assert dependency.state in UNFINISHED, f"{name} waits for {dependency}, which nobody makes"
        assert task.is_wanted, f"nobody wants {name}"
    if task.state in IN_FLIGHT:
        worker = task.worker
        assert worker is not None and worker.in_flight.get(task.attempt) is task, f"{name} is with no worker"
        assert state.workers.get(worker.name) is worker, f"{name} is with {worker}, which is gone"
    else:
        assert task.worker is None, f"{name} still names {task.worker}"
    if task.state == STAGED:
        for dependency in missing:
            assert dependency.state in IN_FLIGHT and dependency.worker is task.worker, (
                f"{name} was sent ahead, and {dependency} is made elsewhere"
            )
    if task.state == MEMORY:
        assert task.payload is not None or task.holders, f"{name} is nowhere"
        assert task.is_wanted, f"nobody wants {name}"
        for holder in task.holders:
            assert task.key in holder.has and state.workers.get(holder.name) is holder, f"{name} is not with {holder}"
    else:
        assert task.payload is None and not task.holders and not task.is_publishing and not task.is_spilled, f"{name} has a value"
    if task.state == PUBLISHING:
        assert any(d.is_publishing for d in task.dependencies), f"{name} waits for a publication that nobody was asked for"
    if task.state == NO_WORKER:
        assert task.key in task.restriction.parked, f"{name} is not parked"
    else:
        assert task.restriction.parked.get(task.key) is not task, f"{name} is still parked"
    if task.state == ERRED:
        assert task.error is not None, f"{name} has no error"
    if task.state == RELEASED:
        assert task.dependents, f"{name} has no reader and was not forgotten"
        assert not task.is_wanted, f"{name} is wanted and does not run"


def _validate_worker(state: SchedulerState, worker: WorkerState) -> None:
    for attempt, task in worker.in_flight.items():
        assert task.attempt == attempt and task.worker is worker and task.state in IN_FLIGHT, f"{worker} runs {task}, which is not its"
    assert worker.taking_back <= set(worker.in_flight) | set(worker.leaving), f"{worker} takes back what it does not have"
    assert worker.seceded <= set(worker.in_flight) | set(worker.leaving), f"{worker} counts a seceded task that it does not have"
    for name, amount in worker.resources.items():
        used = sum(
            needed
            for task in [*worker.in_flight.values(), *worker.leaving.values()]
            for resource, needed in task.restriction.resources
            if resource == name
        )
        assert worker.free_resources[name] == amount - used >= 0, (
            f"{worker} has {worker.free_resources[name]} of {amount} {name} free, {used} used"
        )
    assert worker.is_running == (worker.status == "running"), f"{worker} runs, and is {worker.status}"
    is_listed = worker.name in state.idle
    assert not (is_listed and worker.name in state.open), f"{worker} is listed twice"
    if is_listed:
        assert worker.is_running, f"{worker} is listed as idle and does not run"
