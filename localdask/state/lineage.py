"""What is wanted, what may be let go, and what must be made again.

A value lives as long as a client wants it or an unfinished task needs it. When it is
lost while wanted, its recipe and those of its inputs run again; when nobody wants it,
it is dropped, and with its last dependent its recipe is forgotten too. Everything here
walks with a stack of its own, because a chain may be a hundred thousand tasks long.
Called by ``state/scheduler.py``; never touches the world.
"""

from __future__ import annotations

from collections.abc import Iterable

from localdask.messages import KeyCancelled, KeyErred, KeyPending, TakeBack
from localdask.state import placement
from localdask.state.actors import is_lost
from localdask.state.tasks import (
    ERRED,
    FIRE_AND_FORGET,
    FORGOTTEN,
    IN_FLIGHT,
    MEMORY,
    NO_WORKER,
    PENDING_HERE,
    QUEUED,
    RELEASED,
    STAGED,
    WAITING,
    ErrorValue,
    SchedulerState,
    TaskState,
    WorkerState,
)


def want(state: SchedulerState, tasks: Iterable[TaskState]) -> None:
    """Set released tasks going, with all their inputs that are not there."""
    stack = list(tasks)
    started = []
    while stack:
        task = stack.pop()
        if task.state != RELEASED:
            continue
        if task.function is None:
            lose_for_good(state, task, "lost-data")
            continue
        state.move(task, WAITING)
        started.append(task)
        stack.extend(dependency for dependency in task.dependencies if dependency.state == RELEASED)
    # Inputs were met after their readers: backwards, each is placed before what it feeds.
    for task in reversed(started):
        if task.state == WAITING:
            resume(state, task)


def resume(state: SchedulerState, task: TaskState) -> None:
    """Count a waiting task's missing inputs afresh, and go on with it."""
    missing = 0
    for dependency in task.dependencies:
        if dependency.state == ERRED:
            fail(state, task, dependency.error)
            return
        missing += dependency.state != MEMORY
    task.n_missing = missing
    placement.settle(state, task)


def wait_again(state: SchedulerState, task: TaskState) -> None:
    """Put an unfinished task back to waiting, and set going what it lacks."""
    unpark(task)
    if task.state != WAITING:
        state.move(task, WAITING)
    task.worker = None
    lacking = [dependency for dependency in task.dependencies if dependency.state == RELEASED]
    task.n_missing = 1  # not runnable while its inputs are being set going
    want(state, lacking)
    if task.state == WAITING:
        resume(state, task)


def unpark(task: TaskState) -> None:
    """Take a task out of the tables of those that wait for a worker or a publication."""
    if task.state == NO_WORKER:
        task.restriction.parked.pop(task.key, None)
    task.n_publishing = 0


def take_from_worker(state: SchedulerState, task: TaskState) -> None:
    """Give up a task's present attempt; the worker still owes an answer, and may hold a thread until then."""
    worker = task.worker
    if worker is not None and worker.in_flight.pop(task.attempt, None) is not None:
        worker.leaving[task.attempt] = task
        if task.attempt not in worker.taking_back:
            state.say_to_worker(worker, TakeBack((task.attempt,)))


def unstage_dependents(state: SchedulerState, task: TaskState) -> None:
    """Pull back all that was sent ahead of this task, because it will not be made where it was expected."""
    stack = [task]
    while stack:
        for dependent in stack.pop().dependents or ():
            if dependent.state == STAGED:
                take_from_worker(state, dependent)
                state.move(dependent, WAITING)
                dependent.worker = None
                stack.append(dependent)


def fail(state: SchedulerState, task: TaskState, error: ErrorValue) -> None:
    """Mark a task and all that depends on it as erred, and tell who wants them."""
    stack = [task]
    failed = []
    while stack:
        task = stack.pop()
        if task.state in (ERRED, FORGOTTEN, MEMORY):
            continue
        if task.state in IN_FLIGHT:
            take_from_worker(state, task)
        unpark(task)
        if task.state == QUEUED:
            state.move(task, WAITING)  # the queue's entry is out of date from here on
        if task.state == RELEASED and not task.is_wanted:
            continue
        state.move(task, ERRED)
        task.worker = None
        task.error = error
        task.fetchers = ()
        failed.append(task)
        for client in task.clients:
            state.say_to_client(client, KeyErred(task.key, error))
        stack.extend(dependent for dependent in task.dependents or () if dependent.state not in (RELEASED, MEMORY, ERRED))
    for task in failed:
        drop_client(state, task, FIRE_AND_FORGET)
    let_go(state, [dependency for task in failed for dependency in task.dependencies] + failed)


def drop_client(state: SchedulerState, task: TaskState, client: str) -> None:
    """A client wants this key no more; the task itself is looked at by ``let_go``."""
    if client in task.clients:
        task.clients = tuple(other for other in task.clients if other != client)
        known = state.clients.get(client)
        if known is not None:
            known.wants.pop(task.key, None)


def let_go(state: SchedulerState, tasks: Iterable[TaskState]) -> None:
    """Drop what of these tasks, and of their inputs, nobody wants."""
    stack = list(tasks)
    while stack:
        task = stack.pop()
        if task.clients or task.n_waiters or task.state == FORGOTTEN or (task.is_argument and task.dependents):
            continue
        before = task.state
        if before in IN_FLIGHT:
            take_from_worker(state, task)
            state.move(task, RELEASED)
            task.worker = None
            unstage_dependents(state, task)
        elif before in PENDING_HERE:
            unpark(task)
            state.move(task, RELEASED)
        elif before == MEMORY:
            drop_value(state, task)
            state.move(task, RELEASED)
        elif before == ERRED and not task.dependents:
            state.move(task, RELEASED)
        if not task.dependents and task.state == RELEASED:
            _forget(state, task)
        if task.state != before:  # else its inputs are as they were: a chain's recipes are not walked to their root each time
            stack.extend(task.dependencies)


def _forget(state: SchedulerState, task: TaskState) -> None:
    state.move(task, FORGOTTEN)
    del state.tasks[task.key]
    for dependency in task.dependencies:
        if dependency.dependents:
            dependency.dependents.pop(task, None)
    function = task.function
    if function is not None:
        function.n_tasks -= 1
    task.error = None


def drop_value(state: SchedulerState, task: TaskState) -> None:
    """Free a value wherever it is."""
    for holder in task.holders:
        if holder.has.pop(task.key, 0) is None:
            state.forget_on_worker(holder, task.key, task.nbytes)
    task.holders = ()
    if isinstance(task.payload, tuple):
        state.garbage.append(task.payload)
    task.payload = None
    task.is_publishing = task.is_spilled = False
    task.nbytes = 0
    task.output = ""


def lose_values(state: SchedulerState, tasks: Iterable[TaskState], worker: WorkerState) -> None:
    """A worker no longer holds these values; what it was the last to hold is made again or given up.

    All losses are noted before anything is set going, so that nothing is asked of a
    value that is about to be found lost.
    """
    lost = []
    for task in tasks:
        task.holders = tuple(holder for holder in task.holders if holder is not worker)
        if is_lost(task):
            task.payload = None  # a proxy of what is gone
        if task.payload is not None or task.state != MEMORY:
            continue
        if not task.holders:
            task.is_publishing = False
            lost.append(task)
    readers: dict[TaskState, None] = {}
    for task in lost:
        readers.update(
            (dependent, None) for dependent in task.dependents or () if dependent.state in PENDING_HERE or dependent.state == STAGED
        )
    wanted = [task for task in lost if task.is_wanted and not task.is_actor]
    for task in lost:
        state.move(task, RELEASED)
        task.nbytes = 0
    for reader in readers:
        if reader.state == STAGED:
            take_from_worker(state, reader)
            unstage_dependents(state, reader)
        unpark(reader)
        if reader.state != WAITING:
            state.move(reader, WAITING)
        reader.worker = None
        reader.n_missing = len(reader.dependencies)  # not runnable while its inputs are being set going
    for task in wanted:
        for client in task.clients:
            state.say_to_client(client, KeyPending(task.key))
    for task in lost:
        if task.is_actor:
            fail(state, task, ("actor-lost", task.key, worker.name))
    want(state, wanted)
    let_go(state, lost)
    for reader in readers:
        if reader.state == WAITING:
            resume(state, reader)


def lose_for_good(state: SchedulerState, task: TaskState, reason: str) -> None:
    """A value without a recipe is gone: its futures are cancelled, and so is what depends on it."""
    cancel(state, [task], reason, "", None)


def cancel(state: SchedulerState, tasks: Iterable[TaskState], reason: str, msg: str, client: str | None) -> None:
    """Cancel tasks and all that depends on them, for one client or (None) for all."""
    stack = list(tasks)
    seen: dict[TaskState, None] = {}
    while stack:
        task = stack.pop()
        if task in seen:
            continue
        seen[task] = None
        stack.extend(task.dependents or ())
        for wanting in task.clients:
            if client is None or wanting == client:
                state.say_to_client(wanting, KeyCancelled(task.key, reason, msg))
                drop_client(state, task, wanting)
    # Dependents first, so that no input is seen as still needed.
    let_go(state, list(seen))
    if client is None:
        for task in seen:
            if task.state in PENDING_HERE or task.state in IN_FLIGHT:
                error = ("lost", task.key, reason)
                fail(state, task, error)
