"""One thread at a time reads the pipes: the loop's, or one that waits for what they bring."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from localdask.system import shared_pipes
from localdask.system.loop import Loop
from localdask.system.shared_pipes import LINGER_S, SharedPipes
from tests.conftest import wait_until


class House:
    """A loop in a thread, one pipe, and who read what from it."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.pipes = SharedPipes(self.loop)
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()
        self.far, self.near = socket.socketpair()
        self.near.setblocking(False)
        self.read_by: list[int | None] = []
        self.is_led = True
        self.pipes.add(self.near.fileno(), self.read, self.try_read)

    def read(self) -> None:
        self.near.recv(100)
        self.read_by.append(threading.get_ident())

    def try_read(self) -> bool:
        if self.is_led:
            self.read()
        return self.is_led

    def lead(self, n: int, timeout_s: float | None = 10.0, *, is_quiet: bool = False) -> None:
        self.pipes.lead(lambda: len(self.read_by) >= n, timeout_s, lambda: is_quiet)

    def leading(self) -> threading.Thread:
        """Return a thread that leads until something was read."""
        thread = threading.Thread(target=self.lead, args=(1,))
        thread.start()
        wait_until(lambda: self.pipes._leader == thread.ident)
        return thread

    def close(self) -> None:
        self.loop.stop()
        self.thread.join()
        self.pipes.close()
        self.loop.close()
        self.far.close()
        self.near.close()


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    yield house
    house.close()


def test_the_loop_reads_while_nobody_leads(house: House) -> None:
    house.far.send(b"x")
    wait_until(lambda: house.read_by == [house.thread.ident])


def test_who_leads_reads_until_it_has_what_it_wants_and_then_the_loop_does(house: House) -> None:
    leader = house.leading()
    house.far.send(b"x")
    leader.join()
    house.far.send(b"x")
    wait_until(lambda: house.read_by == [leader.ident, house.thread.ident])


def test_what_a_leader_cannot_deal_with_is_left_to_the_loop(house: House) -> None:
    house.is_led = False
    leader = house.leading()
    house.far.send(b"x")
    leader.join()
    wait_until(lambda: house.read_by == [house.thread.ident])


def test_a_second_thread_does_not_lead(house: House) -> None:
    leader = house.leading()
    house.lead(1)
    assert not house.read_by
    house.far.send(b"x")
    leader.join()


def test_leading_ends_with_its_time(house: House) -> None:
    house.lead(1, 0.001)
    house.far.send(b"x")
    wait_until(lambda: house.read_by == [house.thread.ident])


def test_a_claim_ends_the_leading(house: House) -> None:
    leader = house.leading()
    with house.pipes.claimed():
        leader.join()
        house.lead(1)
        assert not house.read_by
    house.far.send(b"x")
    wait_until(lambda: house.read_by == [house.thread.ident])


def test_a_leader_that_is_rung_looks_again(house: House) -> None:
    leader = house.leading()
    house.read_by.append(None)
    house.pipes.ring()
    leader.join()


def test_the_gate_stays_shut_between_two_turns_and_opens_soon_after_the_last(house: House) -> None:
    house.pipes._led_at = float("inf")  # as if it had just been done
    house.lead(0, is_quiet=True)
    assert house.pipes._is_shut
    house.far.send(b"x")
    wait_until(lambda: house.read_by == [house.thread.ident])
    assert not house.pipes._is_shut and LINGER_S < 0.01


class Watched:
    """The pipes' epoll, and for how long each turn was ready to sleep in it."""

    def __init__(self, pipes: SharedPipes) -> None:
        self.epoll = pipes._pipes
        self.sleeps: list[float | None] = []

    def poll(self, timeout_s: float | None, n_max: int = -1) -> list[tuple[int, int]]:
        self.sleeps.append(timeout_s)
        return self.epoll.poll(timeout_s, n_max)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.epoll, name)


def bring(house: House) -> None:
    house.far.send(b"x")


def ring(house: House) -> None:
    house.read_by.append(None)
    house.pipes.ring()


def claim(house: House) -> None:
    with house.pipes.claimed():
        wait_until(lambda: not house.pipes._leader)


@pytest.mark.parametrize("end", [bring, ring, claim])
def test_a_turn_after_a_brief_one_begins_without_sleep(house: House, monkeypatch: pytest.MonkeyPatch, end: Callable[[House], None]) -> None:
    monkeypatch.setattr(shared_pipes, "SPIN_S", 60.0)
    monkeypatch.setattr(shared_pipes, "_HAS_ANOTHER", True)
    house.lead(0)
    watched = house.pipes._pipes = Watched(house.pipes)
    leader = house.leading()
    wait_until(lambda: len(watched.sleeps) > 2)
    end(house)
    leader.join()
    assert set(watched.sleeps) == {0}


def test_a_turn_after_a_long_one_or_on_one_processor_sleeps_at_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_pipes, "_HAS_ANOTHER", True)
    monkeypatch.setattr(shared_pipes, "SPIN_S", 0.0)
    house.lead(0)
    watched = house.pipes._pipes = Watched(house.pipes)
    monkeypatch.setattr(shared_pipes, "SPIN_S", 60.0)
    house.lead(1, 0.001)
    assert watched.sleeps and 0 not in watched.sleeps
    monkeypatch.setattr(shared_pipes, "_HAS_ANOTHER", False)
    house.lead(0)
    watched.sleeps.clear()
    house.lead(1, 0.001)
    assert watched.sleeps and 0 not in watched.sleeps


def test_one_may_lead_for_any_time(house: House) -> None:
    house.read_by.append(None)
    for timeout_s in (1e10, float("inf")):
        thread = threading.Thread(target=house.lead, args=(2, timeout_s))
        thread.start()
        wait_until(lambda thread=thread: house.pipes._leader == thread.ident)
        house.far.send(b"x")
        thread.join()
        assert house.read_by.pop() == thread.ident


def test_the_loop_sleeps_while_somebody_leads_for_long_and_the_gate_opens_afterwards(house: House) -> None:
    house.pipes._led_at = float("inf")  # as if it had just been done
    house.lead(0, is_quiet=True)
    leader = house.leading()
    wait_until(lambda: not house.pipes._is_watched)
    house.pipes._led_at = float("inf")
    house.far.send(b"x")
    leader.join()
    house.far.send(b"x")
    wait_until(lambda: house.read_by == [leader.ident, house.thread.ident])


def test_nobody_leads_once_they_are_closed() -> None:
    house = House()
    house.close()
    house.lead(1)
    assert not house.read_by
