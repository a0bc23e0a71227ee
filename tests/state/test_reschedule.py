"""Where a task goes that raises ``Reschedule``."""

from __future__ import annotations

from localdask import messages as words
from tests.state.test_tasks import Desk


def rescheduled(desk: Desk, key: str) -> str:
    """Have a task's worker say that it wants to run elsewhere; return whose it is then, or its state."""
    task = desk.state.tasks[key]
    assert task.worker is not None
    desk.worker(task.worker.name, words.TaskRescheduled(task.attempt))
    desk.said()
    return task.state if task.worker is None else task.worker.name


def test_a_rescheduled_task_goes_to_another_of_the_workers_that_it_names() -> None:
    desk = Desk(w0=2, w1=2)
    desk.submit("a", workers=("w0", "w1"))
    assert [rescheduled(desk, "a") for _ in range(4)] == ["w1", "w0", "w1", "w0"]


def test_a_rescheduled_task_leaves_the_worker_that_holds_its_inputs() -> None:
    desk = Desk(w0=1, w1=1)
    desk.submit("large", workers=("w0",))
    desk.done("large", large=True, nbytes=10**8)
    desk.submit("a", "large")
    assert rescheduled(desk, "a") == "publishing"
    desk.worker("w0", words.KeyPublished("large", ("segment", 0)))
    assert desk.state.tasks["a"].worker is desk.workers["w1"]


def test_a_rescheduled_task_that_no_other_worker_may_run_comes_back() -> None:
    desk = Desk(w0=1, w1=1)
    desk.submit("a", workers=("w0",))
    assert rescheduled(desk, "a") == "w0" and desk.workers["w0"].is_running
