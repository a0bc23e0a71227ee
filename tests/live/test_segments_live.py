"""Segments of a running cluster: when shared memory is full, when their writer is killed, and in the long run."""

from __future__ import annotations

import errno
import gc
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from localdask import Client, LocalCluster, get_worker, wait
from localdask.system import codec, segments
from tests.conftest import wait_until

N = codec.LARGE_MIN // 8 + 1
N_ROUNDS = 1000


def make(number: int) -> Any:
    return np.full(N, float(number))


def names_of(cluster: LocalCluster) -> list[str]:
    """Return the cluster's segments, in shared memory and on disk."""
    assert cluster.segments is not None
    folders = [cluster.segments.path, segments.find_disk_folder(cluster.segments.path)]
    return [name for folder in folders for name in os.listdir(folder) if name not in ("owner.lock", "spare", "free")]


def fill(folder: segments.SegmentFolder) -> None:
    """Let a folder find no room in shared memory from now on."""

    def reserve(fd: int, nbytes: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").startswith(folder.path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder._reserve = reserve


def fill_workers(dask_worker: Any) -> None:
    fill(dask_worker.segments)


def die_while_writing(dask_worker: Any) -> None:
    """Let a worker be killed when half of the next segment is written."""

    def write_half(fd: int, pieces: list[memoryview]) -> None:
        os.write(fd, pieces[0][: pieces[0].nbytes // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    segments.write_all = write_half


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="how the test tells the folders apart")
def test_a_full_shared_memory_falls_back_to_disk_and_each_process_says_so_once(capfd: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, on_log=lambda source, stream, line: lines.append(line)) as cluster,
        Client(cluster) as client,
        Client(cluster.scheduler_address) as elsewhere,
    ):
        assert cluster.segments is not None
        client.run(fill_workers)
        fill(cluster.segments)
        assert elsewhere._link.segments is not None
        fill(elsewhere._link.segments)
        for _ in range(2):
            given = [one.scatter(make(2), hash=False) for one in (client, elsewhere)]
            made = [client.submit(make, 3, workers=name, pure=False) for name in ("w0", "w1")]
            assert client.gather(client.map(np.sum, [*client.gather(made), *made])) == [3 * N] * 4
            assert [one.submit(np.sum, data).result() for one, data in zip((client, elsewhere), given, strict=True)] == [2 * N] * 2
        told = f"/dev/shm is full; large data goes to {segments.find_disk_folder(cluster.segments.path)}, which is slower"
        wait_until(lambda: sum(told in line for line in lines) == 2)
        assert capfd.readouterr().err.splitlines() == [f"localdask: {told}"] * 2
        del given, made
        wait_until(lambda: gc.collect() >= 0 and not names_of(cluster))


def test_a_worker_killed_while_it_publishes_leaves_no_file_and_the_result_is_made_again(
    cluster: LocalCluster, client: Client, tmp_path: Path
) -> None:
    def make_noted(folder: str) -> Any:
        Path(folder, str(os.getpid())).touch()
        return make(4)

    client.run(die_while_writing)
    future = client.submit(make_noted, str(tmp_path), workers="w0")
    assert future.result().sum() == 4 * N
    assert len(os.listdir(tmp_path)) == 2
    assert len(names_of(cluster)) == 1
    del future
    wait_until(lambda: gc.collect() >= 0 and not names_of(cluster))


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="where mappings are looked up")
def test_many_rounds_of_large_data_leave_no_segment_mapping_or_descriptor(cluster: LocalCluster, client: Client) -> None:
    def look() -> tuple[int, int]:
        import gc

        gc.collect()
        return Path("/proc/self/maps").read_text().count("localdask-data-"), psutil.Process().num_fds()

    def play(number: int) -> None:
        scattered = client.scatter(make(number))
        given = client.submit(np.add, make(number), scattered)
        handed = [client.submit(np.add, given, 1, workers=name, pure=False) for name in ("w0", "w1")]
        assert [float(value[0]) for value in client.gather(handed)] == [2 * number + 1] * 2

    def counts() -> list[tuple[int, int]]:
        return [look(), *client.run(look).values()]

    for number in range(5):
        play(number)
    wait_until(lambda: not names_of(cluster))
    before = counts()
    for number in range(N_ROUNDS):
        play(number)
    wait_until(lambda: not names_of(cluster) and counts() == before, what="what was there before")
    assert [n_mapped for n_mapped, _ in before] == [0, 0, 0]


def test_what_the_page_on_data_shows_runs() -> None:
    codes = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs/data.md").read_text(), re.DOTALL)
    assert codes
    for code in codes:
        exec(code, {"__name__": "__main__"})


def test_a_reader_waits_for_the_busy_worker_that_holds_its_large_input_and_not_for_a_small_one() -> None:
    def reader(array: Any) -> str:
        return str(get_worker().name)

    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        client.submit(time.sleep, 0.02).result()  # how long it takes is known then
        for nbytes, place in [(4_000_000_000, "w0"), (1_000_000, "w1")]:
            array = client.submit(np.zeros, nbytes // 8, workers="w0")  # pages that nobody touches take no memory
            wait(array)
            busy = client.submit(time.sleep, 0.3, workers="w0", pure=False)
            assert client.submit(reader, array).result() == place
            busy.result()
