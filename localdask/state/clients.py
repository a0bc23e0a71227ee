"""What clients say, and what is done about it.

One function for each word of a client, listed in ``CLIENT_WORDS``. Called by
``state/scheduler.py`` only; like everything here it decides and leaves words in
outboxes, and never touches the world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from localdask.messages import (
    AddData,
    CancelKeys,
    ClientGone,
    FetchKeys,
    FireAndForget,
    KeyCancelled,
    KeyErred,
    KeyFetched,
    KeyInMemory,
    KeyPending,
    ReleaseKeys,
    RetryKeys,
    SubmitTasks,
    TaskSpec,
    WantKeys,
)
from localdask.state import interrupts, lineage, placement
from localdask.state.tasks import (
    ERRED,
    FIRE_AND_FORGET,
    MEMORY,
    PENDING_HERE,
    RELEASED,
    UNFINISHED,
    WAITING,
    ClientState,
    FunctionState,
    Restriction,
    SchedulerState,
    TaskState,
)


def _submit(state: SchedulerState, message: SubmitTasks) -> None:
    client = state.clients.get(message.client)
    if client is None:
        return
    clients = (client.client,)
    wanted = None if message.wanted is None else frozenset(message.wanted)
    unwanted = []
    for spec in message.tasks:
        task = state.tasks.get(spec.key)
        if wanted is not None and spec.key not in wanted:
            if task is None and (task := _new_task(state, spec)) is not None:
                unwanted.append(task)
            continue
        if task is not None:
            _want_key(state, client, task)
            continue
        task = _new_task(state, spec)
        if task is None:
            state.say_to_client(client.client, KeyCancelled(spec.key, "lost-dependencies", "an input was cancelled or lost"))
            continue
        task.clients = clients
        client.wants[spec.key] = None
        if task.dependencies:
            lineage.want(state, (task,))
        else:
            state.move(task, WAITING)
            placement.place(state, task)
    if unwanted:
        lineage.let_go(state, unwanted)  # those that nothing wanted needs


def _new_task(state: SchedulerState, spec: TaskSpec) -> TaskState | None:
    restriction = _restriction(state, spec) if spec.workers or spec.resources else state.unrestricted
    function = state.functions.get(spec.function.function_id)
    if function is None:
        function = _new_function(state, spec)
    order = state.n_tasks_seen
    task = TaskState(spec.key, function, spec.arguments, order, spec.priority, restriction)
    if spec.dependencies:
        dependencies = []
        for key in spec.dependencies:
            dependency = state.tasks.get(key)
            if dependency is None:
                return None
            dependencies.append(dependency)
        task.dependencies = tuple(dependencies)
        for dependency in dependencies:
            if dependency.dependents is None:
                dependency.dependents = {}
            dependency.dependents[task] = None
    task.retries_left = spec.retries
    task.limits = spec.limits
    task.is_actor = spec.is_actor
    function.n_tasks += 1
    state.n_tasks_seen = order + 1
    state.tasks[spec.key] = task
    return task


def _new_function(state: SchedulerState, spec: TaskSpec) -> FunctionState:
    if len(state.functions) >= 2 * placement.FUNCTIONS_MAX:
        for function_id in [known.function_id for known in state.functions.values() if known.n_tasks == 0]:
            del state.functions[function_id]
    function = FunctionState(spec.function.function_id, spec.function.name, spec.function.pickled)
    state.functions[function.function_id] = function
    return function


def _restriction(state: SchedulerState, spec: TaskSpec) -> Restriction:
    identity = (spec.workers, spec.allow_other_workers, spec.resources)
    restriction = state.restrictions.get(identity)
    if restriction is None:
        restriction = state.restrictions[identity] = Restriction(spec.workers, spec.allow_other_workers, spec.resources)
    return restriction


def _want_key(state: SchedulerState, client: ClientState, task: TaskState) -> None:
    if client.client not in task.clients:
        task.clients = (*task.clients, client.client)
        client.wants[task.key] = None
    if task.state == MEMORY:
        state.say_to_client(client.client, KeyInMemory(task.key, task.payload, task.nbytes, task.type_name))
    elif task.state == ERRED:
        state.say_to_client(client.client, KeyErred(task.key, task.error))
    elif task.state == RELEASED:
        lineage.want(state, (task,))


def _want_keys(state: SchedulerState, message: WantKeys) -> None:
    client = state.clients.get(message.client)
    if client is None:
        return
    for key in message.keys:
        task = state.tasks.get(key)
        if task is not None:
            _want_key(state, client, task)


def _release_keys(state: SchedulerState, message: ReleaseKeys) -> None:
    released = []
    for key in message.keys:
        task = state.tasks.get(key)
        if task is not None and message.client in task.clients:
            lineage.drop_client(state, task, message.client)
            released.append(task)
    lineage.let_go(state, released)


def _cancel_keys(state: SchedulerState, message: CancelKeys) -> None:
    tasks = [state.tasks[key] for key in message.keys if key in state.tasks]
    sent = [(attempt, worker) for worker in state.workers.values() for attempt in worker.in_flight] if message.force else []
    lineage.cancel(state, tasks, message.reason, message.msg, message.client)
    for attempt, worker in sent:
        if attempt in worker.leaving:
            interrupts.stop(state, worker, attempt)


def unsent(state: SchedulerState, keys: Iterable[str]) -> list[str]:
    """Return those of these keys that are to be made and that no worker has been sent."""
    return [key for key in keys if key in state.tasks and state.tasks[key].state in PENDING_HERE]


def cancel_unsent(state: SchedulerState, client: str, keys: Iterable[str]) -> list[str]:
    """Cancel, for a client, what no worker has been sent; return which keys these were."""
    cancelled = unsent(state, keys)
    lineage.cancel(state, [state.tasks[key] for key in cancelled], "unknown", "", client)
    return cancelled


def _retry_keys(state: SchedulerState, message: RetryKeys) -> None:
    stack = [state.tasks[key] for key in message.keys if key in state.tasks]
    again: dict[TaskState, None] = {}
    while stack:
        task = stack.pop()
        if task.state == ERRED and task not in again:
            again[task] = None
            stack.extend(task.dependencies)
            stack.extend(task.dependents or ())
    for task in again:
        state.move(task, RELEASED)
        task.error = None
        task.n_deaths = 0
        for client in task.clients:
            state.say_to_client(client, KeyPending(task.key))
    lineage.want(state, [task for task in again if task.clients])


def _add_data(state: SchedulerState, message: AddData) -> None:
    client = state.clients.get(message.client)
    for key, payload, nbytes in message.items:
        task = state.tasks.get(key)
        if task is None:
            task = TaskState(key, None, b"", state.n_tasks_seen, 0, state.unrestricted)
            state.n_tasks_seen += 1
            state.tasks[key] = task
        if task.function is None and task.state == RELEASED:  # new, or let go while something that read it is still known
            task.payload = payload
            task.nbytes = nbytes
            state.move(task, MEMORY)
        elif isinstance(payload, tuple) and payload != task.payload:
            state.garbage.append(payload)
        task.is_argument |= message.are_arguments
        if client is None:
            lineage.let_go(state, [task])
        else:
            _want_key(state, client, task)


def _fetch_keys(state: SchedulerState, message: FetchKeys) -> None:
    for key in message.keys:
        task = state.tasks.get(key)
        if task is None:
            state.say_to_client(message.client, KeyCancelled(key, "lost-data", "the scheduler does not know this key"))
        elif task.payload is not None:
            state.say_to_client(message.client, KeyFetched(key, task.payload))
        elif task.state != ERRED:
            task.fetchers = (*task.fetchers, message.client)
            if task.state == MEMORY:
                placement.publish(state, task)


def _fire_and_forget(state: SchedulerState, message: FireAndForget) -> None:
    for key in message.keys:
        task = state.tasks.get(key)
        if task is not None and task.state in UNFINISHED and FIRE_AND_FORGET not in task.clients:
            task.clients = (*task.clients, FIRE_AND_FORGET)


def _client_gone(state: SchedulerState, message: ClientGone) -> None:
    client = state.clients.pop(message.client, None)
    if client is None:
        return
    state.dirty_clients.pop(message.client, None)
    tasks = [state.tasks[key] for key in client.wants if key in state.tasks]
    for task in tasks:
        lineage.drop_client(state, task, message.client)
    lineage.let_go(state, tasks)


CLIENT_WORDS: dict[type, Callable[[SchedulerState, Any], None]] = {
    SubmitTasks: _submit,
    WantKeys: _want_keys,
    ReleaseKeys: _release_keys,
    CancelKeys: _cancel_keys,
    RetryKeys: _retry_keys,
    AddData: _add_data,
    FetchKeys: _fetch_keys,
    FireAndForget: _fire_and_forget,
    ClientGone: _client_gone,
}
