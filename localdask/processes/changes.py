"""Waiting until a condition on a cluster's processes holds, while these come and go.

Not a ``threading.Condition``, whose lock an interrupt can leave torn.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from localdask.system.shield import LOOK_UP_S

__all__ = ["Changes"]


class Changes:
    """Who waits for a change, each in a thread of its own."""

    def __init__(self) -> None:
        #: For each thread that waits, where its news comes.
        self._waiting: dict[int, SimpleQueue[None]] = {}
        self.is_over = False

    def wait_for(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until a condition holds; it is asked again at each change. Return what it says in the end."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        news: SimpleQueue[None] = SimpleQueue()
        try:
            self._waiting[id(news)] = news
            while not condition():
                remaining = None if deadline is None else deadline - time.monotonic()
                if (remaining is not None and remaining <= 0) or self.is_over:
                    return condition()
                with contextlib.suppress(Empty):
                    news.get(timeout=LOOK_UP_S if remaining is None else min(remaining, LOOK_UP_S))
        finally:
            self._waiting.pop(id(news), None)
        return True

    def notify(self) -> None:
        """Have every condition asked again. From any thread."""
        for news in list(self._waiting.values()):
            news.put(None)
