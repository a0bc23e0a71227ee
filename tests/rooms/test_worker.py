"""A worker does what its pipes say: driven over real pipes in a forked process, and in a thread over the pipes' twin.

What a task should wait for is a named pipe in the test's folder (a *gate*): opening it
blocks until the test opens the other end.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localdask.errors import DataLostError, PreloadError, SerializationError
from localdask.messages import (
    BeginPlugins,
    BeginWorker,
    BootFailed,
    BootGoesOn,
    ClientGone,
    DefineFunction,
    ForgetFunctions,
    ForgetKeys,
    FromClient,
    FunctionRan,
    KeyPublished,
    PublishKey,
    Quit,
    ReleaseKeys,
    RunFunction,
    RunTask,
    TakeBack,
    TakenBack,
    TaskDone,
    TaskErred,
    TaskMissing,
    TaskRejoined,
    TaskRescheduled,
    TaskSeceded,
    ToClient,
    WorkerReady,
    WorkerStirred,
    WorkerUp,
    to_wire,
)
from localdask.preloads.sources import Source, read_sources
from localdask.processes import runner, worker_process
from localdask.processes import worker as room
from localdask.processes.runner import Reschedule, get_worker
from localdask.processes.worker import Worker
from localdask.sizing import SETUP_S
from localdask.state.spilling import LET_GO_MIN
from localdask.system import codec, outcomes, process, segments
from localdask.system.board import map_board, note_unwatched, open_board, read_board
from localdask.system.child import explain_status
from localdask.system.memory_channel import AnyChannel, memory_pair
from localdask.system.transport import channel_pair
from tests.conftest import WAIT_S, wait_until
from tests.live import bestiary

#: A worker in a process that runs tasks in its main thread, one that has two threads for them, and one in a thread of ours.
KINDS = ("main", "threads", "memory")
PROCESSES = ("main", "threads")


class Rig:
    """One worker, and the other ends of its pipes."""

    def __init__(self, kind: str, sources: list[Source], settings: dict[str, Any]) -> None:
        self.kind = kind
        self.settings = {"nthreads": 2 if kind == "threads" else 1, **settings}
        self.pid = 0
        self.status: int | None = None
        self.supervise: AnyChannel | None = None
        self.heard: list[Any] = []
        self.functions: dict[str, None] = {}
        self.n = 0
        self.board = mmap.mmap(-1, 8)
        self.begin(sources)

    data: AnyChannel

    def begin(self, sources: list[Source]) -> None:
        if self.kind == "memory":
            self.data, theirs = memory_pair()
            self.data.send([BeginPlugins([])])
            self.worker = Worker("w0", 1, "c", self.settings, theirs)
            self.thread = threading.Thread(target=self._live_as_thread, args=(sources,))
            self.thread.start()
            return
        self.supervise, low = channel_pair()
        self.data, its = channel_pair()
        self.data.send([BeginPlugins([])])
        board_fd = open_board()
        passed = [low.fileno(), its.fileno(), board_fd]
        if process.n_threads() == 1:
            self.pid = process.fork(lambda: be_worker(passed))
        else:
            code = f"import sys; sys.path[:] = {sys.path!r}; from tests.rooms.test_worker import be_worker; be_worker({passed!r})"
            self.pid = process.spawn([sys.executable, "-c", code], pass_fds=passed)
        self.board = map_board(board_fd)
        low.close()
        its.close()
        self.supervise.send([BeginWorker("w0", 1, "c", self.settings, [source.to_wire() for source in sources])])

    def _live_as_thread(self, sources: list[Source]) -> None:
        self.worker.start(sources)
        self.worker.serve()
        self.worker.close()

    # ── talking ──────────────────────────────────────────────────────────────

    def send(self, *words: Any) -> None:
        self.data.send(words)

    def wait_for(self, *kinds: type, where: Callable[[Any], bool] = lambda word: True) -> Any:
        """Return the first word of these kinds that has not been taken yet."""
        deadline = time.monotonic() + WAIT_S
        while True:
            for index, word in enumerate(self.heard):
                if type(word) in kinds and where(word):
                    return self.heard.pop(index)
            assert time.monotonic() < deadline, f"no {kinds} among {self.heard}"
            self.heard += self.data.wait_for_message(0.5)

    def submit(self, function: Callable[..., Any], *args: Any, key: str = "", inputs: tuple[Any, ...] = (), **kwargs: Any) -> int:
        self.n += 1
        self.send(*self.words_for(function, *args, key=key or f"k{self.n}", attempt=self.n, inputs=inputs, **kwargs))
        return self.n

    def words_for(
        self, function: Callable[..., Any], *args: Any, key: str, attempt: int, inputs: tuple[Any, ...] = (), **kw: Any
    ) -> list[Any]:
        packed = codec.dumps_function(function)
        words: list[Any] = []
        if packed.function_id not in self.functions:
            self.functions[packed.function_id] = None
            words.append(DefineFunction(packed.function_id, packed.pickled))
        words.append(RunTask(attempt, key, packed.function_id, codec.dumps((args, kw)), inputs))
        return words

    def have_ended(self, attempts: list[int]) -> bool:
        """Whether all of these have, now; their words can still be waited for."""
        self.heard += self.data.receive()
        return {word.attempt for word in self.heard if type(word) is TaskDone} >= set(attempts)

    def ended(self, attempt: int) -> Any:
        return self.wait_for(TaskDone, TaskErred, TaskMissing, TaskRescheduled, where=lambda word: word.attempt == attempt)

    def result(self, attempt: int) -> Any:
        word = self.ended(attempt)
        if isinstance(word, TaskErred):
            outcomes.loads_error(word.error).unwrap()
        assert isinstance(word, TaskDone) and word.payload is not None, word
        return codec.loads(word.payload)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return self.answer(self.ask(function, *args, **kwargs))

    def ask(self, function: Callable[..., Any], *args: Any, wait: bool = True, **kwargs: Any) -> int:
        self.n += 1
        self.send(RunFunction(self.n, codec.dumps((function, args, kwargs)), wait))
        return self.n

    def answer(self, request: int) -> Any:
        return outcomes.loads_outcome(self.wait_for(FunctionRan, where=lambda word: word.request == request).outcome).unwrap()

    # ── the end ──────────────────────────────────────────────────────────────

    def has_ended(self) -> bool:
        if self.kind == "memory":
            return not self.thread.is_alive()
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def exit_text(self) -> str:
        wait_until(self.has_ended, what="the worker's end")
        assert self.status is not None
        return explain_status(self.status)

    def close(self) -> None:
        if not self.has_ended():
            if self.supervise is not None:
                self.supervise.send([Quit(1.0)])
            else:
                self.send(Quit(1.0))
            wait_until(self.has_ended, what="the worker's end")
        self.data.close()
        if self.supervise is not None:
            self.supervise.close()
        self.board.close()


def be_worker(passed: list[int]) -> None:
    process.close_other_descriptors(passed)
    for name, fd in (("stdout", 1), ("stderr", 2)):  # the test runner's own are closed now
        setattr(sys, name, open(fd, "w", buffering=1, closefd=False))  # noqa: SIM115
    worker_process.main(*passed)


class Gate:
    """A task that opens the gate's path waits there until it is opened here."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = str(path)

    def open(self) -> None:
        os.close(os.open(self.path, os.O_WRONLY))

    def open_when_somebody_waits(self) -> None:
        def is_open() -> bool:
            try:
                os.close(os.open(self.path, os.O_WRONLY | os.O_NONBLOCK))
            except OSError:
                return False
            return True

        wait_until(is_open, what="somebody at the gate")

    def open_until(self, is_done: Callable[[], bool]) -> None:
        """Let through whoever comes, until it is done."""

        def is_over() -> bool:
            with contextlib.suppress(OSError):  # nobody is there just now
                os.close(os.open(self.path, os.O_WRONLY | os.O_NONBLOCK))
            return is_done()

        wait_until(is_over)


def wait_at(path: str, result: Any = "through") -> Any:
    os.close(os.open(path, os.O_RDONLY))
    return result


def mark_and_wait(mark: str, path: str) -> str:
    Path(mark).touch()
    return str(wait_at(path))


def fill_with_waiting(rig: Rig, gate: Gate, folder: Path) -> list[int]:
    """Have each thread of a worker wait at the gate, and return the attempts."""
    marks = [folder / f"waits-{number}" for number in range(rig.settings["nthreads"])]
    attempts = [rig.submit(mark_and_wait, str(mark), gate.path) for mark in marks]
    wait_until(lambda: all(mark.exists() for mark in marks))
    return attempts


def add(left: Any, right: Any = 1) -> Any:
    return left + right


def fail(error: type[BaseException], *args: Any) -> None:
    raise error(*args)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(kind: str = "main", preloads: tuple[str, ...] = (), is_up: bool = True, **settings: Any) -> Rig:
        rigs.append(Rig(kind, read_sources([str(path) for path in preloads]), settings))
        if is_up:
            rigs[-1].wait_for(WorkerUp)
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest, begin: Callable[..., Rig]) -> Rig:
    return begin(request.param)


@pytest.fixture(params=PROCESSES)
def process_rig(request: pytest.FixtureRequest, begin: Callable[..., Rig]) -> Rig:
    return begin(request.param)


# ── tasks and values ─────────────────────────────────────────────────────────


def test_the_first_words_register_with_the_scheduler_and_tell_the_nanny(begin: Callable[..., Rig]) -> None:
    rig = begin("main", is_up=False, resources=(("GPU", 2.0),), memory_limit=1000)
    assert rig.wait_for(WorkerUp) == WorkerUp("w0", 1, rig.pid, 1, (("GPU", 2.0),), 1000)
    assert rig.supervise is not None and rig.supervise.wait_for_message(WAIT_S) == [WorkerReady(1)]


def test_a_start_that_takes_a_while_tells_the_nanny_of_each_further_hook(begin: Callable[..., Rig], tmp_path: Path) -> None:
    rig = begin("main", (preload(tmp_path, "import time\ntime.sleep(1.1)\ndef dask_setup(worker): time.sleep(0.1)\n"),), is_up=False)
    rig.wait_for(WorkerUp)
    assert rig.supervise is not None
    words = rig.supervise.wait_for_message(WAIT_S)
    while WorkerReady(1) not in words:
        words += rig.supervise.wait_for_message(WAIT_S)
    assert [word for word in words if isinstance(word, (BootGoesOn, WorkerReady))] == [BootGoesOn(SETUP_S), WorkerReady(1)]


def test_a_small_result_travels_with_the_word_that_it_is_done(rig: Rig) -> None:
    attempt = rig.submit(add, 2, right=3)
    word = rig.ended(attempt)
    assert word.payload is not None and codec.loads(word.payload) == 5
    assert (word.nbytes, word.type_name) == (len(word.payload), "int") and word.duration_s > 0


def test_tasks_run_in_the_order_in_which_they_came(rig: Rig) -> None:
    attempts = [rig.submit(add, number) for number in range(300)]
    assert [rig.result(attempt) for attempt in attempts] == list(range(1, 301))


def test_a_large_result_stays_and_is_published_when_asked(rig: Rig) -> None:
    with segments.SegmentFolder.create() as folder:
        rig.settings["segment_folder"] = folder.path
        large = begin_like(rig)
        try:
            attempt = large.submit(bytes, 200_000, key="large")
            word = large.ended(attempt)
            assert word.payload is None and word.nbytes >= 200_000
            large.send(PublishKey("large"), PublishKey("nobody's"))
            published = large.wait_for(KeyPublished, where=lambda word: word.key == "large")
            assert codec.loads_buffers(*segments.map_payload(published.payload)) == bytes(200_000)
            assert large.wait_for(KeyPublished) == KeyPublished("nobody's", None)
        finally:
            large.close()


@pytest.mark.parametrize("make", [np.ones, bytes, lambda n: [bytes(n)]], ids=["array", "bytes", "within a list"])
def test_a_published_result_that_is_mapped_cheaply_is_held_no_more(rig: Rig, make: Callable[[int], Any]) -> None:
    with segments.SegmentFolder.create() as folder:
        rig.settings["segment_folder"] = folder.path
        large = begin_like(rig)
        try:
            n = LET_GO_MIN // 8 if make is np.ones else LET_GO_MIN
            large.ended(large.submit(make, n, key="large"))
            large.send(PublishKey("large"))
            is_let_go = large.wait_for(KeyPublished).is_spilled
            assert is_let_go == (make is np.ones)
            for _ in range(2):
                large.send(PublishKey("large"))
                assert large.wait_for(KeyPublished).is_spilled == is_let_go
                attempt = large.submit(spoilt, codec.InputRef("large"), inputs=(("large", None),))
                assert large.result(attempt) == (make is np.ones), "what a task changes in it, the next one does not see"
        finally:
            large.close()


def spoilt(data: Any) -> int:
    """Change an array, and return what it began with."""
    first = int(data[0] if len(data) > 1 else data[0][0])
    if isinstance(data, np.ndarray):
        data[0] = 7
    return first


def begin_like(rig: Rig) -> Rig:
    other = Rig(rig.kind, [], rig.settings)
    other.wait_for(WorkerUp)
    return other


def test_without_a_folder_for_segments_a_value_is_published_in_the_answer(rig: Rig) -> None:
    rig.ended(rig.submit(bytes, 200_000, key="large"))
    rig.send(PublishKey("large"))
    assert codec.loads(rig.wait_for(KeyPublished).payload) == bytes(200_000)


def test_a_result_that_cannot_be_pickled_is_that_tasks_error_and_names_it(rig: Rig) -> None:
    with pytest.raises(SerializationError, match="_thread.lock"):
        rig.result(rig.submit(lambda: {"inner": threading.Lock()}))
    assert rig.result(rig.submit(add, 1)) == 2


def test_an_input_that_is_held_here_is_the_object_itself_and_one_from_elsewhere_is_the_readers_own(rig: Rig) -> None:
    rig.ended(rig.submit(lambda: [1], key="here"))
    far = codec.dumps([1])
    grow = codec.dumps_function(grown)
    rig.send(DefineFunction(grow.function_id, grow.pickled))
    arguments = codec.dumps(((codec.InputRef("here"), codec.InputRef("far")), {}))
    for attempt, sizes in ((901, (2, 2)), (902, (3, 2))):
        rig.send(RunTask(attempt, f"grown-{attempt}", grow.function_id, arguments, (("here", None), ("far", far))))
        assert rig.result(attempt) == sizes


def grown(here: list[int], far: list[int]) -> tuple[int, int]:
    here.append(1)
    far.append(1)
    return len(here), len(far)


def test_an_input_in_a_segment_is_writable_and_the_readers_own(rig: Rig) -> None:
    with segments.SegmentFolder.create() as folder:
        payload = folder.publish(*codec.dumps_buffers(bytearray(100_000)))
        packed = codec.dumps_function(overwrite)
        rig.send(DefineFunction(packed.function_id, packed.pickled))
        arguments = codec.dumps(((codec.InputRef("segment"),), {}))
        for attempt in (901, 902):
            rig.send(RunTask(attempt, f"k{attempt}", packed.function_id, arguments, (("segment", payload),)))
            assert rig.result(attempt) == 0
        folder.unlink(payload[0])
        rig.send(RunTask(903, "late", packed.function_id, arguments, (("segment", payload),)))
        with pytest.raises(DataLostError, match="segment"):
            rig.result(903)


def overwrite(values: bytearray) -> int:
    before = values[0]
    values[0] = 7
    return before


def chain(rig: Rig, first: Callable[..., Any], *args: Any) -> list[int]:
    """Send a task and two that continue it, ahead of its end."""
    packed = codec.dumps_function(add)
    words = rig.words_for(first, *args, key="first", attempt=501)
    words.append(DefineFunction(packed.function_id, packed.pickled))
    for attempt, key, source in ((502, "second", "first"), (503, "third", "second")):
        words.append(RunTask(attempt, key, packed.function_id, codec.dumps(((codec.InputRef(source),), {})), ((source, None),)))
    rig.send(*words)
    return [501, 502, 503]


def test_a_task_that_is_sent_ahead_of_its_input_waits_for_it(rig: Rig) -> None:
    attempts = chain(rig, add, 1)
    assert [rig.result(attempt) for attempt in attempts] == [2, 3, 4]


def test_what_was_sent_ahead_of_a_failure_is_missing_its_input(rig: Rig) -> None:
    chain(rig, fail, ValueError, "no")
    with pytest.raises(ValueError, match="no"):
        rig.result(501)
    assert rig.ended(502) == TaskMissing(502, ("first",))
    assert rig.ended(503) == TaskMissing(503, ("second",))


def test_forgotten_values_are_gone(rig: Rig) -> None:
    rig.ended(rig.submit(add, 1, key="gone"))
    rig.send(ForgetKeys(("gone", "never here")))
    packed = codec.dumps_function(add)
    rig.send(RunTask(801, "late", packed.function_id, codec.dumps(((codec.InputRef("gone"),), {})), (("gone", None),)))
    assert rig.ended(801) == TaskMissing(801, ("gone",))
    assert rig.call(lambda dask_worker: dict(dask_worker.data)) == {}


def test_a_function_that_is_forgotten_is_unknown_until_it_is_defined_again(rig: Rig) -> None:
    packed = codec.dumps_function(add)
    rig.send(DefineFunction(packed.function_id, packed.pickled), RunTask(1, "a", packed.function_id, codec.dumps(((1,), {}))))
    rig.send(ForgetFunctions((packed.function_id,)), RunTask(2, "b", packed.function_id, codec.dumps(((1,), {}))))
    assert rig.result(1) == 2
    with pytest.raises(OSError, match="'b' names a function that this worker was never sent"):
        rig.result(2)


def test_only_what_has_not_started_is_taken_back_even_while_a_long_task_runs(rig: Rig, gate: Gate, tmp_path: Path) -> None:
    running = fill_with_waiting(rig, gate, tmp_path)
    waiting = [rig.submit(add, number) for number in range(3)]
    rig.send(TakeBack((running[0], waiting[0], waiting[2])))
    assert rig.wait_for(TakenBack) == TakenBack((waiting[0], waiting[2]))
    gate.open_until(lambda: rig.have_ended(running))
    assert rig.result(waiting[1]) == 2


def test_a_finished_result_never_waits_behind_a_long_task(rig: Rig, gate: Gate) -> None:
    for attempt in [rig.submit(add, 1) for _ in range(3)]:
        rig.result(attempt)
    words = []
    for attempt in range(601, 604):
        words += rig.words_for(add, attempt, key=f"quick-{attempt}", attempt=attempt)
    rig.send(*words, *rig.words_for(wait_at, gate.path, key="long", attempt=700))
    assert [rig.result(attempt) for attempt in range(601, 604)] == [602, 603, 604]
    assert not [word for word in rig.heard if word.attempt == 700]
    gate.open()
    assert rig.result(700) == "through"


def test_a_function_that_was_always_quick_and_now_is_not_holds_no_result_back(begin: Callable[..., Rig], gate: Gate) -> None:
    rig = begin("main")
    packed = codec.dumps_function(wait_if)
    for _ in range(3):
        rig.result(rig.submit(wait_if, ""))
    words = rig.words_for(wait_if, "", key="quick", attempt=601) + rig.words_for(wait_if, gate.path, key="slow", attempt=602)
    assert packed.function_id in rig.functions
    rig.send(*words)
    assert rig.result(601) == ""
    gate.open()
    assert rig.result(602) == gate.path


def wait_if(path: str) -> str:
    if path:
        wait_at(path)
    return path


# ── what can be raised ───────────────────────────────────────────────────────

RAISED = [case for case in bestiary.CASES.values() if case.position == "raised" and case.name in bestiary.GENTLE]


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_task_raises_is_its_own_error_and_the_worker_lives(begin: Callable[..., Rig], kind: str) -> None:
    rig = begin(kind)
    for case in RAISED:
        attempt = rig.submit(bestiary.fail, case.name)
        assert case.error is not None
        with pytest.raises(case.error):
            rig.result(attempt)
    assert rig.result(rig.submit(add, 1)) == 2


def test_the_remote_traceback_begins_with_the_task_and_not_with_the_worker(rig: Rig) -> None:
    error = outcomes.loads_error(rig.ended(rig.submit(fail, ValueError, "here")).error)
    assert [frame[2] for frame in error.frames] == ["fail"]


BAD = [case for case in bestiary.CASES.values() if case.position != "raised" and case.name in bestiary.GENTLE and case.call == "result"]


def test_whatever_cannot_be_pickled_or_unpickled_is_that_tasks_error(process_rig: Rig) -> None:
    for number, case in enumerate(BAD):
        function, *args = case.submission()
        assert case.error is not None
        with pytest.raises(case.error):
            process_rig.result(process_rig.submit(function, *args, key=f"case-{number}"))
    assert process_rig.result(process_rig.submit(add, 1)) == 2


def test_a_function_that_cannot_be_loaded_fails_its_task_and_names_it(rig: Rig) -> None:
    rig.send(DefineFunction("f", b"cnowhere_at_all\nfunction\n."), RunTask(1, "lonely", "f", codec.dumps(((), {}))))
    with pytest.raises(SerializationError, match="the function of task 'lonely'.*nowhere_at_all"):
        rig.result(1)


def test_a_task_that_wants_to_run_elsewhere_is_rescheduled(rig: Rig) -> None:
    assert rig.ended(rig.submit(fail, Reschedule)) == TaskRescheduled(rig.n)


async def shout(text: str) -> str:
    await asyncio.sleep(0)
    return text.upper()


def test_a_coroutine_function_is_awaited(rig: Rig) -> None:
    assert rig.result(rig.submit(shout, "a")) == "A"
    assert rig.result(rig.submit(shout, "b")) == "B"
    assert rig.call(shout, "c") == "C"


# ── what tasks may ask ───────────────────────────────────────────────────────


def who() -> tuple[str, str, str]:
    worker = get_worker()
    return worker.name, worker.address, worker.get_current_task()


def test_a_task_can_ask_for_its_worker_and_its_key(rig: Rig) -> None:
    assert rig.result(rig.submit(who, key="mine")) == ("w0", "local://c/w0", "mine")


def test_outside_of_a_worker_there_is_none() -> None:
    with pytest.raises(ValueError, match="No worker found"):
        get_worker()
    with pytest.raises(ValueError, match="no task runs"):
        runner.secede()
    with pytest.raises(ValueError, match="no task runs"):
        runner.rejoin()
    with runner.blocking():
        pass


def test_the_board_tells_what_executes_and_nothing_afterwards(process_rig: Rig, gate: Gate) -> None:
    def executing() -> list[int]:
        return list(read_board(process_rig.board))

    attempt = process_rig.submit(wait_at, gate.path)
    wait_until(lambda: executing() == [attempt])
    gate.open()
    process_rig.result(attempt)
    assert executing() == []


def deliver_death(way: str) -> None:
    bestiary.misbehave(way)


@pytest.mark.parametrize("way", bestiary.ENDS)
def test_after_a_death_the_board_still_says_whose_it_was(begin: Callable[..., Rig], way: str) -> None:
    rig = begin("main")
    rig.result(rig.submit(add, 1))
    attempt = rig.submit(deliver_death, way)
    assert rig.exit_text() in ("exit code 7", "SIGSEGV")
    assert read_board(rig.board) == (attempt,)


def secede_and_wait(path: str) -> str:
    with runner.blocking():
        wait_at(path)
    return "rejoined"


def test_a_task_that_waits_for_others_leaves_its_slot_to_them(rig: Rig, gate: Gate) -> None:
    n = rig.settings["nthreads"]
    blocked = [rig.submit(secede_and_wait, gate.path) for _ in range(n)]
    assert {rig.wait_for(TaskSeceded).attempt for _ in blocked} == set(blocked)
    assert [rig.result(rig.submit(add, number)) for number in range(20)] == list(range(1, 21))
    gate.open_until(lambda: rig.have_ended(blocked))
    for attempt in blocked:
        assert rig.wait_for(TaskRejoined) and rig.result(attempt) == "rejoined"


def test_a_task_takes_its_slot_again_before_any_task_that_has_not_started(begin: Callable[..., Rig], tmp_path: Path) -> None:
    rig = begin("main")
    first, second = Gate(tmp_path / "first"), Gate(tmp_path / "second")
    blocked = rig.submit(secede_and_wait, first.path)
    rig.wait_for(TaskSeceded)
    beside = rig.submit(mark_and_wait, str(tmp_path / "beside"), second.path)
    later = rig.submit(add, 1)
    wait_until((tmp_path / "beside").exists)
    first.open()
    wait_until(lambda: rig.call(lambda dask_worker: dask_worker._crew._n_rejoining) == 1)
    second.open_when_somebody_waits()
    ended = [rig.wait_for(TaskDone).attempt for _ in range(3)]
    assert ended.index(beside) < ended.index(later) and ended.index(blocked) < ended.index(later)


def is_in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class SlowToPublish:
    """Takes its time to be pickled, once ``armed`` exists."""

    def __init__(self, armed: str, begun: str, gate: str) -> None:
        self.armed, self.begun, self.gate = armed, begun, gate

    def __reduce__(self) -> Any:
        if os.path.exists(self.armed):
            Path(self.begun).touch()
            wait_at(self.gate)
        return bytes, (bytes(200_000),)


def test_a_task_that_comes_while_the_main_thread_publishes_waits_for_it(begin: Callable[..., Rig], gate: Gate, tmp_path: Path) -> None:
    with segments.SegmentFolder.create() as folder:
        rig = begin("main", segment_folder=folder.path)
        armed, begun = tmp_path / "armed", tmp_path / "begun"
        rig.ended(rig.submit(SlowToPublish, str(armed), str(begun), gate.path, key="slow"))
        armed.touch()
        rig.send(PublishKey("slow"))
        wait_until(begun.exists)
        attempt = rig.submit(is_in_main_thread)
        assert rig.call(lambda dask_worker: dask_worker.statistics()["n_executing"]) == 0, "another thread heard of the task, and left it"
        gate.open()
        assert rig.result(attempt) is True
        rig.close()


def secede_and_end(path: str) -> None:
    runner.secede()
    wait_at(path)


def test_a_thread_that_ran_tasks_while_the_main_one_waited_leaves_it_the_next(begin: Callable[..., Rig], tmp_path: Path) -> None:
    rig = begin("main")
    first, second = Gate(tmp_path / "first"), Gate(tmp_path / "second")
    seceded = rig.submit(secede_and_end, first.path)
    rig.wait_for(TaskSeceded)
    beside = rig.submit(mark_and_wait, str(tmp_path / "beside"), second.path)
    wait_until((tmp_path / "beside").exists)
    later = [rig.submit(is_in_main_thread) for _ in range(3)]
    first.open()
    rig.ended(seceded)
    second.open_when_somebody_waits()
    rig.ended(beside)
    assert [rig.result(attempt) for attempt in later] == [True] * 3


def nest(depth: int) -> int:
    if depth:
        worker = get_worker()
        done = threading.Event()
        results: list[int] = []

        def deliver(words: list[Any]) -> None:
            results.append(words[0].keys[0])
            done.set()

        post = worker.connect_client(f"client-{depth}", deliver)
        post([ReleaseKeys(f"client-{depth}", [str(depth)])])
        with worker.blocking():
            assert done.wait(30)
        return depth
    return 0


def test_a_client_in_a_task_talks_over_the_workers_pipe_while_the_task_waits(rig: Rig) -> None:
    attempt = rig.submit(nest, 3)
    said = rig.wait_for(FromClient)
    assert (said.client, said.words) == ("client-3", [to_wire(ReleaseKeys("client-3", ["3"]))])
    rig.send(ToClient("client-3", [to_wire(ReleaseKeys("client-3", ["answer"]))]), ToClient("stranger", []))
    assert rig.result(attempt) == 3


class SaysGoodbye:
    """Speaks for a client from its ``__del__``, which may run while the worker holds its lock."""

    def __init__(self) -> None:
        self.post = get_worker().connect_client("goodbye", print)

    def __del__(self) -> None:
        self.post([ReleaseKeys("goodbye", ["k"])])


def make_cycle() -> None:
    """Leave garbage that speaks when it is collected, whenever that is."""
    for _ in range(50):
        one: list[Any] = [SaysGoodbye()]
        other: list[Any] = []
        one.append(other)
        other.append(one)


def test_a_value_may_speak_for_a_client_as_it_is_forgotten(rig: Rig) -> None:
    rig.ended(rig.submit(hold_goodbye, key="held"))
    rig.send(ForgetKeys(("held",)))
    assert rig.wait_for(FromClient).words == [to_wire(ReleaseKeys("goodbye", ["k"]))]
    for _ in range(5):
        rig.result(rig.submit(make_cycle))
    assert rig.result(rig.submit(add, 1)) == 2


class Holder:
    def __init__(self) -> None:
        self.held = SaysGoodbye()

    def __reduce__(self) -> Any:
        return (int, ())


def hold_goodbye() -> Holder:
    return Holder()


def test_a_client_that_is_gone_hears_nothing_more(rig: Rig) -> None:
    def open_and_close() -> None:
        get_worker().connect_client("short", print)([ClientGone("short")])

    rig.result(rig.submit(open_and_close))
    assert rig.wait_for(FromClient).words == [to_wire(ClientGone("short"))]
    rig.send(ToClient("short", [to_wire(ReleaseKeys("short", []))]))
    assert rig.result(rig.submit(add, 1)) == 2


def connect_a_bad_client() -> None:
    def deliver(words: list[Any]) -> None:
        raise LookupError("no such future")

    get_worker().connect_client("bad", deliver)


def test_a_client_that_fails_as_it_is_told_something_harms_nobody_else(rig: Rig) -> None:
    rig.result(rig.submit(connect_a_bad_client))
    rig.send(ToClient("bad", [to_wire(ReleaseKeys("bad", []))]))
    assert rig.result(rig.submit(add, 1)) == 2


# ── functions beside the queue ───────────────────────────────────────────────


def name_of(dask_worker: Any) -> str:
    return str(dask_worker.name)


def test_a_function_is_called_with_the_worker_if_it_asks_for_it(rig: Rig) -> None:
    assert rig.call(name_of) == "w0"
    assert rig.call(lambda *, dask_worker="mine": dask_worker, dask_worker="given") == "given"
    assert rig.call(add, 1, right=2) == 3
    assert rig.call(len, "four") == 4
    with pytest.raises(KeyError):
        rig.call(fail, KeyError, "k")
    with pytest.raises(SystemExit):
        rig.call(sys.exit, 3)


def test_a_function_is_called_while_a_long_task_runs(rig: Rig, gate: Gate, tmp_path: Path) -> None:
    attempts = fill_with_waiting(rig, gate, tmp_path)
    assert rig.call(name_of) == "w0"
    gate.open_until(lambda: rig.have_ended(attempts))


def test_tasks_run_while_a_long_function_is_called(rig: Rig, gate: Gate) -> None:
    request = rig.ask(wait_at, gate.path)
    assert [rig.result(rig.submit(add, number)) for number in range(5)] == [1, 2, 3, 4, 5]
    gate.open()
    assert rig.answer(request) == "through"


def test_a_function_that_nobody_waits_for_is_not_answered(rig: Rig, tmp_path: Path) -> None:
    rig.ask(Path.touch, tmp_path / "mark", wait=False)
    wait_until((tmp_path / "mark").exists)
    assert rig.call(add, 1) == 2
    assert not rig.heard


# ── the end ──────────────────────────────────────────────────────────────────


def test_asked_to_quit_it_lets_running_tasks_finish_and_starts_no_other(rig: Rig, gate: Gate, tmp_path: Path) -> None:
    running = fill_with_waiting(rig, gate, tmp_path)
    rig.submit(Path.touch, tmp_path / "never")
    rig.send(Quit(WAIT_S), TakeBack(()))
    rig.wait_for(TakenBack)  # so it has heard that it is to quit
    gate.open_until(lambda: rig.have_ended(running))
    if rig.kind != "memory":
        assert rig.exit_text() == "exit code 0"
    wait_until(rig.has_ended)
    assert not (tmp_path / "never").exists()


def preload(tmp_path: Path, text: str) -> str:
    path = tmp_path / "a_preload.py"
    path.write_text(text)
    return str(path)


def test_a_task_that_outlasts_the_grace_is_left_and_the_preloads_are_torn_down_all_the_same(
    begin: Callable[..., Rig], tmp_path: Path, gate: Gate
) -> None:
    mark = tmp_path / "mark"
    text = f"import pathlib\ndef dask_teardown(worker): pathlib.Path({str(mark)!r}).write_text(worker.status)"
    for kind in PROCESSES:
        rig = begin(kind, (preload(tmp_path, text),))
        rig.submit(mark_and_wait, str(tmp_path / f"{kind}-runs"), gate.path)
        wait_until((tmp_path / f"{kind}-runs").exists)
        assert rig.supervise is not None
        rig.supervise.send([Quit(0.0)])
        assert rig.exit_text() == "exit code 0"
        assert mark.read_text() == "closing"
        mark.unlink()


def test_sigterm_is_a_graceful_quit(process_rig: Rig) -> None:
    process_rig.result(process_rig.submit(add, 1))
    os.kill(process_rig.pid, signal.SIGTERM)
    assert process_rig.exit_text() == "exit code 0"


def leave_thread(path: str) -> None:
    threading.Thread(target=wait_at, args=(path,)).start()


def test_threads_that_tasks_left_do_not_hold_up_the_end(process_rig: Rig, gate: Gate) -> None:
    process_rig.result(process_rig.submit(leave_thread, gate.path))
    process_rig.send(Quit(0.0))
    assert process_rig.exit_text() == "exit code 0"


@pytest.mark.parametrize("end", ["supervise", "data"])
@pytest.mark.parametrize("work", ["idle", "waits", "spins", "short tasks"])
def test_it_ends_at_once_when_a_pipe_upward_ends(begin: Callable[..., Rig], gate: Gate, tmp_path: Path, end: str, work: str) -> None:
    rig = begin("main")
    if work == "waits":
        rig.submit(mark_and_wait, str(tmp_path / "mark"), gate.path)
        wait_until((tmp_path / "mark").exists)
    elif work == "spins":
        rig.submit(spin, str(tmp_path / "mark"))
        wait_until((tmp_path / "mark").exists)
    elif work == "short tasks":
        for _ in range(50):
            rig.send(*(word for number in range(200) for word in rig.words_for(add, number, key=f"s{number}", attempt=10_000 + number)))
    channel = rig.supervise if end == "supervise" else rig.data
    assert channel is not None
    channel.close()
    assert rig.exit_text() == f"exit code {room.EXIT_LOST_PARENT}"


def spin(mark: str) -> None:
    Path(mark).touch()
    while True:
        sum(range(1000))


def start_sleeper(path: str) -> int:
    return subprocess.Popen(["sleep", "60"], start_new_session=False).pid


def test_what_its_tasks_started_ends_with_an_orphaned_worker(begin: Callable[..., Rig]) -> None:
    rig = begin("main")
    pid = rig.result(rig.submit(start_sleeper, ""))
    assert rig.supervise is not None
    rig.supervise.close()
    rig.exit_text()

    def is_gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
        except OSError:
            return True

    wait_until(is_gone)


def test_the_twins_worker_ends_when_its_pipe_does(begin: Callable[..., Rig]) -> None:
    rig = begin("memory")
    rig.data.close()
    wait_until(rig.has_ended)


# ── preloads and plugins ─────────────────────────────────────────────────────


def test_preloads_are_set_up_before_it_registers_and_torn_down_when_it_quits(begin: Callable[..., Rig], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    text = f"""
import pathlib
import localdask
def dask_setup(worker):
    assert localdask.get_worker() is worker
    worker.was_set_up = worker.status
def dask_teardown(worker):
    pathlib.Path({str(mark)!r}).write_text(worker.was_set_up)
"""
    for kind in KINDS:
        rig = begin(kind, (preload(tmp_path, text),))
        assert rig.call(lambda dask_worker: dask_worker.was_set_up) == "init"
        rig.close()
        assert mark.read_text() == "init"
        mark.unlink()


def test_a_worker_that_is_not_watched_tells_its_nanny_of_work_once(process_rig: Rig) -> None:
    rig = process_rig
    assert rig.supervise is not None and rig.supervise.wait_for_message(WAIT_S) == [WorkerReady(1)]
    rig.ended(rig.submit(add, 2, 3))
    note_unwatched(rig.board, True)
    rig.ended(rig.submit(add, 2, 3))
    assert rig.supervise.wait_for_message(WAIT_S) == [WorkerStirred()]
    rig.ended(rig.submit(add, 2, 3))
    assert rig.supervise.receive() == []
    assert read_board(rig.board) == (), "the nanny's place is no attempt"


def test_a_preload_that_fails_is_told_to_the_nanny_and_ends_the_worker(begin: Callable[..., Rig], tmp_path: Path) -> None:
    for kind in PROCESSES:
        rig = begin(kind, (preload(tmp_path, "def dask_setup(worker):\n    raise LookupError('nothing there')\n"),), is_up=False)
        assert rig.supervise is not None
        (word,) = rig.supervise.wait_for_message(WAIT_S)
        assert isinstance(word, BootFailed) and word.life == 1
        error = outcomes.loads_error(word.error).exception
        assert isinstance(error, PreloadError) and "LookupError: nothing there" in str(error) and error.where.endswith("a_preload.py:2")
        assert rig.exit_text() == "exit code 1"


def test_an_orphan_ends_also_while_a_preload_runs(begin: Callable[..., Rig], tmp_path: Path, gate: Gate) -> None:
    mark = tmp_path / "mark"
    text = f"open({str(mark)!r}, 'w').close()\nopen({gate.path!r}).read()"
    rig = begin("main", (preload(tmp_path, text),), is_up=False)
    wait_until(mark.exists)
    assert rig.supervise is not None
    rig.supervise.close()
    assert rig.exit_text() == f"exit code {room.EXIT_LOST_PARENT}"


class Diary:
    """A plugin that writes down what it is told."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = "diary"

    def note(self, *words: Any) -> None:
        with open(self.path, "a") as file:
            print(*words, file=file)

    def setup(self, worker: Any) -> None:
        self.note("setup", worker.name)

    def teardown(self, worker: Any) -> None:
        self.note("teardown", worker.name)

    def transition(self, key: str, start: str, finish: str, **kwargs: Any) -> None:
        self.note(key, start, finish)

    def release_key(self, key: str, state: str, cause: Any, reason: Any, report: bool) -> None:
        self.note(key, state, "let go")


def add_plugin(plugin: Any, dask_worker: Any) -> Any:
    return dask_worker.plugin_add(plugin)


def test_a_plugin_is_told_of_its_beginning_of_each_move_and_of_its_end(rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "diary"
    assert rig.call(add_plugin, Diary(str(path))) is True
    rig.ended(rig.submit(add, 1, key="good"))
    rig.ended(rig.submit(fail, ValueError, key="bad"))
    rig.send(ForgetKeys(("good",)))
    wait_until(lambda: "good memory let go" in path.read_text())
    rig.close()
    chain, end = ["released waiting", "waiting ready", "ready executing"], "released forgotten"
    moves = [f"good {move}" for move in (*chain, "executing memory")]
    moves += [f"bad {move}" for move in (*chain, "executing error", "error released", end, "error let go")]
    moves += [f"good {move}" for move in ("memory released", end, "memory let go")]
    assert path.read_text().splitlines() == ["setup w0", *moves, "teardown w0"]


def test_a_folder_of_its_own_goes_with_the_worker(rig: Rig) -> None:
    folder = rig.call(lambda dask_worker: dask_worker.local_directory)
    assert os.path.isdir(folder) and rig.call(lambda dask_worker: dask_worker.local_directory) == folder
    rig.close()
    assert not os.path.exists(folder)


# ── what tasks do to their process ───────────────────────────────────────────


def spoil(what: str) -> None:
    if what == "chdir":
        os.chdir("/")
    elif what == "deleted directory":
        folder = tempfile.mkdtemp()
        os.chdir(folder)
        os.rmdir(folder)
    elif what == "descriptors":
        for fd in (0, 1, 2):
            os.close(fd)
    elif what == "streams":
        sys.stdout.close()
        sys.stderr.close()
    elif what == "handlers":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def look() -> tuple[Any, ...]:
    print(end="", flush=True)
    print(end="", flush=True, file=sys.stderr)
    handlers = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN, signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return os.getcwd(), [os.fstat(fd)[:3] for fd in (0, 1, 2)], handlers


@pytest.mark.parametrize("what", ["chdir", "deleted directory", "descriptors", "streams", "handlers"])
def test_what_a_task_does_to_its_process_is_undone_before_the_next(begin: Callable[..., Rig], what: str) -> None:
    rig = begin("main")
    before = rig.result(rig.submit(look))
    for attempt in range(2):
        words = rig.words_for(spoil, what, key=f"spoil-{attempt}", attempt=500 + attempt)
        rig.send(*words, *rig.words_for(look, key=f"look-{attempt}", attempt=600 + attempt))
        rig.result(500 + attempt)
        assert rig.result(600 + attempt) == before


def test_what_run_changes_stays(begin: Callable[..., Rig], gate: Gate, tmp_path: Path) -> None:
    rig = begin("main")
    rig.call(os.chdir, "/")
    assert rig.result(rig.submit(os.getcwd)) == "/"
    attempt = rig.submit(wait_at, gate.path)
    rig.call(os.chdir, str(tmp_path))
    gate.open()
    rig.result(attempt)
    assert rig.result(rig.submit(os.getcwd)) == str(tmp_path)
    rig.call(os.chdir, "/")


def test_ctrl_c_does_not_end_a_worker_and_programs_that_tasks_start_still_heed_it(begin: Callable[..., Rig]) -> None:
    rig = begin("main")
    os.kill(rig.pid, signal.SIGINT)
    assert rig.result(rig.submit(add, 1)) == 2

    def interrupt_child() -> int:
        child = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        child.communicate()
        return child.returncode

    assert rig.result(rig.submit(interrupt_child)) in (-signal.SIGINT, 1)


def fork_and_return() -> int:
    return os.fork()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_child_that_returns_from_the_task_that_forked_it_says_nothing(process_rig: Rig) -> None:
    attempt = process_rig.submit(fork_and_return, key="forked")
    assert process_rig.result(attempt) > 0
    assert [process_rig.result(process_rig.submit(add, number)) for number in range(10)] == list(range(1, 11))
    assert not process_rig.heard


def pool() -> list[int]:
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as workers:
        return workers.map(abs, [-1, -2])


def test_a_task_can_fork_children_of_its_own_and_end_them(process_rig: Rig) -> None:
    assert process_rig.result(process_rig.submit(pool)) == [1, 2]
    assert process_rig.result(process_rig.submit(add, 1)) == 2


def end_children_at_birth(n: int) -> list[int]:
    """Send SIGTERM to children the moment they are there; return what each ended by."""
    ended = []
    for _ in range(n):
        pid = os.fork()
        if not pid:
            time.sleep(WAIT_S / 10)
            os._exit(0)
        os.kill(pid, signal.SIGTERM)
        ended.append(os.WTERMSIG(os.waitpid(pid, 0)[1]))
    return ended


def test_a_signal_to_a_child_that_was_just_forked_is_not_lost(process_rig: Rig) -> None:
    assert set(process_rig.result(process_rig.submit(end_children_at_birth, 300))) == {signal.SIGTERM}


# ── cost ─────────────────────────────────────────────────────────────────────


@pytest.mark.skipif(sys.platform != "linux", reason="counts the kernel's context switches")
def test_an_idle_worker_never_wakes_up(process_rig: Rig) -> None:
    process_rig.result(process_rig.submit(add, 1))
    seen: list[Any] = []

    def n_switches() -> list[str]:
        return [
            line
            for path in sorted(Path(f"/proc/{process_rig.pid}/task").glob("*/status"))
            for line in path.read_text().splitlines()
            if "voluntary" in line
        ]

    def is_still() -> bool:
        seen.append(n_switches())
        return len(seen) > 40 and all(counts == seen[-1] for counts in seen[-40:])

    wait_until(is_still)


def test_two_sides_that_send_more_than_the_pipe_holds_do_not_wait_for_each_other(rig: Rig) -> None:
    words = []
    n = 400
    for number in range(n):
        words += rig.words_for(str.upper, "x" * 20_000, key=f"big-{number}", attempt=1000 + number)
    rig.send(*words)
    for number in range(n):
        assert rig.result(1000 + number) == "X" * 20_000


def test_a_word_that_is_not_for_workers_ends_the_worker(begin: Callable[..., Rig]) -> None:
    rig = begin("main")
    rig.send(WorkerReady(1))
    assert rig.exit_text() == f"exit code {room.EXIT_LOST_PARENT}"


def test_garbage_on_the_data_pipe_ends_the_worker(begin: Callable[..., Rig]) -> None:
    rig = begin("main")
    with socket.socket(fileno=os.dup(rig.data.fileno())) as raw:
        raw.setblocking(True)
        raw.sendall(struct.pack("<Q", 8) + b"garbage!")
    assert rig.exit_text() == f"exit code {room.EXIT_LOST_PARENT}"
