"""Named values that are set and read, and who waits for one to be set.

Driven by ``processes/exchange.py``, which brings what is left in ``answers`` to who asked.
A value that was read is kept until its reader has said that it arrived, whatever it is replaced by.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from localdask.state.items import Item, KeptKeys
from localdask.state.leases import Ticket

__all__ = ["Variables"]


class Variables:
    """The values behind ``Variable`` and published datasets. ``kept`` counts the keys of all that is held.

    Attributes
    ----------
    answers : deque of (Ticket, list of one payload)
        What tickets read, for who drives this.
    """

    def __init__(self, kept: KeptKeys) -> None:
        self.answers: deque[tuple[Ticket, list[Any]]] = deque()
        self._kept = kept
        self._values: dict[Any, Item] = {}
        self._waiting: dict[Ticket, Any] = {}
        self._on_the_way: dict[Ticket, Item] = {}

    @property
    def names(self) -> list[Any]:
        """The names that have a value, in the order in which they got it."""
        return list(self._values)

    def set(self, name: Any, item: Item) -> None:
        """Give a name a value; all who wait for one are answered."""
        self._kept.keep(item)
        self.delete(name)
        self._values[name] = item
        for ticket in [ticket for ticket, awaited in self._waiting.items() if awaited == name]:
            del self._waiting[ticket]
            self._answer(ticket, item)

    def delete(self, name: Any) -> None:
        """Take a name's value away; who asks for it then waits for another."""
        item = self._values.pop(name, None)
        if item is not None:
            self._kept.drop([item])

    def get(self, ticket: Ticket, name: Any) -> None:
        """Have a ticket answered with the value of a name, which may be now."""
        if name in self._values:
            self._answer(ticket, self._values[name])
        else:
            self._waiting[ticket] = name

    def arrived(self, ticket: Ticket) -> tuple[str, ...]:
        """What a ticket was answered has arrived, or never will; return the keys that were kept for it."""
        item = self._on_the_way.pop(ticket, None)
        if item is None:
            return ()
        self._kept.drop([item])
        return item.keys

    def take_back(self, ticket: Ticket) -> None:
        """What a ticket was answered reached nobody."""
        self.arrived(ticket)

    def withdraw(self, ticket: Ticket) -> None:
        """Let a ticket wait no longer."""
        self._waiting.pop(ticket, None)

    def lose_client(self, client: str) -> None:
        """Forget what was on its way to a client."""
        for ticket in [ticket for ticket in self._on_the_way if ticket[0] == client]:
            self.arrived(ticket)

    def _answer(self, ticket: Ticket, item: Item) -> None:
        if item.keys:
            self._kept.keep(item)
            self._on_the_way[ticket] = item
        self.answers.append((ticket, [item.payload]))
