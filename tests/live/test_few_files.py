"""A process that may have few files open, as ``ulimit -n`` has it: a cluster works in it, or says what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from localdask import LocalCluster
from localdask.errors import StartError
from tests.live.scripts import running

LIMITED = """
import os, resource, sys
import numpy as np
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[1])))
from localdask import Client, LocalCluster
from localdask.errors import StartError

def close_streams():
    os.close(1)
    os.close(2)

try:
    with LocalCluster(n_workers=int(sys.argv[2]), threads_per_worker=1) as cluster, Client(cluster) as client:
        print(client.submit(np.ones, 1 << 18).result().sum())
        client.submit(close_streams).result()
        client.gather(client.map(print, ["said after"] * 8, pure=False))
except StartError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [32, 64])
def test_a_cluster_starts_and_mends_what_tasks_close(limit: int, tmp_path: Path) -> None:
    with running(LIMITED, folder=tmp_path, arguments=[str(limit), "2"]) as script:
        assert script.end() == 0
        lines = script.text.splitlines()
        assert lines[0] == "262144.0"
        assert sorted(lines[1:]) == ["said after"] * 8


@pytest.mark.parametrize("n_workers", [18, 24])
def test_more_workers_than_the_limit_allows_are_an_error_that_says_so(n_workers: int, tmp_path: Path) -> None:
    with running(LIMITED, folder=tmp_path, arguments=["64", str(n_workers)]) as script:
        assert script.end() == 0
        assert "did not start" in script.text.splitlines()[-1]
        assert "ulimit -n" in script.text.splitlines()[-1]


def test_a_start_ends_when_a_worker_is_not_tried_again() -> None:
    preload = """
import os, threading, time
def leave(worker):
    while worker.status != "running":
        time.sleep(0.01)
    time.sleep(0.01)  # for its word that it is up; before that, it is a start that failed
    with worker.lock:
        os._exit(3)

def dask_setup(worker):
    if worker.name == "w0":
        threading.Thread(target=leave, args=(worker,), daemon=True).start()
    else:
        time.sleep(1000)
"""
    with pytest.raises(StartError, match="worker w0 died 6 times within 30 s; it is not started again"):
        LocalCluster(n_workers=2, threads_per_worker=1, preload=preload, setup_timeout=2000)
