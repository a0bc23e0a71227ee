"""``localdask.empty``: in tasks and in the client, what is published of it, and where it is plain memory."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import localdask
from localdask import Client, LocalCluster
from localdask.api.arrays import IN_PLACE_MIN
from localdask.system.unfinished_segments import UnfinishedSegment
from tests.conftest import wait_until

N = IN_PLACE_MIN // 8


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client


def stored(cluster: LocalCluster) -> dict[str, int]:
    """Return the inodes of the cluster's segments by name, those that are to be filled too."""
    assert cluster.segments is not None
    entries = [entry for entry in os.scandir(cluster.segments.path) if entry.name not in ("owner.lock", "spare", "free")]
    return {entry.name: entry.inode() for entry in entries}


def make(value: float) -> Any:
    array = localdask.empty(N)
    assert isinstance(array.base, UnfinishedSegment) is (sys.platform == "linux")
    array[:] = value
    return array


def test_a_task_returns_one_and_goes_on_with_it(client: Client) -> None:
    def change(array: Any) -> Any:
        array[0] = 9
        return float(array[0])

    future = client.submit(make, 1.0, pure=False, workers="w0")
    assert (future.result() == 1).all()
    assert client.submit(change, future, workers="w0").result() == 9
    assert (client.submit(lambda array: array, future, workers="w1").result() == 1).all()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no segment is filled in place")
def test_what_the_client_scatters_or_passes_is_not_copied_and_does_not_change(cluster: LocalCluster, client: Client) -> None:
    gives = (client.scatter, lambda array: client.submit(lambda given: given, array, pure=False))
    for value, give in zip((2.0, 4.0), gives, strict=True):  # an equal one would be recognised, and not published
        before = stored(cluster)
        array = make(value)
        (inode,) = {*stored(cluster).values()} - {*before.values()}
        future = give(array)
        assert inode in {number for name, number in stored(cluster).items() if not name.endswith(".part")}
        array[:] = 3
        assert (future.result() == value).all()
        assert (give(array).result() == 3).all()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no segment is filled in place")
def test_one_that_a_killed_worker_had_not_returned_is_removed(cluster: LocalCluster, client: Client) -> None:
    def die(number: int) -> Any:
        array = make(1.0)
        if localdask.get_worker().life == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return float(array.sum())

    before = stored(cluster).keys()
    life = client.submit(lambda: localdask.get_worker().life, workers="w0", pure=False).result()
    assert client.submit(die, life, workers="w0", pure=False).result() == N
    wait_until(lambda: stored(cluster).keys() <= before)


def test_small_ones_and_those_of_objects_and_those_outside_of_a_cluster_are_plain(client: Client) -> None:
    assert localdask.empty((2, 3), "int32").shape == (2, 3)
    assert localdask.empty(N - 1).base is None
    assert localdask.empty(N, object).base is None
    client.close()
    assert localdask.empty(N).base is None


def test_it_is_refused_as_numpy_does() -> None:
    with pytest.raises(ValueError, match="negative"):
        localdask.empty(-1)
    assert localdask.empty(3).dtype == np.float64
