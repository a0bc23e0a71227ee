"""What clients ask the scheduler beside their tasks, and how each question gets its one answer.

Runs in the user's process, on the scheduler's I/O thread; an answer may come from any
thread. Whoever can answer registers an *answerer* under a name (``Scheduler.answerers``);
it must not block, and may keep the question and answer it later. A client that is gone,
or waits no longer, withdraws its questions. Nothing here knows what is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from localdask.errors import ClosedClusterError, UsageError
from localdask.messages import Answered, Ask, Withdraw
from localdask.system import outcomes

__all__ = ["QUESTION_WORDS", "Answerer", "Question", "Questions"]

#: The words that this room is for.
QUESTION_WORDS = frozenset({Ask, Withdraw})


class Question:
    """One question of one client.

    Attributes
    ----------
    client : str
        Who asks.
    what : str
        The answerer's name.
    arguments : tuple
        Plain data.
    on_withdrawn : callable or None
        Called, on the I/O thread, if the client goes or gives up before there is an answer.
    """

    __slots__ = ("_close", "arguments", "client", "on_withdrawn", "request", "what")

    def __init__(self, word: Ask, close: Callable[[Question, Answered], bool]) -> None:
        self.client = word.client
        self.what = word.what
        self.arguments = tuple(word.arguments)
        self.request = word.request
        self.on_withdrawn: Callable[[], object] | None = None
        self._close = close

    def __repr__(self) -> str:
        return f"<Question {self.what} of {self.client}>"

    def answer(self, value: Any = None) -> bool:
        """Answer with plain data. From any thread; what comes after the first answer, or too late, is dropped: then this is False."""
        return self._close(self, Answered(self.request, value))

    def fail(self, error: BaseException) -> None:
        """Let the client raise this. From any thread."""
        self._close(self, Answered(self.request, None, outcomes.dumps_error(error)))


Answerer: TypeAlias = "Callable[[Question], object]"


class Questions:
    """The questions of a cluster that have no answer yet.

    Parameters
    ----------
    answerers : mapping of str to Answerer
        Who answers what.
    say : callable
        Sends a word to a client. From any thread.
    """

    def __init__(self, answerers: Mapping[str, Answerer], say: Callable[[str, Any], None]) -> None:
        self._answerers = answerers
        self._say = say
        self._lock = threading.Lock()
        self._is_closed = False
        self._open: dict[tuple[str, int], Question] = {}

    def open(self, word: Ask) -> Question:
        """Take a question in, from any thread; ``put`` brings it to who answers."""
        question = Question(word, self._close)
        with self._lock:
            if self._is_closed:
                raise ClosedClusterError(f"the cluster is closed, and answers {word.what!r} no more; make a new LocalCluster")
            self._open[word.client, word.request] = question
        return question

    def put(self, question: Question) -> None:
        """Have a question answered. On the I/O thread."""
        answerer = self._answerers.get(question.what)
        if answerer is None:
            question.fail(UsageError(f"this cluster has no answer to {question.what!r}; is it of another version of localdask?"))
            return
        try:
            answerer(question)
        except Exception as error:  # the answer then is what went wrong
            question.fail(error)

    def client_gone(self, client: str) -> None:
        """Withdraw all that a client asked. On the I/O thread."""
        for asker, request in list(self._open):
            if asker == client:
                self.withdraw(Withdraw(asker, request))

    def close(self) -> None:
        """Fail what is still open, and take in no more."""
        with self._lock:
            self._is_closed = True
        for question in list(self._open.values()):
            question.fail(ClosedClusterError(f"the cluster was closed before it answered {question.what!r}"))

    def withdraw(self, word: Withdraw) -> None:
        """Drop a question that nobody waits for. On the I/O thread."""
        with self._lock:
            question = self._open.pop((word.client, word.request), None)
        if question is not None and question.on_withdrawn is not None:
            question.on_withdrawn()

    def _close(self, question: Question, word: Answered) -> bool:
        with self._lock:
            if self._open.get((question.client, question.request)) is not question:
                return False
            del self._open[question.client, question.request]
        self._say(question.client, word)
        return True
