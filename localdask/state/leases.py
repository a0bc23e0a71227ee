"""Who holds which places of named locks and semaphores, and who waits for them.

A *ticket* is one request for places, and once it is granted the lease itself. Who asked
first is served first, name by name: nobody overtakes another who wants the same name. A request
that wants several names waits in the line of each at once, and is granted when it is
first in enough of them; so requests cannot hold up each other for ever.

Driven by ``processes/coordination.py``, which brings what is left in ``answers`` to who asked.
"""

from __future__ import annotations

from collections import deque

from localdask.records import record

__all__ = ["Leases", "Request", "Ticket"]

#: The client, and the number of its question.
Ticket = tuple[str, int]


@record
class Request:
    """What a ticket asks for, or holds: ``n`` places of different names, for an attempt at a task (0 outside of tasks)."""

    names: tuple[str, ...]
    n: int
    attempt: int = 0


class Leases:
    """The places of one kind of lock. ``default_size`` is that of names of which nobody says it.

    Attributes
    ----------
    leases : dict of Ticket to Request
        What is held; the names of each are those that it got.
    answers : deque of (Ticket, bool)
        The tickets that were granted, for who drives this.
    """

    def __init__(self, default_size: int = 0) -> None:
        self._default_size = default_size
        self.leases: dict[Ticket, Request] = {}
        self.answers: deque[tuple[Ticket, bool]] = deque()
        self._waiting: dict[Ticket, Request] = {}
        self._lines: dict[str, dict[Ticket, None]] = {}
        self._n_held: dict[str, int] = {}
        self._sizes: dict[str, int] = {}

    def size(self, name: str) -> int:
        """Return how many leases of a name there may be at once."""
        return self._sizes.get(name, self._default_size)

    def set_size(self, name: str, size: int) -> None:
        """Say how many leases of a name there may be at once, before anybody asks for it."""
        self._sizes[name] = size

    def n_held(self, name: str) -> int:
        """Return how many leases of a name are held."""
        return self._n_held.get(name, 0)

    def acquire(self, ticket: Ticket, request: Request) -> None:
        """Ask for places; answered now or later."""
        self._waiting[ticket] = request
        for name in request.names:
            self._lines.setdefault(name, {})[ticket] = None
        self._grant(request.names)

    def release(self, ticket: Ticket) -> None:
        """Give back what a ticket holds, and let it wait no longer."""
        lease = self.leases.pop(ticket, None)
        if lease is not None:
            for name in lease.names:
                self._n_held[name] -= 1
                if not self._n_held[name]:
                    del self._n_held[name]
        request = self._leave_lines(ticket)
        self._grant((*(lease.names if lease else ()), *(request.names if request else ())))

    #: As a ticket that nobody waits for any more.
    withdraw = release
    #: As a lease that nobody was there to take.
    take_back = release

    def lose_client(self, client: str) -> None:
        """Release all that a client holds and waits for."""
        for ticket in [ticket for ticket in (*self._waiting, *self.leases) if ticket[0] == client]:
            self.release(ticket)

    def lose_attempt(self, attempt: int) -> None:
        """Release all that an attempt at a task holds and waits for."""
        gone = [ticket for held in (self._waiting, self.leases) for ticket, request in held.items() if request.attempt == attempt]
        for ticket in gone:
            self.release(ticket)

    def forget(self, name: str) -> list[Ticket]:
        """Forget a name and its leases; return who waits in its line, and now in none."""
        self._sizes.pop(name, None)
        for ticket in [ticket for ticket, lease in self.leases.items() if name in lease.names]:
            del self.leases[ticket]
        self._n_held.pop(name, None)
        waiting = list(self._lines.get(name, ()))
        for ticket in waiting:
            self._leave_lines(ticket)
        return waiting

    def validate(self) -> None:
        """Check what must hold between two calls."""
        for name, n in self._n_held.items():
            assert 0 < n <= self.size(name), f"{n} leases of {name!r}"
            assert n == sum(name in lease.names for lease in self.leases.values())
        for name, line in self._lines.items():
            assert line, f"an empty line is kept for {name!r}"
            first = next(iter(line))
            assert not self._places(first, self._waiting[first]), f"{first} waits for what is free"
        assert not self._waiting.keys() & self.leases.keys()

    def _places(self, ticket: Ticket, request: Request) -> tuple[str, ...]:
        """Return the names that a request can have now, or none when those are not enough."""
        free = [name for name in request.names if self.n_held(name) < self.size(name) and next(iter(self._lines[name])) == ticket]
        return tuple(free[: request.n]) if len(free) >= request.n else ()

    def _grant(self, names: tuple[str, ...]) -> None:
        """Serve those who are first in line for these names."""
        changed = deque(names)
        while changed:
            name = changed.popleft()
            line = self._lines.get(name)
            if not line:
                continue
            ticket = next(iter(line))
            request = self._waiting[ticket]
            places = self._places(ticket, request)
            if not places:
                continue
            self._leave_lines(ticket)
            self.leases[ticket] = Request(places, len(places), request.attempt)
            for place in places:
                self._n_held[place] = self.n_held(place) + 1
            self.answers.append((ticket, True))
            changed.extend(request.names)

    def _leave_lines(self, ticket: Ticket) -> Request | None:
        request = self._waiting.pop(ticket, None)
        for name in request.names if request is not None else ():
            del self._lines[name][ticket]
            if not self._lines[name]:
                del self._lines[name]
        return request
