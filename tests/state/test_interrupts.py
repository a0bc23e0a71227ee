"""Tasks that are told to stop: by a time limit or by force, once, and never without an end."""

from __future__ import annotations

from typing import Any

from localdask import messages as words
from localdask.state import interrupts, scheduler
from tests.state.test_tasks import Desk, learned


def tick(desk: Desk, seconds: float) -> list[tuple[str, Any]]:
    desk.now += seconds
    scheduler.tick(desk.state, desk.now)
    return [(who, word) for who, word in desk.said() if not isinstance(word, words.ForgetKeys)]


def test_a_task_past_its_limit_is_told_to_stop_once() -> None:
    desk = Desk(w0=1)
    desk.submit("a", limits=(2.0, b""))
    attempt = desk.state.tasks["a"].attempt
    desk.said()
    assert tick(desk, 1.9) == []
    assert tick(desk, 0.2) == [("w0", words.InterruptTask(attempt, 2.0))]
    assert tick(desk, 0.1) == []


def test_a_task_that_answers_in_time_is_left_alone() -> None:
    desk = Desk(w0=1)
    desk.submit("a", limits=(2.0, b""))
    desk.done("a")
    assert not desk.state.interrupts and desk.state.next_deadline is None


def test_one_that_does_not_stop_fails_and_its_worker_is_stuck() -> None:
    desk = Desk(w0=1)
    desk.submit("a", limits=(2.0, b""))
    tick(desk, 2.0)
    assert ("c", words.KeyErred("a", ("timeout", "a", 2.0))) in tick(desk, interrupts.GRACE_S)
    assert desk.state.stuck == [desk.workers["w0"]]
    desk.leave("w0", is_expected=True)
    assert not desk.state.interrupts


def test_one_that_does_not_stop_runs_again_when_it_has_retries() -> None:
    desk = Desk(w0=1, w1=1)
    desk.submit("a", limits=(2.0, b""), retries=1)
    first = desk.state.tasks["a"].worker
    tick(desk, 2.0)
    tick(desk, interrupts.GRACE_S)
    assert desk.at("a") == "processing" and desk.state.tasks["a"].worker is not first
    assert len(desk.state.interrupts) == 1  # the new run's own


def test_what_stopped_for_its_limit_runs_again_only_if_that_is_worth_a_retry() -> None:
    desk = Desk(w0=1)
    desk.submit("a", limits=(0.0, b"only some errors"), retries=5)
    desk.worker("w0", words.TaskErred(desk.state.tasks["a"].attempt, b"error", 0.1, is_retriable=True))
    assert desk.at("a") == "processing"
    desk.worker("w0", words.TaskErred(desk.state.tasks["a"].attempt, b"error", 0.1, is_retriable=False))
    assert desk.at("a") == "erred"


def test_what_retries_are_for_travels_with_each_run() -> None:
    desk = Desk(w0=1)
    desk.submit("a", limits=(0.0, b"errors"))
    assert [word.retry_on for _, word in desk.said() if isinstance(word, words.RunTask)] == [b"errors"]


def test_a_timed_task_never_waits_in_a_workers_own_queue() -> None:
    desk = Desk(w0=1)
    learned(desk)
    desk.submit("a")
    desk.submit("b", limits=(1.0, b""))
    desk.submit("c", "a", limits=(1.0, b""))
    assert (desk.at("a"), desk.at("b"), desk.at("c")) == ("processing", "queued", "waiting")
    desk.done("a")
    assert (desk.at("b"), desk.at("c")) == ("queued", "processing")


def test_cancelled_by_force_what_runs_is_told_to_stop_and_what_waits_is_not() -> None:
    desk = Desk(w0=1)
    desk.submit("a")
    desk.submit("b")
    attempt = desk.state.tasks["a"].attempt
    desk.said()
    desk.client(words.CancelKeys("c", ["a", "b"], force=True))
    told = [word for who, word in desk.said() if who == "w0"]
    assert told == [words.TakeBack((attempt,)), words.InterruptTask(attempt)]
    desk.worker("w0", words.TaskErred(attempt, b"KeyboardInterrupt", 0.1))
    assert not desk.state.interrupts and not desk.workers["w0"].leaving


def test_what_somebody_else_wants_is_not_stopped() -> None:
    desk = Desk(w0=1)
    scheduler.connect_client(desk.state, "d")
    desk.submit("a")
    desk.submit("a", client="d")
    desk.client(words.CancelKeys("c", ["a"], force=True))
    assert desk.at("a") == "processing" and not desk.state.interrupts


def test_a_cancelled_task_that_does_not_stop_costs_its_worker() -> None:
    desk = Desk(w0=1)
    desk.submit("a")
    desk.client(words.CancelKeys("c", ["a"], force=True))
    tick(desk, interrupts.GRACE_S)
    assert desk.state.stuck == [desk.workers["w0"]]
