"""The scheduler's part in reloads: its preloads run in the user's process, so no pipe leads to it.

The cluster makes one where the scheduler has preloads. Words come from the scheduler's I/O
thread and are carried out one after the other in a thread of its own, because bodies and
hooks may take their time; the votes go back to the I/O thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from localdask.messages import InterruptTasks
from localdask.preloads.generations import Preloads
from localdask.processes.generation_words import GenerationWords

__all__ = ["SchedulerMember"]

#: How long a hook that runs when the cluster closes is waited for, beyond its own limit.
_CLOSE_S = 1.0


class SchedulerMember:
    """A member of reloads that is no process of its own.

    Parameters
    ----------
    preloads : Preloads
        The scheduler's.
    vote : callable
        Is given each vote, in the member's thread.
    """

    name = "scheduler"
    life = 1

    def __init__(self, preloads: Preloads, vote: Callable[[Any], None]) -> None:
        self._preloads = preloads
        self._words = GenerationWords(preloads, self.name, self.life, vote)
        self._todo: SimpleQueue[Any] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def tell_helpers(self) -> None:
        """Say which of the user's own modules the preloads import."""
        self._words.tell_helpers()

    def say(self, word: Any) -> None:
        """Have a word carried out, after those before it."""
        if isinstance(word, InterruptTasks):
            return  # the scheduler runs none
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="localdask-scheduler-preloads", daemon=True)
            self._thread.start()
        self._todo.put(word)

    def _live(self) -> None:
        while (word := self._todo.get()) is not None:
            self._words.hear(word)

    def close(self) -> None:
        """Take no more words, and wait for the one that is being carried out."""
        if self._thread is not None:
            self._todo.put(None)
            self._thread.join(self._preloads.setup_s + _CLOSE_S)
