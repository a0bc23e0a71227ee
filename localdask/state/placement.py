"""Which worker runs a task, how far ahead of it the worker is fed, and what it gives back.

A worker's queue is measured in milliseconds of expected work, not in tasks: functions
that return in microseconds are sent by the thousand, slow ones one ahead of each
thread, and a function that was never seen is not sent ahead at all. Called by
``state/lineage.py`` and ``state/scheduler.py``; decides only, and leaves its words in
the workers' outboxes.
"""

from __future__ import annotations

from collections.abc import Iterable

from localdask.messages import DefineFunction, ForgetFunctions, Payload, PublishKey, RunTask, TakeBack
from localdask.state import interrupts
from localdask.state.queues import TaskQueue
from localdask.state.tasks import (
    IN_FLIGHT,
    MEMORY,
    NO_WORKER,
    PROCESSING,
    PUBLISHING,
    QUEUED,
    STAGED,
    UNFINISHED,
    WAITING,
    Restriction,
    SchedulerState,
    TaskState,
    WorkerState,
)

#: Expected work, in seconds, that is sent ahead to each thread of a worker.
QUEUE_S = 0.010
#: What a task costs a worker besides the function itself, in seconds.
OVERHEAD_S = 5e-6
#: What a function that was never seen is expected to take, in seconds.
UNKNOWN_S = 0.5
#: Attempts that may be with one worker at a time.
IN_FLIGHT_MAX = 2000
#: Of these, tasks that wait there for inputs which the same worker makes.
STAGED_MAX = 1000
#: Functions that a worker keeps loaded.
FUNCTIONS_MAX = 1000
#: What it takes to have a value published and read elsewhere, in seconds: until a busy worker hears of it, and each byte
#: (measured with fresh shared memory).
MOVE_S = 0.01
MOVE_BYTE_S = 1e-9
#: Tasks that are sent, though a worker has enough, because their results are read together with that of another one there.
PARTNERS_MAX = 3
#: How often idle workers look again at what others have queued, in seconds.
REBALANCE_S = 0.005


def has_room(worker: WorkerState, is_measured: bool) -> bool:
    """Whether one more task may be sent; ``is_measured`` says that its function's duration is known."""
    n_occupied = len(worker.in_flight) + len(worker.leaving) - len(worker.seceded)
    if n_occupied < worker.nthreads:
        return worker.is_running
    if not is_measured or not worker.is_running or n_occupied >= IN_FLIGHT_MAX:
        return False
    return n_occupied < 2 * worker.nthreads or worker.occupancy_s < QUEUE_S * worker.nthreads


def work_ahead(state: SchedulerState) -> tuple[bool, bool]:
    """Return whether some worker, and whether every worker, has tasks ahead of those that it runs: each owes an answer then."""
    some, every = False, True
    for worker in state.workers.values():
        if len(worker.in_flight) - len(worker.seceded) >= 2 * worker.nthreads:
            some = True
        else:
            every = False
    return some, some and every


def lacks_input(state: SchedulerState, keys: Iterable[str]) -> bool:
    """Whether one of these keys is yet to be made."""
    for key in keys:
        task = state.tasks.get(key)
        if task is None or task.state in UNFINISHED:
            return True
    return False


def note_room(state: SchedulerState, worker: WorkerState) -> None:
    """Keep the tables of idle and open workers true, and move this one to the end of its table."""
    name = worker.name
    state.idle.pop(name, None)
    state.open.pop(name, None)
    if has_room(worker, is_measured=True):
        n_occupied = len(worker.in_flight) + len(worker.leaving) - len(worker.seceded)
        (state.idle if n_occupied < worker.nthreads else state.open)[name] = worker


def admits(worker: WorkerState, restriction: Restriction) -> bool:
    """Whether a worker could ever run tasks of this restriction."""
    if not worker.is_running or restriction.is_none:
        return worker.is_running
    if restriction.workers and worker.name not in restriction.workers and not restriction.allow_other_workers:
        return False
    return all(worker.resources.get(name, 0.0) >= amount for name, amount in restriction.resources)


def fits_now(worker: WorkerState, restriction: Restriction) -> bool:
    """Whether a worker admits this restriction and has the resources free."""
    if restriction.is_none:
        return worker.is_running
    return admits(worker, restriction) and all(worker.free_resources.get(name, 0.0) >= amount for name, amount in restriction.resources)


def can_read(worker: WorkerState, dependency: TaskState) -> bool:
    """Whether an input that is in memory can be read on this worker as things stand."""
    return dependency.payload is not None or worker in dependency.holders


def choose_worker(state: SchedulerState, task: TaskState) -> WorkerState | None:
    """Return the worker to send a runnable task to now, or None when all that are admitted have enough to do."""
    function = task.function
    is_measured = function is not None and function.duration_s >= 0 and task.limits is None
    other = next(iter((state.idle or (state.open if is_measured else {})).values()), None)
    holder = _largest_holder(task) if task.dependencies else None
    if holder is not None and fits_now(holder, task.restriction):
        can_begin = holder.is_idle or (not state.idle and has_room(holder, is_measured))
        if can_begin or _is_worth_waiting(holder, task, other):
            return holder
    return other if task.restriction.is_none else _choose_restricted(state, task.restriction, is_measured)


def _largest_holder(task: TaskState) -> WorkerState | None:
    """Return who holds most of those inputs of a task that nobody else can read yet."""
    held: dict[WorkerState, int] = {}
    for dependency in task.dependencies:
        if dependency.payload is None:
            for holder in dependency.holders:
                held[holder] = held.get(holder, 0) + dependency.nbytes
    return max(held, key=held.__getitem__) if held else None


def _is_worth_waiting(holder: WorkerState, task: TaskState, other: WorkerState | None) -> bool:
    """Whether a task had better wait for the worker that holds its inputs than have them moved to another, where it waits too."""
    # What is counted or timed from when it is sent must not wait there.
    if task.limits is not None or task.restriction.resources or len(holder.in_flight) >= IN_FLIGHT_MAX:
        return False
    return _wait_s(holder) < _move_s(holder, task) + (_wait_s(other) if other is not None else 0.0)


def _move_s(holder: WorkerState, task: TaskState) -> float:
    """Return what it takes to have elsewhere what only this worker can read of a task's inputs, in seconds."""
    nbytes = sum(dependency.nbytes for dependency in task.dependencies if dependency.payload is None and holder in dependency.holders)
    return MOVE_S + MOVE_BYTE_S * nbytes if nbytes else 0.0


def _wait_s(worker: WorkerState) -> float:
    """Return how long a task sent now would wait for a worker's thread, as far as can be expected."""
    return max(worker.occupancy_s / worker.nthreads, worker.late_s)


def _choose_restricted(state: SchedulerState, restriction: Restriction, is_measured: bool) -> WorkerState | None:
    fitting = [worker for worker in state.workers.values() if fits_now(worker, restriction)]
    if restriction.allow_other_workers:
        named = [worker for worker in fitting if worker.name in restriction.workers]
        fitting = named or fitting
    # Resources are counted when a task is sent, so none of these waits in a worker's own queue.
    fitting = [worker for worker in fitting if (worker.is_idle if restriction.resources else has_room(worker, is_measured))]
    return min(fitting, key=lambda worker: worker.n_occupied / worker.nthreads) if fitting else None


def place(state: SchedulerState, task: TaskState) -> None:
    """Send a waiting task whose inputs are all in memory, or queue it."""
    worker = choose_worker(state, task)
    if worker is not None:
        place_on(state, task, worker)
        return
    restriction = task.restriction
    # Where tasks are queued somebody admits them: else they were parked.
    if restriction.queue or any(admits(known, restriction) for known in state.workers.values()):
        state.move(task, QUEUED)
        restriction.queue.push(task)
    else:
        state.move(task, NO_WORKER)
        restriction.parked[task.key] = task
        if state.on_park is not None:
            state.on_park(restriction)


def place_on(state: SchedulerState, task: TaskState, worker: WorkerState) -> None:
    """Send a runnable task to this worker, once its inputs can be read there."""
    if task.dependencies and not _make_readable(state, task, worker):
        return
    send(state, task, worker, PROCESSING)


def _make_readable(state: SchedulerState, task: TaskState, worker: WorkerState) -> bool:
    """Return whether all inputs of a runnable task can be read on a worker; have those published that cannot."""
    unreadable = [dependency for dependency in task.dependencies if not can_read(worker, dependency)]
    if not unreadable:
        return True
    state.move(task, PUBLISHING)
    task.n_publishing = len(unreadable)
    for dependency in unreadable:
        publish(state, dependency)
    return False


def publish(state: SchedulerState, task: TaskState) -> None:
    """Ask a worker that holds a value to make it readable to others."""
    if not task.is_publishing:
        task.is_publishing = True
        state.say_to_worker(task.holders[0], PublishKey(task.key))


def settle(state: SchedulerState, task: TaskState) -> None:
    """Do what can be done for a waiting task: place it, send it ahead, or leave it."""
    if task.n_missing == 0:
        place(state, task)
    else:
        worker = _stage_target(task)
        if worker is not None:
            send(state, task, worker, STAGED)


def _stage_target(task: TaskState) -> WorkerState | None:
    """Return the one worker that is about to make every input that is missing."""
    target: WorkerState | None = None
    is_only_reader = True
    for dependency in task.dependencies:
        if dependency.state in IN_FLIGHT:
            worker = dependency.worker
            if worker is None or (target is not None and target is not worker) or dependency.attempt in worker.taking_back:
                return None
            target = worker
            is_only_reader = is_only_reader and dependency.dependents is not None and len(dependency.dependents) == 1
        elif dependency.state != MEMORY:
            return None
    if target is None or task.restriction.resources or task.limits is not None or not fits_now(target, task.restriction):
        return None
    if any(dependency.state == MEMORY and not can_read(target, dependency) for dependency in task.dependencies):
        return None
    if len(target.in_flight) >= STAGED_MAX:
        return None
    function = task.function
    # A fan-out stays free to go elsewhere; what only continues one task follows it.
    if is_only_reader or (function is not None and has_room(target, function.is_measured)):
        return target
    return None


def send(state: SchedulerState, task: TaskState, worker: WorkerState, finish: str) -> None:
    """Give a task to a worker as a new attempt."""
    _hand_over(state, task, worker, finish)
    note_room(state, worker)


def _hand_over(state: SchedulerState, task: TaskState, worker: WorkerState, finish: str) -> None:
    """As ``send``; the caller notes what room is left."""
    function = task.function
    assert function is not None, task
    state.n_attempts = attempt = state.n_attempts + 1
    task.attempt = attempt
    task.output = ""
    task.worker = worker
    task.expected_s = expected = function.duration_s + OVERHEAD_S if function.duration_s >= 0 else UNKNOWN_S
    state.move(task, finish)
    if not worker.in_flight:
        worker.occupancy_s = 0.0
    worker.in_flight[attempt] = task
    worker.occupancy_s += expected
    for name, amount in task.restriction.resources:
        worker.free_resources[name] -= amount
    if function.function_id not in worker.functions:
        _define_function(state, worker, function.function_id, function.pickled)
    inputs: tuple[tuple[str, Payload | None], ...] = ()
    if task.dependencies:
        inputs = tuple((d.key, None if worker in d.holders or d.state != MEMORY else d.payload) for d in task.dependencies)
    if task.limits is None:
        state.say_to_worker(worker, RunTask(attempt, task.key, function.function_id, task.arguments, inputs))
    else:
        limit_s, retry_on = task.limits
        state.say_to_worker(worker, RunTask(attempt, task.key, function.function_id, task.arguments, inputs, retry_on))
        if limit_s:
            interrupts.limit(state, worker, attempt, limit_s)


def _define_function(state: SchedulerState, worker: WorkerState, function_id: str, pickled: bytes) -> None:
    if len(worker.functions) >= FUNCTIONS_MAX:
        oldest = next(iter(worker.functions))
        del worker.functions[oldest]
        state.say_to_worker(worker, ForgetFunctions((oldest,)))
    worker.functions[function_id] = None
    state.say_to_worker(worker, DefineFunction(function_id, pickled))


def feed(state: SchedulerState, worker: WorkerState) -> None:
    """Send queued tasks to a worker until it has enough."""
    restricted = [restriction for restriction in state.restrictions.values() if restriction.queue]
    while True:
        queue = state.unrestricted.queue
        if restricted:
            queue = _first_queue(state, worker, restricted)
        task = queue.peek()
        if task is None:
            break
        if task.state != QUEUED:
            queue.pop()
            continue
        # What is counted or timed from when it is sent must not wait in the worker's own queue.
        if not has_room(worker, task.function.duration_s >= 0 and not task.restriction.resources and task.limits is None):
            break
        queue.pop()
        holder = _largest_holder(task) if task.dependencies else None
        if holder is not None and holder is not worker and fits_now(holder, task.restriction) and _is_worth_waiting(holder, task, worker):
            place_on(state, task, holder)
        elif not task.dependencies or _make_readable(state, task, worker):
            _hand_over(state, task, worker, PROCESSING)
            _send_partners(state, task, worker)
        if task.dependents:
            stage_dependents(state, task)
    note_room(state, worker)


def _send_partners(state: SchedulerState, task: TaskState, worker: WorkerState) -> None:
    """Send after a task what is queued and will be read together with it: else one of the results would have to be moved."""
    if task.dependencies or task.restriction.resources:
        return
    n_sent = 0
    for dependent in task.dependents or ():
        if len(dependent.dependencies) > PARTNERS_MAX + 1:
            continue
        for partner in dependent.dependencies:
            if partner.state == QUEUED and _is_alike(partner, task):
                _hand_over(state, partner, worker, PROCESSING)
                n_sent += 1
                if n_sent == PARTNERS_MAX:
                    return


def _is_alike(partner: TaskState, task: TaskState) -> bool:
    """Whether a task may go to a worker ahead of its turn because another one does."""
    function = partner.function
    return (
        function is not None
        and function.is_measured
        and not partner.dependencies
        and partner.limits is None
        and partner.restriction is task.restriction
        and partner.priority[0] == task.priority[0]
    )


def _first_queue(state: SchedulerState, worker: WorkerState, restricted: list[Restriction]) -> TaskQueue:
    """Return the queue whose head comes first among those that admit the worker."""
    best = state.unrestricted.queue
    for restriction in restricted:
        if restriction.queue and fits_now(worker, restriction):
            head, other = restriction.queue.peek(), best.peek()
            if other is None or head.priority < other.priority:
                best = restriction.queue
    return best


def stage_dependents(state: SchedulerState, task: TaskState) -> None:
    """Send the waiting tasks that continue this one to the same worker, as deep as they go."""
    stack = [task]
    while stack:
        for dependent in stack.pop().dependents or ():
            if dependent.state == WAITING and dependent.n_missing:
                settle(state, dependent)
                if dependent.state == STAGED:
                    stack.append(dependent)


def rebalance(state: SchedulerState, now: float) -> None:
    """Take queued work back from busy workers when others have none.

    A worker that answered a moment ago will come to its queue by itself; one that
    has been silent for longer than it was expected to be gives back half.
    """
    state.rebalance_at = None
    if not state.idle or len(state.workers) < 2:
        return
    for worker in state.workers.values():
        if len(worker.in_flight) + len(worker.leaving) > worker.nthreads:
            break
    else:
        return
    n_wanted = sum(worker.nthreads - worker.n_occupied for worker in state.idle.values())
    for worker in state.workers.values():
        surplus = worker.n_occupied - worker.nthreads - len(worker.taking_back)
        if surplus <= 0 or not n_wanted:
            continue
        state.rebalance_at = now + REBALANCE_S
        if worker.occupancy_s < REBALANCE_S and now - worker.progress_at < REBALANCE_S:
            continue
        worker.late_s = max(worker.late_s, now - worker.progress_at)
        movable = _movable(state, worker)
        share = movable[: max(n_wanted, surplus // 2) if surplus > n_wanted else surplus]
        if share:
            worker.taking_back.update(share)
            state.say_to_worker(worker, TakeBack(tuple(share)))
            n_wanted = max(0, n_wanted - len(share))


def _movable(state: SchedulerState, worker: WorkerState) -> list[int]:
    """Return the attempts that a worker has not begun, as far as their order tells, and that are better off elsewhere, the newest first."""
    wait_s = _wait_s(worker)
    attempts = [attempt for attempt in reversed(worker.in_flight) if attempt not in worker.seceded]
    movable = []
    for attempt in attempts[: worker.n_occupied - worker.nthreads]:
        task = worker.in_flight[attempt]
        if (
            attempt not in worker.taking_back
            and task.state == PROCESSING
            and not any(dependent.state == STAGED for dependent in task.dependents or ())
            and any(fits_now(idle, task.restriction) for idle in state.idle.values())
            and _move_s(worker, task) <= wait_s
        ):
            movable.append(attempt)
    return movable
