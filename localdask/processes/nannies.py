"""The cluster's side of a nanny: its control pipe, its life, and what it tells.

A ``NannyHandle`` has the nanny started by the launcher, supervises it with the same
machine that the nanny uses for its worker, and turns its words into calls of its
keeper, the cluster. Everything runs on the scheduler's I/O thread, except ``kill``.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Protocol

from localdask.errors import ExitWord, ProtocolError, StartError
from localdask.messages import (
    BeginNanny,
    BootFailed,
    BootGoesOn,
    Degraded,
    FunctionRan,
    LogLines,
    NannyReady,
    PluginAnswered,
    ReplaceWorker,
    RestartWorker,
    RunFunction,
    StopNanny,
    WorkerBorn,
    WorkerDown,
    WorkerPaused,
    WorkerResumed,
)
from localdask.processes import launching
from localdask.processes.generation_words import VOTE_WORDS
from localdask.records import replace
from localdask.state import supervision as sv
from localdask.system import outcomes
from localdask.system.child import Child, explain_status
from localdask.system.descriptors import close_all
from localdask.system.loop import Loop, Timer
from localdask.system.sessions import kill_session
from localdask.system.transport import Channel

#: What a nanny may take beyond the grace it was given: it has a worker to force.
NANNY_MARGIN_S = 1.5


class ReloadObserver(Protocol):
    """Who is told of what matters to reloads; all on the scheduler's thread."""

    def nanny_began(self, handle: NannyHandle, life: int) -> None: ...
    def nanny_started(self, handle: NannyHandle, life: int) -> None: ...
    def nanny_left(self, handle: NannyHandle, life: int, word: ExitWord) -> None: ...
    def worker_began(self, handle: NannyHandle, life: int, versions: tuple[tuple[int, int], ...]) -> None: ...
    def vote(self, vote: Any) -> None: ...


class PluginObserver(Protocol):
    """Who is told of what matters to the plugins of nannies; all on the scheduler's thread."""

    def nanny_rows(self) -> list[tuple[str, bytes]]: ...
    def nanny_came(self, handle: NannyHandle, life: int) -> None: ...
    def nanny_answered(self, handle: NannyHandle, word: PluginAnswered) -> None: ...
    def nanny_left(self, handle: NannyHandle, life: int, was_asked: bool) -> None: ...


class Keeper(Protocol):
    """Who is told of what nannies say; all on the scheduler's thread."""

    @property
    def reloader(self) -> ReloadObserver: ...
    @property
    def plugin_keeper(self) -> PluginObserver: ...

    def worker_born(self, handle: NannyHandle, life: int, pid: int, fd: int) -> None: ...
    def worker_down(self, handle: NannyHandle, word: WorkerDown) -> None: ...
    def boot_failed(self, handle: NannyHandle, error: BaseException) -> None: ...
    def wrote_lines(self, source: str, stream: int, lines: list[str]) -> None: ...
    def nanny_event(self, handle: NannyHandle, kind: str, **fields: Any) -> None: ...
    def worker_pressed(self, handle: NannyHandle, word: WorkerPaused | WorkerResumed) -> None: ...


class NannyHandle:
    """One nanny, and through it one worker.

    Attributes
    ----------
    name, worker_name : str
        ``"n0"`` and ``"w0"``.
    pid : int or None
        The nanny's process.
    worker_pid : int or None
        Its worker's process.
    life : int
        The present incarnation of the worker.
    n_restarts : int
        How often the worker was replaced after a death.
    has_ended : bool
        Whether the nanny was stopped and is gone.
    """

    def __init__(
        self, begin: BeginNanny, *, loop: Loop, keeper: Keeper, method: str, ahead: list[launching.PrivatePipe] | None = None
    ) -> None:
        self.name = begin.name
        self.worker_name = begin.worker_name
        self.pid: int | None = None
        self.worker_pid: int | None = None
        self.life = 0
        self.n_restarts = 0
        self.has_ended = False
        self.last_event = "starting"
        self._begin = begin
        self._loop = loop
        self._keeper = keeper
        self._method = method
        #: Nannies that wait for their first word: one is taken before another is started.
        self._ahead = ahead if ahead is not None else []
        self._channel: Channel | None = None
        self._private: launching.PrivatePipe | None = None
        self._process: Child | None = None
        self._timer: Timer | None = None
        self._was_told_why = False
        self._was_killed = False
        #: Why it could not even be started, the last time that it was tried.
        self._refusal = ""
        self._calls: dict[int, Callable[[str, bytes | None], None]] = {}
        self._n_calls = 0
        limits = sv.Limits(boot_limit_s=begin.settings["setup_timeout_s"] + 10.0, margin_s=NANNY_MARGIN_S)
        self._child = sv.ChildState(limits=limits)

    def __repr__(self) -> str:
        return f"<Nanny {self.name}: worker {self.worker_name}, pid {self.worker_pid}, {self.status}>"

    @property
    def status(self) -> str:
        """The nanny's phase of life, in a word."""
        return self._child.phase.value

    # ── asked by the cluster ─────────────────────────────────────────────────

    def start(self) -> None:
        """Have the nanny started."""
        self._step(sv.StartAsked())

    def stop(self, grace_s: float) -> None:
        """Have worker and nanny end; running teardowns are given ``grace_s`` seconds."""
        self._step(sv.StopAsked(grace_s))

    def restart(self, grace_s: float) -> None:
        """Have the worker replaced."""
        if self._channel is not None:
            self._channel.send([RestartWorker(grace_s)])
        else:
            self._step(sv.RestartAsked(grace_s))

    @property
    def is_ending(self) -> bool:
        """Whether it was asked to end for good."""
        return self._child.phase in (sv.Phase.STOPPING, sv.Phase.ABORTING, sv.Phase.ENDED)

    @property
    def nanny_life(self) -> int:
        """The present incarnation of the nanny itself."""
        return self._child.life

    def say(self, *words: Any) -> None:
        """Send words to the nanny, if there is one."""
        channel = self._channel
        if channel is not None:
            channel.send(words)
            if channel.has_unsent:
                self._loop.add_writer(channel.fileno(), lambda: self._write(channel))

    def run_function(self, call: bytes, on_answer: Callable[[str, bytes | None], None], *, wait: bool) -> None:
        """Call a pickled function in the nanny; ``on_answer(worker's name, outcome)`` is called once, with None if the nanny died first."""
        if self._channel is None:
            on_answer(self.worker_name, None)
            return
        self._n_calls += 1
        if wait:
            self._calls[self._n_calls] = on_answer
        self.say(RunFunction(self._n_calls, call, wait))

    def _function_ran(self, word: FunctionRan) -> None:
        self._calls.pop(word.request)(self.worker_name, word.outcome)

    def _fail_calls(self) -> None:
        calls, self._calls = self._calls, {}
        for on_answer in calls.values():
            on_answer(self.worker_name, None)

    def keep(self, role: str, rows: list[Any]) -> None:
        """Start a new nanny, or its workers, from these preloads from now on."""
        if role == "nanny":
            self._begin = replace(self._begin, nanny_preloads=rows)
        elif role == "worker":
            self._begin = replace(self._begin, worker_preloads=rows)

    def replace_worker(self, life: int, grace_s: float, rows: list[Any]) -> None:
        """Have the worker of that life replaced by one on these preloads."""
        self._begin = replace(self._begin, worker_preloads=rows)
        self.say(ReplaceWorker(life, grace_s, rows))

    def replace_nanny(self, grace_s: float) -> None:
        """Have the nanny itself replaced, and its worker with it."""
        self._step(sv.RestartAsked(grace_s))

    def kill(self) -> None:
        """End worker and nanny by force. From any thread."""
        self._was_killed = True
        for pid in (self.worker_pid, self.pid):
            if pid is not None:
                kill_session(pid)

    # ── supervision of the nanny itself ──────────────────────────────────────

    def _step(self, event: Any) -> None:
        events = [event]
        while events:
            for command in sv.step(self._child, events.pop(0), time.monotonic()):
                events += self._do[type(command)](self, command) or ()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._child.deadline is not None:
            self._timer = self._loop.call_at(self._child.deadline, lambda: self._step(sv.DeadlinePassed()))

    def _start_child(self, command: sv.StartChild) -> list[Any]:
        self._was_told_why, self._refusal = False, ""
        plugins = self._keeper.plugin_keeper.nanny_rows()
        try:
            if self._ahead:
                self._private = self._ahead.pop()
            else:
                self._private = launching.start_nanny(self._method, with_worker=not (self._begin.nanny_preloads or plugins))
        except (StartError, OSError) as error:
            self._refuse(error)
            return [sv.StartRefused(command.life)]
        channel = self._channel = self._private.channel
        settings = {**self._begin.settings, "last_life": self.life, "nanny_life": command.life}
        self._keeper.reloader.nanny_began(self, command.life)
        channel.send([replace(self._begin, settings=settings, nanny_plugins=plugins)])
        life = command.life
        self._keeper.plugin_keeper.nanny_came(self, life)
        self._loop.add_reader(channel.fileno(), lambda: self._read(channel, life))
        if channel.has_unsent:
            self._loop.add_writer(channel.fileno(), lambda: self._write(channel))
        return [sv.ChildStarted(life)]

    def _refuse(self, error: Exception) -> None:
        self._refusal = f"nanny {self.name} did not start: {_mend(error)}"
        self._keeper.wrote_lines(self.name, 2, [self._refusal])

    def _write(self, channel: Channel) -> None:
        if channel.flush():
            self._loop.remove_writer(channel.fileno())

    def _ask_child(self, command: sv.AskChild) -> None:
        if self._channel is not None:
            self._channel.send([StopNanny(command.grace_s)])

    def _terminate_child(self, command: Any) -> None:
        if self._process is not None:
            self._process.terminate()

    def _kill_child(self, command: sv.KillChild) -> None:
        self.kill()

    def _report_down(self, command: sv.ReportDown) -> None:
        if command.word is not ExitWord.ASKED:
            self._keeper.nanny_event(self, "nanny-down", word=command.word.value)

    def _report_failed(self, command: sv.ReportFailed) -> None:
        if not self._was_told_why:
            text = self._refusal or f"nanny {self.name} ended during its start ({command.word.value}); see what it wrote"
            self._keeper.boot_failed(self, StartError(text))

    def _report_degraded(self, command: sv.ReportDegraded) -> None:
        text = f"nanny {self.name} died {command.n_deaths} times within {command.period_s:g} s; it is not started again"
        if self._refusal:
            text += f" ({self._refusal})"
        self._keeper.nanny_event(self, "degraded", reason=text)

    def _report_abandoned(self, command: sv.ReportAbandoned) -> None:
        self._keeper.wrote_lines(self.name, 2, [f"nanny {self.name} (pid {self.pid}) outlived SIGKILL; the kernel holds it"])

    def _report_ended(self, command: sv.ReportEnded) -> None:
        self.has_ended = True
        self._keeper.nanny_event(self, "nanny-ended")

    _do: ClassVar[dict[type, Callable[[NannyHandle, Any], list[Any] | None]]] = {
        sv.StartChild: _start_child,
        sv.AskChild: _ask_child,
        sv.AbortChild: _terminate_child,
        sv.TerminateChild: _terminate_child,
        sv.KillChild: _kill_child,
        sv.ReportDown: _report_down,
        sv.ReportFailed: _report_failed,
        sv.ReportDegraded: _report_degraded,
        sv.ReportAbandoned: _report_abandoned,
        sv.ReportEnded: _report_ended,
    }

    # ── what it says ─────────────────────────────────────────────────────────

    def _read(self, channel: Channel, life: int) -> None:
        try:
            words = channel.receive()
        except (EOFError, OSError) as error:
            if isinstance(error, ProtocolError):
                self._refuse(error)
            self._ended(channel, life)
            return
        fds = channel.take_fds()
        for word in words:
            if self._channel is not channel:  # it was given up
                close_all(fds)
                return
            if isinstance(word, WorkerBorn):
                self.life, self.worker_pid = word.life, word.pid
                self._keeper.worker_born(self, word.life, word.pid, fds.pop(0))
                self._keeper.reloader.worker_began(self, word.life, word.versions)
            elif isinstance(word, VOTE_WORDS):
                self._keeper.reloader.vote(word)
            else:
                self._on_word[type(word)](self, word)

    def _ready(self, word: NannyReady) -> None:
        assert self._channel is not None  # it just spoke
        self.pid = word.pid
        try:
            # It spoke a moment ago and nobody but the launcher can have collected it: the number is still its own.
            self._process = Child(word.pid)
        except OSError as error:
            self._refuse(error)
            self._ended(self._channel, self._child.life)
            return
        if self._process.fileno() >= 0:
            self._loop.add_reader(self._process.fileno(), partial(self._ended, self._channel, self._child.life))
        self._step(sv.ChildReady(self._child.life))
        self._keeper.reloader.nanny_started(self, self._child.life)
        self._keeper.nanny_event(self, "nanny-ready", pid=word.pid)

    def _boot_goes_on(self, word: BootGoesOn) -> None:
        self._step(sv.BootProgressed(self._child.life, word.limit_s))

    def _worker_down(self, word: WorkerDown) -> None:
        if self._was_killed and self.is_ending:
            word = replace(word, word=ExitWord.ASKED.value)  # who forces the end expects it
        self.worker_pid = None
        self.last_event = f"died: {explain_status(word.status)}"
        self.n_restarts += word.word != ExitWord.ASKED.value
        self._keeper.worker_down(self, word)

    def _worker_pressed(self, word: WorkerPaused | WorkerResumed) -> None:
        self._keeper.worker_pressed(self, word)

    def _boot_failed(self, word: BootFailed) -> None:
        self._was_told_why = True
        error = outcomes.loads_error(word.error).exception
        self._keeper.boot_failed(self, error)
        if word.life == 0:
            self._step(sv.BootBroken(self._child.life))

    def _lines(self, word: LogLines) -> None:
        self._keeper.wrote_lines(word.source, word.stream, word.lines)

    def _plugin_answered(self, word: PluginAnswered) -> None:
        self._keeper.plugin_keeper.nanny_answered(self, word)

    def _degraded(self, word: Degraded) -> None:
        self.last_event = "degraded"
        self._keeper.nanny_event(self, "degraded", reason=word.reason)

    _on_word: ClassVar[dict[type, Callable[[NannyHandle, Any], None]]] = {
        NannyReady: _ready,
        BootGoesOn: _boot_goes_on,
        WorkerDown: _worker_down,
        WorkerPaused: _worker_pressed,
        WorkerResumed: _worker_pressed,
        BootFailed: _boot_failed,
        LogLines: _lines,
        Degraded: _degraded,
        FunctionRan: _function_ran,
        PluginAnswered: _plugin_answered,
    }

    # ── its end ──────────────────────────────────────────────────────────────

    def _ended(self, channel: Channel, life: int) -> None:
        """The pipe or the process ended; what it said before is heard first."""
        if self._channel is not channel:
            return
        self._channel = None
        try:
            while words := channel.receive():
                fds = channel.take_fds()
                for word in words:
                    if isinstance(word, WorkerBorn):
                        os.close(fds.pop(0))
                    elif isinstance(word, VOTE_WORDS):
                        self._keeper.reloader.vote(word)
                    elif not isinstance(word, NannyReady):
                        self._on_word[type(word)](self, word)
        except (EOFError, OSError):
            pass  # that was all
        self._loop.remove_reader(channel.fileno())
        self._loop.remove_writer(channel.fileno())
        channel.close()
        if self._process is not None:
            if self._process.fileno() >= 0:
                self._loop.remove_reader(self._process.fileno())
            self._process.close()
            self._process = None
        self.pid = None
        self._fail_calls()
        if self.worker_pid is not None:
            # Its worker ends with it: by the kernel's word on Linux, by its pipe elsewhere.
            lost = WorkerDown(self.life, ExitWord.LOST_PARENT.value, signal.SIGKILL, (), 0, ())
            self._worker_down(lost)
        word = ExitWord.ASKED if self._child.phase in (sv.Phase.STOPPING, sv.Phase.REPLACING) else ExitWord.CRASHED
        self._keeper.reloader.nanny_left(self, life, word)
        self._keeper.plugin_keeper.nanny_left(self, life, word is ExitWord.ASKED)
        self._step(sv.ChildExited(life, word))


def _mend(error: Exception) -> str:
    """Return an error's text, with what can be done about it."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many open files; allow more (ulimit -n), or ask for fewer workers"
    return str(error)
