"""The threads that run a worker's tasks, and the slots that running tasks take.

A worker of one thread runs tasks in its main thread, which costs no hand-over; the crew
then has threads only while that thread is away from its tasks: when its task waits for
others and gave up its slot, or when it runs something else. A worker of several threads
has them all here. Everything is done under the worker's one lock, which is let go while
a task runs and at no other time.

The crew never reads a pipe. It has ``Intake`` say what runs next, and calls ``report``
when words should go out: when they are many or old, before a task that may take long,
and when a thread runs out of tasks.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

from localdask.messages import TaskDone, TaskMissing, TaskRejoined, TaskSeceded, TaskWrote, WorkerSpent
from localdask.processes.intake import Intake, KnownFunction
from localdask.processes.moves import Moves
from localdask.processes.runner import Runner
from localdask.processes.surroundings import Surroundings
from localdask.system.board import SLOTS, private_board
from localdask.system.memory import private_nbytes

__all__ = ["Crew"]

#: A function whose last run took less is trusted to be quick and tidy again.
QUICK_S = 200e-6
#: Words that wait longer, or are more, are sent even though there is more to run.
WORDS_S_MAX = 1e-3
WORDS_MAX = 64
#: How often, in seconds, a worker looks between tasks how much memory it has, if that may end it: one look takes 40 µs.
WEIGH_S = 0.05


class Crew:
    """The threads of one worker.

    Parameters
    ----------
    worker : object
        What ``get_worker`` returns in tasks.
    intake : Intake
        What to run.
    lock : threading.Lock
        The worker's lock. It is held around every call but those of ``secede`` and ``rejoin``.
    board : memoryview
        Where runners note what they execute.
    n_slots : int
        How many tasks may run at once.
    settings : mapping
        ``inline_max``, as for ``Runner``; ``lifetime_tasks`` and ``lifetime_nbytes``: after how many tasks, and with how much
        memory of its own, the worker is spent. All may be missing.
    report : callable
        Sends the words that wait; is given the runner that asks.
    surroundings : Surroundings or None
        What to put right after a task, in a process of its own.

    Attributes
    ----------
    n_running : int
        How many tasks hold a slot.
    n_executing : int
        How many tasks run, also without a slot.
    is_held : bool
        Whether no further task starts, until those that run are done; unless one that gave up its slot needs others first.
    """

    def __init__(
        self,
        worker: Any,
        intake: Intake,
        lock: threading.Lock,
        board: memoryview,
        *,
        n_slots: int,
        settings: Mapping[str, Any],
        report: Callable[[Runner], None],
        surroundings: Surroundings | None,
    ) -> None:
        self.n_running = 0
        self.n_executing = 0
        self.n_done = 0
        self.is_held = False
        self._worker = worker
        self._intake = intake
        self._lock = lock
        self._work = threading.Condition(lock)
        self._room = threading.Condition(lock)
        self._board = board
        self._n_slots = n_slots
        self._inline_max = int(settings.get("inline_max") or 65536)
        self._lifetime_tasks: float = int(settings.get("lifetime_tasks") or 0) or inf
        self._lifetime_nbytes = int(settings.get("lifetime_nbytes") or 0)
        self._weigh_at = 0.0 if self._lifetime_nbytes else inf
        self._report = report
        self._surroundings = surroundings
        self._reported_at = 0.0
        self._n_rejoining = 0
        self._n_idle = 0
        self._n_coming = 0
        self._is_over = False
        self._free_places = list(range(SLOTS - 1, -1, -1))
        self._runners: list[Runner] = []
        self._threads: set[threading.Thread] = set()
        self.on_secede: Callable[[Runner], None] = lambda runner: None
        #: The main thread's runner, where that is to run all tasks; others come only for those that it waits for.
        self.main: Runner | None = None
        #: What plugins are told of tasks; None while none asks.
        self.moves: Moves | None = None

    def new_runner(self) -> Runner:
        """Return a runner for a thread that begins."""
        # Past the end of the board (hundreds of tasks that wait for each other) a runner notes in vain.
        place, board = (self._free_places.pop(), self._board) if self._free_places else (0, memoryview(bytearray(8)).cast("Q"))
        runner = Runner(place, board, self, self._inline_max)
        self._runners.append(runner)
        return runner

    def drop_runner(self, runner: Runner) -> None:
        """Take back the place of a runner whose thread ends."""
        self._runners.remove(runner)
        if runner.board is self._board:
            self._free_places.append(runner.index)

    # ── running ──────────────────────────────────────────────────────────────

    def run_ready(self, runner: Runner) -> None:
        """Run tasks in this thread until none may start, or its thread is wanted elsewhere."""
        lock, intake = self._lock, self._intake
        while not runner.is_wanted and self.n_running + self._n_rejoining < self._n_slots:
            if runner is not self.main and self.is_main_free:
                return
            if self.is_held and self.n_running == self.n_executing:
                return
            job = intake.start_next()
            if job is None:
                if not runner.mappings.held:
                    return
                lock.release()
                runner.mappings.drop()
                lock.acquire()
                continue
            task, function = job[0], job[1]
            is_quick = function is not None and function.usual_s < QUICK_S
            if intake.words and not is_quick:
                self._report(runner)  # what is known already must not wait for this one
            dropped = intake.take_dropped() if intake.dropped else None
            runner.task = task
            self.n_running += 1
            self.n_executing += 1
            moves = self.moves
            if moves is not None:
                moves.began(task)
            lock.release()
            dropped = None  # noqa: F841 - let go here, outside the lock
            try:
                if moves is not None:
                    moves.tell()
                word, value = runner.run(job)
                if runner.lasted_s >= QUICK_S or not is_quick:
                    self._learn(runner, function)
            except KeyboardInterrupt as error:  # it was told to stop in its last moments
                word, value = runner.erred(task, error), None
            finally:
                del job  # and with it the inputs, outside the lock
                lock.acquire()
                self._end(runner)
            if runner.output.data:
                intake.words.append(TaskWrote(task.attempt, runner.output.take()))
            intake.words.append(word)
            if moves is not None:
                moves.ended(task, word)
            if type(word) is TaskDone:
                intake.finish(task, value, word.nbytes if word.payload is None else 0)
            else:
                if type(word) is TaskMissing:
                    intake.forget(word.inputs)  # spilled, and gone from there
                intake.fail(task)
            if (self.n_done >= self._lifetime_tasks or runner.finished_at >= self._weigh_at) and self.n_running == self.n_executing:
                self._look_at_age(runner.finished_at)
            if moves is not None:
                lock.release()
                moves.tell()
                lock.acquire()
            if len(intake.words) >= WORDS_MAX or runner.finished_at - self._reported_at >= WORDS_S_MAX:
                self._reported_at = runner.finished_at
                self._report(runner)

    def _end(self, runner: Runner) -> None:
        runner.task = runner.interrupt = None
        self.n_executing -= 1
        self.n_done += 1
        if runner.has_seceded:
            runner.has_seceded = False
            runner.n_waits = 0
            return
        self.n_running -= 1
        if self._n_rejoining:
            self._room.notify()

    def _look_at_age(self, now: float) -> None:
        """If the worker is spent, start nothing more and have it retired. Not while a task waits for others: they may need it."""
        if self.n_done < self._lifetime_tasks:
            self._weigh_at = now + WEIGH_S
            if private_nbytes(os.getpid()) < self._lifetime_nbytes:
                return
        self._lifetime_tasks = self._weigh_at = inf
        self.is_held = True
        self._intake.words.append(WorkerSpent(self.n_done))

    def _learn(self, runner: Runner, function: KnownFunction | None) -> None:
        """Clean up after a task that may have changed the process, and remember what its function is like."""
        is_clean = True
        if self._surroundings is not None and self.n_executing == 1:
            is_clean = not self._surroundings.restore(with_signals=threading.current_thread() is threading.main_thread())
        if function is not None:
            function.is_untidy |= not is_clean
            function.usual_s = inf if function.is_untidy else runner.lasted_s

    # ── threads ──────────────────────────────────────────────────────────────

    @property
    def is_main_free(self) -> bool:
        """Whether the next task is the main thread's, as it runs nothing of a user's: what a preload made may work in that thread alone."""
        main = self.main
        return main is not None and main.task is None and main.act is None and (self.moves is None or not self.moves.is_telling)

    def call_hands(self) -> None:
        """Have threads come for the tasks that may start now."""
        n_free = self._n_slots - self.n_running - self._n_rejoining
        n_more = min(self._intake.n_ready, n_free) - self._n_coming
        if n_more <= 0 or self._is_over or self.is_main_free or (self.is_held and self.n_running == self.n_executing):
            return
        n_woken = min(n_more, self._n_idle)
        self._n_coming += n_more
        self._n_idle -= n_woken
        self._work.notify(n_woken)
        for _ in range(n_more - n_woken):
            self._begin_thread()

    def _begin_thread(self) -> None:
        thread = threading.Thread(target=self._live, name="localdask-tasks", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._n_coming -= 1  # tasks then run one after another, when the present ones are done
            print(f"localdask: no thread more for tasks: {error}; raise `ulimit -u`, or nest fewer tasks", file=sys.stderr)
            return
        self._threads.add(thread)

    def _live(self) -> None:
        """Be one of the crew's threads."""
        with self._lock:
            runner = self.new_runner()
            runner.move_in(self._worker)
            while True:
                self._n_coming -= 1
                self.run_ready(runner)
                self._report(runner)
                if self._is_over or self._n_idle >= self._n_slots:
                    break
                self._n_idle += 1
                self._work.wait()
            self.drop_runner(runner)
            self._threads.discard(threading.current_thread())
        runner.move_out()

    def secede(self, runner: Runner) -> None:
        """Let another task start beside the runner's."""
        with self._lock:
            assert runner.task is not None
            runner.has_seceded = True
            self.n_running -= 1
            self._intake.words.append(TaskSeceded(runner.task.attempt))
            moves = self.moves
            if moves is not None:
                moves.seceded(runner.task.key)
            self._report(runner)
            if self._n_rejoining:
                self._room.notify()
            self.call_hands()
        if moves is not None:
            moves.tell()
        self.on_secede(runner)

    def rejoin(self, runner: Runner) -> None:
        """Wait for a slot, before any task that has not started."""
        with self._lock:
            assert runner.task is not None
            self._n_rejoining += 1
            try:
                while self.n_running >= self._n_slots and not self._is_over:
                    self._room.wait()
            finally:
                self._n_rejoining -= 1
            self.n_running += 1
            runner.has_seceded = False
            self._intake.words.append(TaskRejoined(runner.task.attempt))
            moves = self.moves
            if moves is not None:
                moves.rejoined(runner.task.key)
            self._report(runner)
        if moves is not None:
            moves.tell()

    def close(self) -> list[threading.Thread]:
        """Let idle threads end, and the others after their task; return them all."""
        self._is_over = True
        self._work.notify_all()
        self._room.notify_all()
        return list(self._threads)

    def forked(self) -> None:
        """Forget, in a child that a task forked, everything that is the parent's."""
        self._is_over = True
        for runner in self._runners:
            runner.board = private_board()
            runner.is_forked = True
