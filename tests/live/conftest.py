"""A fresh cluster and its client, for tests that break things."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from localdask import Client, LocalCluster


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client
