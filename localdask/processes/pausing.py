"""Paused workers: the scheduler is told of them, and they are watched until they go on.

A nanny says that its worker is paused; ``state/scheduler.py`` decides what that means for tasks, and
``state/pausing.py`` when the worker cannot go on by itself. Runs on the scheduler's I/O thread, for the
supervisor, and only while somebody is paused. Nothing here waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from localdask.messages import WorkerPaused, WorkerResumed
from localdask.processes.scheduler import Scheduler
from localdask.sizing import format_bytes
from localdask.state import pausing
from localdask.state.pausing import Hoard, Pause
from localdask.state.scheduler import set_paused
from localdask.system.memory import private_nbytes

__all__ = ["Pauses"]


class Pauses:
    """The paused workers of one scheduler. ``tell`` and ``on_log`` as for the supervisor."""

    def __init__(self, scheduler: Scheduler, tell: Callable[..., None], on_log: Callable[[str, int, str], None]) -> None:
        self._scheduler = scheduler
        self._tell = tell
        self._on_log = on_log
        #: The pause that is looked after, by its worker's name: not an earlier one of the same worker.
        self._pauses: dict[str, Pause] = {}

    def worker_pressed(self, name: str, nanny: str, word: WorkerPaused | WorkerResumed) -> None:
        """A nanny says that its worker uses too much memory, or no longer."""
        is_paused = isinstance(word, WorkerPaused)
        link = self._scheduler.link_of(name, word.life)
        if link is None:
            return  # an earlier life
        link.is_paused = is_paused
        self._tell("worker-paused" if is_paused else "worker-resumed", worker=name, nbytes=word.nbytes)
        worker = link.worker
        if worker is None:
            return  # it begins its life so
        now = time.monotonic()
        self._scheduler.decide(lambda state: set_paused(state, worker, is_paused, now))
        self._pauses.pop(name, None)
        if is_paused:
            pause = self._pauses[name] = Pause(worker)
            self._plan(pause, nanny)

    def _plan(self, pause: Pause, nanny: str) -> None:
        self._scheduler.loop.call_at(time.monotonic() + pausing.LOOK_S, partial(self._look, pause, nanny))

    def _look(self, pause: Pause, nanny: str) -> None:
        worker = pause.worker
        if self._pauses.get(worker.name) is not pause:
            return
        if self._scheduler.decide(lambda state: pausing.is_over(state, pause)):
            del self._pauses[worker.name]
            return
        hoard = self._scheduler.decide(lambda state: pausing.look(state, pause))
        if hoard is None:
            self._plan(pause, nanny)
            return
        del self._pauses[worker.name]
        self._on_log(nanny, 2, explain(worker.name, private_nbytes(worker.pid), worker.memory_limit, hoard))


def explain(name: str, nbytes: int, limit: int, hoard: Hoard) -> str:
    """Return why a worker does not go on, and what would help."""
    held = "It holds no results: the memory is its libraries', preloads' or caches'."
    if hoard.n_results:
        largest = f"the largest is {hoard.largest!r} with {format_bytes(hoard.largest_nbytes)}"
        held = f"It holds {hoard.n_results} results of {format_bytes(hoard.nbytes)}; {largest}."
    return (
        f"worker {name} stays paused and gets no tasks: it uses {format_bytes(nbytes)} of its memory_limit of {format_bytes(limit)}, "
        f"and runs nothing that could end. {held} Release futures, raise memory_limit, or replace the worker: "
        f"client.restart_workers([{name!r}]) (worker.memory.pause)"
    )
