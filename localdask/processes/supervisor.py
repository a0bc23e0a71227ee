"""The nannies of one cluster: asked for by number, watched, and ended together.

Runs in the user's process. ``LocalCluster`` makes one; what nannies say arrives on the scheduler's I/O thread and
is passed on to the scheduler, the reloader and the plugin keeper. It decides only how many nannies there are: each
one's life is decided by ``state/supervision.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from localdask.errors import StartError, WorkerStartTimeoutError
from localdask.messages import BeginNanny, WorkerDown, WorkerPaused, WorkerResumed
from localdask.processes.launching import PrivatePipe, start_nanny
from localdask.processes.nannies import NannyHandle, PluginObserver
from localdask.processes.pausing import Pauses
from localdask.processes.reloading import Reloader
from localdask.processes.retiring import Retirements
from localdask.processes.scheduler import Scheduler
from localdask.processes.thread_workers import ThreadHandle
from localdask.system.child import explain_status
from localdask.system.memory_channel import MemoryChannel

__all__ = ["Supervisor"]

#: How long a restart of all workers may take, in seconds.
RESTART_S = 120.0
#: How long a retiring worker's running tasks are waited for, and what its teardowns are given after that, in seconds.
RETIRE_GRACE_S = 60.0
LAST_GRACE_S = 8.0


class Supervisor:
    """Keeps the nannies of a cluster, or with ``method=None`` workers in threads of this process.

    Parameters
    ----------
    scheduler : Scheduler
        Whom workers that come and go are told to.
    begin : callable
        Returns the first word to the nanny of a worker of that name.
    method : {"fork", "spawn"} or None
        How nannies are started.
    tell : callable
        Is told of each event, as ``tell(kind, **fields)``.
    on_log : callable
        Is given each line that a process writes.

    Attributes
    ----------
    handles : dict of str to NannyHandle or ThreadHandle
        The nannies that there are to be, by their worker's name.
    n_asked : int
        How many workers were asked for last.
    is_starting : bool
        Whether a worker that does not start is the failure of all.
    failure : BaseException or None
        That failure.
    """

    reloader: Reloader
    plugin_keeper: PluginObserver

    def __init__(
        self,
        scheduler: Scheduler,
        begin: Callable[[str], BeginNanny],
        *,
        method: str | None,
        tell: Callable[..., None],
        on_log: Callable[[str, int, str], None],
    ) -> None:
        self.handles: dict[str, NannyHandle | ThreadHandle] = {}
        self.n_asked = 0
        self.is_starting = False
        self.failure: BaseException | None = None
        self._scheduler = scheduler
        self._retirements = Retirements(scheduler)
        self._pauses = Pauses(scheduler, tell, on_log)
        #: Those that were let go and are not gone yet, by their worker's name, which nobody else is given meanwhile.
        self._leaving: dict[str, NannyHandle | ThreadHandle] = {}
        self._begin = begin
        self._method = method
        self._ahead: list[PrivatePipe] = []
        self._tell = tell
        self._on_log = on_log
        scheduler.on_stuck = self.replace_stuck

    def nannies(self) -> dict[str, NannyHandle]:
        """Return those that are processes."""
        return {name: handle for name, handle in self.handles.items() if isinstance(handle, NannyHandle)}

    def start_ahead(self, n: int, *, with_workers: bool) -> None:
        """Have n nannies forked that will be asked for soon: each waits for its first word, which says who it is.

        ``with_workers`` has them fork their workers too; where nannies have preloads, those come first.
        """
        try:
            while self._method is not None and len(self._ahead) < n:
                self._ahead.append(start_nanny(self._method, with_worker=with_workers))
        except (StartError, OSError):
            return  # whoever asks for one is told

    # ── how many ─────────────────────────────────────────────────────────────

    def ask_for(self, n: int) -> None:
        """Have nannies of w0 … made until there are n; those that had given up try again."""
        self.n_asked = n
        for name, handle in self.handles.items():
            if handle.last_event == "degraded" and name not in self._scheduler.workers:
                self._soon(partial(handle.restart, 0.0))
        index = 0
        while len(self.handles) < n:
            name = f"w{index}"
            index += 1
            if name not in self.handles and name not in self._leaving:
                handle = self.handles[name] = self._new_handle(self._begin(name))
                self._soon(handle.start)

    def _new_handle(self, begin: BeginNanny) -> NannyHandle | ThreadHandle:
        loop = self._scheduler.loop
        if self._method is None:
            return ThreadHandle(begin, loop=loop, keeper=self)
        return NannyHandle(begin, loop=loop, keeper=self, method=self._method, ahead=self._ahead)

    def let_go(self, name: str, grace_s: float) -> NannyHandle | ThreadHandle:
        """Have one end for good, once it has nothing left; its tasks may take ``grace_s`` seconds. It counts no more from now on."""
        handle = self._leaving[name] = self.handles.pop(name)
        self.n_asked = len(self.handles)

        def end(is_drained: bool) -> None:
            handle.stop(LAST_GRACE_S if is_drained else min(grace_s, 1.0))

        self._soon(partial(self._retirements.begin, name, grace_s, end))
        return handle

    def end_life(self, name: str, life: int, is_followed: bool) -> None:
        """On the scheduler's thread: have a worker end once it has nothing left, and another one follow it, or none."""
        handle = self.handles.get(name)
        if handle is None or handle.life != life:
            return  # it leaves already, or this is another one
        self._tell("lifetime-over", worker=name)
        if not is_followed:
            self.let_go(name, RETIRE_GRACE_S)
            return

        def replace(is_drained: bool) -> None:
            if self.handles.get(name) is handle and handle.life == life:
                handle.restart(LAST_GRACE_S if is_drained else 1.0)

        self._retirements.begin(name, RETIRE_GRACE_S, replace)

    def drain(self, names: list[str], grace_s: float) -> None:
        """Have workers finish, and what only they hold kept, and leave them there without tasks; return when that is so."""
        left = set(names)

        def done(name: str, is_drained: bool) -> None:
            left.discard(name)
            self._scheduler.notify()

        for name in names:
            self._soon(partial(self._retirements.begin, name, grace_s, partial(done, name)))
        self._scheduler.wait_for(lambda: not left, grace_s + 2.0)

    def wait_gone(self, handles: list[NannyHandle | ThreadHandle], timeout_s: float) -> None:
        """Wait until these have ended."""
        self._scheduler.wait_for(lambda: all(handle.has_ended for handle in handles), timeout_s)

    def all_handles(self) -> list[NannyHandle | ThreadHandle]:
        """Return those that there are to be, and those that are on their way out."""
        return [*self.handles.values(), *self._leaving.values()]

    def restart(self, timeout_s: float | None, *, wait: bool) -> None:
        """Replace every worker, and wait until the new ones are there; ``WorkerStartTimeoutError`` when they are not in time."""
        lives = {worker.name: worker.life for worker in self._scheduler.workers.values()}
        for handle in list(self.handles.values()):
            self._soon(partial(handle.restart, 0.0))

        def are_new() -> bool:
            workers = self._scheduler.workers
            return all(name in workers and workers[name].life > lives.get(name, 0) for name in list(self.handles))

        limit_s = RESTART_S if timeout_s is None else timeout_s
        if wait and not self._scheduler.wait_for(are_new, limit_s):
            raise WorkerStartTimeoutError(self.n_ready, len(self.handles), limit_s)

    def replace_stuck(self, name: str, life: int) -> None:
        """Replace a worker that sits in a task which was to stop. A thread cannot be: it goes on until the task is done."""
        handle = self.handles.get(name)
        if isinstance(handle, NannyHandle) and handle.life == life:
            self._tell("worker-stuck", worker=name)
            handle.restart(0.0)

    @property
    def n_ready(self) -> int:
        """How many have a worker that is registered."""
        return sum(name in self._scheduler.workers for name in list(self.handles))

    def wait_ready(self, timeout_s: float | None) -> None:
        """Wait until all that were asked for have a worker; raise why one did not start."""
        if not self._scheduler.wait_for(lambda: self.failure is not None or self.n_ready >= self.n_asked, timeout_s):
            raise WorkerStartTimeoutError(self.n_ready, self.n_asked, timeout_s or 0)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure

    # ── the end ──────────────────────────────────────────────────────────────

    def ask_to_end(self, handles: list[NannyHandle | ThreadHandle], grace_s: float) -> None:
        """Have these end, and wait for it; what is left after the grace time is for ``end_the_rest``."""
        for handle in handles:
            self._soon(partial(handle.stop, grace_s))
        self.wait_gone(handles, grace_s + 2.0)

    def end_the_rest(self, handles: list[NannyHandle | ThreadHandle]) -> None:
        """End by force what did not end."""
        left = [handle for handle in handles if not handle.has_ended]
        for handle in left:
            self._soon(partial(handle.stop, 0.0))  # else it would be replaced
            handle.kill()
        if left:
            self.wait_gone(left, 2.0)
        self.handles.clear()
        self._leaving.clear()
        while self._ahead:  # the start failed before they were asked for
            self._ahead.pop().channel.close()

    def _soon(self, call: Callable[[], None]) -> None:
        self._scheduler.loop.call_soon_threadsafe(call)

    # ── what they tell, on the scheduler's thread ────────────────────────────

    def worker_born(self, handle: NannyHandle, life: int, pid: int, fd: int) -> None:
        self._scheduler.attach(handle.worker_name, life, pid, fd)

    def thread_born(self, handle: ThreadHandle, channel: MemoryChannel, versions: tuple[tuple[int, int], ...]) -> None:
        self._scheduler.attach_channel(handle.worker_name, handle.life, os.getpid(), channel)
        self.reloader.worker_began(handle, handle.life, versions)

    def thread_voted(self, words: list[Any]) -> None:
        for word in words:
            self.reloader.vote(word)

    def tell_thread(self, handle: ThreadHandle, word: Any) -> None:
        self._scheduler.tell_worker(handle.worker_name, handle.life, word)

    def worker_down(self, handle: NannyHandle | ThreadHandle, word: WorkerDown) -> None:
        text = explain_status(word.status) + (f": {word.detail}" if word.detail else "")
        if word.detail:
            worker = self._scheduler.workers.get(handle.worker_name)
            ran = [worker.in_flight[attempt].key for attempt in word.executing if attempt in worker.in_flight] if worker is not None else []
            where = f"while it ran {', '.join(ran)}" if ran else "while it ran no task"
            self._on_log(handle.name, 2, f"worker {handle.worker_name} was ended {where}: {word.detail}")
        self._tell("worker-down", worker=handle.worker_name, life=word.life, word=word.word, exit=text, peak_rss=word.peak_rss)
        self._scheduler.detach(
            handle.worker_name,
            word.life,
            is_expected=word.word == "asked",
            executing=word.executing,
            exit_text=text,
            peak_rss=word.peak_rss,
            last_lines=word.last_lines,
        )
        self.reloader.worker_left(handle, word.life, word.word)

    def worker_pressed(self, handle: NannyHandle, word: WorkerPaused | WorkerResumed) -> None:
        self._pauses.worker_pressed(handle.worker_name, handle.name, word)

    def boot_failed(self, handle: NannyHandle | ThreadHandle, error: BaseException) -> None:
        self._tell("boot-failed", worker=handle.worker_name, detail=str(error))
        if self.is_starting and self.failure is None:
            self.failure = error
        self._scheduler.notify()

    def wrote_lines(self, source: str, stream: int, lines: list[str]) -> None:
        for line in lines:
            self._on_log(source, stream, line)

    def nanny_event(self, handle: NannyHandle | ThreadHandle, kind: str, **fields: Any) -> None:
        if handle.has_ended and self._leaving.get(handle.worker_name) is handle:
            del self._leaving[handle.worker_name]
        if kind == "degraded" and self.is_starting and self.failure is None:
            self.failure = StartError(fields["reason"])  # nobody tries again, so that nobody would be waited for
        self._tell(kind, worker=handle.worker_name, **fields)
        self._scheduler.notify()
