"""The last lines that a cluster's processes wrote, and the last things that happened to them, for those who look later.

Lines and events are numbered, and kept within limits. Whoever looks asks for those from a number on, and may
wait until there are more. So a slow reader costs nothing: what it did not fetch in time is counted as lost, not
kept for it. Runs in the cluster's process, on the scheduler's I/O thread.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from localdask.processes.questions import Question
from localdask.processes.scheduler import Scheduler

__all__ = ["Journal"]

LINES_MAX = 10_000
LINES_CHARACTERS_MAX = 8 * 2**20
EVENTS_MAX = 2_000
#: How many entries one answer has at most.
ANSWER_MAX = 1_000
#: Fields of an event that are somebody else's objects.
_NOT_TOLD = frozenset({"error"})


class _Pages:
    """Numbered entries, the oldest of which are forgotten, and the questions that wait for the next one."""

    def __init__(self, n_max: int, n_characters_max: int) -> None:
        self._entries: deque[tuple[Any, ...]] = deque()
        self._first = 0
        self._n_max = n_max
        self._n_characters_max = n_characters_max
        self._n_characters = 0
        self._waiting: list[tuple[Question, int]] = []

    def add(self, entry: tuple[Any, ...]) -> None:
        self._entries.append(entry)
        self._n_characters += len(entry[-1])
        while len(self._entries) > self._n_max or (self._n_characters > self._n_characters_max and len(self._entries) > 1):
            self._n_characters -= len(self._entries.popleft()[-1])
            self._first += 1
        waiting, self._waiting = self._waiting, []
        for question, after in waiting:
            question.answer(self._page(after))

    def ask(self, question: Question) -> None:
        """Answer with the entries from a number on; at once, or when there is one. A negative number counts from the end."""
        after, wait = question.arguments
        end = self._first + len(self._entries)
        after = max(0, end + after) if after < 0 else min(after, end)
        if after < end or not wait:
            question.answer(self._page(after))
            return
        self._waiting.append((question, after))
        question.on_withdrawn = partial(self._withdraw, question)

    def _withdraw(self, question: Question) -> None:
        self._waiting = [(waiting, after) for waiting, after in self._waiting if waiting is not question]

    def _page(self, after: int) -> tuple[int, int, list[tuple[Any, ...]]]:
        """Return the number to ask for next, how many were lost before these entries, and the entries."""
        start = max(0, after - self._first)
        entries = [self._entries[index] for index in range(start, min(start + ANSWER_MAX, len(self._entries)))]
        return self._first + start + len(entries), max(0, self._first - after), entries


class Journal:
    """The lines and events of one cluster. It answers ``logs`` and ``events``; all on the scheduler's I/O thread."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._lines = _Pages(LINES_MAX, LINES_CHARACTERS_MAX)
        self._events = _Pages(EVENTS_MAX, LINES_CHARACTERS_MAX)
        self._scheduler = scheduler
        scheduler.answerers["logs"] = self._lines.ask
        scheduler.answerers["events"] = self._events.ask

    def before(self, on_log: Callable[[str, int, str], None]) -> Callable[[str, int, str], None]:
        """Return what notes each line that a process wrote, and then passes it on."""

        def note(source: str, stream: int, line: str) -> None:
            self._lines.add((time.time(), source, stream, line))
            on_log(source, stream, line)

        return note

    def add_event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Note an event; from any thread."""
        entry = (time.time(), kind, {name: _plain(value) for name, value in fields.items() if name not in _NOT_TOLD}, "")
        self._scheduler.loop.call_soon_threadsafe(partial(self._events.add, entry))


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return str(value.value)
    return value if value is None or type(value) in (bool, int, float, str) else str(value)
