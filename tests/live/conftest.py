"""A fresh cluster and its client, for tests that break things."""

from __future__ import annotations

from collections.abc import Iterator

import cloudpickle
import pytest

from localdask import Client, LocalCluster
from localdask.api import callbacks


@pytest.fixture(autouse=True, scope="module")
def functions_travel_by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """Spare each new worker the import of the test's module, and with it of pytest, which takes longer than the test."""
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture
def by_reference(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have a test's functions and classes travel by their names all the same."""
    cloudpickle.unregister_pickle_by_value(request.module)
    yield
    cloudpickle.register_pickle_by_value(request.module)


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(callbacks, "IDLE_S", 0.01)  # or each test with a callback waits a second for its thread's end
    with Client(cluster) as client:
        yield client
