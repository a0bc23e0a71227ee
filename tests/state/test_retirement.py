"""Who leaves a cluster that gets smaller."""

from __future__ import annotations

from localdask.state.retirement import by_staying, spare
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
