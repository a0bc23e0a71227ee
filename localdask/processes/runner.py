"""Running one task after another, in one thread, and making of each a word to the scheduler.

A worker has a runner for each thread that runs tasks. A runner loads the function, the
inputs and the arguments, calls, and captures what comes of it: a value, or anything that
can be raised. It notes on the board which attempt it executes, so that a death can be
charged to the right task. It reads no pipe, holds no lock while it runs, and knows the
worker only to hand it out by ``get_worker``.

Also here: what code inside a task may ask about its surroundings (``get_worker``,
``secede``, ``rejoin``, ``blocking``, ``Reschedule``).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from time import perf_counter
from types import CoroutineType
from typing import Any, Protocol

from localdask.errors import DataLostError, ProtocolError, SerializationError, TaskTimeoutError
from localdask.messages import InterruptTask, RunTask, TaskDone, TaskErred, TaskMissing, TaskRescheduled
from localdask.preloads.standins import real_distributed
from localdask.processes.intake import Job, KnownFunction, Spilled
from localdask.processes.task_output import TaskOutput
from localdask.system.codec import dumps_result, loads, loads_arguments, loads_buffers
from localdask.system.mappings import Mappings
from localdask.system.outcomes import dumps_error
from localdask.system.process import end_as_raised

__all__ = [
    "RUN_AGAIN",
    "Reschedule",
    "Runner",
    "blocking",
    "current_runner",
    "get_worker",
    "host",
    "in_thread_of",
    "own_worker",
    "rejoin",
    "runners_in_threads",
    "secede",
]

#: A function's pickle of up to this size is kept, to load it anew when a module of its is replaced.
_KEPT_NBYTES = 65536
#: The limit in an interrupt that is no fault of the task's: it runs again.
RUN_AGAIN = -1.0
_NO_INPUTS: dict[str, Any] = {}


class Reschedule(Exception):
    """Raised by a task that wants to run on another worker."""


class _SpilledGoneError(Exception):
    """An input of a task was spilled, and is not where it was put."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


class Slots(Protocol):
    """Who counts the tasks that run."""

    def secede(self, runner: Runner) -> None:
        """The runner's task stops counting."""

    def rejoin(self, runner: Runner) -> None:
        """The runner's task counts again, from when there is room."""


class _NoSlots:
    """For runners that run no tasks."""

    def secede(self, runner: Runner) -> None:
        """Do nothing."""

    def rejoin(self, runner: Runner) -> None:
        """Do nothing."""


class _Here(threading.local):
    """What this thread runs."""

    runner: Runner | None = None


_here = _Here()
#: What runs in which thread of this process, by the thread's number.
_in_threads: dict[int, Runner] = {}
#: The worker to which the running code belongs; helper threads of hooks and coroutines inherit it.
_worker: ContextVar[Any] = ContextVar("localdask-worker", default=None)
#: The worker whose process this is, for threads that tasks start.
_host: Any = None


def host(worker: Any, *, whole_process: bool = False) -> None:
    """Say which worker this thread, or this whole process, belongs to."""
    global _host
    _worker.set(worker)
    if whole_process:
        _host = worker


@contextlib.contextmanager
def in_thread_of(worker: Any) -> Iterator[Runner]:
    """Have this thread belong to a worker for the length of the block, without being one that runs its tasks."""
    runner = Runner(0, memoryview(bytearray(8)).cast("Q"), _NoSlots(), 0)
    runner.move_in(worker)
    try:
        yield runner
    finally:
        runner.move_out()


def own_worker() -> Any:
    """Return the worker that this thread belongs to, or None."""
    return _worker.get() or _host


def get_worker() -> Any:
    """Return the worker that runs this task, hook or function.

    Returns
    -------
    Worker
        The worker.

    Raises
    ------
    ValueError
        Outside of a worker.
    """
    worker = own_worker()
    if worker is None and (distributed := real_distributed()) is not None:  # a function that ``connect`` brought to a Dask cluster
        with contextlib.suppress(ValueError):
            return distributed.get_worker()
    if worker is None:
        raise ValueError("No worker found: get_worker() works inside a task, a preload or a plugin of a worker, not in this thread")
    return worker


def runners_in_threads() -> dict[int, Runner]:
    """Return what runs in which thread of this process, by the thread's number."""
    return dict(_in_threads)


def current_runner() -> Runner | None:
    """Return what runs the task of this thread; None when this thread runs none."""
    runner = _here.runner
    return runner if runner is not None and runner.task is not None else None


def secede() -> None:
    """Give this task's slot to other tasks, for the rest of it or until ``rejoin``; it goes on beside them."""
    runner = current_runner()
    if runner is None:
        raise ValueError("secede() was called where no task runs; call it inside a task, in the task's own thread")
    if not runner.has_seceded:
        runner.slots.secede(runner)


def rejoin() -> None:
    """Wait for a slot and take it again, after ``secede``."""
    runner = current_runner()
    if runner is None:
        raise ValueError("rejoin() was called where no task runs; call it inside a task, in the task's own thread")
    if runner.has_seceded:
        runner.slots.rejoin(runner)


@contextlib.contextmanager
def blocking() -> Iterator[None]:
    """Leave this task's slot to other tasks while the block waits; outside of tasks it does nothing."""
    runner = current_runner()
    if runner is None or (runner.has_seceded and not runner.n_waits):
        yield
        return
    task = runner.task
    runner.n_waits += 1
    if runner.n_waits == 1:
        runner.slots.secede(runner)
    try:
        yield
    finally:
        if runner.task is task:  # else a coroutine of an earlier task gave up waiting only now
            runner.n_waits -= 1
            if not runner.n_waits:
                runner.slots.rejoin(runner)


class Runner:
    """What one thread of a worker runs.

    Parameters
    ----------
    index : int
        Its place on the board.
    board : memoryview
        Where it notes the attempt that it executes, as unsigned 64-bit numbers.
    slots : Slots
        Who counts the running tasks.
    inline_max : int
        The largest pickle of a result, in bytes, that travels with the word that it is done.

    Attributes
    ----------
    task : RunTask or None
        What it runs now.
    has_seceded : bool
        Whether that task has given up its slot.
    n_waits : int
        How often it waits under ``blocking`` at once; a coroutine function may do so several times.
    act : object or None
        What its thread does now instead of tasks, if that is code of a user's.
    interrupt : InterruptTask or None
        What told that task to stop.
    is_forked : bool
        Whether its process is one that the task forked: it ends with the task.
    is_wanted : bool
        Whether its thread is to come back between two tasks, to do something else.
    finished_at : float
        When its last task ended, by ``perf_counter``.
    lasted_s : float
        How long that task took, from its unpickling to its result's pickle.
    mappings : Mappings
        What that task read of shared memory.
    output : TaskOutput
        What the task writes to the standard streams.
    worker : Worker or None
        The worker whose tasks it runs, once it has begun.
    """

    __slots__ = (
        "act",
        "board",
        "finished_at",
        "has_seceded",
        "index",
        "inline_max",
        "interrupt",
        "is_forked",
        "is_wanted",
        "lasted_s",
        "loop",
        "mappings",
        "n_waits",
        "output",
        "slots",
        "task",
        "worker",
    )

    def __init__(self, index: int, board: memoryview, slots: Slots, inline_max: int) -> None:
        self.index = index
        self.board = board
        self.slots = slots
        self.inline_max = inline_max
        self.task: RunTask | None = None
        self.act: object | None = None
        self.has_seceded = False
        self.n_waits = 0
        self.interrupt: InterruptTask | None = None
        self.is_forked = self.is_wanted = False
        self.finished_at = 0.0
        self.lasted_s = 0.0
        self.mappings = Mappings()
        self.loop: Any = None
        self.worker: Any = None
        self.output = TaskOutput(self.is_executing)

    def move_in(self, worker: Any) -> None:
        """Begin in this thread."""
        self.worker = worker
        _here.runner = self
        _in_threads[threading.get_ident()] = self
        _worker.set(worker)
        self.output.move_in()

    def is_executing(self) -> bool:
        """Whether the board says that it executes an attempt."""
        return self.board[self.index] != 0

    def run(self, job: Job) -> tuple[Any, Any]:
        """Run a task; return the word that tells of it, and its value (None unless that word is ``TaskDone``)."""
        task, function, inputs = job
        self.board[self.index] = task.attempt
        started = perf_counter()
        args = kwargs = None
        try:
            call = function.call if function is not None else None
            if call is None:
                call = _load_function(task, function)
            if task.inputs:
                inputs = _load_inputs(task, inputs, self.mappings)
            elif self.mappings.held:
                self.mappings.drop()
            args, kwargs = loads_arguments(task.arguments, inputs or _NO_INPUTS)
            value = call(*args, **kwargs)
            if type(value) is CoroutineType:
                value = self.wait_for(value)
            payload, nbytes = dumps_result(value, self.inline_max)
            self._stop(started)
            return TaskDone(task.attempt, payload, nbytes, self.lasted_s, type_name(value)), value
        except Reschedule:
            self._stop(started)
            return TaskRescheduled(task.attempt), None
        except _SpilledGoneError as gone:
            self._stop(started)
            return TaskMissing(task.attempt, (gone.key,)), None
        except BaseException as error:  # SystemExit and KeyboardInterrupt too: a task ends itself, not its worker
            if self.is_forked:
                end_as_raised(error)
            self._stop(started)
            return self.erred(task, error), None
        finally:
            args = kwargs = inputs = None  # let go while the board still says whose they are: some end the process
            self.board[self.index] = 0

    def erred(self, task: RunTask, error: BaseException) -> TaskErred | TaskRescheduled:
        """Return the word that tells of a failure: it may have been told to stop, and be worth no other run."""
        limit_s = self.interrupt.limit_s if self.interrupt is not None and isinstance(error, KeyboardInterrupt) else 0.0
        if limit_s == RUN_AGAIN:
            return TaskRescheduled(task.attempt)
        if limit_s:
            late = TaskTimeoutError(task.key, limit_s)
            late.__cause__ = error
            error = late
        is_retriable = True
        if task.retry_on:
            try:
                is_retriable = isinstance(error, loads(task.retry_on, f"retry_on of task {task.key!r}"))
            except SerializationError as trouble:
                error, is_retriable = trouble, False
        return TaskErred(task.attempt, dumps_error(error, skip=1), self.lasted_s, is_retriable)

    def _stop(self, started: float) -> None:
        self.finished_at = finished = perf_counter()
        self.lasted_s = finished - started

    def wait_for(self, coroutine: Any) -> Any:
        """Return what a coroutine returns, on this thread's own event loop."""
        import asyncio  # noqa: PLC0415 - 60 ms, and only coroutines need it

        if self.loop is None:
            self.loop = asyncio.new_event_loop()
        task = self.loop.create_task(coroutine)
        try:
            return self.loop.run_until_complete(task)
        finally:
            if not task.done():  # interrupted: it must not go on beside the next one
                task.cancel()
                self.loop.run_until_complete(asyncio.wait([task]))

    def move_out(self) -> None:
        """End in this thread."""
        _in_threads.pop(threading.get_ident(), None)
        _here.runner = None
        _worker.set(None)
        self.output.move_out()
        if self.loop is not None:
            self.loop.close()


def type_name(value: object) -> str:
    """Return what a value's type is called, with its module unless that is Python's own."""
    kind = type(value)
    module = kind.__module__
    return kind.__name__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def _load_function(task: RunTask, function: KnownFunction | None) -> Callable[..., Any]:
    if function is None:
        raise ProtocolError(f"task {task.key!r} names a function that this worker was never sent ({task.function_id}); restart the cluster")
    function.call = call = loads(function.pickled, f"the function of task {task.key!r}")
    if len(function.pickled) > _KEPT_NBYTES:
        function.pickled = b""
    return call  # type: ignore[no-any-return]


def _load_inputs(task: RunTask, held: Mapping[str, Any] | None, mappings: Mappings) -> dict[str, Any]:
    """Return all inputs of a task: those held here as they are, the others loaded, each task's its own."""
    inputs = dict(held or {})
    mappings.begin()
    for key, payload in task.inputs:
        what = f"the input {key!r} of task {task.key!r}"
        if payload is None:
            value = inputs[key]
            if type(value) is Spilled:
                try:
                    inputs[key] = loads_buffers(*mappings.map(value.payload), what)
                except (FileNotFoundError, DataLostError):
                    raise _SpilledGoneError(key) from None
            continue
        if isinstance(payload, bytes):
            inputs[key] = loads(payload, what)
            continue
        try:
            header, buffers = mappings.map(payload)
        except FileNotFoundError as error:
            raise DataLostError(
                f"{what} is gone: {payload[0]} was removed; keep a future of {key!r} for as long as tasks read it"
            ) from error
        inputs[key] = loads_buffers(header, buffers, what)
    mappings.end_loading()
    return inputs
