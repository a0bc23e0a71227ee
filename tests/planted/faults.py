"""One-line faults. Each must be caught by somebody: tests that let one pass are too weak."""

from __future__ import annotations

from typing import NamedTuple


class Fault(NamedTuple):
    """What is wrong, where, and the line before and after."""

    name: str
    room: str
    old: str
    new: str


FAULTS = [
    Fault(
        "a dead worker's tasks stay with it",
        "state/scheduler.py",
        "    for _, task in unfinished:\n        state.move(task, WAITING)",
        "    for _, task in unfinished[1:]:\n        state.move(task, WAITING)",
    ),
    Fault(
        "a late answer is taken for the present attempt",
        "state/answers.py",
        "    if is_current:\n        return task\n",
        "    if task:\n        return task\n",
    ),
    Fault(
        "a full worker is given more",
        "state/placement.py",
        "    if n_occupied < worker.nthreads:\n        return worker.is_running",
        "    return True",
    ),
    Fault(
        "a paused worker keeps what it has not started",
        "state/scheduler.py",
        "        _stop_sending(state, worker)\n        take_back_all(state, worker)\n    elif",
        "        _stop_sending(state, worker)\n    elif",
    ),
    Fault("retries are not counted", "state/answers.py", "        task.retries_left -= 1\n", ""),
    Fault("a task is not tried again", "state/answers.py", "    if task.retries_left > 0 and message.is_retriable:", "    if False:"),
    Fault(
        "what is lost is not made again", "state/lineage.py", "    want(state, wanted)\n    let_go(state, lost)", "    let_go(state, lost)"
    ),
    Fault(
        "a value is dropped while a reader waits",
        "state/lineage.py",
        "        if task.clients or task.n_waiters or task.state == FORGOTTEN",
        "        if task.clients or task.state == FORGOTTEN",
    ),
    Fault(
        "a released value stays with its worker",
        "state/lineage.py",
        "            state.forget_on_worker(holder, task.key, task.nbytes)",
        "            pass",
    ),
    Fault(
        "only the first client is told",
        "state/answers.py",
        "    for client in task.clients:\n        state.say_to_client(client, KeyInMemory(",
        "    for client in task.clients[:1]:\n        state.say_to_client(client, KeyInMemory(",
    ),
    Fault(
        "every queued task is charged with a death",
        "state/scheduler.py",
        "        if attempt in executing and not is_expected:",
        "        if not is_expected:",
    ),
    Fault(
        "a late value of cancelled work is kept",
        "state/answers.py",
        "        worker.has[left.key] = None  # nobody",
        "        pass  # nobody",
    ),
    Fault(
        "what was sent ahead stays when its input fails",
        "state/lineage.py",
        "        if task.state in IN_FLIGHT:\n            take_from_worker(state, task)\n        unpark(task)",
        "        unpark(task)",
    ),
    Fault(
        "resources are not given back",
        "state/answers.py",
        "        worker.free_resources[name] += amount",
        "        pass",
    ),
    Fault(
        "a publication reaches nobody",
        "state/answers.py",
        "    _serve_fetchers(state, task)\n    for reader in readers:",
        "    for reader in readers:",
    ),
    Fault(
        "a value that a given-up attempt left is never forgotten",
        "state/answers.py",
        "    _drop_stray(state, worker, task.key)  # an earlier",
        "    pass  # an earlier",
    ),
    Fault(
        "what is told to stop is told for ever",
        "state/interrupts.py",
        "        if entry.is_sent:",
        "        if False:",
    ),
]
