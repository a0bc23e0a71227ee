"""Clients and clusters in coroutines: everything that blocks can be awaited, and nothing of it holds the event loop."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from localdask import Client, Event, Future, KilledWorker, LocalCluster, Lock, Queue, Semaphore, Variable, as_completed, wait
from localdask.errors import FutureCancelledError, UsageError
from tests.conftest import wait_until
from tests.tasks import wait_for_file


def increase(x: int) -> int:
    return x + 1


def fail(x: object) -> None:
    raise KeyError(x)


async def turns_while(awaitable: Any) -> tuple[Any, int]:
    """Return what an awaitable gives, and how often the loop came round meanwhile."""
    task = asyncio.ensure_future(_of(awaitable))
    n = 0
    while not task.done():
        n += 1
        await asyncio.sleep(0.001)
    return task.result(), n


async def _of(awaitable: Any) -> Any:
    return await awaitable


def in_coroutine(cluster: LocalCluster, body: Any) -> Any:
    """Run a coroutine function with an asynchronous client."""

    async def main() -> Any:
        async with Client(cluster, asynchronous=True) as client:
            return await body(client)

    return asyncio.run(main())


shared = pytest.mark.shared


def test_a_cluster_and_its_client_live_in_a_coroutine() -> None:
    async def main() -> list[int]:
        async with LocalCluster(n_workers=2, asynchronous=True) as cluster, Client(cluster, asynchronous=True) as client:
            assert isinstance(cluster, LocalCluster)
            assert isinstance(client, Client)
            assert client.asynchronous
            assert cluster.status == client.status == "running"
            found = await client.gather(client.map(increase, range(5)))
        assert cluster.status == client.status == "closed"
        await cluster.close()
        await client.close()
        return list(found)

    assert asyncio.run(main()) == [1, 2, 3, 4, 5]


def test_starting_and_ending_do_not_hold_the_loop() -> None:
    async def main() -> None:
        cluster = LocalCluster(n_workers=1, asynchronous=True)
        client = Client(cluster, asynchronous=True)
        with pytest.raises(UsageError, match="`await` or `async with`"):
            client.submit(increase, 1)
        begun, n_turns = await turns_while(client)
        assert begun is client
        assert cluster.status == "running"
        assert n_turns > 2
        await client.close()
        _, n_turns = await turns_while(cluster.close())
        assert n_turns > 1

    asyncio.run(main())


def test_a_client_may_make_its_own_cluster() -> None:
    async def main() -> int:
        async with Client(n_workers=1, asynchronous=True) as client:
            return int(await client.submit(increase, 1))

    assert asyncio.run(main()) == 2


def test_the_cluster_that_a_client_made_is_asynchronous_too() -> None:
    async def main() -> None:
        async with Client(n_workers=1, asynchronous=True, set_as_default=False) as client:
            await client.cluster.scale(2)
            await client.wait_for_workers(2)
            client.cluster.scale(1)  # as in Dask, it need not be awaited
            assert "Scheduler" in await client.cluster.get_logs()
            cluster = client.cluster
        assert cluster.status == "closed"
        with pytest.raises(UsageError, match="n_workers"):
            await Client(n_workers="many", asynchronous=True)

    asyncio.run(main())


@shared
def test_what_is_known_of_a_cluster_is_told_at_once_and_may_be_awaited(shared_cluster: LocalCluster, tmp_path: Path) -> None:
    async def body(client: Any) -> None:
        assert len(client.scheduler_info()["workers"]) == len((await client.scheduler_info())["workers"]) == 2
        assert len(client.scheduler_info(n_workers=1)["workers"]) == 1
        client.write_scheduler_file(tmp_path / "plain.json")
        await client.write_scheduler_file(tmp_path / "awaited.json")
        assert (tmp_path / "plain.json").read_text() == (tmp_path / "awaited.json").read_text()

    in_coroutine(shared_cluster, body)


def test_one_that_was_never_begun_needs_no_ending() -> None:
    async def main() -> None:
        cluster = LocalCluster(asynchronous=True)
        assert "not begun" in repr(cluster)
        await Client(cluster, asynchronous=True).close()
        await cluster.close()

    asyncio.run(main())


def test_with_says_what_to_write() -> None:
    with pytest.raises(TypeError, match=r"`async with LocalCluster\(asynchronous=True\)`"), LocalCluster(asynchronous=True):
        pass
    with pytest.raises(TypeError, match=r"`async with Client\(asynchronous=True\)`"), Client(asynchronous=True):
        pass


def test_a_start_that_fails_raises_where_it_is_awaited(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def dask_setup(worker):\n    raise OSError('no disk')\n")

    async def main() -> None:
        async with LocalCluster(n_workers=1, preload=str(tmp_path / "bad.py"), asynchronous=True):
            pass

    with pytest.raises(RuntimeError, match="no disk"):
        asyncio.run(main())


def test_a_start_that_is_given_up_leaves_nothing() -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(_of(LocalCluster(n_workers=2, asynchronous=True)), 0.001)

    asyncio.run(main())  # and the fixture looks for what is left


@shared
def test_waiting_does_not_hold_the_loop(shared_cluster: LocalCluster, tmp_path: Path) -> None:
    async def body(client: Any) -> None:
        futures = [client.submit(wait_for_file, str(tmp_path / str(i)), pure=False) for i in range(2)]
        asyncio.get_running_loop().call_later(0.05, lambda: [(tmp_path / str(i)).touch() for i in range(2)])
        for awaitable in (futures[0], client.gather(futures), wait(futures), futures[1].result(), client.run(time.sleep, 0.02)):
            _, n_turns = await turns_while(awaitable)
            assert n_turns > 0
        assert all(future.done() for future in futures)

    in_coroutine(shared_cluster, body)


@shared
def test_futures_are_awaited_in_every_way(shared_cluster: LocalCluster, tmp_path: Path) -> None:
    async def body(client: Any) -> None:
        future, bad = client.submit(increase, 1), client.submit(fail, "x")
        assert await future == await future.result() == 2
        assert await future.exception() is None
        assert isinstance(await bad.exception(), KeyError)
        assert await bad.traceback() is not None
        with pytest.raises(KeyError):
            await bad
        with pytest.raises(KeyError):
            await client.gather([future, bad])
        assert await client.gather([future, bad], errors="skip") == [2]
        assert await client.gather({"a": [future, 7]}) == {"a": [2, 7]}
        assert len(await client.submit(bytes, 500_000)) == 500_000
        assert [len(value) for value in await client.gather(client.map(bytes, [300_000, 400_000]))] == [300_000, 400_000]
        slow = client.submit(wait_for_file, str(tmp_path / "go"))
        for waiting in (slow.result(timeout=0.01), slow.exception(timeout="10 ms"), wait([slow], timeout=0.01)):
            with pytest.raises(TimeoutError):
                await waiting
        (tmp_path / "go").touch()
        assert await slow

    in_coroutine(shared_cluster, body)


@shared
def test_cancelling_is_awaited_or_not(shared_cluster: LocalCluster, tmp_path: Path) -> None:
    async def body(client: Any) -> None:
        held = [client.submit(wait_for_file, str(tmp_path / "go"), pure=False) for _ in range(2)]
        one, two, three = (client.submit(increase, i, pure=False) for i in range(3))
        await client.cancel(one)
        await two.cancel()
        three.cancel()
        assert one.cancelled() and two.cancelled() and three.cancelled()
        with pytest.raises(FutureCancelledError):
            await one
        (tmp_path / "go").touch()
        await client.gather(held)

    in_coroutine(shared_cluster, body)


@shared
def test_a_wait_that_is_cancelled_leaves_the_task(shared_cluster: LocalCluster, tmp_path: Path) -> None:
    async def body(client: Any) -> None:
        future = client.submit(wait_for_file, str(tmp_path / "go"))
        waiting = asyncio.ensure_future(_of(future))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert future._state.watchers in (None, [])
        (tmp_path / "go").touch()
        assert await future == str(tmp_path / "go")

    in_coroutine(shared_cluster, body)


@shared
def test_what_completes_comes_as_it_does(shared_cluster: LocalCluster, tmp_path: Path) -> None:
    async def body(client: Any) -> None:
        slow = client.submit(wait_for_file, str(tmp_path / "go"))
        quick = client.submit(increase, 1, pure=False)
        seen = []
        async for future in as_completed([slow, quick]):
            seen.append(future)
            (tmp_path / "go").touch()
        assert seen == [quick, slow]
        results = {result async for _, result in as_completed(client.map(increase, range(20)), with_results=True)}
        assert results == set(range(1, 21))
        never = client.submit(wait_for_file, str(tmp_path / "never"))
        with pytest.raises(TimeoutError):
            async for _ in as_completed([never], timeout=0.01):
                pass
        (tmp_path / "never").touch()
        await never

    in_coroutine(shared_cluster, body)


@shared
def test_what_asks_the_cluster_is_awaited(shared_cluster: LocalCluster) -> None:
    async def body(client: Any) -> None:
        assert set((await client.run(os.getpid)).values()) == {pid for pid in (await client.run(os.getpid)).values()}
        assert sum((await client.nthreads()).values()) == 2
        assert len((await client.scheduler_info())["workers"]) == 2
        await client.wait_for_workers(2)
        (data,) = await client.scatter([41])
        assert await client.submit(increase, data) == 42

    in_coroutine(shared_cluster, body)


@shared
def test_names_at_the_scheduler_are_awaited_when_they_are_made_and_ended_at_once_in_coroutines(shared_cluster: LocalCluster) -> None:
    async def body(client: Any) -> None:
        queue, semaphore, event, lock = await Queue("soon"), await Semaphore(2, "soon"), await Event("soon"), await Lock("soon")
        assert [handle.name for handle in (queue, semaphore, event, lock)] == ["soon"] * 4
        await queue.put(1)
        variable = Variable("soon")
        await variable.set(1)
        variable.delete()  # as in Dask, nobody needs to await these
        queue.close()
        with pytest.raises(TimeoutError):
            await variable.get(timeout=0.01)
        assert await Queue("soon").qsize() == 0
        await variable.delete()
        await queue.close()

    in_coroutine(shared_cluster, body)


@shared
def test_dask_collections_are_awaited(shared_cluster: LocalCluster) -> None:
    import dask
    import dask.array as da

    async def body(client: Any) -> None:
        assert dask.config.get("scheduler", None) is None, "Dask waits for its scheduler, so this cannot be it"
        assert await client.compute(da.arange(10, chunks=5).sum()) == 45
        assert await client.compute([dask.delayed(increase)(1), 7], sync=True) == [2, 7]
        assert await client.get({"a": (increase, 1)}, "a") == 2

    in_coroutine(shared_cluster, body)


@shared
def test_futures_of_any_client_are_awaited_on_any_loop(shared_cluster: LocalCluster) -> None:
    with Client(shared_cluster) as client:
        futures = client.map(increase, range(50))

        async def total() -> int:
            return sum(await asyncio.gather(*futures))

        totals: list[int] = []
        threads = [threading.Thread(target=lambda: totals.append(asyncio.run(total()))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert totals == [1275] * 4


@shared
def test_an_ordinary_client_works_within_a_running_loop(shared_cluster: LocalCluster) -> None:
    async def main() -> tuple[Any, ...]:
        with Client(shared_cluster) as client:
            future: Future[int] = client.submit(increase, 1)
            return (
                future.result(),
                client.gather(client.map(increase, range(3))),
                await client.submit(increase, 5),
                len(client.run(os.getpid)),
            )

    assert asyncio.run(main()) == (2, [1, 2, 3], 6, 2)


def test_an_asynchronous_one_outside_of_a_loop_blocks() -> None:
    async def begin() -> tuple[Any, Any]:
        cluster = await LocalCluster(n_workers=1, asynchronous=True)  # type: ignore[misc]
        return cluster, Client(cluster, asynchronous=True)

    cluster, client = asyncio.run(begin())
    assert client.gather(client.map(increase, range(3))) == [1, 2, 3]
    assert client.submit(increase, 1).result() == 2
    client.close()
    cluster.close()
    assert cluster.status == "closed"


def test_workers_are_replaced_though_the_thread_that_began_them_is_gone() -> None:
    async def main() -> None:
        async with (
            LocalCluster(n_workers=1, asynchronous=True, allowed_failures=0) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "localdask-call"])
            with pytest.raises(KilledWorker):
                await client.submit(os._exit, 3)
            assert await client.submit(increase, 1) == 2
            await client.restart()
            assert await client.submit(increase, 2) == 3

    asyncio.run(main())


def test_a_cluster_s_methods_that_block_are_awaited(tmp_path: Path) -> None:
    preload = tmp_path / "setup.py"
    preload.write_text("def dask_setup(worker): pass")

    async def go() -> None:
        async with LocalCluster(n_workers=1, preload=str(preload), asynchronous=True) as cluster:
            await cluster.wait_for_workers(1)
            record, n_turns = await turns_while(cluster.reload())
            assert record.outcome == "swapped"
            assert n_turns > 1
            await cluster.wait_for_generation(2)
            logs = await cluster.get_logs()
            assert "worker-joined" in logs["Scheduler"]
            await cluster.restart()
            assert list(await cluster.retire_workers(["w0"])) == [cluster.worker_address("w0")]

    asyncio.run(go())
