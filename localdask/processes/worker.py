"""The worker: reads its pipes, runs tasks, holds what they return, ends when told or orphaned.

It runs in the main thread of a process of its own (``worker_process.py``), or, with
``LocalCluster(processes=False)``, in a thread of the user's process, without a nanny. What it is told and what it
holds is decided by ``Intake``, words come and go over its ``Desk``, tasks are run by the
``Crew``'s runners, and the ``Listener`` stands in while the main thread is in a long task.

There is one lock. Whoever touches ``Intake``, the crew or a pipe holds it; it is let go
while anything of the user's runs: tasks, called functions, hooks, the pickling of values,
deliveries to clients, the end of dropped values.

The worker never starts another process, and never decides to restart.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from localdask.errors import ProtocolError
from localdask.messages import BeginPlugins, InterruptTask, InterruptTasks, Quit, RunFunction, WorkerReady, WorkerTold, WorkerUp, address_of
from localdask.preloads.generations import Preloads
from localdask.preloads.plugins import Plugins, plugin_name
from localdask.preloads.sources import Source
from localdask.processes import runner as running
from localdask.processes.actors import Actors
from localdask.processes.calls import Calls
from localdask.processes.crew import Crew
from localdask.processes.desk import Desk
from localdask.processes.ears import Ear
from localdask.processes.generation_words import RELOAD_WORDS, Turns, WorkerWords
from localdask.processes.intake import Intake
from localdask.processes.listener import Listener, begin_listening
from localdask.processes.moves import WATCHING_HOOKS, Moves
from localdask.processes.plugin_words import PLUGIN_WORDS, PluginWords
from localdask.processes.runner import RUN_AGAIN, Runner
from localdask.processes.scratch import Scratch
from localdask.processes.spiller import HeldValues, Spiller
from localdask.processes.starting import hook_limits
from localdask.processes.surroundings import Surroundings
from localdask.system.board import private_board
from localdask.system.process import end_in_order, end_process
from localdask.system.segments import SegmentFolder
from localdask.system.sessions import kill_orphans

if TYPE_CHECKING:
    from localdask.system.memory_channel import AnyChannel

__all__ = ["EXIT_LOST_PARENT", "Worker"]

#: The exit code of a worker whose nanny or scheduler is gone.
EXIT_LOST_PARENT = 75
#: What the main thread does when there is no better word.
_SOMETHING = object()
#: What running tasks are given after SIGTERM.
_TERM_GRACE_S = 1.0
#: How long the last words may take to leave, and how long what tasks started has to die when the parent is gone.
_LAST_WORDS_S = 1.0
_ORPHANS_S = 0.2


class Worker:
    """One worker of a cluster, as preloads, plugins, tasks and functions called by ``run`` see it.

    Parameters
    ----------
    name : str
        Its name in the cluster.
    life : int
        Which incarnation of that name it is.
    cluster : str
        The cluster's name.
    settings : mapping
        How it is to be; ``api/worker_settings.py`` has the keys, and what is missing has a default.
    data_pipe : Channel or MemoryChannel
        Its end of the pipe to the scheduler.
    supervise_pipe : Channel, optional
        Its end of the pipe to its nanny. With one, the process is the worker's own.
    board : memoryview, optional
        Where the attempts that execute are noted, as unsigned 64-bit numbers.

    Attributes
    ----------
    name, address, id : str
        What it is called; the address is ``local://CLUSTER/NAME``.
    nthreads : int
        How many tasks it runs at once.
    memory_limit : int
        Bytes; 0 when there is no limit.
    data : mapping
        The results that it holds, by key, as live objects; those that were spilled are read when they are asked for.
    plugins : Plugins
        Its plugins by name.
    preloads : Preloads
        Its preloads.
    status : str
        ``"init"``, ``"running"``, ``"paused"``, ``"closing_gracefully"``, ``"closing"`` or ``"closed"``.
    """

    #: Is given votes about reloads where there is no nanny to send them to. From any thread, under the lock.
    on_votes: Callable[[list[Any]], None] = staticmethod(lambda words: None)

    def __init__(
        self,
        name: str,
        life: int,
        cluster: str,
        settings: Mapping[str, Any],
        data_pipe: AnyChannel,
        supervise_pipe: AnyChannel | None = None,
        board: memoryview | None = None,
    ) -> None:
        self.name = name
        self.life = life
        self.cluster = cluster
        self.address = address_of(cluster, name)
        self.id = f"Worker-{cluster}-{name}-{life}"
        self.nthreads = int(settings.get("nthreads") or 1)
        self.memory_limit = int(settings.get("memory_limit") or 0)
        self.total_resources: dict[str, float] = dict(settings.get("resources") or ())
        self.status = "init"
        self.lock = threading.Lock()
        self._settings = settings
        self._has_process = supervise_pipe is not None
        self._quit_at: float | None = None
        self._is_term_asked = self._is_leaving = self._is_forked = False
        self._scratch = Scratch(name, settings)
        self._surroundings = Surroundings(settings.get("local_directory") or "/") if self._has_process else None
        self._intake = Intake()
        limits = hook_limits(self, settings, self._tell_nanny)
        self.plugins = Plugins(self, "worker", name, report=_tell, **limits)
        self._plugin_words = PluginWords(self.plugins, self._look_for_watchers)
        self._calls = Calls(self, self._answer_call, self._surroundings, self._plugin_words)
        self._actors = Actors(self, self._intake, self._answer_call)
        self._desk = Desk(
            self.lock,
            self._intake,
            data_pipe,
            supervise_pipe,
            segment_folder=settings.get("segment_folder"),
            board=board,
            on_word={
                **dict.fromkeys((RunFunction, *PLUGIN_WORDS), self._call_asked),
                BeginPlugins: self._plugins_told,
                InterruptTask: self._interrupt_asked,
                Quit: self._quit_asked,
                **dict.fromkeys(RELOAD_WORDS, self._reload_asked),
            },
            on_end=self._pipe_ended,
            want_main=self._want_main,
            tell=_tell,
        )
        Spiller(self, self._intake, self._desk, settings, _tell)
        self._crew = Crew(
            self,
            self._intake,
            self.lock,
            board if board is not None else private_board(),
            n_slots=self.nthreads,
            settings=settings,
            report=self._report,
            surroundings=self._surroundings,
        )
        self._crew.on_secede = self._seceded
        #: The main thread's runner; it runs tasks only in a process of its own with one thread.
        self._main = self._crew.new_runner()
        self._runs_in_main = self._has_process and self.nthreads == 1
        self._crew.main = self._main if self._runs_in_main else None
        self._listener = Listener(self, self._desk.listeners_ear) if self._has_process else None
        self.preloads = Preloads(self, "worker", name, is_optional=bool(settings.get("preload_optional")), **limits)
        remember = self._surroundings.remember if self._surroundings is not None else lambda: None
        self._generations = WorkerWords(self.preloads, name, life, self._vote, self._tell_later, remember)
        self._turns = Turns(self._generations, self._crew)

    def __repr__(self) -> str:
        return (
            f"<Worker {self.address!r}, name: {self.name}, status: {self.status}, stored: {len(self.data)}, "
            f"running: {self._crew.n_executing}/{self.nthreads}, ready: {self._intake.n_ready}>"
        )

    # ── what scripts ask ─────────────────────────────────────────────────────

    @property
    def data(self) -> MutableMapping[str, Any]:
        return HeldValues(self._intake.data)

    @property
    def contact_address(self) -> str:
        """The address again, by its other name in Dask."""
        return self.address

    @property
    def local_directory(self) -> str:
        """A folder of this worker's own, made when it is first asked for, and removed with the worker or its cluster."""
        return self._scratch.path

    def get_current_task(self) -> str:
        """Return the key of the task that runs in this thread."""
        runner = running.current_runner()
        if runner is None or runner.task is None:
            raise ValueError("get_current_task() was called where no task runs; call it inside a task, in the task's own thread")
        return runner.task.key

    def blocking(self) -> AbstractContextManager[None]:
        """Leave the running task's slot to other tasks while the block waits."""
        return running.blocking()

    @property
    def segments(self) -> SegmentFolder | None:
        """Where this worker publishes large values."""
        return self._desk.segments

    def statistics(self) -> dict[str, int]:
        """Return counts of what runs, waits and is held here."""
        with self.lock:
            return {"n_executing": self._crew.n_executing, "n_done": self._crew.n_done, **self._intake.statistics()}

    def log_event(self, topic: str | list[str], msg: Any) -> None:
        """Tell the clients that listen to a topic, or to several, and scheduler plugins, of a message of plain data. From any thread."""
        for name in [topic] if isinstance(topic, str) else topic:
            self._desk.post(WorkerTold(name, msg))

    def reload_functions(self) -> None:
        """Load the functions of tasks anew when they are called next: a module that they refer to was replaced."""
        with self.lock:
            self._intake.reload_functions()

    async def upload_file(self, filename: str, data: bytes, load: bool = True) -> dict[str, Any]:
        """Take in a file, as the ``UploadFile`` of ``distributed`` asks a worker to."""
        from localdask.preloads.uploads import take_upload  # noqa: PLC0415 - only an upload needs it

        take_upload(self, os.path.basename(filename), data, load)
        return {"status": "OK", "nbytes": len(data)}

    def plugin_add(self, plugin: Any, name: str | None = None) -> bool:
        """Begin a plugin and register it; return whether it was (not if one of that name is kept)."""
        try:
            return self.plugins.add(plugin_name(plugin, name), plugin)
        finally:
            self._look_for_watchers()

    def plugin_remove(self, name: str) -> None:
        """End a plugin and forget it."""
        self.plugins.remove(name)
        self._look_for_watchers()

    def _look_for_watchers(self) -> None:
        """Note what tasks do only if a plugin asks: each move costs a call."""
        moves = Moves(self.plugins.notify) if any(map(self.plugins.hooks, WATCHING_HOOKS)) else None
        with self.lock:
            if moves is None or self._crew.moves is None:
                self._crew.moves = self._desk.moves = moves
                self._intake.on_fail = moves.dropped if moves is not None else None

    # ── beginning ────────────────────────────────────────────────────────────

    def start(self, sources: Sequence[Source] = ()) -> None:
        """Load the preloads, set them up, and register. A preload's failure is raised, and what was set up is torn down."""
        begin_listening(self._listener, bool(sources))
        running.host(self, whole_process=self._has_process)
        self.preloads.load(sources)
        for error in self.preloads.setup():
            _tell(str(error))
        self._begin_plugins()
        if self._surroundings is not None:
            self._surroundings.remember()
        self.status = "running"
        self._generations.tell_helpers()
        with self.lock:
            # The nanny first: once the scheduler knows it, a worker may be killed, and that is no failed start any more.
            if self._desk.supervise is not None:
                self._desk.supervise.send([WorkerReady(self.life)])
            has = self.nthreads, tuple(self.total_resources.items()), self.memory_limit
            self._desk.data.send([WorkerUp(self.name, self.life, os.getpid(), *has, self.preloads.numbers)])
        begin_listening(self._listener)

    def _tell_nanny(self, word: Any) -> None:
        if self._desk.supervise is not None:
            with self.lock:
                self._desk.supervise.send([word])

    def _begin_plugins(self) -> None:
        """Set up the plugins that are registered, as soon as the cluster said which."""
        words = self._plugin_words
        with self.lock:
            while words.first_rows is None and self._quit_at is None:
                self._wait_as_main()
        begin_listening(self._listener, bool(words.first_rows))
        words.begin(words.first_rows or ())

    def _plugins_told(self, word: BeginPlugins) -> None:
        self._plugin_words.first_rows = word.rows
        self._desk.main_ear.ring()  # the listener may have heard it

    # ── the main thread ──────────────────────────────────────────────────────

    def serve(self) -> None:
        """Run and answer until told to quit, or until the other end of the pipe is gone."""
        main = self._main
        main.move_in(self)
        with self.lock:
            while True:
                main.is_wanted = False
                if self._may_leave():
                    break
                self._desk.do_errands()
                self._do_calls()
                self._do_reloads()
                if self._runs_in_main:
                    self._crew.run_ready(main)
                if not main.is_wanted:
                    self._crew.call_hands()
                    self._flush()
                    self._wait_as_main()
        main.move_out()

    def _wait_as_main(self) -> None:
        listener, desk = self._listener, self._desk
        desk.is_main_waiting = True
        if listener is not None and listener.is_listening:
            listener.relieve()
        self.wait_at(desk.main_ear)
        desk.is_main_waiting = False
        if listener is not None and listener.is_asleep and (self._intake.n_ready or self._main.is_wanted):
            listener.wake()

    def _may_leave(self) -> bool:
        if self._is_term_asked:
            self._quit(_TERM_GRACE_S)
        return self._quit_at is not None and (self._crew.n_executing == 0 or time.monotonic() >= self._quit_at)

    def _report(self, runner: Runner) -> None:
        """Send the words that wait; between two tasks of the main thread also take in what came. Called by the crew."""
        self._flush()
        if runner is not self._main:
            if self._desk.data.has_unsent or self._quit_at is not None or self._crew.is_main_free:
                self._desk.ring()
            if self._turns.are_waiting and not self._crew.n_executing:
                self._want_main()
                self._desk.main_ear.ring()
        elif runner.task is None:
            if self._listener is not None and self._listener.is_listening:
                self._listener.relieve()
            if fds := self._desk.main_ear.wait(0):
                self._desk.hear(fds)

    def _seceded(self, runner: Runner) -> None:
        """A task waits for others, whose results will come by the pipe: if its thread is the main one, somebody else must hear."""
        if runner is self._main and self._listener is not None:
            self._listener.take_over()

    # ── either of the two threads that wait ──────────────────────────────────

    def main_does(self) -> object | None:
        """What the main thread does, by identity; None while it waits."""
        return None if self._desk.is_main_waiting else self._main.task or self._main.act or _SOMETHING

    def wait_at(self, ear: Ear) -> None:
        """Wait for the pipes without the lock, and take in what came."""
        dropped = self._intake.take_dropped()
        timeout_s = None if self._quit_at is None or self._is_leaving else self._quit_at - time.monotonic()
        wants_out = self._desk.data.has_unsent
        self.lock.release()
        try:
            del dropped  # let go here
            fds = ear.wait(timeout_s, wants_out=wants_out)
        finally:
            self.lock.acquire()
        if ear is self._desk.main_ear:
            self._desk.hear(fds)
        else:
            self._hear_for_main(fds)

    def look_around(self) -> None:
        """Take in what came while the main thread is busy, and do what cannot wait for it."""
        self._hear_for_main(() if self._desk.is_main_waiting else self._desk.listeners_ear.wait(0))

    def _hear_for_main(self, fds: Sequence[int]) -> None:
        if self._desk.is_main_waiting:
            # It is back and hears for itself: what would be heard here, it would never know of.
            self._flush_for_main()
            return
        self._desk.hear(fds)
        self._stand_in()

    def _stand_in(self) -> None:
        self._desk.do_errands()
        while self._calls:
            self._calls.call_beside(self._calls.take())
        self._crew.call_hands()
        self._flush()
        if self._is_term_asked:
            self._quit(_TERM_GRACE_S)
        if self._quit_at is not None and not self._is_leaving and time.monotonic() >= self._quit_at:
            self.lock.release()
            self.close()
            end_in_order(0, f"worker {self.name}", self.preloads.teardown_s)

    # ── what the pipes bring ─────────────────────────────────────────────────

    def _pipe_ended(self, channel: AnyChannel, error: Exception) -> None:
        """End with the pipe, unless this worker is ending and only the scheduler left before it."""
        is_ending = self._quit_at is not None and channel is self._desk.data
        if self._has_process and not is_ending:
            if isinstance(error, ProtocolError):
                _tell(f"worker {self.name}: {error}")
            kill_orphans((), _ORPHANS_S)
            os._exit(EXIT_LOST_PARENT)
        self._desk.stop_hearing(channel)
        self._quit(0.0)

    def _quit_asked(self, word: Quit) -> None:
        self._quit(word.grace_s)

    def _quit(self, grace_s: float) -> None:
        """Start nothing more, and end when nothing runs any more, or in ``grace_s`` seconds."""
        at = time.monotonic() + grace_s
        self._quit_at = at if self._quit_at is None else min(at, self._quit_at)
        self._intake.is_closed = True
        self._want_main()
        if self.status in ("running", "paused"):
            self.status = "closing_gracefully"

    def _want_main(self) -> None:
        self._main.is_wanted = True

    def _call_asked(self, word: Any) -> None:
        if not self._actors.take(word):
            self._calls.add(word)
            self._want_main()

    def _interrupt_asked(self, word: InterruptTask) -> None:
        """Stop a task by SIGINT, which only a process's main thread hears; another thread's task goes on until the worker is replaced."""
        task = self._main.task
        if self._has_process and task is not None and task.attempt == word.attempt:
            self._main.interrupt = word
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _do_calls(self) -> None:
        """Call functions in the main thread of a process of our own; in anybody else's, beside it."""
        while self._calls:
            word = self._calls.take()
            if self._has_process:
                self._act(word, lambda word: self._calls.call_here(word, self._main.wait_for))
            else:
                self._calls.call_beside(word)

    def _act(self, word: Any, act: Callable[[Any], None]) -> None:
        """Do in the main thread, without the lock, what a word asks for."""
        self._main.act = word
        if self._listener is not None and self._listener.is_asleep:
            self._listener.wake()
        self.lock.release()
        try:
            act(word)
        finally:
            self.lock.acquire()
            self._main.act = None

    def _reload_asked(self, word: Any) -> None:
        if isinstance(word, InterruptTasks):
            self._turns.hold()
            if self._main.task is not None:
                self._interrupt_asked(InterruptTask(self._main.task.attempt, RUN_AGAIN))
            return
        self._turns.add(word)
        self._want_main()

    def _do_reloads(self) -> None:
        while (word := self._turns.take()) is not None:
            self._flush()
            self._act(word, self._turns.carry_out)
            self._turns.end()

    def _vote(self, word: Any) -> None:
        with self.lock:
            (self._desk.supervise.send if self._desk.supervise is not None else self.on_votes)([word])

    def _tell_later(self, word: Any) -> None:
        with self.lock:
            self._intake.words.append(word)

    def _answer_call(self, word: Any) -> None:
        with self.lock:
            self._intake.words.append(word)
            self._flush_for_main()

    def connect_client(self, client_id: str, deliver: Callable[[list[Any]], None]) -> Callable[[list[Any]], None]:
        """Let a client use this worker's pipe to the scheduler.

        Parameters
        ----------
        client_id : str
            The client.
        deliver : callable
            Is given each batch of words for it, one after the other, in a thread that must not be kept long.

        Returns
        -------
        callable
            Sends a batch of the client's words; from any thread, also from a ``__del__``.
        """
        return self._desk.connect_client(client_id, deliver)

    def _flush(self) -> None:
        if self._is_forked:
            end_process(0)
        self._desk.flush()

    def _flush_for_main(self) -> None:
        """Send what waits, beside the main thread, which waits for room on the pipe if there is none."""
        self._flush()
        if self._desk.data.has_unsent:
            self._desk.ring()

    # ── ending ───────────────────────────────────────────────────────────────

    def close(self) -> None:
        """End the plugins, tear down the preloads, say the last words. Bounded by the limits of the hooks."""
        with self.lock:
            is_mine, self._is_leaving = not self._is_leaving, True
            self._quit(0.0)
        while not is_mine:
            time.sleep(_LAST_WORDS_S)  # the listener is at it, and ends the process
        self.status = "closing"
        self.plugins.end()
        for error in self.preloads.teardown():
            _tell(str(error))
        with self.lock:
            self._desk.say_last_words(_LAST_WORDS_S)
            threads = [*self._crew.close(), *self._actors.close()]
        self._scratch.remove()
        if not self._has_process:  # else the process ends, and all this with it
            for thread in threads:
                thread.join(_LAST_WORDS_S)
            self._desk.close()
        self.status = "closed"

    def forked(self) -> None:
        """Let go, in a process that a task forked, of all that is this worker's: the pipes, the board, the lock."""
        self._is_forked = True
        self.lock._at_fork_reinit()  # type: ignore[attr-defined]
        self._intake.is_closed = True
        self._crew.forked()
        self._desk.close()

    @property
    def bell_fd(self) -> int:
        """Where the byte of a signal goes."""
        return self._desk.main_ear.bell_fd

    def interrupted(self) -> None:
        """SIGINT came. Runs in a signal handler: it stops the task that was told to stop, while that runs, and nothing else."""
        word = self._main.interrupt
        if word is not None and self._main.board[self._main.index] == word.attempt:
            raise KeyboardInterrupt

    def term_asked(self) -> None:
        """SIGTERM came. Runs in a signal handler: it only leaves a note."""
        self._is_term_asked = True
        self._want_main()
        self._desk.main_ear.ring()
        self._desk.listeners_ear.ring()


def _tell(text: str) -> None:
    try:
        print(f"localdask: {text}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return  # a task closed stderr: nobody reads it
