"""What clients said and the scheduler has not taken in yet.

Two kinds of words wait here. Those that were said within a transition, by a ``__del__``
perhaps, wait until it ends. And a lone task waits for others while nothing is lost by it:
when every worker has work ahead, or when the task's own input is still being made. To
take in one task costs a lock, a look around and sometimes a system call, and to
take in sixty-four hardly more; a loop of ``submit`` runs twice as fast for it.

Whoever takes in an answer of a worker looks here afterwards, and a task waits only while an
answer is owed, so none is forgotten.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from localdask.messages import SubmitTasks
from localdask.state.placement import lacks_input, work_ahead
from localdask.state.tasks import SchedulerState

__all__ = ["Anteroom"]

#: How many tasks may wait for company.
WAITING_MAX = 64


class Anteroom:
    """Words of clients, in the order in which they were said. Appended to by any thread, emptied under the scheduler's lock."""

    __slots__ = ("_has_plenty", "_is_owed", "_state", "_words")

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._words: deque[tuple[str, list[Any]]] = deque()
        self._is_owed = self._has_plenty = False

    def __len__(self) -> int:
        return len(self._words)

    def add(self, client: str, messages: list[Any]) -> None:
        """Have words wait until somebody takes them in."""
        self._words.append((client, messages))

    def may_wait(self, submission: SubmitTasks) -> bool:
        """Whether nothing is lost when a submission is taken in after the next answer. Without the lock.

        To be asked before and after it is added: who takes in an answer notes here how things
        stand then, and looks at what waits after that.
        """
        tasks = submission.tasks
        if not self._is_owed or len(tasks) > 1 or not tasks[0].is_ordinary or len(self._words) >= WAITING_MAX:
            return False
        return self._has_plenty or lacks_input(self._state, tasks[0].dependencies)

    def take(self) -> list[tuple[str, list[Any]]]:
        """Return all that waits, oldest first."""
        words = []
        while self._words:
            words.append(self._words.popleft())
        return words

    def look(self, *, is_open: bool) -> None:
        """Note how things stand after a transition; nothing waits for company unless the anteroom ``is_open``. Under the lock."""
        self._is_owed, self._has_plenty = work_ahead(self._state) if is_open else (False, False)
