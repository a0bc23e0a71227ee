"""Named flags that are set or not, and who waits until one is set.

Driven by ``processes/coordination.py``, which brings what is left in ``answers`` to who asked.
"""

from __future__ import annotations

from collections import deque

from localdask.state.leases import Ticket

__all__ = ["Flags"]


class Flags:
    """The flags behind ``Event``. One that nobody waits for, and that is not set, takes no room.

    Attributes
    ----------
    answers : deque of (Ticket, bool)
        The tickets whose flag is set, for who drives this.
    """

    def __init__(self) -> None:
        self.answers: deque[tuple[Ticket, bool]] = deque()
        self._set: dict[str, None] = {}
        self._waiting: dict[Ticket, str] = {}

    def set(self, name: str) -> None:
        """Set a flag; all who wait for it are answered."""
        self._set[name] = None
        for ticket in [ticket for ticket, awaited in self._waiting.items() if awaited == name]:
            del self._waiting[ticket]
            self.answers.append((ticket, True))

    def clear(self, name: str) -> None:
        """Take a flag back; who was answered stays so."""
        self._set.pop(name, None)

    def is_set(self, name: str) -> bool:
        """Return whether a flag is set."""
        return name in self._set

    def wait(self, ticket: Ticket, name: str) -> None:
        """Have a ticket answered when a flag is set, which may be now."""
        if name in self._set:
            self.answers.append((ticket, True))
        else:
            self._waiting[ticket] = name

    def withdraw(self, ticket: Ticket) -> None:
        """Let a ticket wait no longer."""
        self._waiting.pop(ticket, None)

    def take_back(self, ticket: Ticket) -> None:
        """Do nothing: a flag that was seen is not used up."""
