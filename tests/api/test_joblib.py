"""``joblib.parallel_config("localdask")``: joblib's batches run on the cluster, and everything about them is joblib's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import pytest

from localdask import Client, LocalCluster
from localdask.errors import UsageError

pytestmark = pytest.mark.shared


def square(x: int) -> int:
    return x * x


def pid_of(x: object) -> int:
    return os.getpid()


def nested(n: int) -> tuple[int, set[int]]:
    found = joblib.Parallel(n_jobs=-1)(joblib.delayed(pid_of)(i) for i in range(n))
    return sum(joblib.Parallel()(joblib.delayed(square)(i) for i in range(n))), set(found)


def fail_at(x: int, bad: int, path: str) -> int:
    if x == bad:
        raise KeyError(x)
    time.sleep(0.02)
    with open(path, "a") as file:
        file.write(".")
    return x


def test_batches_run_on_workers_in_order(client: Client) -> None:
    with joblib.parallel_config("localdask"):
        assert joblib.Parallel()(joblib.delayed(square)(i) for i in range(100)) == [i * i for i in range(100)]
        pids = set(joblib.Parallel(n_jobs=-1, batch_size=1)(joblib.delayed(pid_of)(i) for i in range(20)))
    assert pids <= set(client.run(os.getpid).values())


@pytest.mark.parametrize("batch_size", ["auto", 1, 7])
def test_small_calls_are_batched(client: Client, batch_size: object) -> None:
    with joblib.parallel_config("localdask"):
        results = joblib.Parallel(batch_size=batch_size)(joblib.delayed(square)(i) for i in range(2000))
    assert results == [i * i for i in range(2000)]


def test_functions_of_this_script_and_arrays_travel(client: Client) -> None:
    array = np.arange(200_000)
    with joblib.parallel_config("localdask"):
        assert joblib.Parallel()(joblib.delayed(lambda a, i: int(a[i]))(array, i) for i in range(6)) == list(range(6))


def test_results_may_be_taken_as_they_come(client: Client) -> None:
    with joblib.parallel_config("localdask"):
        ordered = joblib.Parallel(return_as="generator")(joblib.delayed(square)(i) for i in range(20))
        assert next(iter(ordered)) == 0
        assert list(ordered) == [i * i for i in range(1, 20)]
        unordered = joblib.Parallel(return_as="generator_unordered")(joblib.delayed(square)(i) for i in range(20))
        assert sorted(unordered) == [i * i for i in range(20)]


def test_an_error_ends_the_rest(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "ran"
    with joblib.parallel_config("localdask"):
        joblib.Parallel(batch_size=1)(joblib.delayed(square)(i) for i in range(2000))  # so short that workers are sent many ahead
        with pytest.raises(KeyError):
            joblib.Parallel(batch_size=1, pre_dispatch="all")(joblib.delayed(fail_at)(i, 1, str(path)) for i in range(200))
        assert joblib.Parallel()(joblib.delayed(square)(i) for i in range(5)) == [0, 1, 4, 9, 16]
    assert not path.exists() or len(path.read_text()) < 150


def test_a_timeout_is_joblibs(client: Client) -> None:
    with joblib.parallel_config("localdask"), pytest.raises(Exception) as caught:
        joblib.Parallel(timeout=0.05)(joblib.delayed(time.sleep)(0.5) for _ in range(2))
    assert "Timeout" in type(caught.value).__name__


def test_parallel_within_parallel_uses_the_cluster_without_deadlock(client: Client) -> None:
    with joblib.parallel_config("localdask"):
        results = joblib.Parallel(batch_size=1)(joblib.delayed(nested)(n) for n in (5, 6, 7, 8))
    workers = set(client.run(os.getpid).values())
    assert [total for total, _ in results] == [30, 55, 91, 140]
    assert all(pids <= workers for _, pids in results)


def test_the_number_of_jobs_is_the_clusters_threads(client: Client) -> None:
    with joblib.parallel_config("localdask"):
        assert joblib.effective_n_jobs(-1) == 2
        assert joblib.effective_n_jobs(-2) == 1
        assert joblib.effective_n_jobs(5) == 5
        with pytest.raises(ValueError, match="n_jobs == 0"):
            joblib.effective_n_jobs(0)


def test_a_client_may_be_named(shared_cluster: LocalCluster) -> None:
    with Client(shared_cluster, set_as_default=False) as client, joblib.parallel_config("localdask", client=client):
        assert joblib.Parallel()(joblib.delayed(square)(i) for i in range(5)) == [0, 1, 4, 9, 16]


def test_without_a_client_the_error_says_what_to_do() -> None:
    import localdask.integrations.joblib

    assert localdask.integrations.joblib.LocaldaskBackend
    with pytest.raises(UsageError, match="make one first"), joblib.parallel_config("localdask"):
        joblib.Parallel(n_jobs=2)(joblib.delayed(square)(i) for i in range(5))


@pytest.mark.parametrize("order", ["before", "after"])
def test_joblib_may_be_imported_before_the_client_or_after(order: str) -> None:
    code = f"""
import os
if {order!r} == "before": import joblib
from localdask import Client
with Client(n_workers=1) as client:
    import joblib
    with joblib.parallel_config("localdask"):
        print(set(joblib.Parallel(n_jobs=2)(joblib.delayed(os.getpid)() for i in range(5))) == set(client.run(os.getpid).values()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True\n", "")
