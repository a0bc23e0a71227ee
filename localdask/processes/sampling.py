"""A sampling profile of a worker's tasks: where they are, looked at a hundred times a second.

A worker plugin, which ``client.profile`` registers when it is first called: until then nothing
looks. It runs in a thread of its own, wakes less often while no task runs, and counts
each stack by the second and by the task's function, so that a time may be asked for.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from localdask.preloads.plugins import WorkerPlugin
from localdask.processes.stacks import task_frames
from localdask.system.keys import group_of

__all__ = ["PROFILE_PLUGIN", "Sampling", "read_samples"]

PROFILE_PLUGIN = "localdask-profile"
#: How often it looks, in seconds.
INTERVAL_S = 0.01
#: How much longer it sleeps while no task runs.
IDLE_FACTOR = 2
#: Calls of a stack that are told apart, the innermost.
DEPTH_MAX = 100
#: Stacks that are remembered; the oldest are forgotten.
STACKS_MAX = 20_000


class Sampling(WorkerPlugin):
    """The plugin that looks."""

    name = PROFILE_PLUGIN
    idempotent = True

    def setup(self, worker: Any) -> None:
        """Begin to look."""
        self._worker = worker
        self._lock = threading.Lock()
        #: (second, function, stack) → how often; in the order of time.
        self._counts: dict[tuple[int, str, tuple[Any, ...]], int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._live, name=PROFILE_PLUGIN, daemon=True)
        self._thread.start()

    def teardown(self, worker: Any) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def _live(self) -> None:
        sleep_s = INTERVAL_S
        while not self._ended.wait(sleep_s):
            sleep_s = INTERVAL_S * (1 if self.look() else IDLE_FACTOR)

    def look(self) -> bool:
        """Count where tasks are now; return whether there are any."""
        second = int(time.time())
        found = False
        for key, frames in task_frames(self._worker):
            stack = tuple((frame.f_code.co_filename, frame.f_code.co_name, frame.f_lineno) for frame in frames[-DEPTH_MAX:])
            entry = second, group_of(key), stack
            with self._lock:
                self._counts[entry] = self._counts.get(entry, 0) + 1
                if len(self._counts) > STACKS_MAX:
                    del self._counts[next(iter(self._counts))]
            found = True
        return found

    def read(self, start: float | None, stop: float | None, name: str | None) -> list[tuple[tuple[Any, ...], int]]:
        """Return the stacks of a time and a function, each with how often it was seen."""
        with self._lock:
            entries = list(self._counts.items())
        sums: dict[tuple[Any, ...], int] = {}
        for (second, function, stack), count in entries:
            if (start is None or second >= int(start)) and (stop is None or second <= stop) and name in (None, function):
                sums[stack] = sums.get(stack, 0) + count
        return list(sums.items())


def read_samples(start: float | None, stop: float | None, name: str | None, dask_worker: Any) -> list[tuple[tuple[Any, ...], int]]:
    """Return what a worker's profile has; called by ``client.run``."""
    plugin = dask_worker.plugins.get(PROFILE_PLUGIN)
    return plugin.read(start, stop, name) if plugin is not None else []
