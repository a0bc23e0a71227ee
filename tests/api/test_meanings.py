"""Meanings of Dask's that programs written for it rely on, each with the few lines that such a program has."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple

import pytest

from localdask import Client, LocalCluster, as_completed, default_client, get_client, sizing, wait
from localdask.cancellations import FutureCancelledError
from localdask.errors import SerializationError

pytestmark = pytest.mark.shared


class Pair(NamedTuple):
    x: Any
    y: Any = 0


class Settings(dict):  # type: ignore[type-arg]
    """A mapping of a library's own."""


class Steps(list):  # type: ignore[type-arg]
    """A list of a library's own."""


def double(x: int) -> int:
    return 2 * x


def fail(text: str) -> None:
    raise ValueError(text)


def same(x: Any) -> Any:
    return x


def test_futures_in_named_tuples_and_in_subclasses_of_containers_are_resolved(client: Client) -> None:
    future = client.submit(double, 3)
    assert client.submit(same, Pair(future, [future])).result() == Pair(6, [6])
    assert client.submit(same, OrderedDict(b=future, a=1)).result() == OrderedDict(b=6, a=1)
    counts = client.submit(same, defaultdict(list, a=[future])).result()
    assert counts == {"a": [6]} and counts["missing"] == []
    settings = client.submit(same, Settings(x={"y": (future,)})).result()
    assert type(settings) is Settings and settings == {"x": {"y": (6,)}}
    steps = client.submit(same, Steps([1, future])).result()
    assert type(steps) is Steps and steps == [1, 6]
    assert client.gather(client.map(same, [Pair(future, y) for y in range(3)])) == [Pair(6, y) for y in range(3)]


def test_containers_of_the_caller_keep_their_futures(client: Client) -> None:
    future = client.submit(double, 3)
    mine = Settings(x=future)
    assert client.submit(same, mine).result() == {"x": 6}
    assert mine == {"x": future}


def test_the_exception_of_a_cancelled_future_is_none(client: Client) -> None:
    future = client.submit(double, 3)
    future.cancel()
    assert future.exception() is None and future.traceback() is None
    with pytest.raises(FutureCancelledError):
        future.result()


def test_as_completed_gives_an_error_as_type_value_and_traceback(client: Client) -> None:
    good, bad = client.submit(double, 4), client.submit(fail, "no")
    found = dict(as_completed([good, bad], with_results=True, raise_errors=False))
    assert found[good] == 8
    kind, error, traceback = found[bad]
    assert kind is ValueError and str(error) == "no" and traceback.tb_frame.f_code.co_name == "fail"


def test_as_completed_gives_a_cancellation_in_place_of_the_result(client: Client) -> None:
    future = client.submit(double, 5)
    future.cancel()
    ((done, result),) = as_completed([future], with_results=True)
    assert done is future and isinstance(result, FutureCancelledError)


def test_as_completed_gives_the_same_to_coroutines(client: Client) -> None:
    bad, cancelled = client.submit(fail, "never"), client.submit(double, 6)
    cancelled.cancel()

    async def collect() -> dict[Any, Any]:
        return {future: result async for future, result in as_completed([bad, cancelled], with_results=True, raise_errors=False)}

    found = asyncio.run(collect())
    assert found[bad][0] is ValueError and str(found[bad][1]) == "never"
    assert isinstance(found[cancelled], FutureCancelledError)


def test_a_coroutine_function_is_awaited_on_the_scheduler(client: Client) -> None:
    async def count(dask_scheduler: Any, more: int) -> int:
        await asyncio.sleep(0)
        return len(dask_scheduler.workers) + more

    assert client.run_on_scheduler(count, more=1) == 3

    async def within_a_loop() -> int:
        return client.run_on_scheduler(count, more=2)  # type: ignore[return-value]

    assert asyncio.run(within_a_loop()) == 4
    assert client.submit(on_scheduler, count).result() == 5


def on_scheduler(function: Any) -> Any:
    return get_client().run_on_scheduler(function, more=3)


def test_a_client_or_cluster_in_a_task_is_refused_with_what_to_do(client: Client, shared_cluster: LocalCluster) -> None:
    with pytest.raises(SerializationError, match=r"closure variable client is a localdask.*Client; call get_client\(\) inside the task"):
        client.submit(lambda: client.submit(double, 1).result())
    with pytest.raises(SerializationError, match=r"args\[0\] is a localdask.*LocalCluster; call get_client\(\) inside the task"):
        client.submit(same, shared_cluster)
    with pytest.raises(TypeError, match="a Client stays in its process"):
        pickle.dumps(client)


def test_a_cluster_gives_the_current_client_if_that_is_its_own(client: Client, shared_cluster: LocalCluster) -> None:
    assert shared_cluster.get_client() is client
    with Client(shared_cluster, set_as_default=False) as other, other.as_current():
        assert shared_cluster.get_client() is other
    with LocalCluster(n_workers=1, processes=False) as another, another.get_client() as its_own:
        assert its_own is not client and its_own.cluster is another


def default_in_task() -> bool:
    return default_client() is get_client() is Client.current()


def test_the_default_client_of_a_task_is_that_of_get_client(client: Client) -> None:
    assert client.submit(default_in_task).result()


def test_errors_have_the_names_that_are_imported_from_distributed(client: Client) -> None:
    from localdask import CancelledError, TimeoutError

    future = client.submit(time.sleep, 60)
    with pytest.raises(TimeoutError):
        future.result(timeout=0.01)
    client.cancel(future, force=True)
    with pytest.raises(CancelledError):
        future.result()


def test_a_worker_is_described_in_dasks_words(client: Client) -> None:
    info = client.scheduler_info()
    for worker in info["workers"].values():
        assert worker["host"] == "127.0.0.1" and worker["services"] == {}
        assert worker["last_seen"] <= time.time()
        assert worker["memory_limit"] > 0 and worker["status"] == "running"
    memory = f"memory={sizing.format_bytes(info['total_memory'])}"
    assert repr(client) == f"<Client: {info['address']!r} processes=2 threads=2, {memory}>"


def test_the_scheduler_shows_its_tasks_by_key(client: Client) -> None:
    future = client.submit(double, 21, key="twice")
    wait(future)
    assert client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.tasks["twice"].state) == "memory"
