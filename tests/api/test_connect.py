"""One call reaches a cluster here, and says what is missing for one elsewhere."""

from __future__ import annotations

import sys

import pytest

import localdask
from localdask import Client, LocalCluster


def test_a_cluster_or_its_address_gives_a_client_of_ours() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        for address in (cluster, cluster.scheduler_address):
            with localdask.connect(address) as client:
                assert isinstance(client, Client) and client.submit(abs, -1).result() == 1


def test_without_distributed_a_dask_cluster_is_refused_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"localdask\[distributed\]"):
        localdask.connect("tcp://127.0.0.1:8786")
