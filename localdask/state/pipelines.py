"""Named queues of values: who puts waits for room, and who takes waits for values.

Driven by ``processes/exchange.py``, which brings what is left in ``answers`` to who asked.
What was taken is remembered until its taker has said that it arrived: a client that dies, or
gives up, just then gives it back to the front of the queue.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from localdask.records import field, record
from localdask.state.items import Item, KeptKeys
from localdask.state.leases import Ticket

__all__ = ["Pipelines"]


@record
class _Taker:
    """Who waits for ``n`` values, and those that it has so far."""

    n: int
    items: list[Item] = field(default_factory=list)


class _Pipeline:
    """One queue. Who waits to put, or to take, does so in order."""

    __slots__ = ("items", "maxsize", "putters", "takers", "users")

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.items: deque[Item] = deque()
        self.putters: dict[Ticket, Item] = {}
        self.takers: dict[Ticket, _Taker] = {}
        self.users: dict[str, None] = {}

    @property
    def has_room(self) -> bool:
        return self.maxsize <= 0 or len(self.items) < self.maxsize


class Pipelines:
    """The queues behind ``Queue``. ``kept`` counts the keys of all that is held.

    Attributes
    ----------
    answers : deque of (Ticket, list of payloads)
        What tickets took, and an empty list for what they put, for who drives this.
    """

    def __init__(self, kept: KeptKeys) -> None:
        self.answers: deque[tuple[Ticket, list[Any]]] = deque()
        self._kept = kept
        self._pipelines: dict[str, _Pipeline] = {}
        self._on_the_way: dict[Ticket, tuple[str, list[Item]]] = {}
        self._waiting: dict[Ticket, str] = {}

    def use(self, name: str, client: str, maxsize: int) -> None:
        """Take in that a client uses a queue. Its size is what the first one says."""
        if name not in self._pipelines:
            self._pipelines[name] = _Pipeline(maxsize)
        self._pipelines[name].users[client] = None

    def close(self, name: str, client: str) -> list[Ticket]:
        """Take in that a client uses a queue no more. The last one's word forgets it; return who waited for it."""
        pipeline = self._pipelines.get(name)
        if pipeline is None:
            return []
        pipeline.users.pop(client, None)
        if pipeline.users:
            return []
        del self._pipelines[name]
        held = [*pipeline.items, *pipeline.putters.values(), *[item for taker in pipeline.takers.values() for item in taker.items]]
        self._kept.drop(held)
        waiting = [*pipeline.putters, *pipeline.takers]
        for ticket in waiting:
            del self._waiting[ticket]
        return waiting

    def size(self, name: str) -> int:
        """Return how many values are in a queue."""
        return len(self._pipelines[name].items)

    def put(self, ticket: Ticket, name: str, item: Item) -> None:
        """Put a value in, now or when there is room."""
        self._kept.keep(item)
        self._pipelines[name].putters[ticket] = item
        self._waiting[ticket] = name
        self._move(name)

    def take(self, ticket: Ticket, name: str, n: int) -> None:
        """Take ``n`` values out, now or when they have come; with 0, all that are there now, which may be none."""
        pipeline = self._pipelines[name]
        if n == 0:
            items = []
            while pipeline.items:
                items.append(pipeline.items.popleft())
                self._move(name)
            self._answer(ticket, name, items)
            return
        pipeline.takers[ticket] = _Taker(n)
        self._waiting[ticket] = name
        self._move(name)

    def arrived(self, ticket: Ticket) -> tuple[str, ...]:
        """What a ticket took has arrived; return the keys that were kept for it."""
        _, items = self._on_the_way.pop(ticket, ("", []))
        self._kept.drop(items)
        return tuple(key for item in items for key in item.keys)

    def take_back(self, ticket: Ticket) -> None:
        """What a ticket took reached nobody: it is at the front again. What it put stays."""
        name, items = self._on_the_way.pop(ticket, ("", []))
        self._give_back(name, items)

    def withdraw(self, ticket: Ticket) -> None:
        """Let a ticket wait no longer; what it has so far is at the front again."""
        name = self._waiting.pop(ticket, "")
        pipeline = self._pipelines.get(name)
        if pipeline is None:
            return
        item = pipeline.putters.pop(ticket, None)
        if item is not None:
            self._kept.drop([item])
        taker = pipeline.takers.pop(ticket, None)
        self._give_back(name, taker.items if taker is not None else [])

    def lose_client(self, client: str) -> None:
        """Give back what was on its way to a client. What it used stays, until another closes it."""
        for ticket in [ticket for ticket in reversed(self._on_the_way) if ticket[0] == client]:
            self.take_back(ticket)
        for pipeline in self._pipelines.values():
            pipeline.users.pop(client, None)

    def validate(self) -> None:
        """Check what must hold between two calls."""
        for name, pipeline in self._pipelines.items():
            assert not (pipeline.putters and pipeline.has_room), f"who puts into {name!r} waits for room that is there"
            assert not (pipeline.takers and pipeline.items), f"who takes from {name!r} waits for what is there"
            assert {*pipeline.putters, *pipeline.takers} == {ticket for ticket, awaited in self._waiting.items() if awaited == name}

    def _give_back(self, name: str, items: list[Item]) -> None:
        pipeline = self._pipelines.get(name)
        if pipeline is None:
            self._kept.drop(items)
            return
        pipeline.items.extendleft(reversed(items))
        self._move(name)

    def _move(self, name: str) -> None:
        """Let values in where there is room, and hand them to who waits, in order."""
        pipeline = self._pipelines[name]
        while True:
            if pipeline.putters and (pipeline.has_room or (pipeline.takers and not pipeline.items)):
                ticket = next(iter(pipeline.putters))
                pipeline.items.append(pipeline.putters.pop(ticket))
                del self._waiting[ticket]
                self.answers.append((ticket, []))
            elif pipeline.takers and pipeline.items:
                ticket, taker = next(iter(pipeline.takers.items()))
                taker.items.append(pipeline.items.popleft())
                if len(taker.items) == taker.n:
                    del pipeline.takers[ticket]
                    self._answer(ticket, name, taker.items)
            else:
                return

    def _answer(self, ticket: Ticket, name: str, items: list[Item]) -> None:
        self._waiting.pop(ticket, None)
        self._on_the_way[ticket] = (name, items)
        self.answers.append((ticket, [item.payload for item in items]))
