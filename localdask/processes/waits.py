"""Questions that wait for something: until a machine answers them, their time is over, or who asked is gone.

Runs on the scheduler's I/O thread. Whether a question was in time is decided here and nowhere
else, so what a machine hands out either reaches who asked or goes back to the machine.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from localdask.processes.questions import Question
from localdask.records import record
from localdask.state.leases import Ticket
from localdask.system.loop import Loop, Timer

__all__ = ["Answering", "Waits", "ticket_of"]


class Answering(Protocol):
    """A machine: what decides who is answered, and with what."""

    @property
    def answers(self) -> deque[tuple[Ticket, Any]]:
        """What it has to say, for ``Waits`` to take."""

    def withdraw(self, ticket: Ticket) -> None:
        """A ticket waits no longer."""

    def take_back(self, ticket: Ticket) -> None:
        """What a ticket was answered reached nobody."""


@record
class _Wait:
    """One question that waits."""

    question: Question
    machine: Answering
    late: Callable[[Question], object]
    timer: Timer | None = None


def ticket_of(question: Question) -> Ticket:
    """Return the ticket of a question; its client makes the same one."""
    return question.client, question.request


class Waits:
    """The questions that wait for some machines. ``before_answers`` is called when these have changed, and nobody knows yet."""

    def __init__(self, loop: Loop, before_answers: Callable[[], object] = lambda: None) -> None:
        self._loop = loop
        self._before_answers = before_answers
        self._waits: dict[Ticket, _Wait] = {}

    def begin(
        self, machine: Answering, question: Question, timeout_s: float | None, late: Callable[[Question], object], ask: Callable[[], object]
    ) -> None:
        """Ask a machine on behalf of a question, and have it answered; by ``late`` if that takes longer than it may."""
        ticket = ticket_of(question)
        wait = self._waits[ticket] = _Wait(question, machine, late)
        question.on_withdrawn = partial(self._withdraw, ticket)
        try:
            ask()
        except BaseException:
            del self._waits[ticket]
            raise
        self.settle(machine)
        if ticket in self._waits and timeout_s is not None:
            if timeout_s <= 0:
                self._give_up(ticket)
            else:
                wait.timer = self._loop.call_at(time.monotonic() + timeout_s, partial(self._give_up, ticket))

    def settle(self, machine: Answering) -> None:
        """Bring what a machine has to say to who asked."""
        self._before_answers()
        while machine.answers:
            ticket, value = machine.answers.popleft()
            question = self.end(ticket)
            if question is None or not question.answer(value):
                machine.take_back(ticket)
                self._before_answers()

    def end(self, ticket: Ticket) -> Question | None:
        """Let a ticket wait no longer; return its question, which then is to be answered."""
        wait = self._waits.pop(ticket, None)
        if wait is None:
            return None
        if wait.timer is not None:
            wait.timer.cancel()
        return wait.question

    def _give_up(self, ticket: Ticket) -> None:
        wait = self._withdraw(ticket)
        if wait is not None:
            wait.late(wait.question)

    def _withdraw(self, ticket: Ticket) -> _Wait | None:
        wait = self._waits.get(ticket)
        if wait is not None:
            self.end(ticket)
            wait.machine.withdraw(ticket)
            self.settle(wait.machine)
        return wait
