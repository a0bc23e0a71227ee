"""An actor lives in one worker: it is never made again, and what depends on it fails with it."""

from __future__ import annotations

import pytest

from localdask import messages as words
from localdask.errors import ActorLostError
from localdask.state.actors import home_of, homes
from tests.state.test_tasks import Desk


def test_an_actor_lives_where_it_was_made() -> None:
    desk = Desk(w0=1, w1=1)
    desk.submit("a", is_actor=True, workers=("w1",))
    with pytest.raises(ActorLostError, match="processing"):
        home_of(desk.state, "a")
    desk.done("a")
    assert home_of(desk.state, "a") is desk.workers["w1"]
    assert homes(desk.state) == {"w1"}


@pytest.mark.parametrize("is_expected", [False, True])
def test_an_actor_is_not_made_again_when_its_worker_leaves(is_expected: bool) -> None:
    desk = Desk(w0=1, w1=1)
    desk.submit("a", is_actor=True, workers=("w0",), allow_other_workers=True)
    desk.done("a")
    desk.submit("reader", "a", workers=("w2",))
    desk.said()
    desk.leave("w0", is_expected=is_expected)
    assert [(who, word.key, word.error) for who, word in desk.said() if isinstance(word, words.KeyErred)] == [
        ("c", "a", ("actor-lost", "a", "w0")),
        ("c", "reader", ("actor-lost", "a", "w0")),
    ]
    with pytest.raises(ActorLostError, match="of worker w0"):
        home_of(desk.state, "a")


def test_the_loss_of_another_worker_does_nothing_to_an_actor() -> None:
    desk = Desk(w0=1, w1=1)
    desk.submit("a", is_actor=True, workers=("w0",))
    desk.done("a")
    desk.said()
    desk.leave("w1")
    assert desk.said() == []
    assert home_of(desk.state, "a") is desk.workers["w0"]


def test_an_actor_that_is_still_being_made_is_made_elsewhere() -> None:
    desk = Desk(w0=1, w1=1)
    desk.submit("a", is_actor=True, workers=("w0",), allow_other_workers=True)
    desk.leave("w0", "a")
    desk.done("a")
    assert home_of(desk.state, "a") is desk.workers["w1"]


def test_the_end_of_an_actor_is_a_released_key() -> None:
    desk = Desk(w0=1)
    desk.submit("a", is_actor=True)
    desk.done("a")
    desk.said()
    desk.client(words.ReleaseKeys("c", ["a"]))
    assert ("w0", words.ForgetKeys(("a",))) in desk.said()
    with pytest.raises(ActorLostError, match="released"):
        home_of(desk.state, "a")


def test_a_retry_makes_a_new_actor_in_place_of_a_lost_one() -> None:
    desk = Desk(w0=1, w1=1)
    desk.submit("a", is_actor=True, workers=("w0",), allow_other_workers=True)
    desk.done("a")
    desk.leave("w0")
    desk.client(words.RetryKeys("c", ["a"]))
    desk.done("a")
    desk.said()
    assert home_of(desk.state, "a") is desk.workers["w1"]
