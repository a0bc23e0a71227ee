"""A worker in a thread of the user's process, for ``LocalCluster(processes=False)``.

The same ``Worker`` behind the in-memory twin of the pipe, without a nanny: breakpoints
work, and nothing is isolated. ``ThreadHandle`` stands where a ``NannyHandle`` stands
else. Its methods run on the scheduler's I/O thread.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Protocol

from localdask.errors import ExitWord
from localdask.messages import BeginNanny, WorkerDown
from localdask.processes.generation_words import RELOAD_WORDS, source_of, versions_of
from localdask.processes.task_output import begin_keeping, end_keeping
from localdask.processes.worker import Worker
from localdask.records import replace
from localdask.system.loop import Loop
from localdask.system.memory_channel import MemoryChannel, memory_pair


class ThreadKeeper(Protocol):
    """Who is told of what happens to workers in threads."""

    def thread_born(self, handle: ThreadHandle, channel: MemoryChannel, versions: tuple[tuple[int, int], ...]) -> None: ...
    def thread_voted(self, words: list[Any]) -> None: ...
    def tell_thread(self, handle: ThreadHandle, word: Any) -> None: ...
    def worker_down(self, handle: Any, word: WorkerDown) -> None: ...
    def boot_failed(self, handle: Any, error: BaseException) -> None: ...
    def nanny_event(self, handle: Any, kind: str, **fields: Any) -> None: ...


class ThreadHandle:
    """One worker in a thread.

    Attributes
    ----------
    worker : Worker or None
        The worker itself.
    life : int
        Its present incarnation.
    has_ended : bool
        Whether it was stopped and is gone.
    """

    def __init__(self, begin: BeginNanny, *, loop: Loop, keeper: ThreadKeeper) -> None:
        self.name = begin.name
        self.worker_name = begin.worker_name
        self.worker: Worker | None = None
        self.pid: int | None = None
        self.worker_pid: int | None = os.getpid()
        self.life = 0
        self.n_restarts = 0
        self.has_ended = False
        self.status = "idle"
        self.last_event = "starting"
        self._begin = begin
        self._loop = loop
        self._keeper = keeper
        self._follows = False

    def __repr__(self) -> str:
        return f"<Worker {self.worker_name} in a thread, {self.status}>"

    @property
    def is_ending(self) -> bool:
        """Whether it was asked to end for good."""
        return self.has_ended or self.status == "stopping"

    def say(self, *words: Any) -> None:
        """Have the worker carry out words about reloads; there is no nanny for others."""
        for word in words:
            if isinstance(word, RELOAD_WORDS):
                self._keeper.tell_thread(self, word)

    def keep(self, role: str, rows: list[Any]) -> None:
        """Begin later lives from these preloads."""
        if role == "worker":
            self._begin = replace(self._begin, worker_preloads=rows)

    def start(self) -> None:
        """Begin a life."""
        self.life += 1
        self.status = "running"
        upper, lower = memory_pair()
        begin = self._begin
        self.worker = Worker(begin.worker_name, self.life, begin.cluster, begin.settings, lower)
        self.worker.on_votes = lambda words: self._loop.call_soon_threadsafe(lambda: self._keeper.thread_voted(words))
        self._keeper.thread_born(self, upper, versions_of(begin.worker_preloads))
        name = f"localdask-{begin.cluster}-{begin.worker_name}"
        threading.Thread(target=self._live, args=(self.worker, upper, lower), name=name, daemon=True).start()

    def _live(self, worker: Worker, upper: MemoryChannel, lower: MemoryChannel) -> None:
        failure: BaseException | None = None
        begin_keeping()
        try:
            worker.start([source_of(row) for row in self._begin.worker_preloads])
            worker.serve()
        except BaseException as error:  # a preload may raise anything
            failure = error
        finally:
            worker.close()
            lower.close()
            end_keeping()
            self._loop.call_soon_threadsafe(lambda: self._ended(failure))

    def _ended(self, failure: BaseException | None) -> None:
        self.worker = None
        if failure is not None:
            self._keeper.boot_failed(self, failure)
        self._keeper.worker_down(self, WorkerDown(self.life, ExitWord.ASKED.value, 0, (), 0, ()))
        if self._follows and failure is None:
            self._follows = False
            self.start()
            return
        self.status = "ended"
        self.has_ended = True
        self._keeper.nanny_event(self, "nanny-ended")

    def stop(self, grace_s: float) -> None:
        """Have it end after its running task."""
        self._follows = False
        if self.worker is None:
            self.has_ended = True
            self._keeper.nanny_event(self, "nanny-ended")
            return
        self.status = "stopping"
        self.worker.term_asked()

    def restart(self, grace_s: float) -> None:
        """Have it end and begin anew."""
        if self.worker is not None:
            self._follows = True
            self.worker.term_asked()

    def kill(self) -> None:
        """A thread cannot be killed: it ends with its task, and nobody waits for it."""
        self.has_ended = True
