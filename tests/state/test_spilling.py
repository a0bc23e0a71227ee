"""Which results of a worker go to disk, and when."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from localdask.state.spilling import LET_GO_MIN, Spilling, is_let_go


def test_a_published_result_is_let_go_when_it_is_large_and_nearly_all_of_it_is_mapped() -> None:
    assert is_let_go(200, [LET_GO_MIN]) and is_let_go(LET_GO_MIN // 16, [LET_GO_MIN - 1, 1])
    assert not is_let_go(200, [LET_GO_MIN - 1]), "too small to matter"
    assert not is_let_go(LET_GO_MIN // 16 + 1, [LET_GO_MIN]), "too much to make anew at each read"
    assert not is_let_go(0, [LET_GO_MIN]), "a header so large that it lies in the file itself"


def moved(spilling: Spilling) -> list[str]:
    """Move all that should go, and return its keys in order."""
    keys = []
    while (key := spilling.next()) is not None and spilling.may_write(key, spilling.live[key]):
        keys.append(key)
        spilling.moved(key, spilling.live[key])
    return keys


def test_what_was_used_longest_ago_goes_until_the_rest_is_below_the_target() -> None:
    spilling = Spilling(100, None)
    for key in "abc":
        spilling.hold(key, 60)
    spilling.borrow(1, ["a"])
    spilling.give_back(1)
    assert moved(spilling) == ["b", "c"]
    assert (spilling.live, spilling.on_disk) == ({"a": 60}, {"b": 60, "c": 60})


def test_what_a_running_task_reads_stays_until_the_task_ends() -> None:
    spilling = Spilling(0, None)
    spilling.hold("a", 1)
    spilling.borrow(1, ["a", "small"])
    spilling.borrow(2, ["a"])
    assert spilling.next() is None
    assert spilling.give_back(1) and spilling.next() is None
    assert spilling.give_back(2) and spilling.next() == "a"
    assert not spilling.give_back(3)


def test_nothing_new_is_made_while_something_can_go() -> None:
    spilling = Spilling(100, 50)
    spilling.hold("a", 60)
    assert not spilling.is_behind
    spilling.hold("b", 60)
    assert spilling.is_behind
    spilling.borrow(1, ["a", "b"])
    assert not spilling.is_behind  # else the task that lets them go could wait for itself
    spilling.give_back(1)
    assert moved(spilling) == [] and not spilling.is_behind  # the disk is full


def test_without_a_target_results_go_only_when_the_process_is_too_large() -> None:
    spilling = Spilling(None, None)
    spilling.hold("a", 10**12)
    assert spilling.next() is None
    spilling.is_pressed = True
    assert moved(spilling) == ["a"]


def test_at_the_cap_nothing_goes_until_something_on_disk_is_released() -> None:
    spilling = Spilling(0, 100)
    for key in "abc":
        spilling.hold(key, 60)
    assert moved(spilling) == ["a"] and spilling.is_full and spilling.next() is None
    spilling.forget("a")
    assert moved(spilling) == ["b"]


def test_what_cannot_be_written_is_passed_over() -> None:
    spilling = Spilling(0, None)
    spilling.hold("a", 1)
    spilling.hold("b", 1)
    spilling.stick("a")
    assert moved(spilling) == ["b"]
    spilling.hold("a", 1)  # another value
    assert moved(spilling) == ["a"]


KEYS = st.sampled_from("abcd")


class SpillingMachine(RuleBasedStateMachine):
    """Results that come, are read, go to disk and are released in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.spilling = Spilling(100, 150)
        self.reading: dict[int, list[str]] = {}
        self.used: list[str] = []
        self.n_attempts = 0

    @rule(key=KEYS, nbytes=st.integers(1, 120))
    def hold(self, key: str, nbytes: int) -> None:
        self.spilling.hold(key, nbytes)
        self._use(key)

    @rule(key=KEYS)
    def forget(self, key: str) -> None:
        self.spilling.forget(key)

    @rule(keys=st.lists(KEYS, unique=True))
    def borrow(self, keys: list[str]) -> None:
        self.n_attempts += 1
        self.reading[self.n_attempts] = [key for key in keys if key in self.spilling.live]
        self.spilling.borrow(self.n_attempts, keys)
        for key in self.reading[self.n_attempts]:
            self._use(key)

    @rule(data=st.data())
    def give_back(self, data: Any) -> None:
        if self.reading:
            attempt = data.draw(st.sampled_from(sorted(self.reading)))
            assert self.spilling.give_back(attempt) == bool(self.reading.pop(attempt))

    @rule(is_pressed=st.booleans())
    def press(self, is_pressed: bool) -> None:
        self.spilling.is_pressed = is_pressed

    @rule(n_more=st.integers(-20, 20), was_published=st.booleans())
    def move(self, n_more: int, was_published: bool) -> None:
        key = self.spilling.next()
        if key is None:
            return
        assert self.spilling.is_pressed or self.spilling.live_nbytes > 100
        free = [known for known in self.used if known in self.spilling.live and not any(known in keys for keys in self.reading.values())]
        assert key == free[0]
        nbytes = 0 if was_published else max(1, self.spilling.live[key] + n_more)
        if was_published or self.spilling.may_write(key, nbytes):
            self.spilling.moved(key, nbytes)

    def _use(self, key: str) -> None:
        self.used = [known for known in self.used if known != key] + [key]

    @invariant()
    def the_sums_are_right_and_the_cap_holds(self) -> None:
        spilling = self.spilling
        assert spilling.live_nbytes == sum(spilling.live.values()) and spilling.disk_nbytes == sum(spilling.on_disk.values()) <= 150
        assert not spilling.live.keys() & spilling.on_disk.keys()

    def teardown(self) -> None:
        for attempt in list(self.reading):
            self.spilling.give_back(attempt)
        for key in "abcd":
            self.spilling.forget(key)
        spilling = self.spilling
        assert not (
            spilling.live or spilling.on_disk or spilling.published or spilling._n_borrowers or spilling.borrowed or spilling._stuck
        )


TestSpilling = SpillingMachine.TestCase
TestSpilling.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
