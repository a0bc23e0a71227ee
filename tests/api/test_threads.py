"""``LocalCluster(processes=False)``: the same meanings, in threads of this process."""

from __future__ import annotations

import os

import pytest

from localdask import Client, LocalCluster
from localdask.errors import PreloadError, UsageError


def test_tasks_run_in_this_process() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False) as cluster, Client(cluster) as client:
        assert client.submit(os.getpid).result() == os.getpid()
        assert client.gather(client.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]
        with pytest.raises(ZeroDivisionError):
            client.submit(divmod, 1, 0).result()


def test_worker_preloads_are_set_up_and_torn_down(tmp_path: object) -> None:
    log = f"{tmp_path}/log"
    text = (
        f"log = {log!r}\n"
        "def note(what):\n    with open(log, 'a') as file:\n        file.write(what + ' ')\n"
        "def dask_setup(worker):\n    note('up')\n"
        "def dask_teardown(worker):\n    note('down')\n"
    )
    with LocalCluster(n_workers=1, processes=False, preload=text), open(log) as file:
        assert file.read() == "up "
    with open(log) as file:
        assert file.read() == "up down "


def test_there_are_no_nannies_to_preload() -> None:
    with pytest.raises(UsageError, match="no nannies"):
        LocalCluster(n_workers=1, processes=False, preload_nanny="import os; os.nice(0)")
    with (
        LocalCluster(n_workers=1, processes=False) as cluster,
        Client(cluster) as client,
        pytest.raises(ValueError, match="no nannies"),
    ):
        client.run(os.getpid, nanny=True)


def test_a_failing_preload_fails_the_start_and_leaves_nothing() -> None:
    with pytest.raises(PreloadError, match="division"):
        LocalCluster(n_workers=1, processes=False, preload="def dask_setup(worker):\n    1 / 0\n")
