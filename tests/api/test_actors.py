"""Actors: objects that live in one worker, and are called from wherever a proxy of them is."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from localdask import Actor, Client, LocalCluster, get_client, get_worker
from localdask.api import actors, waiting
from localdask.errors import ActorLostError, UsageError
from tests.conftest import wait_until


class Counter:
    """Counts, and notes in a file that it ended."""

    unit = "apples"

    def __init__(self, n: int = 0, grave: str = "") -> None:
        self.n = n
        self.grave = grave
        self.pid = os.getpid()

    def add(self, x: int = 1) -> int:
        n = self.n
        time.sleep(0)  # lets other threads in
        self.n = n + x
        return self.n

    def fail(self) -> None:
        raise KeyError("of the counter")

    def die(self) -> None:
        os._exit(3)

    async def later(self, x: int) -> int:
        await asyncio.sleep(0)
        return self.n + x

    def where(self) -> tuple[str, str]:
        return get_worker().name, threading.current_thread().name

    def submit(self, x: int) -> int:
        return int(get_client().submit(abs, x).result())

    def call(self, other: Any) -> int:
        return int(other.add(10).result())

    def wait_until_told(self, path: str) -> int:
        wait_until(lambda: os.path.exists(path))
        return self.n

    def __del__(self) -> None:
        if self.grave:
            Path(self.grave).touch()


def use(counter: Any, x: int) -> int:
    return int(counter.add(x).result())


@pytest.fixture
def counter(client: Client) -> Any:
    return client.submit(Counter, 5, actor=True).result()


@pytest.mark.shared
class TestOnASharedCluster:
    def test_methods_return_futures_and_attributes_values(self, counter: Any) -> None:
        assert isinstance(counter, Actor)
        assert counter.add(2).result() == 7
        assert (counter.n, counter.unit) == (7, "apples")
        assert counter.later(1).result(timeout="20 s") == 8
        assert "add" in dir(counter) and "Counter" in repr(counter)

    def test_errors_are_those_of_the_method(self, counter: Any) -> None:
        with pytest.raises(KeyError, match="of the counter"):
            counter.fail().result()
        with pytest.raises(AttributeError, match="nothing"):
            counter.nothing  # noqa: B018 - asking is the point
        with pytest.raises(TypeError):
            counter.add(1, 2, 3).result()
        assert counter.add().result() == 6

    def test_calls_are_done_one_at_a_time_from_wherever_they_come(self, client: Client, counter: Any) -> None:
        values = [future.result() for future in [counter.add() for _ in range(100)]]
        in_tasks = client.map(use, [counter] * 20, [1] * 20, pure=False)
        assert values == list(range(6, 106))
        assert sorted(client.gather(in_tasks)) == list(range(106, 126))

    def test_a_task_may_take_the_future_of_an_actor(self, client: Client) -> None:
        future = client.submit(Counter, actors=True)
        assert sorted(client.gather([client.submit(use, future, 1, pure=False) for _ in range(4)])) == [1, 2, 3, 4]

    def test_a_held_actor_is_told_by_its_types_name(self) -> None:
        assert f"{actors.HeldActor.__module__}.{actors.HeldActor.__qualname__}" == waiting.ACTOR_TYPE

    def test_two_actors_are_never_the_same(self, client: Client) -> None:
        one, two = client.gather(client.map(Counter, [1, 1], actor=True))
        assert one.add().result() == two.add().result() == 2

    def test_a_method_takes_no_tasks_slot(self, client: Client, counter: Any, tmp_path: Path) -> None:
        name, thread = counter.where().result()
        busy = counter.wait_until_told(str(tmp_path / "go"))
        assert client.submit(abs, -3, workers=name, pure=False).result() == 3
        assert thread == "localdask-actor" and not busy.done()
        with pytest.raises(TimeoutError):
            busy.result(timeout=0.01)
        (tmp_path / "go").touch()
        assert busy.result() == 5

    def test_a_method_may_wait_for_tasks_and_for_other_actors(self, client: Client, counter: Any) -> None:
        other = client.submit(Counter, actor=True).result()
        assert counter.submit(-4).result() == 4
        assert counter.call(other).result() == 10
        with pytest.raises(UsageError, match="call self"):
            counter.call(counter).result()

    def test_an_actors_future_is_awaited(self, counter: Any) -> None:
        async def ask() -> list[int]:
            future = counter.add()
            return [await future, await future, *await asyncio.gather(counter.add(), counter.add())]

        assert asyncio.run(ask()) == [6, 6, 7, 8]

    def test_an_asynchronous_client_awaits_attributes_too(self, shared_cluster: LocalCluster) -> None:
        async def ask() -> tuple[int, int]:
            async with Client(shared_cluster, asynchronous=True) as client:
                counter: Any = await client.submit(Counter, 5, actor=True)
                return await counter.add(), await counter.n

        assert asyncio.run(ask()) == (6, 6)

    def test_a_client_of_another_process_has_actors(self, shared_cluster: LocalCluster, counter: Any) -> None:
        with Client(shared_cluster.scheduler_address, set_as_default=False) as client:
            assert client.submit(Counter, 1, actor=True).result().add().result() == 2
            assert client.submit(use, counter, 1).result() == 6

    def test_release_ends_an_actor(self, client: Client, tmp_path: Path) -> None:
        grave = tmp_path / "grave"
        counter: Any = client.submit(Counter, 0, str(grave), actor=True).result()
        assert counter.add().result() == 1
        assert not grave.exists()
        del counter
        gc.collect()
        wait_until(grave.exists)

    def test_what_is_no_callable_is_refused(self, client: Client) -> None:
        with pytest.raises(TypeError, match="callable"):
            client.submit(3, actor=True)  # type: ignore[call-overload]


def test_an_actor_is_lost_with_its_worker_and_not_made_again() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        future = client.submit(Counter, actor=True)
        counter: Any = future.result()
        with pytest.raises(ActorLostError, match="died before it answered"):
            counter.die().result()
        wait_until(lambda: future.status == "error")
        with pytest.raises(ValueError, match="Worker holding Actor was lost"):
            counter.add().result()
        with pytest.raises(ActorLostError):
            future.result()
        with pytest.raises(ActorLostError):
            client.submit(use, counter, 1).result()


def test_workers_where_actors_live_leave_last() -> None:
    with LocalCluster(n_workers=3, threads_per_worker=1) as cluster, Client(cluster) as client:
        counter: Any = client.submit(Counter, actor=True, workers="w2").result()
        cluster.scale(2)
        wait_until(lambda: len(cluster.scheduler.workers) == 2)
        client.retire_workers()
        assert counter.where().result()[0] == "w2"


def test_actors_live_in_workers_that_are_threads_too() -> None:
    with LocalCluster(n_workers=1, processes=False) as cluster, Client(cluster) as client:
        counter: Any = client.submit(Counter, 1, actor=True).result()
        assert counter.add().result() == 2
        assert counter.pid == os.getpid()
