"""Workers that use more memory than they may."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from localdask import Client, LocalCluster, config
from localdask.errors import KilledWorker
from localdask.state import pausing
from localdask.system.segments import find_disk_folder
from tests.conftest import wait_until


def devour() -> None:
    hoard = []
    while True:
        hoard.append(b"x" * 10_000_000)
        time.sleep(0.005)


def test_a_task_that_takes_all_memory_is_named_and_the_worker_replaced() -> None:
    lines: list[str] = []
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            memory_limit="300MB",
            allowed_failures=0,
            on_log=lambda source, stream, line: lines.append(line),
        ) as cluster,
        Client(cluster) as client,
    ):
        future = client.submit(devour, key="the-glutton")
        with pytest.raises(KilledWorker, match=r"the-glutton.*out of memory: it used .* memory_limit of 286.10 MiB"):
            future.result()
        wait_until(lambda: any("worker w0 was ended while it ran the-glutton" in line for line in lines))
        assert client.submit(abs, -1).result() == 1


def test_the_step_may_be_switched_off() -> None:
    def take(nbytes: int) -> int:
        held = b"x" * nbytes
        time.sleep(0.3)  # three looks
        return len(held)

    with (
        config.set({"worker.memory.terminate": False}),
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit="50MB", allowed_failures=0) as cluster,
        Client(cluster) as client,
    ):
        assert client.submit(take, 100_000_000).result() == 100_000_000


def test_a_worker_is_paused_while_its_results_take_too_much_and_says_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(nbytes: int) -> list[bytes]:
        return [b"x" * 100_000 for _ in range(nbytes // 100_000)]

    monkeypatch.setattr(pausing, "LOOK_S", 0.05)
    lines: list[str] = []
    events: list[str] = []
    with (
        config.set({"worker.memory": {"target": False, "spill": False, "pause": 0.5, "terminate": False}}),
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            memory_limit="300MB",
            on_log=lambda source, stream, line: lines.append(line),
            on_event=lambda kind, **fields: events.append(kind),
        ) as cluster,
        Client(cluster) as client,
    ):
        hoard = client.submit(make, 200_000_000, key="hoard")
        wait_until(lambda: [info["status"] for info in client.scheduler_info()["workers"].values()] == ["paused"])
        waiting = client.submit(abs, -1)
        wait_until(lambda: any("w0 stays paused" in line and "the largest is 'hoard'" in line for line in lines))
        assert not waiting.done()
        hoard.release()
        assert waiting.result() == 1
        assert [kind for kind in events if kind.startswith("worker-")] == ["worker-joined", "worker-paused", "worker-resumed"]


def test_a_worker_is_not_kept_paused_by_what_its_tasks_have_freed(tmp_path: Path) -> None:
    def use(nbytes: int, sign: str) -> int:
        held = [bytes([n]) * 1_000_000 for n in range(nbytes // 1_000_000)]
        while not os.path.exists(sign):
            time.sleep(0.01)
        return len(held)

    def tell(kind: str, **fields: Any) -> None:
        if kind == "worker-paused":
            (tmp_path / "paused").touch()

    with (
        config.set({"worker.memory": {"target": False, "spill": False, "pause": 0.6, "terminate": False}}),
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit="100MB", on_event=tell) as cluster,
        Client(cluster) as client,
    ):
        assert client.submit(use, 60_000_000, str(tmp_path / "paused")).result() == 60
        assert client.submit(abs, -1).result(timeout=30) == 1


def test_results_beyond_the_target_go_to_disk_and_outlive_their_worker(tmp_path: Path) -> None:
    def make(n: int, folder: str) -> bytes:
        with open(f"{folder}/{n}", "a") as file:
            file.write("x")
        return bytes([n]) * 10_000_000

    def spilled() -> list[dict[str, int]]:
        return [info["metrics"]["spilled_bytes"] for info in client.scheduler_info()["workers"].values()]

    def files() -> list[str]:
        return [name for name in os.listdir(disk) if name.startswith("held-")]

    with (
        config.set({"worker.memory.target": 0.1, "worker.memory.max-spill": "45MB"}),
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit="250MB", local_directory=tmp_path / "scratch") as cluster,
        Client(cluster) as client,
    ):
        assert cluster.segments is not None
        disk = find_disk_folder(cluster.segments.path)
        assert disk.startswith(f"{tmp_path}/scratch/")
        futures = client.map(make, range(6), folder=str(tmp_path))
        wait_until(lambda: [row["disk"] // 10_000_000 for row in spilled()] == [4])
        assert client.gather(client.map(lambda value: (value[0], len(value)), futures)) == [(n, 10_000_000) for n in range(6)]
        assert client.run(lambda dask_worker: [value[0] for value in dask_worker.data.values() if isinstance(value, bytes)]) == {
            cluster.worker_address("w0"): [0, 1, 2, 3, 4, 5]
        }
        for name in files():
            os.unlink(os.path.join(disk, name))
        assert client.gather(client.map(lambda value: value[0], futures)) == [0, 1, 2, 3, 4, 5]  # made again
        wait_until(lambda: [row["disk"] // 10_000_000 for row in spilled()] == [4])
        Path(disk, "held-w0-1-unfinished.part").touch()
        os.kill(cluster.scheduler.workers["w0"].pid, signal.SIGKILL)
        assert [value[:1] for value in client.gather(futures)] == [bytes([n]) for n in range(6)]
        assert sum(len((tmp_path / str(n)).read_text()) for n in range(6)) == 6 + 4 + 2  # of the last, two were in memory alone
        for future in futures:
            future.release()
        wait_until(lambda: not files())


def test_a_process_that_is_too_large_moves_its_results_to_disk_and_goes_on() -> None:
    def make(n: int) -> list[bytes]:
        return [bytes([n]) * 100_000 for _ in range(400)]

    with (
        config.set({"worker.memory": {"target": False, "spill": 0.4, "pause": 0.5, "terminate": False}}),
        LocalCluster(n_workers=1, threads_per_worker=1, memory_limit="200MB") as cluster,
        Client(cluster) as client,
    ):
        futures = client.map(make, range(4))

        def metrics() -> dict[str, Any]:
            (info,) = client.scheduler_info()["workers"].values()
            return info["metrics"]  # type: ignore[no-any-return]

        wait_until(lambda: metrics()["spilled_bytes"]["disk"] >= 80_000_000 and metrics()["memory"] <= 80_000_000)
        assert [value[0][0] for value in client.gather(client.map(lambda value: value[:1], futures))] == [0, 1, 2, 3]


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="only glibc can be told what to keep")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_tasks_free_is_kept_for_the_next_ones(method: str) -> None:
    def fresh_pages() -> int:
        import resource

        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        held = [b"x" * 2_000_000 for _ in range(8)]
        del held
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with LocalCluster(n_workers=1, threads_per_worker=1, start_method=method) as cluster, Client(cluster) as client:
        first, second = (client.submit(fresh_pages, pure=False).result() for _ in range(2))
    assert second < first / 4
