"""Deaths, one after the other: of workers, nannies and the launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil

from localdask import Client, KilledWorker, LocalCluster, wait
from localdask.processes import launching
from localdask.processes.nannies import NannyHandle
from tests.conftest import wait_until

LONG_S = 60.0


def inc(x: int) -> int:
    return x + 1


def nap(x: int, seconds: float = 0.02) -> int:
    time.sleep(seconds)
    return x


def die_once(mark: str, signum: int = signal.SIGKILL) -> int:
    """Kill this worker the first time, and return its pid the second."""
    if not os.path.exists(mark):
        Path(mark).touch()
        os.kill(os.getpid(), signum)
    return os.getpid()


def note_and_nap(mark: str) -> str:
    Path(mark).write_text(str(os.getpid()))
    time.sleep(LONG_S)
    return "woke"


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def worker_pids(cluster: LocalCluster) -> dict[str, int]:
    return {worker.name: worker.pid for worker in cluster.scheduler.workers.values()}


def wait_for_replacement(cluster: LocalCluster, before: dict[str, int]) -> None:
    """Wait until every worker is there under its old name, those of the dead with new pids."""
    names = set(before)
    wait_until(lambda: worker_pids(cluster).keys() == names and not set(worker_pids(cluster).items()) & set(before.items()))


def run_in_another_python(code: str) -> str:
    """Return what code prints in a process that has no launcher yet."""
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True, timeout=60).stdout


# ── a worker dies ────────────────────────────────────────────────────────────


def test_an_idle_worker_that_is_killed_is_replaced_under_its_name(cluster: LocalCluster, client: Client) -> None:
    before = {"w0": worker_pids(cluster)["w0"]}
    kill(before["w0"])
    wait_until(lambda: worker_pids(cluster).get("w0", before["w0"]) != before["w0"])
    assert set(worker_pids(cluster)) == {"w0", "w1"}
    assert client.submit(os.getpid, workers="w0").result() == worker_pids(cluster)["w0"] != before["w0"]


def test_the_task_of_a_busy_worker_that_is_killed_runs_again(cluster: LocalCluster, client: Client, tmp_path: Path) -> None:
    future = client.submit(die_once, f"{tmp_path}/mark")
    assert future.result() in worker_pids(cluster).values()


def test_all_workers_at_once_may_be_killed_and_every_result_is_right(cluster: LocalCluster, client: Client) -> None:
    futures = client.map(nap, range(200))
    for _ in range(3):
        before = worker_pids(cluster)
        for pid in before.values():
            kill(pid)
        wait_for_replacement(cluster, before)
    assert client.gather(futures) == list(range(200))


def test_what_lay_on_a_killed_worker_is_made_again(cluster: LocalCluster, client: Client) -> None:
    # Too large to have travelled with the word that it is done.
    future = client.submit(bytes, 200_000, workers="w0", allow_other_workers=True)
    wait([future])
    before = worker_pids(cluster)
    for pid in before.values():
        kill(pid)
    wait_for_replacement(cluster, before)
    assert client.submit(len, future).result() == 200_000


def test_a_value_that_was_asked_for_as_it_was_lost_can_be_had_after_a_retry(tmp_path: Path) -> None:
    def fails_the_second_time(folder: Path) -> bytes:
        n = len(list(folder.iterdir()))
        (folder / str(n)).touch()
        if n == 1:
            raise ConnectionError("for once")
        return bytes(3_000_000)

    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        future = client.submit(fails_the_second_time, tmp_path)
        wait(future)
        pid = worker_pids(cluster)["w0"]
        os.kill(pid, signal.SIGSTOP)
        asking = threading.Thread(target=client.gather, args=([future],), kwargs={"errors": "skip"})
        asking.start()
        wait_until(lambda: future._state.fetching)
        kill(pid)
        wait_until(lambda: future.status == "error")
        asking.join()
        future.retry()
        assert len(future.result(timeout=30)) == 3_000_000


def test_queued_tasks_are_not_charged_for_the_death_of_another(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1, allowed_failures=0) as cluster, Client(cluster) as client:
        mark = tmp_path / "mark"
        killer = client.submit(note_and_nap, str(mark))
        queued = client.map(inc, range(50))
        wait_until(lambda: mark.exists() and mark.read_text())
        kill(worker_pids(cluster)["w0"])
        assert client.gather(queued) == list(range(1, 51))
        assert isinstance(killer.exception(), KilledWorker)


def test_a_task_that_kills_each_worker_is_given_up_after_the_allowed_failures() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1, allowed_failures=2) as cluster, Client(cluster) as client:
        bystander = client.submit(nap, 5, 0.3)
        error = client.submit(os._exit, 3).exception()
        assert isinstance(error, KilledWorker) and error.allowed_failures == 2 and "died 3 times" in str(error)
        assert bystander.result() == 5 and client.gather(client.map(inc, range(3))) == [1, 2, 3]
        assert sum(handle.n_restarts for handle in cluster.workers.values()) == 3


def test_a_replacement_has_its_preloads_set_up_before_its_first_task(tmp_path: Path) -> None:
    preload = tmp_path / "state.py"
    preload.write_text("def dask_setup(worker):\n    worker.state_of_preload = ('set up', worker.life)\n")
    with LocalCluster(n_workers=1, threads_per_worker=1, preload=str(preload)) as cluster, Client(cluster) as client:

        def look() -> Any:
            from localdask import get_worker

            return get_worker().state_of_preload

        assert client.submit(look, pure=False).result() == ("set up", 1)
        kill(worker_pids(cluster)["w0"])
        assert client.submit(look, pure=False).result() in [("set up", 1), ("set up", 2)]
        wait_until(lambda: cluster.scheduler.workers.get("w0") is not None and cluster.scheduler.workers["w0"].life == 2)
        assert client.submit(look, pure=False).result() == ("set up", 2)


def outlive_a_worker(cluster: LocalCluster, pids: Iterable[int]) -> list[psutil.Process]:
    """Kill the worker and wait for the next, and see that these two processes sleep on; return them."""
    processes = [psutil.Process(pid) for pid in pids]
    before = worker_pids(cluster)
    kill(before["w0"])
    wait_for_replacement(cluster, before)
    assert [process.status() for process in processes] == [psutil.STATUS_SLEEPING] * 2
    return processes


def test_what_a_nannys_preload_started_goes_on_when_its_worker_dies(tmp_path: Path) -> None:
    preload = tmp_path / "companions.py"
    preload.write_text(
        "import subprocess\n"
        "def dask_setup(nanny):\n"
        "    nanny.started = [subprocess.Popen(['sleep', '1000'], start_new_session=alone) for alone in (False, True)]\n"
        f"    open({str(tmp_path / 'pids')!r}, 'w').write(' '.join(str(child.pid) for child in nanny.started))\n"
        "def dask_teardown(nanny):\n"
        "    for child in nanny.started:\n"
        "        child.kill()\n"
        "        child.wait()\n"
    )
    with LocalCluster(n_workers=1, threads_per_worker=1, preload_nanny=str(preload)) as cluster:
        companions = outlive_a_worker(cluster, map(int, (tmp_path / "pids").read_text().split()))
    assert not any(companion.is_running() for companion in companions)


def test_what_a_call_in_a_nanny_started_goes_on_when_its_worker_dies() -> None:
    def start(dask_worker: Any) -> list[int]:
        dask_worker.started = [subprocess.Popen(["sleep", "1000"], start_new_session=alone) for alone in (False, True)]
        return [child.pid for child in dask_worker.started]

    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        (pids,) = client.run(start, nanny=True).values()
        started = outlive_a_worker(cluster, pids)
    assert not any(process.is_running() for process in started)


def test_orphans_of_tasks_that_ended_are_collected_while_their_worker_lives() -> None:
    def leave_orphan(number: int) -> int:
        read, write = os.pipe()
        parent = os.fork()
        if parent == 0:
            if os.fork() == 0:
                if number % 2:
                    os.setsid()
                os.write(write, str(os.getpid()).encode())
            os._exit(0)
        os.waitpid(parent, 0)
        return int(os.read(read, 100))

    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        orphans = client.gather(client.map(leave_orphan, range(4)))
        wait_until(lambda: not any(psutil.pid_exists(orphan) for orphan in orphans))
        assert all(handle.n_restarts == 0 for handle in cluster.workers.values())


def test_a_worker_that_dies_again_and_again_when_idle_is_given_up_and_told() -> None:
    told: list[str] = []
    with LocalCluster(n_workers=1, threads_per_worker=1, on_event=lambda kind, **fields: told.append(kind)) as cluster:

        def kill_it() -> bool:
            handle = cluster.workers["w0"]
            if "w0" in cluster.scheduler.workers and handle.worker_pid is not None:
                try:
                    os.kill(handle.worker_pid, signal.SIGKILL)
                except ProcessLookupError:
                    return False
            return "degraded" in told

        wait_until(kill_it)
        assert told.count("worker-down") == 6
        cluster.restart()
        assert set(worker_pids(cluster)) == {"w0"}


def test_a_worker_that_is_stopped_is_ended_by_force_when_the_cluster_closes() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        process = psutil.Process(worker_pids(cluster)["w0"])
        process.suspend()
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
        cluster.close(timeout=0.3)
        assert not process.is_running()


def test_other_workers_take_over_what_is_queued_at_a_stopped_worker(cluster: LocalCluster, client: Client) -> None:
    process = psutil.Process(worker_pids(cluster)["w0"])
    process.suspend()
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
    futures = client.map(nap, range(40))
    wait_until(lambda: sum(future.done() for future in futures) >= 36)
    process.resume()
    assert client.gather(futures) == list(range(40))


# ── what supervises dies ─────────────────────────────────────────────────────


def test_a_killed_nanny_takes_its_worker_along_and_both_are_replaced(cluster: LocalCluster, client: Client, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    busy = client.submit(note_and_nap, str(mark), workers="w0")
    wait_until(lambda: mark.exists() and mark.read_text())
    handle: NannyHandle = cluster.workers["w0"]
    worker, nanny = psutil.Process(worker_pids(cluster)["w0"]), psutil.Process(handle.pid)
    mark.unlink()
    nanny.kill()
    wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
    wait_until(lambda: worker_pids(cluster).get("w0", worker.pid) != worker.pid)
    wait_until(mark.exists, what="the task on the new worker")
    assert handle.pid not in (None, nanny.pid)
    assert client.gather(client.map(inc, range(20))) == list(range(1, 21))
    busy.cancel()


def test_a_killed_nanny_does_not_bring_back_a_life_that_was(cluster: LocalCluster, client: Client) -> None:
    kill(worker_pids(cluster)["w0"])
    wait_until(lambda: "w0" in worker_pids(cluster) and cluster.scheduler.workers["w0"].life == 2)
    kill(cluster.workers["w0"].pid)
    wait_until(lambda: "w0" in worker_pids(cluster) and cluster.scheduler.workers["w0"].life > 2)
    assert client.submit(inc, 1, workers="w0").result() == 2


def test_all_nannies_may_be_killed_at_once(cluster: LocalCluster, client: Client) -> None:
    futures = client.map(nap, range(100))
    before = worker_pids(cluster)
    for handle in cluster.workers.values():
        kill(handle.pid)
    wait_for_replacement(cluster, before)
    assert client.gather(futures) == list(range(100))


def test_a_killed_launcher_stops_nothing_and_the_next_start_makes_a_new_one(cluster: LocalCluster, client: Client) -> None:
    launcher = launching._pid
    kill(launcher)
    before = worker_pids(cluster)
    assert client.gather(client.map(inc, range(20))) == list(range(1, 21))
    assert worker_pids(cluster) == before
    kill(before["w0"])  # its nanny replaces it without the launcher
    wait_until(lambda: worker_pids(cluster).get("w0", before["w0"]) != before["w0"])
    kill(cluster.workers["w1"].pid)  # and for a nanny there is a new one
    wait_until(lambda: worker_pids(cluster).get("w1", before["w1"]) != before["w1"])
    with LocalCluster(n_workers=1, threads_per_worker=1) as other, Client(other) as its_client:
        assert its_client.submit(inc, 1).result() == 2
    assert launching._pid != launcher and not psutil.pid_exists(launcher)


def test_a_launcher_that_dies_before_the_first_word_to_it_is_replaced() -> None:
    code = """
        import os, signal, time
        from localdask import Client, LocalCluster
        from localdask.processes import launching
        launching.begin_launcher()
        first = launching._pid
        os.kill(first, signal.SIGKILL)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
        with LocalCluster(n_workers=1) as cluster, Client(cluster) as client:
            print(client.submit(sum, [1, 2]).result(), launching._pid != first)
    """
    assert run_in_another_python(code) == "3 True\n"


def test_a_child_that_the_user_forks_does_not_keep_a_launcher_that_was_only_begun() -> None:
    code = """
        import os, time
        from localdask.processes import launching
        launching.begin_launcher()
        reads, writes = os.pipe()
        if os.fork() == 0:
            os.read(reads, 1)
            os._exit(0)
        launching._let_go()
        os.waitpid(launching._pid, 0)  # it ends, though the child goes on
        os.write(writes, b"x")
        os.wait()
        print("ended")
    """
    assert run_in_another_python(code) == "ended\n"


def test_launcher_nannies_and_workers_may_all_be_killed_at_once(cluster: LocalCluster, client: Client) -> None:
    futures = client.map(nap, range(50))
    before = worker_pids(cluster)
    pids = [launching._pid, *(handle.pid for handle in cluster.workers.values()), *before.values()]
    for pid in pids:
        kill(pid)
    wait_for_replacement(cluster, before)
    assert client.gather(futures) == list(range(50))
