"""How long a worker lives: what may be asked for, and what comes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdask.errors import UsageError
from localdask.state.lifetimes import Endings, Lifetime, check_lifetime, length_s


@given(st.floats(0.001, 1e6), st.floats(0, 1), st.floats(0, 1))
def test_a_life_is_the_lifetime_give_or_take_the_stagger(duration_s: float, part: float, draw: float) -> None:
    lifetime = check_lifetime(duration_s, part * duration_s, True)
    seconds = length_s(lifetime, draw)
    assert seconds is not None
    assert abs(seconds - duration_s) <= lifetime.stagger_s * (1 + 1e-9) + 1e-9 * duration_s
    assert length_s(lifetime, 0.5) == pytest.approx(duration_s)


def test_without_a_lifetime_there_is_no_end() -> None:
    assert length_s(check_lifetime(None, 0.0, False), 0.3) is None
    assert check_lifetime(None, 0.0, False) == Lifetime()


@pytest.mark.parametrize(
    ("duration_s", "stagger_s", "is_followed"),
    [(None, 1.0, False), (None, 0.0, True), (0.0, 0.0, False), (-1.0, 0.0, False), (1.0, 2.0, False), (1.0, -0.1, False)],
)
def test_what_makes_no_sense_is_refused(duration_s: float | None, stagger_s: float, is_followed: bool) -> None:
    with pytest.raises(UsageError, match="lifetime"):
        check_lifetime(duration_s, stagger_s, is_followed)


def test_tasks_alone_may_end_a_life_and_are_one_or_more() -> None:
    assert check_lifetime(None, 0.0, False, 5) == check_lifetime(None, 0.0, True, 5) == Lifetime(n_tasks=5)
    assert check_lifetime(2.0, 1.0, False, 5) == Lifetime(2.0, 1.0, False, 5)
    with pytest.raises(UsageError, match="lifetime_tasks=0; it is 1 or more"):
        check_lifetime(None, 0.0, False, 0)
    with pytest.raises(UsageError, match="give lifetime too"):
        check_lifetime(None, 1.0, False, 5)


def test_memory_alone_may_end_a_life_and_is_some() -> None:
    assert check_lifetime(None, 0.0, True, None, 5) == Lifetime(nbytes=5)
    assert check_lifetime(2.0, 1.0, False, None, 5) == Lifetime(2.0, 1.0, nbytes=5)
    with pytest.raises(UsageError, match="lifetime_memory=0; it is some memory"):
        check_lifetime(None, 0.0, False, None, 0)


def test_a_life_ends_once_and_its_follower_s_too() -> None:
    endings = Endings()
    assert [endings.is_first("w0", 1), endings.is_first("w0", 1), endings.is_first("w1", 1)] == [True, False, True]
    assert [endings.is_first("w0", 2), endings.is_first("w0", 2)] == [True, False]
    endings.began("w0")  # asked for anew, after it was gone for good
    assert [endings.is_first("w0", 2), endings.is_first("w1", 1)] == [True, False]
