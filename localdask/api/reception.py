"""What a cluster answers to its clients, wherever they are: ``api/control.py`` is the other end.

Runs in the cluster's process. Questions come on the scheduler's I/O thread, which must
not wait; what takes time is done on a thread of its own, and answered from there. All
answers are plain data; a function of a user's is passed on unopened, except the one of
``run_on_scheduler``, which is sent to this process on purpose.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from localdask.api.control import call_with_scheduler
from localdask.api.inspection import describe, inspections, list_processes
from localdask.errors import WorkerStartTimeoutError
from localdask.processes.actor_calls import answer_for_actors
from localdask.processes.coordination import Coordination
from localdask.processes.exchange import Exchange
from localdask.processes.nannies import NannyHandle
from localdask.processes.questions import Question
from localdask.processes.recording import Recorder
from localdask.processes.reload_answers import answer_about_reloads
from localdask.processes.reloading import Reloader
from localdask.processes.scheduler import Scheduler
from localdask.processes.unsent import answer_about_unsent
from localdask.system import codec
from localdask.system.process import STACKS_SIGNAL, send_if_handled

__all__ = ["Reception"]


class Host(Protocol):
    """The cluster, as far as it is asked for."""

    name: str
    scheduler: Scheduler

    @property
    def workers(self) -> dict[str, Any]: ...
    @property
    def n_asked(self) -> int: ...
    def worker_address(self, name: str) -> str: ...
    def generation_of(self, name: str) -> int | None: ...
    def scale(self, n: int) -> None: ...
    def restart(self, timeout: float | None = None, wait_for_workers: bool = True) -> None: ...
    def retire_workers(self, workers: Any = None, close_workers: bool = True, grace: float | None = None) -> dict[str, Any]: ...
    def shut_down(self) -> None: ...


class Reception:
    """Answers a cluster's clients. Registers itself with the cluster's scheduler."""

    def __init__(self, cluster: Host, reloader: Reloader) -> None:
        self._cluster = cluster
        self._scheduler = cluster.scheduler
        answer_about_unsent(self._scheduler)
        Recorder(self._scheduler)
        answer_for_actors(self._scheduler)
        answer_about_reloads(self._scheduler, reloader)
        Coordination(self._scheduler)
        Exchange(self._scheduler)
        self._scheduler.answerers.update(
            run=self._run,
            run_on_scheduler=partial(self._apart, self._run_on_scheduler),
            restart=partial(self._apart, self._restart),
            scale=partial(self._apart, self._scale),
            wait_for_workers=partial(self._apart, self._wait_for_workers),
            scheduler_info=lambda question: question.answer(describe(self._scheduler)),
            processes=lambda question: question.answer(list_processes(self._cluster)),
            restart_workers=partial(self._apart, self._restart_workers),
            stacks=self._stacks,
            functions=self._functions,
            shutdown=self._shutdown,
            retire_workers=partial(self._apart, self._retire_workers),
            **inspections(self._scheduler),
        )

    @staticmethod
    def _apart(answer: Callable[[Question], Any], question: Question) -> None:
        """Find the answer on a thread of its own."""

        def find() -> None:
            try:
                question.answer(answer(question))
            except BaseException as error:  # whatever it is, it is the answer
                question.fail(error)

        threading.Thread(target=find, name=f"localdask-{question.what}", daemon=True).start()

    def _run(self, question: Question) -> None:
        """Call a pickled function now, on workers or on their nannies; the answer has the outcomes, None for one that died first."""
        call, names, wait, on_nannies = question.arguments
        there: Mapping[str, Any] = self._cluster.workers if on_nannies else self._scheduler.state.workers
        targets = list(names or there)
        unknown = [name for name in targets if name not in there]
        if unknown:
            raise ValueError(f"no worker is called {', '.join(unknown)}; there are {', '.join(sorted(there)) or 'none'}")
        found: dict[str, bytes | None] = {}

        def take(name: str, outcome: bytes | None) -> None:
            found[name] = outcome
            if len(found) == len(targets):
                outcomes = {self._cluster.worker_address(name): found[name] for name in targets}
                # Not from here: the scheduler's lock may be held.
                self._scheduler.loop.call_soon_threadsafe(partial(question.answer, outcomes))

        if on_nannies:
            for name in targets:
                handle = there[name]
                if not isinstance(handle, NannyHandle):
                    raise ValueError("run(nanny=True): this cluster has no nannies, because its workers are threads (processes=False)")
                handle.run_function(call, take, wait=wait)
        else:
            self._scheduler.run_function(call, targets, take, wait=wait)
        if not wait or not targets:
            question.answer({})

    def _run_on_scheduler(self, question: Question) -> bytes:
        function, args, kwargs = codec.loads(question.arguments[0])
        return codec.dumps(call_with_scheduler(self._scheduler, function, args, kwargs), "the result of run_on_scheduler")

    def _restart(self, question: Question) -> None:
        timeout, wait_for_workers = question.arguments
        self._cluster.restart(timeout=timeout, wait_for_workers=wait_for_workers)

    def _scale(self, question: Question) -> int:
        """Ask for so many workers, or so many more; the answer is how many are asked for now."""
        n, is_relative = question.arguments
        n = max(0, self._cluster.n_asked + n) if is_relative else n
        self._cluster.scale(n)
        return int(n)

    def _retire_workers(self, question: Question) -> dict[str, Any]:
        return self._cluster.retire_workers(*question.arguments)

    def _wait_for_workers(self, question: Question) -> None:
        n_workers, timeout = question.arguments
        gone: list[bool] = []

        def withdrawn() -> None:
            gone.append(True)
            self._scheduler.notify()

        question.on_withdrawn = withdrawn
        if not self._scheduler.wait_for(lambda: bool(gone) or len(self._scheduler.workers) >= n_workers, timeout):
            raise WorkerStartTimeoutError(len(self._scheduler.workers), n_workers, timeout or 0)

    def _restart_workers(self, question: Question) -> list[str]:
        """Replace processes, one after the other unless all at once is asked for; the answer is which did not come back."""
        names, is_rolling, grace_s, timeout_s = question.arguments
        gone: list[bool] = []
        question.on_withdrawn = lambda: gone.append(True)
        handles = {name: handle for handle in self._cluster.workers.values() for name in (handle.name, handle.worker_name)}
        left = [name for name in names if name not in handles]
        names = [name for name in names if name in handles]
        for batch in [[name] for name in names] if is_rolling else [names]:
            if gone:
                break
            lives = {name: handles[name].life for name in batch}
            for name in batch:
                is_nanny = name == handles[name].name
                call = handles[name].replace_nanny if is_nanny else handles[name].restart
                self._scheduler.loop.call_soon_threadsafe(partial(call, grace_s))

            def is_back(name: str, lives: dict[str, int] = lives) -> bool:
                worker = self._scheduler.workers.get(handles[name].worker_name)
                return worker is not None and worker.life > lives[name]

            self._scheduler.wait_for(lambda batch=batch: bool(gone) or all(map(is_back, batch)), timeout_s)  # type: ignore[misc]
            left += [name for name in batch if not is_back(name)]
        return left

    def _stacks(self, question: Question) -> None:
        """Have these workers show their stacks among what they write; the answer is which cannot."""
        (names,) = question.arguments
        handles = self._cluster.workers
        unable = []
        for name in names:
            pid = handles[name].worker_pid if name in handles else None
            if pid is None or pid == os.getpid() or not send_if_handled(pid, STACKS_SIGNAL):
                unable.append(name)
        question.answer(unable)

    def _functions(self, question: Question) -> None:
        """Answer with each function's name, how many tasks of it there are, and how long one takes in seconds (-1: not known)."""
        functions = self._scheduler.decide(lambda state: list(state.functions.values()))
        question.answer([(function.name, function.n_tasks, function.duration_s) for function in functions])

    def _shutdown(self, question: Question) -> None:
        question.answer()
        threading.Thread(target=self._cluster.shut_down, name="localdask-shutdown").start()
