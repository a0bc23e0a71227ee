"""The scheduler's plugins: their hooks are called in order, in one thread of their own.

Runs in the user's process. The scheduler tells what happens, under its lock or not, and
goes on; a thread that is begun with the first plugin calls the hooks, one after the other.
So a hook may take its time, wait for results of a client, and call the scheduler back: it
holds no lock, and stops nobody. What it finds may be newer than what it is told of. Hooks
about workers are waited for a moment (``_MOMENT_S``), so that a quick one finds the workers
as they were. With no plugin that asks, nothing of this costs anything.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from localdask.messages import SubmitTasks, TaskSpec
from localdask.preloads.failures import first_line
from localdask.preloads.plugins import Plugins, plugin_name
from localdask.state.tasks import PROCESSING, PUBLISHING, STAGED, WAITING, SchedulerState, TaskState

__all__ = ["SchedulerPlugins"]

T = TypeVar("T")

#: How long the scheduler waits for hooks about workers.
_MOMENT_S = 0.05
#: How long the thread has to end, beyond the limits of the hooks that end the plugins.
_END_S = 1.0
#: States that Dask does not know, by what they are there.
_AS_IN_DASK = {STAGED: PROCESSING, PUBLISHING: WAITING}
#: The registry in whose thread this code runs; helper threads of hooks inherit it.
_within: ContextVar[Any] = ContextVar("localdask-scheduler-plugins", default=None)


class SchedulerPlugins(Mapping[str, Any]):
    """The plugins of one scheduler by name, in the order of their registration. Methods may be called from any thread.

    Parameters
    ----------
    scheduler : Scheduler
        What the hooks are given.
    state : SchedulerState
        Whose moves are watched when a plugin asks.
    lock : context manager
        Is held while ``state`` is touched.
    limits_s : (float, float)
        Limits in seconds for a plugin's ``start`` and ``close``.

    Attributes
    ----------
    watches_tasks : bool
        Whether a plugin wants to know of submissions or of tasks' moves.
    """

    def __init__(self, scheduler: Any, state: SchedulerState, lock: Any, limits_s: tuple[float, float]) -> None:
        setup_s, teardown_s = limits_s
        self._scheduler = scheduler
        self._state = state
        self._lock = lock
        self._end_s = teardown_s + _END_S
        self._registry = Plugins(scheduler, "scheduler", "scheduler", report=_tell, setup_s=setup_s, teardown_s=teardown_s)
        self._calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_ended = False
        self.watches_tasks = False
        self._n_causes = 0
        self._cause = ""

    def __getitem__(self, name: str) -> Any:
        return self._registry[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._registry)

    def __len__(self) -> int:
        return len(self._registry)

    # ── coming and going ─────────────────────────────────────────────────────

    def add(self, plugin: Any, name: str | None = None, *, keep_old: bool = False) -> bool:
        """Start a plugin and register it; return whether it was. What its ``start`` raises is raised here."""
        known_as = plugin_name(plugin, name)
        if self._is_ended:
            raise RuntimeError(f"the plugin {known_as} came too late: the scheduler is closed")
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="localdask-scheduler-plugins", daemon=True)
            self._thread.start()
        try:
            return bool(self._do(lambda: self._registry.add(known_as, plugin, keep_old=keep_old)))
        finally:
            self._look_for_watchers()

    def remove(self, name: str) -> None:
        """Close a plugin and forget it; what its ``close`` raises is raised here."""
        if name not in self._registry:
            raise ValueError(f"Could not find plugin {name!r} among the current scheduler plugins: {', '.join(self) or 'there are none'}")
        try:
            self._do(lambda: self._registry.remove(name, raises=True))
        finally:
            self._look_for_watchers()

    def before_close(self) -> None:
        """Say that the end is near, and wait until the plugins did what they do then."""
        if self._registry.hooks("before_close"):
            self._do(lambda: self._registry.notify("before_close"), self._end_s)

    def end(self) -> None:
        """Close all plugins, the last one first, and end their thread."""
        if self._thread is None or self._is_ended:
            self._is_ended = True
            return
        n_plugins = max(len(self._registry), 1)
        self._do(self._registry.end, n_plugins * self._end_s)
        self._is_ended = True
        self._calls.put(None)
        if _within.get() is not self:
            self._thread.join(_END_S)

    def _look_for_watchers(self) -> None:
        """Tell of tasks' moves only if a plugin asks: each costs a call."""
        self.watches_tasks = self.asks("transition") or self.asks("update_graph")
        with self._lock:
            self._state.on_move = self._moved if self.asks("transition") else None

    # ── being told ───────────────────────────────────────────────────────────

    def asks(self, hook: str) -> bool:
        """Whether a plugin has that hook."""
        return bool(self._registry.hooks(hook))

    def tell(self, hook: str, *arguments: Any, **more: Any) -> None:
        """Have a hook called, in its turn."""
        if self._registry.hooks(hook):
            self._calls.put(partial(self._registry.notify, hook, *arguments, **more))

    def tell_of_worker(self, hook: str, worker: str, **more: Any) -> None:
        """As ``tell``, and give quick hooks a moment: what they find is as they are told."""
        if self._registry.hooks(hook):
            self._do(lambda: self._registry.notify(hook, scheduler=self._scheduler, worker=worker, **more), _MOMENT_S)

    def because(self, cause: str) -> str:
        """Name what causes the moves that follow, and return the name."""
        self._n_causes += 1
        self._cause = f"{cause}-{self._n_causes}"
        return self._cause

    def tell_of_graph(self, word: SubmitTasks) -> None:
        """Tell of a submission, before its tasks move. Under the scheduler's lock."""
        if not self._registry.hooks("update_graph"):
            return
        known = self._state.tasks
        new = [spec for spec in word.tasks if spec.key not in known]
        first = self._state.n_tasks_seen
        self.tell(
            "update_graph",
            self._scheduler,
            client=word.client,
            keys={spec.key for spec in word.tasks},
            tasks=[spec.key for spec in new],
            annotations=_annotations(new),
            priority={spec.key: (-spec.priority, first + number) for number, spec in enumerate(new)},
            dependencies={spec.key: set(spec.dependencies) for spec in new},
            stimulus_id=self._cause,
        )

    def admitted(self, workers: list[T]) -> list[T]:
        """Return those of the workers that every plugin would let go."""
        for hook in self._registry.hooks("valid_workers_downscaling"):
            chosen = self._do(partial(hook, self._scheduler, list(workers)))
            workers = [worker for worker in workers if worker in chosen]
        return workers

    def _moved(self, task: TaskState, start: str, finish: str) -> None:
        """A task moved. Under the scheduler's lock."""
        start, finish = _AS_IN_DASK.get(start, start), _AS_IN_DASK.get(finish, finish)
        if start == finish:
            return
        more: dict[str, Any] = {"stimulus_id": self._cause}
        if task.worker is not None:
            more["worker"] = self._scheduler.worker_address(task.worker.name)
        if finish == "memory":
            more.update(nbytes=task.nbytes, typename=task.type_name)
        self._calls.put(partial(self._registry.notify, "transition", task.key, start, finish, **more))

    # ── the thread ───────────────────────────────────────────────────────────

    def _live(self) -> None:
        _within.set(self)
        while (call := self._calls.get()) is not None:
            try:
                call()
            except BaseException as error:  # a hook that exits ends nothing but itself
                _tell(f"a hook of a scheduler plugin raised {first_line(error)}")

    def _do(self, call: Callable[[], T], patience_s: float | None = None) -> Any:
        """Return what a call returns in the plugins' thread, after those that wait; None when that takes longer than ``patience_s``."""
        if _within.get() is self:
            return call()
        ended: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

        def run() -> None:
            try:
                ended.put((call(), None))
            except BaseException as error:  # it is raised where it was asked for
                ended.put((None, error))

        self._calls.put(run)
        with contextlib.suppress(Empty):
            value, error = ended.get(timeout=patience_s)
            if error is not None:
                raise error
            return value
        return None


def _annotations(specs: list[TaskSpec]) -> dict[str, dict[str, Any]]:
    """Return what was asked for each task beside its result: annotation → key → value."""
    found: dict[str, dict[str, Any]] = {}
    for spec in specs:
        asked = {
            "retries": spec.retries,
            "priority": spec.priority,
            "workers": list(spec.workers),
            "allow_other_workers": spec.allow_other_workers,
            "resources": dict(spec.resources),
        }
        for annotation, value in asked.items():
            if value:
                found.setdefault(annotation, {})[spec.key] = value
    return found


def _tell(text: str) -> None:
    if sys.stderr is not None:
        print(f"localdask: {text}", file=sys.stderr)
