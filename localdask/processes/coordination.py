"""What tasks and clients coordinate themselves by, where all of them meet: at the scheduler.

Runs in the user's process, on the scheduler's I/O thread. What is decided is decided in
``state/``; here questions become tickets, and clients and attempts at tasks that end give
back what they held.
"""

from __future__ import annotations

from functools import partial

from localdask.processes.questions import Question
from localdask.processes.scheduler import Scheduler
from localdask.processes.waits import Waits, ticket_of
from localdask.state.flags import Flags
from localdask.state.leases import Leases, Request

__all__ = ["Coordination"]


class Coordination:
    """The locks and events of one cluster. Registers itself with the scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._waits = Waits(scheduler.loop)
        self._semaphores = Leases()
        self._multilocks = Leases(1)
        self._leases = (self._semaphores, self._multilocks)
        self._flags = Flags()
        scheduler.client_observers.append(self._client_gone)
        scheduler.answerers.update(
            semaphore_acquire=self._acquire,
            semaphore_release=partial(self._release, self._semaphores),
            semaphore_value=self._value,
            semaphore_close=self._close,
            multilock_acquire=self._acquire_several,
            multilock_release=partial(self._release, self._multilocks),
            event_set=self._set,
            event_clear=self._clear,
            event_is_set=self._is_set,
            event_wait=self._wait,
        )

    # ── semaphores ───────────────────────────────────────────────────────────

    def _know(self, name: str, max_leases: int, is_new: bool) -> None:
        """Make a semaphore known when it is new to who asks; raise when it is closed, or another."""
        known = self._semaphores.size(name)
        if not known and not is_new:
            raise RuntimeError(f"Semaphore {name!r} is not known: it was closed; make a new one")
        if known and known != max_leases:
            raise ValueError(f"Inconsistent max leases: semaphore {name!r} was made with max_leases={known}, and not {max_leases}")
        self._semaphores.set_size(name, max_leases)

    def _acquire(self, question: Question) -> None:
        name, max_leases, is_new, timeout_s, attempt = question.arguments
        self._know(name, max_leases, is_new)
        self._lease(self._semaphores, question, Request((name,), 1, attempt), timeout_s)

    def _lease(self, leases: Leases, question: Question, request: Request, timeout_s: float | None) -> None:
        """Ask for places, which go back when the client or the attempt ends; the answer is whether there were any in time."""
        if request.attempt:
            self._scheduler.attempts.watch(request.attempt, partial(self._attempt_over, request.attempt))
        self._waits.begin(leases, question, timeout_s, _answer_no, partial(leases.acquire, ticket_of(question), request))

    def _acquire_several(self, question: Question) -> None:
        names, n, timeout_s, attempt = question.arguments
        self._lease(self._multilocks, question, Request(tuple(names), n, attempt), timeout_s)

    def _release(self, leases: Leases, question: Question) -> None:
        leases.release((question.client, question.arguments[0]))
        self._waits.settle(leases)
        question.answer()

    def _value(self, question: Question) -> None:
        name, max_leases, is_new = question.arguments
        self._know(name, max_leases, is_new)
        question.answer(self._semaphores.n_held(name))

    def _close(self, question: Question) -> None:
        (name,) = question.arguments
        for ticket in self._semaphores.forget(name):
            waiting = self._waits.end(ticket)
            if waiting is not None:
                waiting.fail(RuntimeError(f"Semaphore {name!r} was closed while it was waited for"))
        question.answer()

    # ── events ───────────────────────────────────────────────────────────────

    def _set(self, question: Question) -> None:
        self._flags.set(question.arguments[0])
        self._waits.settle(self._flags)
        question.answer()

    def _clear(self, question: Question) -> None:
        self._flags.clear(question.arguments[0])
        question.answer()

    def _is_set(self, question: Question) -> None:
        question.answer(self._flags.is_set(question.arguments[0]))

    def _wait(self, question: Question) -> None:
        name, timeout_s = question.arguments
        self._waits.begin(self._flags, question, timeout_s, _answer_no, partial(self._flags.wait, ticket_of(question), name))

    # ── who goes ─────────────────────────────────────────────────────────────

    def _client_gone(self, client: str) -> None:
        for leases in self._leases:
            leases.lose_client(client)
            self._waits.settle(leases)

    def _attempt_over(self, attempt: int) -> None:
        for leases in self._leases:
            leases.lose_attempt(attempt)
            self._waits.settle(leases)


def _answer_no(question: Question) -> None:
    question.answer(False)
