"""Asking the scheduler for something beside tasks, from wherever a client is.

``Client`` is made of this and other rooms, which name what they ask; who answers is
registered with the scheduler (``processes/questions.py``). What travels is plain data:
objects of a user's go as the bytes of their pickle.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from localdask.api.futures import LoopWaiter, parse_timeout
from localdask.api.links import Link
from localdask.errors import ClosedClientError
from localdask.messages import Answered, Ask, Told, Withdraw
from localdask.system import outcomes
from localdask.system.shield import LOOK_UP_S

#: The words that this room is for.
ANSWER_WORDS = frozenset({Answered, Told})


class Answer:
    """What will be answered to one question."""

    __slots__ = ("_came", "_watchers", "request", "word")

    def __init__(self, request: int) -> None:
        self.request = request
        self.word: Answered | None = None
        self._watchers: list[Callable[[Any], None]] = []
        self._came: SimpleQueue[None] = SimpleQueue()

    def take(self, word: Answered) -> None:
        """Take in the answer. Under the link's lock."""
        self.word = word
        self._came.put(None)
        for watcher in self._watchers:
            watcher(self)

    def watch(self, watcher: Callable[[Any], None]) -> None:
        """Call ``watcher`` when the answer is there, under the link's lock, which is held now too."""
        self._watchers.append(watcher)
        if self.word is not None:
            watcher(self)

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for the answer; return whether it came."""
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while self.word is None and (left_s := deadline - time.monotonic()) > 0:
            with contextlib.suppress(Empty):
                self._came.get(timeout=min(left_s, LOOK_UP_S))
                self._came.put(None)  # for who else waits
        return self.word is not None

    async def wait_soon(self, link: Link) -> None:
        """Wait for the answer in a coroutine of any loop."""
        waiter = LoopWaiter(1)
        with link.lock:
            self.watch(waiter.notify)
        with link.blocking():
            await waiter.wait(None)

    def value(self) -> Any:
        """Return what was answered, or raise it."""
        assert self.word is not None, "nothing was answered yet"
        if self.word.error is not None:
            outcomes.loads_error(self.word.error).unwrap()
        return self.word.value


class Asking:
    """What ``Client`` does to ask its scheduler. ``_begin_asking`` comes first."""

    id: str
    _link: Link
    _check_running: Callable[[], None]

    def _begin_asking(self) -> None:
        self._answers: dict[int, Answer] = {}
        self._requests = itertools.count(1)
        self._on_told: dict[str, Callable[[Any], None]] = {}

    def _ask(self, what: str, *arguments: Any, timeout: float | str | None = None) -> Any:
        """Return the answer to a question, or raise what the answerer raised; ``TimeoutError`` when it takes too long."""
        seconds = parse_timeout(timeout)
        answer = self._ask_nowait(what, *arguments)
        try:
            with self._link.blocking():
                if not answer.wait(seconds):
                    raise TimeoutError(f"the scheduler did not answer {what!r} within {seconds:g} s")
        finally:
            if answer.word is None:
                self._withdraw(answer)
        return answer.value()

    async def _ask_soon(self, what: str, *arguments: Any) -> Any:
        """As ``_ask``, in a coroutine."""
        answer = self._ask_nowait(what, *arguments)
        try:
            await answer.wait_soon(self._link)
        finally:
            if answer.word is None:
                self._withdraw(answer)
        return answer.value()

    def _ask_nowait(self, what: str, *arguments: Any) -> Answer:
        """Ask, and return the answer to come."""
        self._check_running()
        answer = Answer(next(self._requests))
        self._answers[answer.request] = answer
        self._link.post([Ask(self.id, answer.request, what, arguments)])
        if answer.word is None:
            self._check_running()
        return answer

    def _withdraw(self, answer: Answer) -> None:
        """Wait no longer for an answer."""
        if self._answers.pop(answer.request, None) is not None:
            self._link.post([Withdraw(self.id, answer.request)])

    def _hear_answer(self, word: Answered | Told) -> None:
        """Take in an answer, or news. Under the link's lock."""
        if isinstance(word, Told):
            listener = self._on_told.get(word.topic)
            if listener is not None:
                listener(word.data)
            return
        answer = self._answers.pop(word.request, None)
        if answer is not None:
            answer.take(word)

    def _end_asking(self, why: str) -> None:
        """Fail what is not answered. Under the link's lock."""
        error = outcomes.dumps_error(ClosedClientError(why))
        for answer in list(self._answers.values()):
            answer.take(Answered(answer.request, None, error))
        self._answers.clear()
