"""What workers answer, and what is done about it.

One function for each word of a worker about tasks and values, listed in
``WORKER_WORDS``. An answer to an attempt that was given up is recognised in one place,
``_answered``. Called by ``state/scheduler.py`` only; decides, and never touches the world.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from localdask.messages import (
    GenerationsRun,
    KeyErred,
    KeyFetched,
    KeyInMemory,
    KeyPublished,
    TakenBack,
    TaskDone,
    TaskErred,
    TaskMissing,
    TaskRejoined,
    TaskRescheduled,
    TaskSeceded,
    TaskWrote,
)
from localdask.state import interrupts, lineage, placement
from localdask.state.tasks import (
    FIRE_AND_FORGET,
    IN_FLIGHT,
    MEMORY,
    PROCESSING,
    PUBLISHING,
    STAGED,
    WAITING,
    SchedulerState,
    TaskState,
    WorkerState,
)

#: How much the newest duration counts in a function's expected duration.
NEWEST_WEIGHT = 0.3


def _answered(state: SchedulerState, worker: WorkerState, attempt: int) -> TaskState | None:
    """Return the task of an attempt that was just answered, or None when the attempt is stale."""
    if state.interrupts:
        interrupts.drop(state, attempt)
    if worker.taking_back:
        worker.taking_back.discard(attempt)
    if worker.seceded:
        worker.seceded.discard(attempt)
    task = worker.in_flight.pop(attempt, None)
    is_current = task is not None
    if task is None:
        task = worker.leaving.pop(attempt, None)
        if task is None:
            return None
    worker.occupancy_s -= task.expected_s
    for name, amount in task.restriction.resources:
        worker.free_resources[name] += amount
    if is_current:
        return task
    _drop_stray(state, worker, task.key)  # an earlier attempt's value may have been kept for this one's sake
    return None


def task_done(state: SchedulerState, worker: WorkerState, message: TaskDone) -> None:
    if worker.leaving and (left := worker.leaving.get(message.attempt)) is not None:
        worker.has[left.key] = None  # nobody waits for it, and it is there
    task = _answered(state, worker, message.attempt)
    if task is None:
        return
    worker.n_done += 1
    worker.late_s = 0.0
    state.n_done += 1
    function = task.function
    if function is not None:
        known_s = function.duration_s
        function.duration_s = message.duration_s if known_s < 0 else known_s + NEWEST_WEIGHT * (message.duration_s - known_s)
    task.payload = message.payload
    task.nbytes = message.nbytes
    task.type_name = message.type_name
    task.holders = (worker,)
    if state.on_ran is not None:
        state.on_ran(task, worker, message)
    worker.has[task.key] = None
    state.move(task, MEMORY)
    task.worker = None
    for client in task.clients:
        state.say_to_client(client, KeyInMemory(task.key, message.payload, message.nbytes, message.type_name))
    if task.fetchers:
        _serve_fetchers(state, task)
    if task.dependents:
        placement.note_room(state, worker)
        for dependent in list(task.dependents):
            if dependent.state == WAITING or dependent.state == STAGED:
                dependent.n_missing -= 1
                if dependent.n_missing == 0:
                    if dependent.state == STAGED:
                        state.move(dependent, PROCESSING)
                    else:
                        placement.place(state, dependent)
    if task.dependencies:
        lineage.let_go(state, task.dependencies)
    if FIRE_AND_FORGET in task.clients:
        lineage.drop_client(state, task, FIRE_AND_FORGET)
    if not task.clients and not task.n_waiters:
        lineage.let_go(state, (task,))


def _serve_fetchers(state: SchedulerState, task: TaskState) -> None:
    if task.payload is None:
        placement.publish(state, task)
        return
    for client in task.fetchers:
        state.say_to_client(client, KeyFetched(task.key, task.payload))
    task.fetchers = ()


def _drop_stray(state: SchedulerState, worker: WorkerState, key: str) -> None:
    """Free a value that a worker holds and nobody counts on."""
    if key not in worker.has:
        return
    task = state.tasks.get(key)
    if task is not None and (worker in task.holders or (task.state in IN_FLIGHT and task.worker is worker)):
        return
    del worker.has[key]
    state.forget_on_worker(worker, key, 0)


def _task_erred(state: SchedulerState, worker: WorkerState, message: TaskErred) -> None:
    task = _answered(state, worker, message.attempt)
    if task is None:
        return
    worker.late_s = 0.0
    if state.on_ran is not None:
        state.on_ran(task, worker, message)
    if task.retries_left > 0 and message.is_retriable:
        task.retries_left -= 1
        _try_again(state, worker, task)
        return
    lineage.fail(state, task, message.error)
    _drop_stray(state, worker, task.key)


def _try_again(state: SchedulerState, worker: WorkerState, task: TaskState) -> None:
    """Place anew a task whose attempt came to nothing."""
    lineage.unstage_dependents(state, task)
    task.worker = None
    placement.note_room(state, worker)
    lineage.wait_again(state, task)
    _drop_stray(state, worker, task.key)


def _task_missing(state: SchedulerState, worker: WorkerState, message: TaskMissing) -> None:
    task = _answered(state, worker, message.attempt)
    if task is None:
        return
    lineage.unstage_dependents(state, task)
    state.move(task, WAITING)
    task.worker = None
    task.n_missing = 1  # not runnable while its inputs are looked at
    absent = [state.tasks[key] for key in message.inputs if key in state.tasks and worker in state.tasks[key].holders]
    for dependency in absent:
        worker.has.pop(dependency.key, None)
        if dependency.is_spilled:  # its file is gone
            dependency.payload = None
            dependency.is_spilled = False
    lineage.lose_values(state, absent, worker)
    if task.state == WAITING:
        lineage.wait_again(state, task)


def _taken_back(state: SchedulerState, worker: WorkerState, message: TakenBack) -> None:
    for attempt in message.attempts:
        task = _answered(state, worker, attempt)
        if task is not None:
            _try_again(state, worker, task)


def _task_rescheduled(state: SchedulerState, worker: WorkerState, message: TaskRescheduled) -> None:
    task = _answered(state, worker, message.attempt)
    if task is None:
        return
    # Elsewhere, if there is an elsewhere: for this one placement the worker counts as one that takes no tasks.
    is_running = worker.is_running
    if any(placement.admits(other, task.restriction) for other in state.workers.values() if other is not worker):
        worker.is_running = False
    placement.note_room(state, worker)
    lineage.unstage_dependents(state, task)
    task.worker = None
    lineage.wait_again(state, task)
    worker.is_running = is_running
    placement.note_room(state, worker)
    _drop_stray(state, worker, task.key)


def _key_published(state: SchedulerState, worker: WorkerState, message: KeyPublished) -> None:
    task = state.tasks.get(message.key)
    if task is None or task.state != MEMORY or worker not in task.holders:
        if isinstance(message.payload, tuple) and (task is None or task.payload != message.payload):
            state.garbage.append(message.payload)
        return
    task.is_publishing = False
    if message.payload is None and message.error is None:
        worker.has.pop(task.key, None)
        lineage.lose_values(state, [task], worker)
        return
    readers = [dependent for dependent in task.dependents or () if dependent.state == PUBLISHING]
    if message.error is not None:
        for client in task.fetchers:
            state.say_to_client(client, KeyErred(task.key, message.error))
        task.fetchers = ()
        for reader in readers:
            lineage.fail(state, reader, message.error)
        return
    if message.payload is not None and isinstance(task.payload, tuple) and task.payload != message.payload:
        state.garbage.append(message.payload)  # one is enough
        return
    task.payload = message.payload
    task.is_spilled = message.is_spilled
    _serve_fetchers(state, task)
    for reader in readers:
        reader.n_publishing -= 1
        if reader.n_publishing <= 0:
            state.move(reader, WAITING)
            lineage.resume(state, reader)


def _task_seceded(state: SchedulerState, worker: WorkerState, message: TaskSeceded) -> None:
    if message.attempt in worker.in_flight or message.attempt in worker.leaving:
        worker.seceded.add(message.attempt)


def _task_rejoined(state: SchedulerState, worker: WorkerState, message: TaskRejoined) -> None:
    worker.seceded.discard(message.attempt)


def _task_wrote(state: SchedulerState, worker: WorkerState, message: TaskWrote) -> None:
    task = worker.in_flight.get(message.attempt) or worker.leaving.get(message.attempt)
    if task is not None and task.attempt == message.attempt:  # else it runs anew, and what that writes counts
        task.output = message.text


def _generations_run(state: SchedulerState, worker: WorkerState, message: GenerationsRun) -> None:
    worker.generations = message.generations


WORKER_WORDS: dict[type, Callable[[SchedulerState, WorkerState, Any], None]] = {
    TaskDone: task_done,
    TaskErred: _task_erred,
    TaskMissing: _task_missing,
    TakenBack: _taken_back,
    TaskRescheduled: _task_rescheduled,
    KeyPublished: _key_published,
    TaskSeceded: _task_seceded,
    TaskWrote: _task_wrote,
    TaskRejoined: _task_rejoined,
    GenerationsRun: _generations_run,
}
