"""A cluster that adapts: workers come with the work, go with it, and stay within bounds."""

from __future__ import annotations

import time

import pytest

from localdask import Client, LocalCluster
from localdask.errors import UsageError
from tests.conftest import wait_until


def nap(x: int) -> int:
    time.sleep(0.2)
    return x


def test_workers_come_with_the_work_and_go_with_it() -> None:
    with LocalCluster(n_workers=0, threads_per_worker=1) as cluster, Client(cluster) as client:
        adaptive = cluster.adapt(minimum=0, maximum=3, interval="20 ms", target_duration="100 ms")
        assert client.gather(client.map(nap, range(12))) == list(range(12))
        assert max(after for _, _, after in adaptive.log) > 1
        wait_until(lambda: cluster.n_asked == 0 and not cluster.scheduler.workers)
        assert client.submit(nap, 99).result() == 99
        assert all(after <= 3 for _, _, after in adaptive.log)


def test_stopped_it_leaves_the_workers_as_they_are() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        cluster.adapt(minimum=2, maximum=2, interval=0.02)
        wait_until(lambda: len(cluster.scheduler.workers) == 2)
        adaptive = cluster.adapt(interval=0.01)  # the bounds stay
        assert (adaptive.minimum, adaptive.maximum) == (2, 2)
        adaptive.stop()
        cluster.scale(1)
        wait_until(lambda: len(cluster.scheduler.workers) == 1)
        assert "stopped" in repr(adaptive)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"minimum": 3, "maximum": 2}, "no range"),
        ({"minimun": 3}, "no such option"),
        ({"interval": 0}, "a time above 0"),
        ({"maximum_memory": "1GB"}, "memory limit"),
    ],
)
def test_what_makes_no_sense_is_told(options: dict[str, object], text: str) -> None:
    with LocalCluster(n_workers=0, memory_limit=0) as cluster, pytest.raises(UsageError, match=text):
        cluster.adapt(**options)


def test_bounds_may_be_given_in_threads_and_memory() -> None:
    with LocalCluster(n_workers=0, threads_per_worker=2, memory_limit="1GB") as cluster:
        adaptive = cluster.adapt(minimum_cores=3, maximum_memory="5GB")
        assert (adaptive.minimum, adaptive.maximum) == (2, 5)
        adaptive.stop()
