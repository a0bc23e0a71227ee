"""Submissions wait for company exactly where nothing is lost by it."""

from __future__ import annotations

from typing import Any

import pytest

from localdask import messages as words
from localdask.processes.anteroom import WAITING_MAX, Anteroom
from localdask.state import scheduler
from localdask.state.tasks import SchedulerState, WorkerState

FUNCTION = words.Function("f", "f", b"f")


def submission(key: str, *inputs: str, **options: Any) -> words.SubmitTasks:
    return words.SubmitTasks("c", [words.TaskSpec(key, FUNCTION, b"", inputs, **options)])


def standing(**n_in_flight: int) -> tuple[SchedulerState, Anteroom]:
    """Return a state whose workers have so many tasks, named after them and a number, and its anteroom."""
    state = SchedulerState()
    scheduler.connect_client(state, "c")
    for name in n_in_flight:
        scheduler.worker_joined(state, WorkerState(name, 1, 1, 1), 0.0)
    if n_in_flight:
        learn(state)
    for name, n_tasks in n_in_flight.items():
        specs = [words.TaskSpec(f"{name}-{number}", FUNCTION, b"", workers=(name,)) for number in range(n_tasks)]
        scheduler.client_said(state, [words.SubmitTasks("c", specs)], 0.0)
    anteroom = Anteroom(state)
    anteroom.look(is_open=True)
    return state, anteroom


def learn(state: SchedulerState) -> None:
    scheduler.client_said(state, [submission("warm-up")], 0.0)
    worker = state.tasks["warm-up"].worker
    assert worker is not None
    scheduler.worker_said(state, worker, [words.TaskDone(state.tasks["warm-up"].attempt, b"value", 5, 1e-6)], 0.0)


@pytest.mark.parametrize(
    ("n_in_flight", "may_wait"),
    [({}, False), ({"w0": 0}, False), ({"w0": 1}, False), ({"w0": 2}, True), ({"w0": 5, "w1": 1}, False), ({"w0": 5, "w1": 2}, True)],
)
def test_a_task_waits_only_while_every_worker_has_work_ahead(n_in_flight: dict[str, int], may_wait: bool) -> None:
    assert standing(**n_in_flight)[1].may_wait(submission("new")) is may_wait


def test_a_task_waits_for_its_input_even_when_a_worker_is_idle() -> None:
    state, anteroom = standing(w0=3, w1=0)
    assert anteroom.may_wait(submission("new", "w0-2"))
    assert anteroom.may_wait(submission("newer", "new"))  # its input waits here itself
    assert not anteroom.may_wait(submission("ripe", "warm-up"))
    done = [words.TaskDone(state.tasks[f"w0-{number}"].attempt, b"value", 5, 1e-6) for number in range(3)]
    scheduler.worker_said(state, state.workers["w0"], done, 0.0)
    assert not anteroom.may_wait(submission("new", "w0-2"))  # asked again, also before anybody looked


@pytest.mark.parametrize("options", [{"priority": 1}, {"workers": ("w0",)}, {"resources": (("GPU", 1.0),)}, {"limits": (1.0, b"")}])
def test_what_is_asked_for_more_than_to_run_is_taken_in_at_once(options: dict[str, Any]) -> None:
    assert not standing(w0=2)[1].may_wait(submission("new", **options))


def test_only_so_many_wait_and_they_leave_in_their_order() -> None:
    _, anteroom = standing(w0=2)
    said: list[tuple[str, list[Any]]] = [("c", [submission(f"new-{number}")]) for number in range(WAITING_MAX)]
    for client, messages in said:
        assert anteroom.may_wait(messages[0])
        anteroom.add(client, messages)
    assert not anteroom.may_wait(submission("last"))
    assert anteroom.take() == said and not anteroom


def test_nothing_waits_while_the_anteroom_is_closed() -> None:
    _, anteroom = standing(w0=2)
    anteroom.look(is_open=False)
    assert not anteroom.may_wait(submission("new"))
