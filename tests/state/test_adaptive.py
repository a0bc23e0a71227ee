"""A cluster grows with its work at once, shrinks after repeated advice, and never flaps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from localdask.state.adaptive import AdaptiveState, Load, desired, recommend, weigh
from tests.state.test_tasks import Desk, learned

LOADS = st.builds(Load, st.integers(0, 1000), st.floats(0, 1e4), st.integers(0, 8), st.integers(1, 4))


def test_work_for_longer_than_the_target_asks_for_more_workers() -> None:
    state = AdaptiveState(maximum=8, target_s=5)
    assert desired(state, Load(100, 20.0, 1)) == 4
    assert desired(state, Load(100, 20.0, 1, nthreads=2)) == 2
    assert desired(state, Load(100, 1000.0, 1)) == 8


def test_no_more_workers_than_tasks_are_of_use() -> None:
    assert desired(AdaptiveState(), Load(3, 1000.0, 1)) == 3


def test_a_worker_that_is_busy_is_kept() -> None:
    assert desired(AdaptiveState(), Load(4, 0.001, 4)) == 4


def test_any_task_at_all_needs_a_worker() -> None:
    assert desired(AdaptiveState(), Load(1, 0.0, 0)) == 1
    assert desired(AdaptiveState(), Load(0, 0.0, 0)) == 0
    assert desired(AdaptiveState(minimum=2), Load(0, 0.0, 0)) == 2


def test_growth_is_at_once_and_shrinking_takes_three_looks() -> None:
    state = AdaptiveState(maximum=8)
    assert recommend(state, Load(100, 100.0, 0), 1) == 8
    assert [recommend(state, Load(0, 0.0, 0), 8) for _ in range(3)] == [None, None, 0]


def test_a_load_that_swings_does_not_make_the_workers_swing() -> None:
    state = AdaptiveState(maximum=8)
    much, little = Load(100, 100.0, 8), Load(10, 10.0, 2)
    assert [recommend(state, load, 8) for load in (little, little, much) * 5] == [None] * 15


def test_shrinking_goes_to_the_most_that_the_looks_asked_for() -> None:
    state = AdaptiveState(maximum=8)
    assert [recommend(state, Load(100, work, 0), 8) for work in (5.0, 20.0, 10.0)] == [None, None, 4]


@given(LOADS, st.integers(0, 5), st.integers(0, 5), st.integers(0, 20))
def test_advice_keeps_the_bounds(load: Load, minimum: int, extra: int, n_workers: int) -> None:
    state = AdaptiveState(minimum=minimum, maximum=minimum + extra)
    for _ in range(5):
        advice = recommend(state, load, n_workers)
        if advice is not None:
            assert minimum <= advice <= minimum + extra and advice != n_workers
            n_workers = advice
    assert minimum <= n_workers <= minimum + extra


@given(st.lists(st.tuples(LOADS, st.integers(1, 20)), max_size=30))
def test_the_same_load_comes_to_rest(steps: list[tuple[Load, int]]) -> None:
    for load, n_workers in steps:
        state = AdaptiveState(maximum=20)
        for _ in range(4):
            advice = recommend(state, load, n_workers)
            n_workers = n_workers if advice is None else advice
        assert all(recommend(state, load, n_workers) is None for _ in range(10))


def test_the_load_is_what_runs_what_waits_and_what_no_worker_may_run() -> None:
    desk = Desk(w0=1)
    learned(desk, duration_s=0.1)
    for number in range(10):
        desk.submit(f"k{number}")
    desk.submit("elsewhere", workers=("w9",))
    load = weigh(desk.state, 1)
    assert (load.n_tasks, load.n_busy) == (11, 1)
    assert 1.0 < load.work_s < 1.2
    assert weigh(Desk(w0=1).state, 1) == Load(0, 0.0, 0)
