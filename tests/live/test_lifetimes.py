"""Workers that live for a limited time: replaced or gone, and nothing lost or done twice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from localdask import Client, LocalCluster, config, get_client, wait
from localdask.errors import UsageError
from tests.conftest import wait_until


@pytest.mark.parametrize("processes", [True, False])
def test_a_worker_whose_time_is_over_is_followed_and_loses_nothing(tmp_path: Path, processes: bool) -> None:
    def noted(n: int, folder: str) -> bytes:  # sent by value: a short life has no time to import this module
        with open(f"{folder}/{n}", "a") as file:
            file.write("x")
        time.sleep(0.02)
        return bytes([n]) * 100_000

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=processes, lifetime="300ms", lifetime_stagger=0.1, lifetime_restart=True
        ) as cluster,
        Client(cluster) as client,
    ):
        futures = client.map(noted, range(60), folder=str(tmp_path))
        wait_until(lambda: all(handle.life >= 3 for handle in cluster.workers.values()))
        assert [value[:1] for value in client.gather(futures)] == [bytes([n]) for n in range(60)]
        assert [(tmp_path / str(n)).read_text() for n in range(60)] == ["x"] * 60
        assert sorted(cluster.workers) == ["w0", "w1"]


def test_without_a_follower_the_cluster_shrinks_to_none_and_grows_when_asked() -> None:
    events: list[str] = []
    with (
        config.set({"worker.lifetime.duration": "200ms"}),
        LocalCluster(n_workers=2, threads_per_worker=1, on_event=lambda kind, **fields: events.append(kind)) as cluster,
        Client(cluster) as client,
    ):
        future = client.submit(abs, -1)
        wait_until(lambda: not cluster.workers and not cluster.scheduler.workers)
        assert events.count("lifetime-over") == 2
        assert cluster.n_asked == 0
        assert future.result() == 1
        cluster.scale(1)
        assert client.submit(abs, -2).result() == 2


def test_a_killed_worker_s_follower_has_a_life_of_its_own() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1, lifetime=0.4, lifetime_restart=True) as cluster, Client(cluster) as client:
        cluster.workers["w0"].kill()
        wait_until(lambda: cluster.workers["w0"].life >= 3)
        assert client.submit(abs, -1).result() == 1


def test_a_worker_is_followed_once_it_has_run_its_tasks_and_loses_nothing(tmp_path: Path) -> None:
    def noted(n: int, folder: str) -> bytes:
        with open(f"{folder}/{n}", "a") as file:
            file.write("x")
        if n % 10 == 9:
            raise ValueError(n)
        return bytes([n]) * 100_000

    events: list[str] = []
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, lifetime_tasks=10, on_event=lambda kind, **_: events.append(kind)) as cluster,
        Client(cluster) as client,
    ):
        first = client.map(noted, range(20), folder=str(tmp_path))
        wait(first)
        wait_until(lambda: any(handle.life >= 2 for handle in cluster.workers.values()))  # 20 tasks: one has run 10
        futures = first + client.map(noted, range(20, 60), folder=str(tmp_path))
        wait(futures)
        good = [n for n in range(60) if n % 10 != 9]
        assert [value[:1] for value in client.gather([futures[n] for n in good])] == [bytes([n]) for n in good]
        assert [(tmp_path / str(n)).read_text() for n in range(60)] == ["x"] * 60
        wait_until(lambda: events.count("lifetime-over") >= 5)  # no life ran more than 10
        assert sorted(cluster.workers) == ["w0", "w1"]


def test_a_task_that_waits_for_more_tasks_than_a_worker_may_run_has_them_run() -> None:
    def parent() -> int:
        client = get_client()
        return sum(client.gather(client.map(abs, range(-20, 0))))

    with LocalCluster(n_workers=1, threads_per_worker=1, lifetime_tasks=5) as cluster, Client(cluster) as client:
        assert client.submit(parent).result(timeout=30) == 210
        wait_until(lambda: cluster.workers["w0"].life == 2)


def test_a_worker_is_followed_once_it_has_grown_and_loses_nothing() -> None:
    def leak(n: int) -> bytes:
        import sys

        sys.leaked = [*getattr(sys, "leaked", []), b"x" * 30_000_000]  # type: ignore[attr-defined]
        return bytes([n]) * 100_000

    with LocalCluster(n_workers=2, threads_per_worker=1, lifetime_memory="150 MB") as cluster, Client(cluster) as client:
        before = {name: handle.life for name, handle in cluster.workers.items()}
        client.gather(client.map(abs, range(1000)))
        assert {name: handle.life for name, handle in cluster.workers.items()} == before
        futures = client.map(leak, range(20))
        assert [value[:1] for value in client.gather(futures)] == [bytes([n]) for n in range(20)]
        wait_until(lambda: sum(handle.life for handle in cluster.workers.values()) >= 4)


def test_memory_of_a_lifetime_is_a_size_and_ends_no_threads() -> None:
    with pytest.raises(UsageError, match="'much' is no size"):
        LocalCluster(n_workers=1, lifetime_memory="much")
    with LocalCluster(n_workers=1, processes=False, lifetime_memory=1) as cluster, Client(cluster) as client:
        client.gather(client.map(abs, range(10)))
        assert cluster.workers["w0"].life == 1


@pytest.mark.parametrize("number", [2.5, "many"])
def test_a_number_of_tasks_is_whole(number: object) -> None:
    with config.set({"worker.lifetime.tasks": number}), pytest.raises(UsageError, match="whole number of tasks"):
        LocalCluster(n_workers=1)


def test_a_stagger_without_a_lifetime_is_refused() -> None:
    with pytest.raises(UsageError, match="give lifetime too"):
        LocalCluster(n_workers=1, lifetime_stagger="5s")


@pytest.mark.parametrize("name", ["setup_timeout", "teardown_timeout"])
def test_limits_of_hooks_are_times_as_people_write_them(name: str) -> None:
    for wrong in ("soon", -1, None, float("nan")):
        with pytest.raises(UsageError, match=f"{name}=|is no duration"):
            LocalCluster(n_workers=1, **{name: wrong})  # type: ignore[arg-type]
    with LocalCluster(n_workers=1, processes=False, **{name: "20s"}) as cluster:  # type: ignore[arg-type]
        assert cluster.status == "running"
