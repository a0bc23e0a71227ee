"""Nothing leaks and nothing hangs: open and close without end, and clients used at the oddest moments."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import psutil
import pytest

from localdask import Client, Future, LocalCluster, as_completed, fire_and_forget, wait
from localdask.errors import ClosedClientError, SerializationError
from localdask.processes import launching
from tests.conftest import SHARED_MEMORY, own_files, wait_until
from tests.live.scripts import environment
from tests.tasks import wait_for_file

N_CYCLES = 200


def inc(x: int) -> int:
    return x + 1


def nap(x: int, seconds: float) -> int:
    time.sleep(seconds)
    return x


def append(path: str, text: str) -> None:
    with open(path, "a") as file:
        file.write(text + "\n")


# ── open and close ───────────────────────────────────────────────────────────


def test_opening_and_closing_without_end_leaks_nothing() -> None:
    def cycle() -> None:
        with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
            assert client.submit(abs, -2).result() == 2  # a worker need not import this module for it

    def look() -> tuple[int, int, int, int]:
        launcher = psutil.Process(launching._pid)
        return psutil.Process().num_fds(), threading.active_count(), len(own_files()), launcher.num_fds()

    def has_settled() -> bool:
        gc.collect()
        return not psutil.Process(launching._pid).children()

    for _ in range(5):
        cycle()
    wait_until(has_settled)
    before = look()
    launcher = psutil.Process(launching._pid)
    memory, launchers_memory = psutil.Process().memory_info().rss, launcher.memory_info().rss
    for _ in range(N_CYCLES - 5):
        cycle()
    wait_until(has_settled)
    assert look() == before and launching._pid == launcher.pid
    assert psutil.Process().memory_info().rss - memory < 20e6
    assert launcher.memory_info().rss - launchers_memory < 2e6


def test_workers_that_come_and_go_leak_nothing(cluster: LocalCluster, client: Client) -> None:
    def look() -> tuple[int, int, int]:
        return psutil.Process().num_fds(), threading.active_count(), psutil.Process(launching._pid).num_fds()

    def cycle() -> None:
        cluster.scale(4)
        cluster.wait_for_workers(4)
        assert client.gather(client.map(abs, range(8), pure=False)) == list(range(8))
        cluster.scale(1)
        wait_until(lambda: len(cluster.scheduler.workers) == 1 and len(psutil.Process(launching._pid).children()) == 1)

    for _ in range(2):
        cycle()
    before = look()
    for _ in range(10):
        cycle()
    wait_until(lambda: all(now <= then for now, then in zip(look(), before, strict=True)), what="what was there before")


def test_a_nanny_whose_worker_dies_often_leaks_nothing(client: Client) -> None:
    def kill_worker() -> None:
        pid = client.submit(os.getpid, workers="w0", pure=False).result()
        os.kill(pid, 9)
        wait_until(lambda: getattr(client.cluster.scheduler.workers.get("w0"), "pid", pid) != pid)

    kill_worker()
    nanny = psutil.Process(client.submit(os.getppid, workers="w0").result())
    before = nanny.num_fds()
    for _ in range(3):
        kill_worker()
    wait_until(lambda: nanny.num_fds() <= before and len(nanny.children()) == 1)


def test_released_data_leaves_shared_memory(client: Client) -> None:
    before = own_files()
    data = client.scatter(b"x" * 1_000_000)
    made = client.submit(bytes, 1_000_000)
    assert len(made.result()) == client.submit(len, data).result() == 1_000_000
    assert own_files() > before
    del data, made
    gc.collect()
    wait_until(lambda: own_files() == before)


def test_scattering_that_fails_leaves_nothing_of_what_went_before(client: Client) -> None:
    before = own_files()
    with pytest.raises(SerializationError, match="scattered value"):
        client.scatter([b"x" * 1_000_000, threading.Lock()])
    wait_until(lambda: gc.collect() >= 0 and own_files() == before)  # its future goes with the error, and the segment with the future


# ── odd moments ──────────────────────────────────────────────────────────────


def test_a_submitter_that_is_gone_takes_its_tasks_along(client: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    blockers = [client.submit(wait_for_file, str(gate), workers=name, pure=False) for name in ("w0", "w1")]

    def submit() -> None:
        client.map(append, [str(tmp_path / "ran")] * 10, [str(number) for number in range(10)])

    thread = threading.Thread(target=submit)
    thread.start()
    thread.join()
    gc.collect()
    wait_until(lambda: len(client.cluster.scheduler.state.tasks) == 2)
    gate.touch()
    assert client.gather(blockers) == [str(gate)] * 2
    assert not (tmp_path / "ran").exists()


def test_what_was_fired_and_forgotten_runs_though_its_client_is_closed(cluster: LocalCluster, tmp_path: Path) -> None:
    with Client(cluster) as client:
        fire_and_forget(client.submit(append, str(tmp_path / "ran"), "once"))
    wait_until((tmp_path / "ran").exists)
    wait_until(lambda: (tmp_path / "ran").read_text() == "once\n" and not cluster.scheduler.state.tasks)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_callback_that_raises_harms_nobody(client: Client) -> None:
    seen: list[int] = []

    def fail(future: Future[int]) -> None:
        raise ValueError("a callback's own")

    futures = client.map(inc, range(5))
    for future in futures:
        future.add_done_callback(fail)
        future.add_done_callback(lambda future: seen.append(future.result()))
    wait_until(lambda: sorted(seen) == [1, 2, 3, 4, 5])
    assert client.submit(inc, 10).result() == 11


def test_a_future_that_only_its_callback_holds_is_not_garbage(client: Client, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    seen: list[str] = []
    client.submit(wait_for_file, gate).add_done_callback(lambda future: seen.append(future.result()))
    arrivals = as_completed(client.map(lambda path, number: (wait_for_file(path), number)[1], [gate] * 2, range(2)))
    gc.collect()
    Path(gate).touch()
    assert sorted(future.result() for future in arrivals) == [0, 1]
    wait_until(lambda: seen == [gate])


def test_a_callback_may_submit_and_wait(client: Client) -> None:
    results: list[int] = []

    def go_on(future: Future[int]) -> None:
        value = future.result()
        if value < 20:
            client.submit(inc, value).add_done_callback(go_on)
            results.append(client.submit(inc, value * 100).result())

    client.submit(inc, 0).add_done_callback(go_on)
    wait_until(lambda: len(results) == 19)
    assert results == [value * 100 + 1 for value in range(1, 20)]


def test_a_finalizer_may_submit_even_in_the_midst_of_a_transition(client: Client) -> None:
    made: list[Future[int]] = []

    class Submits:
        def __init__(self, number: int) -> None:
            self.number = number
            self.circle = self  # the garbage collector comes when it likes

        def __del__(self) -> None:
            made.append(client.submit(inc, self.number))

    threshold = gc.get_threshold()
    gc.set_threshold(5, 2, 2)
    try:
        for number in range(300):
            Submits(1000 + number)
            assert client.submit(inc, number).result() == number + 1
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert sorted(client.gather(made)) == [1001 + number for number in range(300)]


def test_threads_that_submit_at_once_get_each_its_own(client: Client) -> None:
    failures: list[object] = []

    def work(thread: int) -> None:
        numbers = range(thread * 1000, thread * 1000 + 200)
        values = [client.submit(inc, number).result() for number in numbers[:50]] + client.gather(client.map(inc, numbers[50:]))
        if values != [number + 1 for number in numbers]:
            failures.append(values)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def wait_in_thread(future: Future[Any]) -> tuple[threading.Thread, list[BaseException]]:
    """Have a thread wait for a future; return it, and where what it is told will be."""
    raised: list[BaseException] = []

    def wait_for_it() -> None:
        try:
            future.result()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=wait_for_it, daemon=True)
    thread.start()
    return thread, raised


def test_who_waits_when_the_client_closes_is_told(cluster: LocalCluster, tmp_path: Path) -> None:
    client = Client(cluster)
    gate = tmp_path / "gate"
    future = client.submit(wait_for_file, str(gate))
    queued = client.map(inc, range(20))
    waits = [wait_in_thread(future) for _ in range(3)]
    wait_until(lambda: len(future._state.watchers or ()) == 3)
    client.close()
    for thread, raised in waits:
        thread.join(10)
        assert isinstance(raised[0], CancelledError) and "client-closed" in str(raised[0])
    with pytest.raises(ClosedClientError, match="make a new Client"):
        client.submit(inc, 1)
    with pytest.raises(CancelledError):
        queued[-1].result(10)
    gate.touch()


def test_who_waits_when_the_cluster_closes_is_told() -> None:
    cluster = LocalCluster(n_workers=1, threads_per_worker=1)
    client = Client(cluster)
    thread, raised = wait_in_thread(future := client.submit(nap, 1, 1000))
    wait_until(lambda: bool(future._state.watchers))
    cluster.close(timeout=0.2)
    thread.join(10)
    assert not thread.is_alive() and isinstance(raised[0], CancelledError)
    calls: list[Callable[[], object]] = [
        lambda: client.submit(inc, 1).result(10),
        lambda: client.map(inc, range(3))[2].result(10),
        lambda: client.scatter(b"x"),
    ]
    for call in calls:
        with pytest.raises((CancelledError, RuntimeError), match="closed"):
            call()
    client.close()


def test_threads_that_submit_while_the_client_closes_end(cluster: LocalCluster) -> None:
    for _ in range(10):
        client = Client(cluster)
        ended: list[str] = []

        def work(client: Client = client, ended: list[str] = ended) -> None:
            try:
                while True:
                    client.submit(abs, 1, pure=False).result()
            except (ClosedClientError, CancelledError) as error:
                ended.append(type(error).__name__)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
        n_before = sum(worker.n_done for worker in cluster.scheduler.workers.values())
        for thread in threads:
            thread.start()
        wait_until(lambda n_before=n_before: sum(worker.n_done for worker in cluster.scheduler.workers.values()) > n_before + 20)  # type: ignore[misc]
        client.close()
        for thread in threads:
            thread.join(10)
        assert len(ended) == 3
    wait_until(lambda: not cluster.scheduler.state.tasks)


AT_EXIT = """\
import atexit, threading
from localdask import Client, LocalCluster

class Submits:
    def __del__(self):
        try:
            client.submit(abs, -1)
        except RuntimeError as error:
            print("told:", type(error).__name__, flush=True)

def late(*_):
    try:
        print("late:", client.submit(abs, -2).result(10), flush=True)
    except BaseException as error:
        print("late:", type(error).__name__, flush=True)

held = Submits()
atexit.register(late)
client = Client(LocalCluster(n_workers=1, threads_per_worker=1))
atexit.register(late)
futures = client.map(abs, range(100))
%s
"""


@pytest.mark.parametrize("last_line", ["", "client.close()", "client.cluster.close()", "futures[0].add_done_callback(late)"])
def test_submitting_at_the_interpreter_s_exit_works_or_is_told(last_line: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", AT_EXIT % last_line], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert ended.stdout.count("late:") >= 2 and "TimeoutError" not in ended.stdout, ended.stdout


# ── user code that forks ─────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_process_that_the_user_forks_keeps_nothing_alive(tmp_path: Path) -> None:
    cluster = LocalCluster(n_workers=1, threads_per_worker=1)
    client = Client(cluster)
    worker = psutil.Process(client.submit(os.getpid).result())
    child = os.fork()
    if child == 0:
        wait_for_file(str(tmp_path / "gate"))
        os._exit(0)
    try:
        client.close()
        cluster.close(timeout=1)
        assert not worker.is_running()
    finally:
        (tmp_path / "gate").touch()
        os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_process_that_the_user_forks_may_end_as_it_likes(client: Client) -> None:
    future = client.submit(inc, 1)
    wait([future])
    child = os.fork()
    if child == 0:
        try:
            del future
            gc.collect()
            client.cluster.close()
            client.close()
        finally:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert future.result() == 2 and client.submit(inc, 2).result() == 3


def in_child(queue: Any) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        queue.put(client.submit(inc, 41).result())


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_process_of_multiprocessing_beside_a_cluster_may_have_its_own(method: str, client: Client) -> None:
    context: Any = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    process = context.Process(target=in_child, args=(queue,))
    process.start()
    process.join(30)
    assert process.exitcode == 0 and queue.get() == 42
    queue.close()
    del queue, process  # its semaphores are the tracker's until then
    gc.collect()
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]  # it would stay until this process ends
    assert client.submit(inc, 1).result() == 2


def test_a_task_that_forks_leaves_its_worker_whole(client: Client) -> None:
    def fork_in_task() -> int:
        child = os.fork()
        if child == 0:
            os._exit(3)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert client.gather([client.submit(fork_in_task, pure=False) for _ in range(6)]) == [3] * 6
    assert {worker.life for worker in client.cluster.scheduler.workers.values()} == {1}


@pytest.mark.parametrize("nthreads", [1, 2])
def test_what_a_task_forked_ends_as_a_program_does(nthreads: int, capfd: pytest.CaptureFixture[str]) -> None:
    def fork_in_task(error: BaseException | None) -> int:
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if error is not None:
            raise error
        return 5

    errors = [SystemExit(3), SystemExit("why"), ValueError("boom"), None]
    with LocalCluster(n_workers=1, threads_per_worker=nthreads) as cluster, Client(cluster) as client:
        assert [client.submit(fork_in_task, error, pure=False).result() for error in errors] == [3, 1, 1, 0]
    told = capfd.readouterr().err
    assert "why\n" in told and "ValueError: boom" in told


def test_under_pythons_own_checks_a_program_ends_without_a_warning() -> None:
    code = "from localdask import Client\nwith Client(n_workers=1) as client:\n    print(client.submit(abs, -1).result())"
    environ = {**os.environ, "PYTHONDEVMODE": "1", "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.skipif(not SHARED_MEMORY.is_dir(), reason="elsewhere shared memory has no files")
@pytest.mark.parametrize("ends", ["killed", "closed"])
def test_shared_memory_that_a_task_made_goes_with_its_worker(ends: str) -> None:
    def make() -> tuple[list[str], int]:
        import builtins
        import os
        from multiprocessing.shared_memory import SharedMemory

        made = [SharedMemory(create=True, size=100) for _ in range(200)]  # more than are removed before anybody looks
        builtins.kept = made  # type: ignore[attr-defined]
        return [each.name for each in made], os.getpid()

    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        names, pid = client.submit(make).result()
        paths = [SHARED_MEMORY / name for name in names]
        try:
            assert all(path.exists() for path in paths)
            if ends == "killed":
                os.kill(pid, signal.SIGKILL)
                assert client.submit(os.getpid, pure=False).result() != pid
            else:
                client.cluster.close()
            left = [path.name for path in paths if path.exists()]
        finally:
            for path in paths:
                path.unlink(missing_ok=True)
    assert left == []
