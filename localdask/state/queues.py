"""The queue of runnable tasks, first by priority and then in the order of submission.

Nearly all tasks become runnable in the order of their priority, so they are appended
to a deque; the few that come out of order go to a heap, and the smaller head is next.
Used by ``state/tasks.py``; entries that are out of date are for the taker to skip.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Any


class TaskQueue:
    """Tasks ordered by their ``priority`` tuple; smallest first."""

    __slots__ = ("_early", "_in_order", "_n_pushed")

    def __init__(self) -> None:
        self._in_order: deque[Any] = deque()
        self._early: list[tuple[tuple[float, int], int, Any]] = []
        self._n_pushed = 0

    def __bool__(self) -> bool:
        return bool(self._in_order or self._early)

    def __len__(self) -> int:
        return len(self._in_order) + len(self._early)

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the tasks, in no particular order."""
        yield from self._in_order
        for _, _, task in self._early:
            yield task

    def push(self, task: Any) -> None:
        """Add a task."""
        in_order = self._in_order
        if not in_order or task.priority >= in_order[-1].priority:
            in_order.append(task)
        else:
            self._n_pushed += 1
            heappush(self._early, (task.priority, self._n_pushed, task))

    def peek(self) -> Any:
        """Return the next task, or None."""
        in_order, early = self._in_order, self._early
        if early and (not in_order or early[0][0] < in_order[0].priority):
            return early[0][2]
        return in_order[0] if in_order else None

    def pop(self) -> Any:
        """Remove and return the next task; IndexError when there is none."""
        in_order, early = self._in_order, self._early
        if early and (not in_order or early[0][0] < in_order[0].priority):
            return heappop(early)[2]
        return in_order.popleft()

    def drain(self) -> list[Any]:
        """Remove and return all tasks, in order."""
        return [self.pop() for _ in range(len(self))]
