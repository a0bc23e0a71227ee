"""The intake decides what a worker runs next, what waits, and what must be told, without doing any of it."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from localdask.messages import DefineFunction, RunTask, TakenBack, TaskMissing
from localdask.processes.intake import Intake


def task(attempt: int, key: str, *inputs: str) -> RunTask:
    return RunTask(attempt, key, "f", b"", tuple((name, None) for name in inputs))


def started(intake: Intake) -> RunTask:
    job = intake.start_next()
    assert job is not None
    return job[0]


def test_tasks_start_in_the_order_in_which_they_came() -> None:
    intake = Intake()
    for attempt in range(1, 4):
        intake.add(task(attempt, f"k{attempt}"))
    assert [started(intake).attempt for _ in range(3)] == [1, 2, 3]
    assert intake.start_next() is None


def test_a_task_gets_the_live_values_that_are_held_here() -> None:
    intake = Intake()
    value = object()
    intake.add(task(1, "a"))
    intake.finish(started(intake), value)
    intake.add(RunTask(2, "b", "f", b"", (("a", None), ("far", b"payload"))))
    job = intake.start_next()
    assert job is not None and job[2] == {"a": value}


def test_a_task_waits_for_an_earlier_task_of_this_worker_and_then_comes_first() -> None:
    intake = Intake()
    for word in (task(1, "a"), task(2, "b", "a"), task(3, "c", "a"), task(4, "d")):
        intake.add(word)
    first = started(intake)
    assert started(intake).key == "d"
    assert intake.n_parked == 2
    intake.add(task(5, "e"))
    intake.finish(first, 1)
    assert [started(intake).key for _ in range(3)] == ["b", "c", "e"]


def test_when_the_earlier_task_fails_what_waits_for_it_is_told_missing_and_so_on_down() -> None:
    intake = Intake()
    for word in (task(1, "a"), task(2, "b", "a"), task(3, "c", "b"), task(4, "d", "c")):
        intake.add(word)
    first = started(intake)
    assert intake.start_next() is None
    intake.fail(first)
    assert intake.words == [TaskMissing(2, ("a",)), TaskMissing(3, ("b",)), TaskMissing(4, ("c",))]
    assert intake.statistics()["n_parked"] == 0


def test_a_hundred_thousand_long_chain_fails_without_recursion() -> None:
    intake = Intake()
    intake.add(task(1, "k1"))
    for attempt in range(2, 100_001):
        intake.add(task(attempt, f"k{attempt}", f"k{attempt - 1}"))
    first = started(intake)
    assert intake.start_next() is None
    intake.fail(first)
    assert len(intake.words) == 99_999


def test_a_task_whose_input_nobody_here_makes_is_missing_it() -> None:
    intake = Intake()
    intake.data["here"] = 1
    intake.add(task(1, "b", "here", "gone"))
    assert intake.start_next() is None
    assert intake.words == [TaskMissing(1, ("gone",))]


def test_an_input_may_vanish_before_its_reader_starts() -> None:
    intake = Intake()
    intake.add(task(1, "a"))
    intake.finish(started(intake), "value")
    intake.add(task(2, "b", "a"))
    intake.forget(["a", "never"])
    assert intake.take_dropped() == ["value"] and intake.take_dropped() == []
    assert intake.start_next() is None
    assert intake.words == [TaskMissing(2, ("a",))]


def test_only_what_has_not_started_is_taken_back_and_its_dependents_are_missing() -> None:
    intake = Intake()
    for word in (task(1, "a"), task(2, "b"), task(3, "c", "a"), task(4, "d", "c"), task(5, "e")):
        intake.add(word)
    started(intake)
    started(intake)
    assert started(intake).key == "e"
    intake.take_back([1, 3, 77])
    assert intake.words == [TakenBack((3,)), TaskMissing(4, ("c",))]
    intake.take_back([99])
    assert intake.words[-1] == TakenBack(())


def test_a_task_taken_back_together_with_its_dependent_is_told_once() -> None:
    intake = Intake()
    for word in (task(1, "a"), task(2, "b", "a"), task(3, "c", "b")):
        intake.add(word)
    started(intake)
    assert intake.start_next() is None
    intake.take_back([2, 3])
    (word,) = intake.words
    assert isinstance(word, TakenBack) and sorted(word.attempts) == [2, 3]


def test_a_later_attempt_at_a_key_outlives_the_failure_of_an_earlier_one() -> None:
    intake = Intake()
    intake.add(task(1, "a"))
    old = started(intake)
    for word in (task(2, "a"), task(3, "b", "a")):
        intake.add(word)
    new = started(intake)
    assert intake.start_next() is None
    intake.fail(old)
    assert intake.words == []
    intake.finish(new, 1)
    assert started(intake).key == "b"


def test_a_value_that_is_replaced_is_handed_out_to_be_let_go() -> None:
    intake = Intake()
    for attempt, value in ((1, "old"), (2, "new")):
        intake.add(task(attempt, "a"))
        intake.finish(started(intake), value)
    assert intake.data == {"a": "new"} and intake.take_dropped() == ["old"]


def test_a_task_keeps_the_function_that_was_known_when_it_came() -> None:
    intake = Intake()
    intake.define(DefineFunction("f", b"old"))
    intake.add(task(1, "a"))
    intake.forget_functions(["f", "g"])
    intake.add(task(2, "b"))
    first, second = intake.start_next(), intake.start_next()
    assert first is not None and first[1] is not None and first[1].pickled == b"old"
    assert second is not None and second[1] is None


def test_nothing_starts_once_it_is_closed() -> None:
    intake = Intake()
    intake.add(task(1, "a"))
    intake.is_closed = True
    assert intake.start_next() is None and intake.n_ready == 0


def test_a_task_with_many_inputs_is_looked_at_a_few_times_only() -> None:
    intake = Intake()
    names = [f"k{number}" for number in range(300)]
    intake.add(task(1, "root"))
    for number, name in enumerate(names):
        intake.add(task(2 + number, name, "root"))
    intake.add(task(1000, "sum", *names))
    root = started(intake)
    assert intake.start_next() is None
    looks = 0
    absent = intake.absent

    def counted(task: RunTask) -> list[str]:
        nonlocal looks
        looks += task.key == "sum"
        return absent(task)

    intake.absent = counted  # type: ignore[method-assign]
    intake.finish(root, 0)
    while (job := intake.start_next()) is not None:
        intake.finish(job[0], 0)
        if job[0].key == "sum":
            break
    assert intake.data["sum"] == 0
    assert looks <= 3


class IntakeMachine(RuleBasedStateMachine):
    """Any order of tasks, endings, take-backs and forgettings, against a plain model of what is true."""

    def __init__(self) -> None:
        super().__init__()
        self.intake = Intake()
        self.n = 0
        self.waiting: dict[int, RunTask] = {}
        self.running: dict[int, RunTask] = {}
        self.held: dict[str, Any] = {}

    def _is_being_made(self, key: str) -> bool:
        return any(word.key == key for word in (*self.waiting.values(), *self.running.values()))

    def _hear(self, taken: tuple[int, ...] = ()) -> None:
        for word in self.intake.take_words():
            if isinstance(word, TakenBack):
                assert set(word.attempts) == {attempt for attempt in taken if attempt in self.waiting}
                for attempt in word.attempts:
                    del self.waiting[attempt]
            else:
                assert isinstance(word, TaskMissing)
                left = self.waiting.pop(word.attempt)
                assert word.inputs and set(word.inputs) <= {key for key, payload in left.inputs if payload is None}
                for key in word.inputs:
                    assert key not in self.held
                    assert not self._is_being_made(key), f"{key} is being made here"

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        self.n += 1
        names = [f"k{number}" for number in range(12)]
        free = [name for name in names if not self._is_being_made(name)]
        if not free:
            return
        key = data.draw(st.sampled_from(free))
        earlier = names[: names.index(key)]  # no key ever depends on itself, however far round
        known = [name for name in earlier if name in self.held or self._is_being_made(name)]
        inputs = data.draw(st.lists(st.sampled_from(known), unique=True, max_size=3)) if known else []
        self.waiting[self.n] = word = task(self.n, key, *inputs)
        self.intake.add(word)

    @rule()
    def start(self) -> None:
        job = self.intake.start_next()
        self._hear()
        if job is None:
            return
        word, _, inputs = job
        del self.waiting[word.attempt]
        self.running[word.attempt] = word
        assert (inputs or {}) == {key: self.held[key] for key, _ in word.inputs}

    @precondition(lambda self: self.running)
    @rule(data=st.data(), works=st.booleans())
    def end(self, data: st.DataObject, works: bool) -> None:
        word = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        if works:
            self.held[word.key] = word.attempt
            self.intake.finish(word, word.attempt)
        else:
            self.intake.fail(word)
        self._hear()

    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        attempts = tuple(data.draw(st.lists(st.integers(1, self.n + 1), max_size=4)))
        self.intake.take_back(attempts)
        self._hear(attempts)

    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        if self.held:
            key = data.draw(st.sampled_from(sorted(self.held)))
            value = self.held.pop(key)
            self.intake.forget([key])
            assert value in self.intake.take_dropped()

    @invariant()
    def is_sound(self) -> None:
        self.intake.validate()
        assert self.intake.data == self.held
        counts = self.intake.statistics()
        assert counts["n_ready"] + counts["n_parked"] == len(self.waiting)

    def teardown(self) -> None:
        """Once everything that runs is let finish, nothing waits any more."""
        while self.waiting or self.running:
            before = len(self.waiting), len(self.running)
            self.start()
            for attempt in list(self.running):
                word = self.running.pop(attempt)
                self.held[word.key] = attempt
                self.intake.finish(word, attempt)
                self._hear()
            assert (len(self.waiting), len(self.running)) != before, "nothing moves"
        self.intake.validate()


TestIntakeMachine = IntakeMachine.TestCase
TestIntakeMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
