"""What a task may do: give work to its own cluster, leave its slot, wait in a coroutine, and start processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import localdask
from localdask import Client, Future, LocalCluster, Reschedule, as_completed, get_client, get_worker, rejoin, secede, wait, worker_client

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def lone_cluster() -> Iterator[LocalCluster]:
    """One worker with one thread: whoever waits in its slot waits for ever."""
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture
def lone(lone_cluster: LocalCluster) -> Iterator[Client]:
    with Client(lone_cluster) as client:
        yield client


def increase(x: int) -> int:
    return x + 1


def test_a_client_in_a_task_does_what_any_client_does(lone: Client) -> None:
    def everything() -> dict[str, object]:
        client = get_client()
        (data,) = client.scatter([10])
        mapped = client.map(increase, range(4))
        first, rest = wait(mapped[:1], return_when="FIRST_COMPLETED")
        dropped = client.submit(increase, 100)
        client.cancel(dropped)
        return {
            "map": client.gather(mapped),
            "on data": client.submit(increase, data).result(),
            "nested": client.gather({"a": [mapped[0], 7]}),
            "done": len(first) + len(rest),
            "completed": sorted(future.result() for future in as_completed(mapped)),
            "cancelled": dropped.cancelled(),
            "same": get_client() is client,
        }

    assert lone.submit(everything, pure=False).result(timeout=60) == {
        "map": [1, 2, 3, 4],
        "on data": 11,
        "nested": {"a": [1, 7]},
        "done": 1,
        "completed": [1, 2, 3, 4],
        "cancelled": True,
        "same": True,
    }


def test_a_future_that_a_task_returns_is_the_callers(lone: Client) -> None:
    def begin(n: int) -> Future[int]:
        return get_client().submit(increase, n)

    assert lone.submit(begin, 5).result(timeout=60).result(timeout=60) == 6


def test_recursion_deeper_than_there_are_threads_ends(lone: Client) -> None:
    def depth(n: int) -> int:
        return 0 if n == 0 else 1 + int(get_client().submit(depth, n - 1).result())

    assert lone.submit(depth, 30).result(timeout=60) == 30


def test_worker_client_leaves_the_slot_for_a_block(lone: Client) -> None:
    def total(n: int) -> tuple[int, bool]:
        with worker_client() as client:
            ours = Client.current() is client
            return sum(client.gather(client.map(increase, range(n)))), ours

    assert lone.submit(total, 5).result(timeout=60) == (15, True)
    assert localdask.local_client is worker_client


def test_worker_client_need_not_leave_it(lone: Client) -> None:
    def total() -> int:
        with worker_client(separate_thread=False) as client:
            return client.submit(increase, 1).result()

    assert lone.submit(total, pure=False).result(timeout=60) == 2


def test_worker_client_is_for_tasks(lone: Client) -> None:
    with pytest.raises(ValueError, match="no task runs"), worker_client():
        pass


def test_a_task_that_secedes_lets_others_run_until_it_rejoins(lone: Client, tmp_path: Path) -> None:
    def lend(path: str) -> str:
        secede()
        while not os.path.exists(path):  # made by a task that needs this one's slot
            threading.Event().wait(0.002)
        rejoin()
        return path

    lending = lone.submit(lend, str(tmp_path / "made"))
    lone.submit((tmp_path / "made").touch).result(timeout=60)
    assert lending.result(timeout=60) == str(tmp_path / "made")


@pytest.mark.parametrize("leave", [secede, rejoin])
def test_slots_are_for_tasks(leave: object) -> None:
    with pytest.raises(ValueError, match="no task runs"):
        leave()  # type: ignore[operator]


def test_a_coroutine_function_is_a_task_like_any(lone: Client) -> None:
    async def add(x: int, y: int) -> int:
        await asyncio.sleep(0)
        return x + y

    futures = [lone.submit(add, i, y=1) for i in range(10)]
    assert lone.gather(futures) == list(range(1, 11))
    assert lone.submit(add, futures[0], futures[1]).result(timeout=60) == 3


def test_a_coroutine_task_awaits_futures_without_its_slot(lone: Client) -> None:
    async def total(n: int) -> int:
        client = get_client()
        return sum(await asyncio.gather(*client.map(increase, range(n))))

    async def large(n: int) -> int:
        return len(await get_client().submit(bytes, n))

    assert lone.submit(total, 20).result(timeout=60) == 210
    assert lone.submit(large, 1_000_000).result(timeout=60) == 1_000_000


def test_a_coroutine_task_iterates_over_what_completes(lone: Client) -> None:
    async def total(n: int) -> int:
        found = 0
        async for future in as_completed(get_client().map(increase, range(n))):
            found += await future
        return found

    assert lone.submit(total, 5).result(timeout=60) == 15


def test_a_coroutine_that_gives_up_waiting_takes_its_slot_again(lone: Client) -> None:
    async def impatient() -> str:
        slow = get_client().submit(time.sleep, 0.2)
        try:
            await asyncio.wait_for(asyncio.ensure_future(result(slow)), 0.02)
        except asyncio.TimeoutError:
            return "gave up"
        return "waited"

    async def result(future: Future[None]) -> None:
        await future

    assert lone.submit(impatient).result(timeout=60) == "gave up"
    assert lone.gather(lone.map(increase, range(10))) == list(range(1, 11))


def test_iterating_over_what_completes_leaves_the_slot(lone: Client) -> None:
    def total(n: int) -> int:
        return sum(future.result() for future in as_completed(get_client().map(increase, range(n, 2 * n))))

    assert lone.submit(total, 5).result(timeout=60) == 40


def test_an_error_of_a_coroutine_is_its_tasks(lone: Client) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("deep")

    with pytest.raises(KeyError, match="deep"):
        lone.submit(fail).result(timeout=60)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_task_uses_multiprocessing(lone: Client, method: str) -> None:
    def pooled(method: str) -> list[int]:
        import multiprocessing

        with multiprocessing.get_context(method).Pool(2) as pool:
            return pool.map(abs, [-1, -2, -3])

    assert lone.submit(pooled, method).result(timeout=60) == [1, 2, 3]


def test_a_task_uses_the_standard_process_pool(lone: Client) -> None:
    def pooled() -> list[int]:
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(2) as pool:
            return list(pool.map(abs, [-1, -2, -3]))

    assert lone.submit(pooled).result(timeout=60) == [1, 2, 3]


def test_a_task_runs_a_command(lone: Client) -> None:
    def command() -> str:
        return subprocess.run([sys.executable, "-c", "print(6 * 7)"], check=True, capture_output=True, text=True).stdout

    assert lone.submit(command).result(timeout=60) == "42\n"


def test_what_a_child_of_a_task_forks_keeps_its_handlers_and_hears_signals(lone: Client) -> None:
    def fork_twice() -> tuple[bool, list[str]]:
        read, write = os.pipe()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, handler := lambda signum, frame: None)
            if os.fork() == 0:
                blocked = sorted(signal.Signals(signum).name for signum in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
                os.write(write, repr((signal.getsignal(signal.SIGTERM) is handler, blocked)).encode())
            os._exit(0)
        os.close(write)
        with open(read) as file:
            return eval(file.read())

    assert lone.submit(fork_twice).result(timeout=60) == (True, [])


def test_a_task_that_asks_to_be_rescheduled_runs_elsewhere_or_again(client: Client, tmp_path: Path) -> None:
    def second_time(path: str) -> str:
        try:
            os.mkdir(path)
        except FileExistsError:
            return str(get_worker().name)
        raise Reschedule

    assert client.submit(second_time, str(tmp_path / "first")).result(timeout=60) in ("w0", "w1")
