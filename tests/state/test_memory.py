"""What is done about a worker that uses much memory: what configuration may say of it, and when it applies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdask.errors import UsageError
from localdask.state.memory import (
    BUSY_LOOK_S,
    IDLE_LOOK_S,
    IDLE_LOOKS,
    UNWATCHED_LOOK_S,
    Act,
    Pressure,
    Steps,
    check_fraction,
    read_steps,
    steps_of,
)


@pytest.mark.parametrize(("value", "fraction"), [(0.95, 0.95), (1, 1.0), (0, 0.0), (False, None), (None, None)])
def test_a_step_is_a_fraction_or_off(value: object, fraction: float | None) -> None:
    assert check_fraction("worker.memory.terminate", value) == fraction


@pytest.mark.parametrize("value", [True, "0.9", -0.1, 1.5, float("nan")])
def test_what_is_no_fraction_is_named_with_its_key(value: object) -> None:
    with pytest.raises(UsageError, match=r"worker\.memory\.terminate"):
        check_fraction("worker.memory.terminate", value)


@pytest.mark.parametrize(
    ("nbytes", "fraction", "is_over"), [(96, 0.95, True), (95, 0.95, False), (1, 0.0, True), (0, 0.0, False), (200, None, False)]
)
def test_a_worker_ends_above_its_part_of_a_limit_and_only_while_it_runs_tasks(nbytes: int, fraction: float | None, is_over: bool) -> None:
    pressure = Pressure(100, Steps(terminate=fraction))
    assert pressure.look(nbytes, is_busy=True) == ([Act.END] if is_over else [])
    assert pressure.look(nbytes, is_busy=False) == []


def test_without_a_limit_or_a_step_nobody_watches() -> None:
    assert not Pressure(0, Steps(pause=0.8)).is_watched and not Pressure(100, Steps()).is_watched
    assert Pressure(100, Steps(pause=0.8)).is_watched


def test_a_paused_worker_gives_back_what_it_has_freed_at_once_and_now_and_then() -> None:
    pressure = Pressure(100, Steps(pause=0.5))
    trims = []
    for nbytes in (40, *[60] * 12, 40, 60):
        pressure.look(nbytes, is_busy=False)
        trims.append(pressure.must_trim)
    assert [look for look, is_trim in enumerate(trims) if is_trim] == [1, 11, 14]


@given(st.lists(st.tuples(st.integers(0, 100), st.booleans())), st.floats(0, 1))
def test_pauses_and_resumptions_alternate_and_follow_the_memory(looks: list[tuple[int, bool]], fraction: float) -> None:
    pressure = Pressure(100, Steps(pause=fraction))
    told, n_idle = False, 0
    for nbytes, is_busy in looks:
        for act in pressure.look(nbytes, is_busy):
            assert (act is Act.PAUSE) != told
            told = act is Act.PAUSE
        assert told == pressure.is_paused == (nbytes > 100 * fraction)
        n_idle = 0 if is_busy else n_idle + 1
        rest_s = IDLE_LOOK_S if n_idle <= IDLE_LOOKS else UNWATCHED_LOOK_S
        assert pressure.look_s(is_busy) == (BUSY_LOOK_S if is_busy or told else rest_s)
        assert pressure.must_tell == (n_idle >= IDLE_LOOKS), "one look before nobody looks"


def test_an_idle_worker_that_is_to_spill_is_looked_at_all_the_same() -> None:
    pressure = Pressure(100, Steps(spill=0.5))
    for _ in range(2 * IDLE_LOOKS):
        pressure.look(60, is_busy=False)
        assert pressure.look_s(is_busy=False) == IDLE_LOOK_S


def test_steps_are_read_by_their_names() -> None:
    said = {"worker.memory.pause": 0.5, "worker.memory.terminate": False, "worker.memory.max-spill": "3"}
    steps = steps_of({"memory_steps": read_steps(lambda key, default: said.get(key, default), int)})
    assert (steps.pause, steps.terminate, steps.max_spill) == (0.5, None, 3)
    assert steps_of({}) == Steps()
