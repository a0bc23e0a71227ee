"""Leases of semaphores and of several locks at once: never too many, first come first served, and nothing free while somebody waits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from localdask.state.leases import Leases, Request, Ticket

SIZES = {"a": 1, "b": 1, "c": 2}
acquire = st.tuples(
    st.just("acquire"), st.integers(0, 2), st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, unique=True), st.integers(1, 3)
)
release = st.tuples(st.just("release"), st.integers(0, 30), st.none(), st.none())
lose = st.tuples(st.sampled_from(["lose_client", "lose_attempt"]), st.integers(0, 2), st.none(), st.none())


def make() -> Leases:
    leases = Leases()
    for name, size in SIZES.items():
        leases.set_size(name, size)
    return leases


@given(st.lists(st.one_of(acquire, acquire, release, lose), max_size=40))
def test_whatever_happens_the_leases_are_as_they_must_be(steps: list[tuple[str, int, list[str] | None, int | None]]) -> None:
    leases = make()
    tickets: list[Ticket] = []
    granted: set[Ticket] = set()
    for what, number, names, n in steps:
        if what == "acquire":
            assert names is not None and n is not None
            tickets.append((f"client{number}", len(tickets)))
            leases.acquire(tickets[-1], Request(tuple(names), min(n, len(names)), number + 1))
        elif what == "release":
            leases.release(tickets[number] if number < len(tickets) else ("nobody", number))
        elif what == "lose_client":
            leases.lose_client(f"client{number}")
        else:
            leases.lose_attempt(number + 1)
        leases.validate()
        new = {ticket for ticket, _ in leases.answers}
        assert not new & granted, "nobody is granted twice"
        granted |= new
        leases.answers.clear()
        assert leases.leases.keys() <= granted
    for client in range(3):
        leases.lose_client(f"client{client}")
    assert not leases.leases and not leases._waiting and not leases._lines and not leases._n_held


def test_who_came_first_is_served_first() -> None:
    leases = make()
    for number in range(4):
        leases.acquire(("client", number), Request(("a",), 1))
    leases.withdraw(("client", 1))
    for number in (0, 2):
        leases.release(("client", number))
    assert [ticket[1] for ticket, _ in leases.answers] == [0, 2, 3]


def test_who_wants_several_is_not_overtaken_and_takes_no_more_than_it_needs() -> None:
    leases = make()
    leases.acquire(("holder", 1), Request(("a",), 1))
    leases.acquire(("all", 1), Request(("a", "b"), 2))
    leases.acquire(("late", 1), Request(("b",), 1))
    leases.release(("holder", 1))
    assert leases.leases.keys() == {("all", 1)}
    leases.release(("all", 1))
    leases.acquire(("any", 1), Request(("a", "b"), 1))
    assert leases.leases[("any", 1)].names == ("a",)


def test_a_name_that_is_forgotten_tells_who_waited_for_it() -> None:
    leases = make()
    leases.acquire(("one", 1), Request(("a",), 1))
    leases.acquire(("two", 1), Request(("a",), 1))
    assert leases.forget("a") == [("two", 1)]
    assert not leases.leases and leases.size("a") == 0
    leases.validate()
