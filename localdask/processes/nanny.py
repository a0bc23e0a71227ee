"""The nanny: one process that keeps one worker alive.

It applies the nanny preloads, forks the worker, hands the scheduler's end of the
worker's data pipe up its control pipe, and from then on watches: what the worker
writes, whether it lives, what it was doing when it died. What to do about a death is
decided by ``state/supervision.py``; this is its shell. It has one thread of its own,
and where a preload started others it spawns instead of forking. It loads nothing that
a user pickled, except what was sent to it on purpose: plugins, and what
``run(nanny=True)`` calls. When its control pipe ends it ends its worker and itself.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

from localdask.errors import ExitWord, PreloadError, StartError
from localdask.messages import (
    BeginNanny,
    BeginWorker,
    BootFailed,
    BootGoesOn,
    Degraded,
    KeepPreloads,
    LogLines,
    NannyReady,
    Quit,
    ReplaceWorker,
    RestartWorker,
    RunFunction,
    StopNanny,
    WorkerBorn,
    WorkerDown,
    WorkerReady,
    WorkerStirred,
    address_of,
)
from localdask.preloads.generations import Preloads
from localdask.preloads.plugins import Plugins
from localdask.processes.calls import call_function, tell_outcome
from localdask.processes.generation_words import RELOAD_WORDS, VOTE_WORDS, NannyWords, source_of, versions_of
from localdask.processes.memory_watch import MemoryWatch
from localdask.processes.newborn import Newborn
from localdask.processes.output import CapturedStream, LastLines, LineWriter, Outbox
from localdask.processes.plugin_words import PLUGIN_WORDS, PluginWords
from localdask.processes.starting import hook_limits
from localdask.state import supervision as sv
from localdask.state.memory import steps_of
from localdask.system import outcomes, process, sessions
from localdask.system.board import read_board
from localdask.system.child import ExitStatus, explain_status
from localdask.system.environment import change_environ, take_place
from localdask.system.exits import run_exit_handlers
from localdask.system.loop import Loop, Timer
from localdask.system.transport import Channel

#: What a worker is given to end once the user's process is gone, in seconds.
ORPHAN_GRACE_S = 0.2
#: A line of localdask's own in what Python writes of a crash: the worker runs deep inside its nanny's and the launcher's calls.
_OWN_FRAME = f'  File ("{re.escape(os.path.dirname(os.path.dirname(__file__)))}/[^"]*", line [0-9]+|"<string>", line 1) in '


class _WorkerProcess:
    """One life of the worker: its process, its pipes, and what was seen of it."""

    def __init__(self, life: int, newborn: Newborn) -> None:
        self.life = life
        self.child = newborn.child
        self.channel = newborn.channel
        self.board = newborn.board
        self.streams: list[CapturedStream] = []
        self.last_lines = LastLines()


class Nanny:
    """A nanny, as its preloads and plugins see it.

    Attributes
    ----------
    name : str
        ``"n0"``.
    worker_name : str
        ``"w0"``.
    env : dict of str to str
        Set in the worker's environment when it starts.
    nthreads, memory_limit : int
        What the worker will have; a ``dask_setup`` may change them.
    pid : int or None
        The worker's process.
    """

    def __init__(self, begin: BeginNanny, channel: Channel, early: list[Any], newborn: Newborn | None = None) -> None:
        settings = begin.settings
        self.name = begin.name
        self.id = f"Nanny-{begin.cluster}-{begin.name}"
        self.worker_name = begin.worker_name
        self.cluster = begin.cluster
        self.address = address_of(begin.cluster, begin.name)
        self.worker_address = address_of(begin.cluster, begin.worker_name)
        self.env: dict[str, str | None] = dict(settings.get("env") or {})
        self.nthreads: int = settings["nthreads"]
        self.memory_limit: int = settings.get("memory_limit", 0)
        self.local_directory: str | None = settings.get("local_directory")
        self.status = "init"
        self._settings = settings
        self._begin = begin
        self._channel = channel
        #: What came with the first word.
        self._early = early
        self._loop = Loop()
        self._timer: Timer | None = None
        self._outbox = Outbox()
        #: A worker's process that was made before we knew whose it is.
        self._newborn = newborn
        self._worker: _WorkerProcess | None = None
        self._memory = MemoryWatch(self._loop, steps_of(settings), self._say)
        limits = sv.Limits(boot_limit_s=settings["setup_timeout_s"] + 5.0)
        self._child = sv.ChildState(limits=limits, life=settings.get("last_life", 0))
        hooks = hook_limits(self, settings, lambda word: self._channel.send([word]))
        self.preloads = Preloads(self, "nanny", self.name, is_optional=bool(settings.get("preload_optional")), **hooks)
        self.plugins = Plugins(self, "nanny", self.name, report=lambda text: print(text, file=sys.stderr), **hooks)
        self._plugin_words = PluginWords(self.plugins)
        self._worker_rows = begin.worker_preloads
        self._life = settings.get("nanny_life", 0)
        self._reloads = NannyWords(self, self.preloads, self._life, self._say, self._replace_for_environment)

    @property
    def pid(self) -> int | None:
        return None if self._worker is None else self._worker.child.pid

    # ── beginning and end ────────────────────────────────────────────────────

    def run(self) -> None:
        """Live: set up, start the worker, and serve until told to stop or left alone."""
        streams = sys.stdout, sys.stderr
        sys.stdout = LineWriter(1, lambda number, lines: self._outbox.put(self.name, number, lines))
        sys.stderr = LineWriter(2, lambda number, lines: self._outbox.put(self.name, number, lines))
        self._loop.before_wait.append(self._send_lines)
        try:
            self.preloads.load([source_of(row) for row in self._begin.nanny_preloads])
            for trouble in self.preloads.setup():
                print(trouble, file=sys.stderr)
            self._plugin_words.begin(self._begin.nanny_plugins)
        except PreloadError as error:
            self._channel.send([BootFailed(0, outcomes.dumps_error(error))])
            self._finish()
            return
        self.status = "running"
        self._channel.send([NannyReady(os.getpid())])
        self._reloads.tell_helpers()
        self._loop.add_reader(self._channel.fileno(), self._read_control)
        self._loop.on_signal(signal.SIGTERM, lambda: self._stop(1.0))
        self._loop.on_signal(signal.SIGCHLD, self._look_at_children)
        self._step(sv.StartAsked())
        self._hear(self._early)
        self._loop.run()
        self._finish()
        sys.stdout, sys.stderr = streams

    def _finish(self) -> None:
        """End what preloads and plugins started and did not end; send what is left to say, for as long as somebody listens."""
        sessions.kill_orphans(())
        run_exit_handlers(f"nanny {self.name}", self.preloads.teardown_s, partial(process.end_process, 0))
        self._send_lines()
        deadline = time.monotonic() + 0.5
        while not self._channel.flush() and time.monotonic() < deadline:
            try:
                self._channel.wait_for_message(0.01)
            except (EOFError, OSError):
                return

    # ── the control pipe ─────────────────────────────────────────────────────

    def _read_control(self) -> None:
        try:
            words = self._channel.receive()
        except (EOFError, OSError):
            self._loop.remove_reader(self._channel.fileno())
            self.preloads.teardown_s = self.preloads.teardowns_s = 2 * ORPHAN_GRACE_S
            self._stop(ORPHAN_GRACE_S)
            return
        self._hear(words)

    def _hear(self, words: list[Any]) -> None:
        for word in words:
            self._on_word[type(word)](self, word)

    def _change_plugin(self, word: Any) -> None:
        with self._starting():
            answer = self._plugin_words.hear(word)
        self._say(answer)

    def _call_asked(self, word: RunFunction) -> None:
        """Call what ``run(nanny=True)`` sent here on purpose. Until it returns, this nanny does nothing else."""
        with self._starting():
            outcome = call_function(word.call, _run_coroutine, dask_worker=self)
        tell_outcome(word, outcome, self._say)

    def _stop(self, grace_s: float) -> None:
        if self.status in ("running", "init"):
            self.status = "closing"
            for error in self.preloads.teardown():
                print(error, file=sys.stderr)
            self.plugins.end()
        self._step(sv.StopAsked(grace_s))

    def _stop_asked(self, word: StopNanny) -> None:
        self._stop(word.grace_s)

    def _restart_asked(self, word: RestartWorker) -> None:
        self._step(sv.RestartAsked(word.grace_s))

    def _keep_preloads(self, word: KeepPreloads) -> None:
        self._worker_rows = word.rows

    def _replace_asked(self, word: ReplaceWorker) -> None:
        self._worker_rows = word.rows
        if self._worker is None or self._worker.life == word.life:
            self._step(sv.RestartAsked(word.grace_s))

    def _replace_for_environment(self) -> None:
        self._step(sv.RestartAsked(sv.PATIENCE_S))

    def _reload_asked(self, word: Any) -> None:
        """Do our own part of a reload, or pass the worker's on."""
        mine = self._worker
        if word.member == self.name and word.life == self._life:
            with self._starting():
                self._reloads.hear(word)
        elif mine is not None and word.member == self.worker_name and word.life == mine.life:
            self._tell_worker(mine, word)

    _on_word: ClassVar[dict[type, Callable[[Nanny, Any], None]]] = {
        StopNanny: _stop_asked,
        RestartWorker: _restart_asked,
        KeepPreloads: _keep_preloads,
        ReplaceWorker: _replace_asked,
        RunFunction: _call_asked,
        **dict.fromkeys(RELOAD_WORDS, _reload_asked),
        **dict.fromkeys(PLUGIN_WORDS, _change_plugin),
    }

    def _tell_worker(self, mine: _WorkerProcess, word: Any) -> None:
        channel = mine.channel
        channel.send([word])
        if channel.has_unsent:

            def write() -> None:
                if channel.flush():
                    self._loop.remove_writer(channel.fileno())

            self._loop.add_writer(channel.fileno(), write)

    def _say(self, *words: Any) -> None:
        self._channel.send(words)
        if self._channel.has_unsent:
            self._loop.add_writer(self._channel.fileno(), self._write_control)

    def _write_control(self) -> None:
        if self._channel.flush():
            self._loop.remove_writer(self._channel.fileno())

    def _send_lines(self) -> None:
        if not self._channel.has_unsent:
            groups = self._outbox.take()
            if groups:
                self._say(*(LogLines(*group) for group in groups))

    # ── supervision ──────────────────────────────────────────────────────────

    def _step(self, event: Any) -> None:
        """Let the machine decide, and do what it says."""
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
        try:
            self._start_worker(command.life)
        except (StartError, OSError) as error:
            self._outbox.put(self.name, 2, [f"worker {self.worker_name} did not start: {error}"])
            return [sv.StartRefused(command.life)]
        return [sv.ChildStarted(command.life)]

    def _ask_child(self, command: sv.AskChild) -> None:
        if self._worker is not None:
            # When a cluster closes, its grace is for its teardowns: nobody waits for the tasks then.
            is_replaced = self._child.phase is sv.Phase.REPLACING
            self._tell_worker(self._worker, Quit(command.grace_s if is_replaced else 0.0))

    def _abort_child(self, command: sv.AbortChild) -> None:
        if self._worker is not None:
            os.kill(self._worker.child.pid, signal.SIGABRT)

    def _terminate_child(self, command: sv.TerminateChild) -> None:
        if self._worker is not None:
            self._worker.child.terminate()

    def _kill_child(self, command: sv.KillChild) -> None:
        if self._worker is not None and self._worker.life == command.life:
            self._worker.child.kill_session()

    def _report_down(self, command: sv.ReportDown) -> None:
        self._say(self._last_word)

    def _report_failed(self, command: sv.ReportFailed) -> None:
        if not self._was_told_why:
            down = self._last_word
            ended = explain_status(down.status)
            text = f"worker {self.worker_name} ended during its start by {ended}, before any task"
            if command.word is ExitWord.HUNG:
                limit_s = self._settings["setup_timeout_s"]
                text = f"worker {self.worker_name} was not ready within {limit_s:g} s; look where it hangs, or raise setup_timeout"
            lines = "".join(f"\n    {line}" for line in down.last_lines)
            self._say(BootFailed(command.life, outcomes.dumps_error(StartError(text + lines))))

    def _report_degraded(self, command: sv.ReportDegraded) -> None:
        self._say(
            Degraded(f"worker {self.worker_name} died {command.n_deaths} times within {command.period_s:g} s; it is not started again")
        )

    def _report_abandoned(self, command: sv.ReportAbandoned) -> None:
        self._outbox.put(self.name, 2, [f"worker {self.worker_name} (pid {self.pid}) outlived SIGKILL; the kernel holds it"])

    def _report_ended(self, command: sv.ReportEnded) -> None:
        self._loop.stop()

    _do: ClassVar[dict[type, Callable[[Nanny, Any], list[Any] | None]]] = {
        sv.StartChild: _start_child,
        sv.AskChild: _ask_child,
        sv.AbortChild: _abort_child,
        sv.TerminateChild: _terminate_child,
        sv.KillChild: _kill_child,
        sv.ReportDown: _report_down,
        sv.ReportFailed: _report_failed,
        sv.ReportDegraded: _report_degraded,
        sv.ReportAbandoned: _report_abandoned,
        sv.ReportEnded: _report_ended,
    }

    # ── one life of the worker ───────────────────────────────────────────────

    def _start_worker(self, life: int) -> None:
        self._was_told_why = False
        defaults = self._settings.get("env_defaults") or {}
        changes: dict[str, str | None] = {name: setting for name, setting in defaults.items() if name not in os.environ}
        changes.update((name, None if value is None else str(value)) for name, value in self.env.items())
        change_environ(changes)
        newborn, self._newborn = self._newborn, None
        place = None if newborn is None else (self._begin.environ, changes, self._begin.cwd, self._begin.sys_path, self._begin.argv)
        if newborn is None:
            self._started_here = sessions.children()
            newborn = Newborn(by_spawn=self._settings.get("method") == "spawn")
        child = newborn.child
        mine = self._worker = _WorkerProcess(life, newborn)
        for number, reading in enumerate(newborn.outputs, 1):
            self._capture(mine, reading, number)
        self._loop.add_reader(mine.channel.fileno(), lambda: self._read_worker(mine))
        if child.fileno() >= 0:
            self._loop.add_reader(child.fileno(), lambda: self._worker_ended(mine))
        settings = {**self._settings, "nthreads": self.nthreads, "memory_limit": self.memory_limit, "local_directory": self.local_directory}
        preloads = [source_of(row).to_wire() for row in self._worker_rows]
        self._tell_worker(mine, BeginWorker(self.worker_name, life, self.cluster, settings, preloads, place))
        self._channel.send([WorkerBorn(life, child.pid, versions_of(self._worker_rows))], fds=[newborn.upper.fileno()])
        newborn.upper.close()
        self._memory.begin(life, child, mine.board, self.memory_limit, partial(self._tell_worker, mine))

    def _capture(self, mine: _WorkerProcess, fd: int, number: int) -> None:
        def on_lines(stream: int, lines: list[str]) -> None:
            mine.last_lines.add([line for line in lines if not re.match(_OWN_FRAME, line)])
            self._outbox.put(self.worker_name, stream, lines)

        stream = CapturedStream(fd, number, on_lines)
        mine.streams.append(stream)

        def read() -> None:
            if not stream.read():
                self._loop.remove_reader(fd)

        self._loop.add_reader(fd, read)

    def _read_worker(self, mine: _WorkerProcess) -> None:
        try:
            words = mine.channel.receive()
        except (EOFError, OSError):
            self._loop.remove_reader(mine.channel.fileno())
            return
        for word in words:
            if isinstance(word, WorkerReady):
                self._step(sv.ChildReady(mine.life))
            elif isinstance(word, BootGoesOn):
                self._step(sv.BootProgressed(mine.life, word.limit_s))
            elif isinstance(word, BootFailed):
                self._was_told_why = True
                self._say(word)
                self._step(sv.BootBroken(mine.life))
            elif isinstance(word, WorkerStirred):
                self._memory.stirred()
            elif isinstance(word, VOTE_WORDS):
                self._say(word)

    def _look_at_children(self) -> None:
        """SIGCHLD came: collect what tasks left behind, and where there is no pidfd see whether the worker ended."""
        mine = self._worker
        if mine is not None:
            sessions.reap_orphans({mine.child.pid, *self._own_children()})
            if mine.child.fileno() < 0 and mine.child.poll() is not None:
                self._worker_ended(mine)

    def _own_children(self) -> frozenset[int]:
        """What was started here by preloads, plugins and calls. All other children are the worker's, inherited as a subreaper."""
        return self._started_here | sessions.children(os.getsid(0))

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        """Take for our own what the block starts, also in sessions of its own."""
        before = sessions.children()
        try:
            yield
        finally:
            self._started_here |= sessions.children() - before

    def _worker_ended(self, mine: _WorkerProcess) -> None:
        if self._worker is not mine:
            return
        self._read_worker(mine)
        self._memory.end()
        mine.child.kill_session()
        ended = mine.child.poll() or ExitStatus(None)
        sessions.kill_orphans(self._own_children())
        if mine.child.fileno() >= 0:
            self._loop.remove_reader(mine.child.fileno())
        self._loop.remove_reader(mine.channel.fileno())
        self._loop.remove_writer(mine.channel.fileno())
        for stream in mine.streams:
            stream.finish()
            self._loop.remove_reader(stream.fd)
            stream.close()
        executing = read_board(mine.board)
        mine.board.close()
        mine.channel.close()
        mine.child.close()
        self._worker = None
        self._send_lines()
        word = ExitWord.ASKED if self._child.phase in (sv.Phase.STOPPING, sv.Phase.REPLACING) else self._memory.exit_word(ended.status)
        self._last_word = WorkerDown(
            mine.life, word.value, ended.status or 0, executing, ended.peak_rss, mine.last_lines.take(), self._memory.verdict
        )
        self._step(sv.ChildExited(mine.life, word, blameless=bool(executing)))

    _started_here: frozenset[int] = frozenset()
    _was_told_why = False
    _last_word: WorkerDown = WorkerDown(0, ExitWord.CRASHED.value, 0, (), 0, ())


def _run_coroutine(coroutine: Any) -> Any:
    import asyncio  # noqa: PLC0415 - 60 ms, and few functions need it

    return asyncio.run(coroutine)


def main(fd: int, *, with_worker: bool = False) -> None:
    """Be a nanny whose control pipe is ``fd``; make the worker's process at once, if there will be no preload of our own to run before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.set_subreaper()
    sys.modules["__main__"] = types.ModuleType("__main__")
    newborn = _make_ahead() if with_worker else None
    channel = Channel(socket.socket(fileno=fd))
    try:
        begin, *early = channel.wait_for_message()
    except (EOFError, OSError):
        return
    take_place(begin.environ, begin.cwd, begin.sys_path, begin.argv)
    if newborn is not None and (begin.nanny_preloads or begin.nanny_plugins):
        newborn.discard()  # what those do to this process is for its worker too
        newborn = None
    Nanny(begin, channel, early, newborn).run()


def _make_ahead() -> Newborn | None:
    try:
        return Newborn()
    except (StartError, OSError):
        return None  # the next try, when there is somebody to tell, says why
