"""Workers that leave on purpose: nothing is lost, nothing runs twice, and the number asked for last is what there is."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from localdask import Client, LocalCluster, get_client
from localdask.errors import UsageError
from tests.conftest import wait_until

LARGE = 300_000


def large(n: int) -> bytes:
    return bytes([n]) * LARGE


def noted(n: int, folder: str) -> int:
    with open(os.path.join(folder, f"{n}"), "a") as file:
        file.write("x")
    time.sleep(0.01)
    return n


def test_what_only_a_retired_worker_held_is_kept(tmp_path: Path) -> None:
    def counted(n: int, folder: str) -> bytes:
        noted(n, folder)
        return bytes([n]) * LARGE

    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        futures = [client.submit(counted, n, str(tmp_path), workers=["w1"]) for n in range(4)]
        assert [len(value) for value in client.gather(futures[:1])] == [LARGE]
        wait_until(lambda: all(future.done() for future in futures))
        address = cluster.worker_address("w1")
        assert set(client.who_has(futures)) == {future.key for future in futures}
        assert sorted(client.has_what("w1")[address]) == sorted(future.key for future in futures)
        retired = client.retire_workers([address, "nobody"])
        assert list(retired) == [address]
        assert retired[address]["name"] == "w1"
        assert list(cluster.workers) == ["w0"]
        assert client.who_has(futures[0]) == {futures[0].key: []}
        assert client.gather(futures) == [large(n) for n in range(4)]
        assert client.submit(len, futures[3]).result() == LARGE
        assert [path.read_text() for path in tmp_path.iterdir()] == ["x"] * 4  # nothing was made again
        cluster.scale(2)
        wait_until(lambda: len(cluster.scheduler.workers) == 2)


def test_retiring_in_the_middle_of_a_map_doubles_nothing(tmp_path: Path) -> None:
    with LocalCluster(n_workers=3, threads_per_worker=1) as cluster, Client(cluster) as client:
        futures = client.map(noted, range(120), folder=str(tmp_path))
        futures[0].result()
        client.retire_workers(["w1"])
        cluster.scale(1)
        assert client.gather(futures) == list(range(120))
        assert [(tmp_path / str(n)).read_text() for n in range(120)] == ["x"] * 120
        wait_until(lambda: len(cluster.scheduler.workers) == 1)


def test_a_task_that_outlasts_the_grace_is_done_elsewhere(tmp_path: Path) -> None:
    gate = tmp_path / "open"

    def wait_for(path: str) -> str:
        while not os.path.exists(path):
            time.sleep(0.005)
        return "through"

    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        future = client.submit(wait_for, str(gate), workers=["w1"], allow_other_workers=True)
        wait_until(lambda: client.processing("w1")[cluster.worker_address("w1")] == [future.key])
        client.retire_workers("w1", grace=0.05)
        gate.touch()
        assert future.result() == "through"


def test_the_only_worker_runs_what_its_task_waits_for_before_it_leaves(tmp_path: Path) -> None:
    def parent(folder: str) -> int:
        client = get_client()
        first = client.submit(noted, 1, folder)
        return sum(client.submit(noted, n, folder).result() for n in range(2, 5)) + first.result()

    def gated(folder: str) -> int:
        noted(0, folder)
        while not os.path.exists(os.path.join(folder, "open")):
            time.sleep(0.005)
        return 0

    def waits(folder: str) -> int:
        client = get_client()
        return client.submit(gated, folder).result() + parent(folder)

    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        future = client.submit(waits, str(tmp_path))
        wait_until((tmp_path / "0").exists)
        leaving = threading.Thread(target=client.retire_workers, args=(["w0"],))
        leaving.start()
        wait_until(lambda: not cluster.workers)
        (tmp_path / "open").touch()
        assert future.result(timeout=30) == 10
        leaving.join()
        assert [(tmp_path / str(n)).read_text() for n in range(5)] == ["x"] * 5


def test_the_only_worker_runs_what_its_task_first_waits_for_when_it_was_to_leave_already(tmp_path: Path) -> None:
    def parent(folder: str) -> int:
        noted(0, folder)
        while not os.path.exists(os.path.join(folder, "open")):
            time.sleep(0.005)
        return get_client().submit(noted, 1, folder).result()

    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        future = client.submit(parent, str(tmp_path))
        wait_until((tmp_path / "0").exists)
        leaving = threading.Thread(target=client.retire_workers, args=(["w0"],))
        leaving.start()
        wait_until(lambda: [worker["status"] for worker in client.scheduler_info()["workers"].values()] == ["closing_gracefully"])
        (tmp_path / "open").touch()
        assert future.result(timeout=30) == 1
        leaving.join()
        assert [(tmp_path / str(n)).read_text() for n in range(2)] == ["x"] * 2


def test_without_closing_a_retired_worker_stays_and_gets_nothing() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        client.retire_workers(["w0"], close_workers=False)
        assert len(cluster.workers) == 2
        futures = client.map(large, range(20))
        client.gather(futures)
        assert client.has_what("w0")[cluster.worker_address("w0")] == []


def test_a_storm_of_scaling_ends_with_what_was_asked_for_last() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        futures = client.map(abs, range(200))
        for n in (4, 1, 3, 0, 2, 4, 1, 3):
            cluster.scale(n)
            assert len(cluster.workers) == cluster.n_asked == n
        wait_until(lambda: set(cluster.scheduler.workers) == set(map(cluster.worker_address, cluster.workers)))
        assert len(cluster.workers) == 3
        assert client.gather(futures) == list(range(200))
        os.kill(client.scheduler_info()["workers"][cluster.worker_address(next(iter(cluster.workers)))]["pid"], signal.SIGKILL)
        wait_until(lambda: set(cluster.scheduler.workers) == set(map(cluster.worker_address, cluster.workers)))
        assert client.gather(client.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]


def test_scaling_by_memory_and_cores() -> None:
    with LocalCluster(n_workers=0, threads_per_worker=2, memory_limit="500MB") as cluster:
        cluster.scale(cores=3)
        assert cluster.n_asked == 2
        cluster.scale(1, memory="1.2GB", cores=2)
        assert cluster.n_asked == 3
        cluster.scale(0)
    with LocalCluster(n_workers=0, memory_limit=0) as cluster, pytest.raises(UsageError, match="memory_limit"):
        cluster.scale(memory="1GB")


def test_lost_results_are_made_again_through_any_depth() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        first = future = client.submit(large, 7)
        for n in range(30):
            future = client.submit(lambda value, n: value[:-1] + bytes([n]), future, n)
        middle = client.submit(len, future)
        assert middle.result() == LARGE
        os.kill(client.scheduler_info()["workers"][cluster.worker_address("w0")]["pid"], signal.SIGKILL)
        assert client.submit(lambda value: value[-1], future).result() == 29
        assert first.result() == large(7)


def test_sizes_memory_and_moves_are_told() -> None:
    def hoard(dask_worker: object) -> None:
        dask_worker.hoard = bytearray(os.urandom(1)) * 50_000_000  # type: ignore[attr-defined]

    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        (address,) = before = client.scheduler_info()["workers"]
        memory = before[address]["metrics"]["memory"]
        future = client.submit(large, 1)
        assert len(future.result()) == LARGE
        assert LARGE <= client.nbytes()["large"] < LARGE + 1000
        assert client.nbytes([future], summary=False)[future.key] == client.nbytes()["large"]
        assert [row[2] for row in client.story(future)][-1] == "memory"
        client.run(hoard)
        metrics = client.scheduler_info()["workers"][address]["metrics"]
        assert metrics["memory"] > memory + 45_000_000
        assert metrics["managed_bytes"] >= LARGE
