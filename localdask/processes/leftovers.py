"""Removes what a killed worker was writing for others, and what it had written but not told the scheduler of.

Files that the scheduler knows of stay: results in them outlive their worker. What clients in its tasks
published is removed with the cluster. Runs on the scheduler's I/O thread, for the cluster.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from localdask.processes.scheduler import Scheduler
from localdask.system.segments import SegmentFolder, result_prefix

__all__ = ["Leftovers"]


class Leftovers:
    """Is told of workers that leave (a ``WorkerObserver``); ``segments`` returns the cluster's folder, once there is one."""

    def __init__(self, scheduler: Scheduler, segments: Callable[[], SegmentFolder | None]) -> None:
        self._scheduler = scheduler
        self._segments = segments
        scheduler.worker_observers.append(self)

    def worker_came(self, name: str, life: int) -> None:
        """Nothing is left of it yet."""

    def worker_joined(self, name: str, life: int) -> None:
        """Nothing is left of it yet."""

    def worker_left(self, name: str, life: int, is_expected: bool) -> None:
        """It has said all that it ever will."""
        folder = self._segments()
        if folder is not None:
            with contextlib.suppress(OSError):  # the cluster closes, and its folder with it
                folder.sweep(result_prefix(name, life), self._known)

    def _known(self) -> set[str]:
        with self._scheduler.lock:
            payloads = [task.payload for task in self._scheduler.state.tasks.values()]
        return {payload[0] for payload in payloads if isinstance(payload, tuple)}
