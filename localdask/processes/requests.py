"""Functions that workers were told to call now, and who waits for what they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from localdask.records import record

__all__ = ["OnAnswer", "Requests"]

#: Is given the worker's name, and the pickled outcome; None when the worker died first.
OnAnswer: TypeAlias = "Callable[[str, bytes | None], None]"


@record
class _Request:
    worker: str
    on_answer: OnAnswer


class Requests:
    """The requests of one scheduler that are not answered yet, by number."""

    def __init__(self) -> None:
        self._open: dict[int, _Request] = {}
        self._n_made = 0

    def number(self) -> int:
        """Return a number for a new request."""
        self._n_made += 1
        return self._n_made

    def expect(self, number: int, worker: str, on_answer: OnAnswer) -> None:
        """Note who is told of the answer."""
        self._open[number] = _Request(worker, on_answer)

    def answer(self, number: int, outcome: bytes | None) -> None:
        """Tell who waits; nobody does when nobody was noted."""
        request = self._open.pop(number, None)
        if request is not None:
            request.on_answer(request.worker, outcome)

    def lose(self, worker: str) -> None:
        """Tell all who wait for a worker that it died."""
        for number in [number for number, request in self._open.items() if request.worker == worker]:
            self.answer(number, None)
