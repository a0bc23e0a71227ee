"""What scripts written for Dask say: taken where it makes no difference, refused with a word where it would be missed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from localdask import Client, LocalCluster
from localdask.api.likeness import check_cluster_words
from localdask.errors import UsageError

pytestmark = pytest.mark.shared


async def add(x: int, y: int = 1) -> int:
    await asyncio.sleep(0)
    return x + y


def test_keywords_that_make_no_difference_are_accepted() -> None:
    check_cluster_words(
        {
            "dashboard_address": ":0",
            "silence_logs": False,
            "scheduler_port": 0,
            "host": "127.0.0.1",
            "security": None,
            "protocol": "tcp://",
        },
        maker=LocalCluster,
    )


@pytest.mark.parametrize(
    ("words", "mend"),
    [({"host": "10.0.0.1"}, "leave it out"), ({"security": object()}, "this user"), ({"worker_class": int}, "preload=")],
)
def test_keywords_that_would_be_missed_are_refused(words: dict[str, Any], mend: str) -> None:
    with pytest.raises(UsageError, match=mend):
        check_cluster_words(words, maker=LocalCluster)


def test_a_misspelt_keyword_of_a_cluster_is_refused_before_anything_begins() -> None:
    with pytest.raises(TypeError, match="no argument 'n_wokers'; did you mean n_workers?"):
        LocalCluster(n_wokers=2)
    with pytest.raises(TypeError, match="no argument 'n_worker'; did you mean n_workers?"):
        Client(n_worker=2)
    with pytest.raises(TypeError, match="no argument 'xyzzy'; docs/api.md"):
        LocalCluster(xyzzy=2)


def test_a_client_takes_dasks_own_keywords(shared_cluster: LocalCluster) -> None:
    with Client(shared_cluster, heartbeat_interval="5s", direct_to_workers=True, serializers=["pickle"]) as client:
        assert client.submit(abs, -1).result() == 1
    with pytest.raises(ValueError, match="n_workers"):
        Client(shared_cluster, n_workers=3, loop=None)
    with pytest.raises(ValueError, match="did you mean timeout?"):
        Client(shared_cluster, tiemout=3)


@pytest.mark.parametrize("address", [3, b"unix://x", ("127.0.0.1", 8786), LocalCluster])
def test_a_client_of_what_is_no_cluster_says_what_it_takes(address: Any) -> None:
    with pytest.raises(TypeError, match=r"give a LocalCluster, or a text: a cluster's name"):
        Client(address)


def test_a_client_is_told_by_a_scheduler_file_where_its_cluster_is(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    client.write_scheduler_file(path)
    with Client(scheduler_file=str(path), set_as_default=False) as other:
        assert other.submit(abs, -2).result() == 2


def test_a_coroutine_is_run_by_sync(client: Client) -> None:
    assert client.sync(add, 1, y=2) == 3
    with pytest.raises(ZeroDivisionError):
        client.sync(fail)
    with pytest.raises(TimeoutError):
        client.sync(asyncio.sleep, 60, callback_timeout="10 ms")


async def fail() -> None:
    raise ZeroDivisionError


def test_what_places_data_has_nothing_to_do(client: Client) -> None:
    future = client.scatter(1)
    client.rebalance([future])
    client.replicate([future], n=2)
    assert future.result() == 1
    assert future.executor is client
