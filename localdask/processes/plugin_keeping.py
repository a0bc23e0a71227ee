"""The cluster's side of plugins: what clients register, brought to every worker and nanny, and kept for those to come.

Runs in the user's process, on the scheduler's I/O thread. Who gets what and when is decided
by ``state/plugins.py``, one book for workers and one for nannies; this turns what happens
into its events, and its commands into words. Plugins of workers and nannies pass through
here unopened; one of the scheduler's is loaded here, where it was sent on purpose.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from localdask.errors import StartError, UsageError
from localdask.messages import AddPlugin, BeginPlugins, PluginAnswered, RemovePlugin
from localdask.preloads.plugins import plugin_kind, plugin_name
from localdask.preloads.standins import standing_in
from localdask.processes.nannies import NannyHandle
from localdask.processes.questions import Question
from localdask.processes.scheduler import Scheduler
from localdask.processes.topics import Topics
from localdask.records import record
from localdask.state import plugins as decisions
from localdask.state.plugins import (
    AnswerChange,
    BeginHolder,
    ChangeAsked,
    ChangeHolder,
    GiveUpHolder,
    HolderAnswered,
    HolderCame,
    HolderLeft,
    PluginBook,
)
from localdask.system import codec

__all__ = ["PluginKeeper"]

#: What running tasks are given when workers are replaced for a plugin; what still runs then is run again elsewhere.
RESTART_GRACE_S = 10.0


@record
class _PluginRequest:
    """Who asked for a change, and whether the workers are replaced after it."""

    question: Question
    kind: str
    restarts: bool = False


@record
class _Return:
    """Workers that are being replaced for a plugin, with the life that each had; ``answer`` when all are back."""

    question: Question
    answer: dict[str, Any]
    lives: dict[str, int]


class PluginKeeper:
    """The plugins of one cluster's workers and nannies. Registers itself with the scheduler.

    Parameters
    ----------
    scheduler : Scheduler
        The cluster's.
    handles : callable
        Returns the nannies, or workers in threads, by worker's name.
    plugins : iterable
        What is registered from the beginning.
    """

    def __init__(self, scheduler: Scheduler, handles: Callable[[], Mapping[str, Any]], plugins: Iterable[Any] = ()) -> None:
        self._scheduler = scheduler
        self._first = tuple(plugins)
        self._handles = handles
        self._books = {"worker": PluginBook(), "nanny": PluginBook()}
        self._requests: dict[int, _PluginRequest] = {}
        self._n_requests = 0
        self._returning: list[_Return] = []
        Topics(scheduler)
        scheduler.worker_observers.append(self)
        scheduler.on_worker_word[PluginAnswered] = self._worker_answered
        scheduler.answerers.update(register_plugin=self._register, unregister_plugin=self._unregister, plugins=self._list)

    def begin(self) -> None:
        """Register the first plugins, before there is anybody to set them up: who cannot does not begin."""
        for plugin in self._first:
            if isinstance(plugin, type):
                raise TypeError(f"plugins= takes instances of plugins; {plugin.__name__} is a class")
            kind, name = plugin_kind(plugin), plugin_name(plugin)
            if kind == "scheduler":
                self._scheduler.plugins.add(plugin, name)
            else:
                self._books[kind].rows[name] = codec.dumps(plugin, f"the plugin {name}")

    # ── what clients ask ─────────────────────────────────────────────────────

    def _register(self, question: Question) -> None:
        kind, name, pickled, keeps_old, restarts = question.arguments
        if kind == "scheduler":
            self._apart(question, lambda: self._start_on_scheduler(name, pickled, keeps_old), restarts)
            return
        if kind == "nanny" and not any(isinstance(handle, NannyHandle) for handle in self._handles().values()):
            raise UsageError(
                "this cluster's workers are threads, and have no nannies: register it as a worker plugin, or use processes=True"
            )
        self._change(question, kind, ChangeAsked(0, name, pickled, keeps_old), restarts)

    def _unregister(self, question: Question) -> None:
        kind, name = question.arguments
        if kind == "scheduler":
            self._apart(question, lambda: self._scheduler.remove_plugin(name))
        else:
            self._change(question, kind, ChangeAsked(0, name, None), False)

    def _list(self, question: Question) -> None:
        """Answer with the names of the plugins that are registered, by kind."""
        names = {kind: list(book.rows) for kind, book in self._books.items()}
        question.answer({**names, "scheduler": list(self._scheduler.plugins)})

    def _start_on_scheduler(self, name: str, pickled: bytes, keeps_old: bool) -> bool:
        with standing_in():
            plugin = codec.loads(pickled, f"the plugin {name}")
        return self._scheduler.plugins.add(plugin, name, keep_old=keeps_old)

    def _apart(self, question: Question, change: Callable[[], Any], restarts: bool = False) -> None:
        """Change the scheduler's plugins on a thread of its own: a hook may take its time, or ask this one."""

        def answer() -> None:
            try:
                has_changed = change()
            except BaseException as error:  # whatever it is, it is the answer
                question.fail(error)
                return
            call = partial(self._replace_workers, question, {}) if restarts and has_changed else question.answer
            self._scheduler.loop.call_soon_threadsafe(call)

        threading.Thread(target=answer, name=f"localdask-{question.what}", daemon=True).start()

    def _change(self, question: Question, kind: str, asked: ChangeAsked, restarts: bool) -> None:
        self._n_requests += 1
        self._requests[self._n_requests] = _PluginRequest(question, kind, restarts)
        self._step(kind, ChangeAsked(self._n_requests, asked.name, asked.pickled, asked.keeps_old))

    # ── what happens ─────────────────────────────────────────────────────────

    def worker_came(self, name: str, life: int) -> None:
        self._step("worker", HolderCame(name, life))

    def worker_joined(self, name: str, life: int) -> None:
        for waiting in list(self._returning):
            if life > waiting.lives.get(name, life):
                self._is_back(waiting, name)

    def worker_left(self, name: str, life: int, is_expected: bool) -> None:
        self._step("worker", HolderLeft(name, life, is_expected))

    def happened(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Something happened in the cluster: a worker may not come back, and plugins may want to know."""
        if kind in ("boot-failed", "degraded"):
            for waiting in [waiting for waiting in self._returning if fields["worker"] in waiting.lives]:
                self._returning.remove(waiting)
                why = fields.get("detail") or fields["reason"]
                text = f"the plugin is registered, but worker {fields['worker']} did not come back with it: {why}"
                waiting.question.fail(StartError(text))
        self._scheduler.plugins.tell("log_event", kind, {"action": kind, **fields})

    def removable(self, names: list[str]) -> list[str]:
        """Return those workers that every scheduler plugin would let go when the cluster gets smaller."""
        if not self._scheduler.plugins.asks("valid_workers_downscaling"):
            return names
        present = [self._scheduler.workers[name] for name in names if name in self._scheduler.workers]
        kept = {worker.name for worker in present} - {worker.name for worker in self._scheduler.plugins.admitted(present)}
        return [name for name in names if name not in kept]

    def nanny_rows(self) -> list[tuple[str, bytes]]:
        return list(self._books["nanny"].rows.items())

    def nanny_came(self, handle: NannyHandle, life: int) -> None:
        self._step("nanny", HolderCame(handle.worker_name, life))

    def nanny_answered(self, handle: NannyHandle, word: PluginAnswered) -> None:
        self._step("nanny", HolderAnswered(handle.worker_name, handle.nanny_life, word.change, word.error))

    def nanny_left(self, handle: NannyHandle, life: int, was_asked: bool) -> None:
        self._step("nanny", HolderLeft(handle.worker_name, life, was_asked))
        for waiting in list(self._returning):
            if handle.is_ending:
                self._is_back(waiting, handle.worker_name)

    def _worker_answered(self, name: str, life: int, word: Any) -> None:
        self._step("worker", HolderAnswered(name, life, word.change, word.error))

    # ── what is decided ──────────────────────────────────────────────────────

    def _step(self, kind: str, event: Any) -> None:
        for command in decisions.step(self._books[kind], event):
            if isinstance(command, BeginHolder):
                if kind == "worker":
                    self._scheduler.tell_worker(command.holder, command.life, BeginPlugins(command.rows))
            elif isinstance(command, ChangeHolder):
                self._tell(kind, command)
            elif isinstance(command, GiveUpHolder):
                self._give_up(kind, command)
            elif isinstance(command, AnswerChange):
                self._answer(self._requests.pop(command.request), command)

    def _tell(self, kind: str, command: ChangeHolder) -> None:
        pickled = command.pickled
        word = RemovePlugin(command.change, command.name) if pickled is None else AddPlugin(command.change, command.name, pickled)
        if kind == "worker":
            self._scheduler.tell_worker(command.holder, command.life, word)
        elif command.holder in self._handles():
            self._handles()[command.holder].say(word)

    def _give_up(self, kind: str, command: GiveUpHolder) -> None:
        handle = self._handles().get(command.holder)
        if handle is not None and kind == "worker":
            handle.restart(0.0)
        elif handle is not None:
            handle.replace_nanny(0.0)

    def _answer(self, request: _PluginRequest, command: AnswerChange) -> None:
        answer = {
            "outcome": command.outcome,
            "done": [self._scheduler.worker_address(name) for name in command.done],
            "failed": [(self._scheduler.worker_address(name), error) for name, error in command.failed],
        }
        if request.restarts and command.outcome == "done":
            self._replace_workers(request.question, answer)
        else:
            request.question.answer(answer)

    def _replace_workers(self, question: Question, answer: dict[str, Any]) -> None:
        """Replace all workers, and answer when they are back."""
        waiting = _Return(question, answer, {name: handle.life for name, handle in self._handles().items()})
        if not waiting.lives:
            question.answer(answer)
            return
        self._returning.append(waiting)
        for name in list(waiting.lives):
            self._handles()[name].restart(RESTART_GRACE_S)

    def _is_back(self, waiting: _Return, name: str) -> None:
        waiting.lives.pop(name, None)
        if not waiting.lives:
            self._returning.remove(waiting)
            waiting.question.answer(waiting.answer)
