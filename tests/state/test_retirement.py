"""Who leaves a cluster that gets smaller, and when."""

from __future__ import annotations

from localdask import messages as words
from localdask.state.retirement import Retirement, advance, by_staying, spare
from tests.state.test_tasks import Desk


def with_an_actor_in(home: str) -> Desk:
    desk = Desk(w0=1, w1=1, w2=1)
    desk.submit("a", is_actor=True, workers=(home,))
    desk.done("a")
    return desk


def test_the_oldest_stay_longest_and_who_has_not_started_goes_first() -> None:
    assert by_staying(Desk(w0=1, w2=1, w3=1).state, ["w0", "w1", "w2", "w3"]) == ["w0", "w2", "w3", "w1"]


def test_a_worker_where_an_actor_lives_stays_longer_than_older_ones() -> None:
    assert by_staying(with_an_actor_in("w2").state, ["w0", "w1", "w2"]) == ["w2", "w0", "w1"]


def test_only_who_has_started_and_runs_nothing_and_has_no_actor_can_be_spared() -> None:
    desk = with_an_actor_in("w2")
    desk.submit("busy", workers=("w1",))
    assert spare(desk.state, ["w0", "w1", "w2", "w3"]) == ["w0"]


def with_a_waiting_parent(**workers: int) -> tuple[Desk, Retirement]:
    """A desk where w0 runs a task that waits for another, and w0's retirement."""
    desk = Desk(**workers)
    desk.submit("parent", workers=("w0",))
    desk.worker("w0", words.TaskSeceded(desk.state.tasks["parent"].attempt))
    return desk, Retirement(desk.workers["w0"])


def test_the_only_worker_gets_what_its_task_waits_for_before_it_leaves() -> None:
    desk, leaves = with_a_waiting_parent(w0=1)
    assert not advance(desk.state, leaves, 1.0)
    desk.submit("child")
    desk.done("child")
    desk.worker("w0", words.TaskRejoined(desk.state.tasks["parent"].attempt))
    assert not advance(desk.state, leaves, 2.0)  # it may wait for another one soon
    desk.submit("child-2")
    desk.done("child-2")
    desk.done("parent")
    assert advance(desk.state, leaves, 3.0)
    desk.submit("later")
    assert desk.state.tasks["later"].state == "no-worker"


def test_a_worker_leaves_at_once_where_another_can_run_what_its_task_waits_for() -> None:
    desk, leaves = with_a_waiting_parent(w0=1, w1=1)
    assert not advance(desk.state, leaves, 1.0)
    desk.submit("child")
    assert desk.state.tasks["child"].worker is desk.workers["w1"]


def test_of_the_last_workers_that_leave_one_runs_what_their_tasks_wait_for() -> None:
    desk, leaves = with_a_waiting_parent(w0=1, w1=1)
    other = Retirement(desk.workers["w1"])
    assert advance(desk.state, other, 1.0) and not advance(desk.state, leaves, 1.0)
    desk.submit("child")
    assert desk.state.tasks["child"].worker is desk.workers["w0"]


def test_at_the_end_of_its_grace_the_only_worker_gets_nothing_more() -> None:
    desk, leaves = with_a_waiting_parent(w0=1)
    assert not advance(desk.state, leaves, 1.0, is_last=True)
    desk.submit("child")
    assert desk.state.tasks["child"].worker is None


def test_a_worker_that_was_to_leave_runs_what_its_task_first_waits_for_then() -> None:
    desk = Desk(w0=1)
    desk.submit("parent")
    leaves = Retirement(desk.workers["w0"])
    assert not advance(desk.state, leaves, 1.0)
    desk.submit("child")
    assert desk.state.tasks["child"].state == "no-worker"
    desk.worker("w0", words.TaskSeceded(desk.state.tasks["parent"].attempt))
    assert not advance(desk.state, leaves, 2.0)
    desk.done("child")
    desk.done("parent")
    assert advance(desk.state, leaves, 3.0)
    desk.submit("later")
    assert desk.state.tasks["later"].state == "no-worker"


def test_of_workers_that_leave_together_one_runs_what_their_tasks_first_wait_for_then() -> None:
    desk = Desk(w0=1, w1=1)
    desk.submit("p0", workers=("w0",))
    desk.submit("p1", workers=("w1",))
    going = [Retirement(desk.workers[name]) for name in ("w0", "w1")]
    assert not any([advance(desk.state, each, 1.0) for each in going])
    for name, parent in (("w0", "p0"), ("w1", "p1")):
        desk.worker(name, words.TaskSeceded(desk.state.tasks[parent].attempt))
    desk.submit("child")
    assert not any([advance(desk.state, each, 2.0) for each in going])
    assert [desk.workers[name].is_running for name in ("w0", "w1")] == [True, False]
    desk.done("child")
    desk.done("p0")
    assert advance(desk.state, going[0], 3.0) and not advance(desk.state, going[1], 3.0)
    assert desk.workers["w1"].is_running


def test_at_the_end_of_its_grace_a_worker_that_was_taken_back_gets_nothing_more() -> None:
    desk = Desk(w0=1)
    desk.submit("parent")
    leaves = Retirement(desk.workers["w0"])
    advance(desk.state, leaves, 1.0)
    desk.worker("w0", words.TaskSeceded(desk.state.tasks["parent"].attempt))
    advance(desk.state, leaves, 2.0)
    assert not advance(desk.state, leaves, 3.0, is_last=True)
    desk.submit("child")
    assert desk.state.tasks["child"].worker is None
