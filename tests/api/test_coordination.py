"""What tasks and clients coordinate themselves by, on a cluster: one test for each promise; the decisions are tested in tests/state."""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import Any

import pytest

from localdask import Client, Event, LocalCluster, Lock, MultiLock, Queue, Semaphore, Variable, get_client
from localdask.errors import UsageError
from tests.conftest import wait_until

pytestmark = pytest.mark.shared


def in_coroutine(cluster: LocalCluster, body: Any) -> Any:
    """Run a coroutine function with an asynchronous client."""

    async def main() -> Any:
        async with Client(cluster, asynchronous=True) as client:
            return await asyncio.wait_for(body(client), 60)

    return asyncio.run(main())


# ── locks and semaphores ─────────────────────────────────────────────────────


def test_a_lock_lets_one_at_a_time_in_among_tasks_and_clients(client: Client) -> None:
    lock = Lock("counter")

    def count(i: int, lock: Lock) -> int:
        with lock:
            seen = get_client().submit(len, [0] * i).result()  # leaves its slot, and not the lock
            assert lock.locked()
        return seen

    with lock:
        assert not Lock("counter").acquire(blocking=False)
        assert not Lock("counter").acquire(timeout="1 ms")
        futures = client.map(count, range(8), lock=pickle.loads(pickle.dumps(lock)))
        assert lock.locked()
    assert sorted(client.gather(futures)) == list(range(8))
    wait_until(lambda: not lock.locked())
    with pytest.raises(RuntimeError, match="Released too often"):
        lock.release()
    with pytest.raises(ValueError, match="non-blocking"):
        lock.acquire(blocking=False, timeout=1)


def test_a_semaphore_is_shared_by_its_name_and_its_leases_end_with_their_client(shared_cluster: LocalCluster, client: Client) -> None:
    mine = Semaphore(2, "both")
    assert mine.acquire() and mine.acquire() and mine.get_value() == 2
    with pytest.raises(ValueError, match="Inconsistent max leases"):
        Semaphore(3, "both").acquire()
    with Client(shared_cluster, set_as_default=False) as other:
        theirs = Semaphore(2, "both", client=other)
        assert not theirs.acquire(timeout=0)
        assert mine.release() and theirs.acquire(timeout=30)
        assert not mine.acquire(timeout=0)
    assert mine.acquire(timeout=30)
    mine.close()
    with pytest.raises(RuntimeError, match="closed"):
        mine.acquire()
    with pytest.raises(RuntimeError, match="closed"):
        pickle.loads(pickle.dumps(mine)).get_value()


def test_a_lease_ends_with_the_task_that_took_it(client: Client) -> None:
    def forget() -> bool:
        return bool(Lock("forgotten").acquire())

    assert client.submit(forget, pure=False).result()
    assert client.submit(forget, pure=False).result(timeout=60)
    wait_until(lambda: not Lock("forgotten").locked())


def test_a_wait_that_is_interrupted_takes_no_lease(client: Client) -> None:
    def hold(lock: Lock) -> None:
        with lock:
            pass

    lock = Lock()
    with lock:
        waiting = client.submit(hold, lock)
        wait_until(lambda: client.processing() and any(client.processing().values()))
        client.cancel(waiting, force=True)
        thread = threading.Thread(target=Lock(lock.name).acquire, kwargs={"timeout": 0.01})
        thread.start()
        thread.join()
    wait_until(lambda: not lock.locked())


def test_locks_are_awaited_by_asynchronous_clients(shared_cluster: LocalCluster) -> None:
    async def body(client: Client) -> list[bool]:
        lock, other = Lock("awaited", client=client), Lock("awaited", client=client)
        async with lock:
            waiting = asyncio.ensure_future(other.acquire())
            found = [await lock.locked(), await other.acquire(timeout=0.01)]
            waiting.cancel()
            await asyncio.wait([waiting])
        assert await other.acquire()
        return [*found, await other.release()]

    assert in_coroutine(shared_cluster, body) == [True, False, True]


def test_a_multilock_takes_all_its_locks_or_as_many_as_are_enough(client: Client) -> None:
    def move(names: list[str]) -> list[str]:
        with MultiLock(names):
            return names

    both = pickle.loads(pickle.dumps(MultiLock(["a", "b"])))
    with MultiLock(["a"]) as first:
        assert first.locked() and not both.acquire(blocking=False)
        assert both.acquire(num_locks=1, timeout=30)
        futures = client.map(move, [["a", "b"], ["b", "a"], ["b", "c"]])
        both.release()
    assert client.gather(futures) == [["a", "b"], ["b", "a"], ["b", "c"]]
    with pytest.raises(ValueError, match="not acquired"):
        both.release()
    with pytest.raises(ValueError, match="num_locks=3"):
        both.acquire(num_locks=3)
    with pytest.raises(ValueError, match="different names"):
        MultiLock("ab")


# ── events, variables, queues ────────────────────────────────────────────────


def test_an_event_lets_tasks_go_on_and_they_leave_their_slots_meanwhile(client: Client) -> None:
    def follow(i: int, event: Event) -> bool:
        return bool(event.wait(timeout=60))

    event = Event()
    assert not event.is_set() and not event.wait(timeout=0)
    futures = client.map(follow, range(4), event=event)
    client.submit(Event.set, event, pure=False).result(timeout=60)  # would never run if they kept their slots
    assert client.gather(futures) == [True] * 4
    assert event.wait() and event.is_set()
    event.clear()
    assert not event.is_set()


def test_a_variable_keeps_its_future_for_others(shared_cluster: LocalCluster, client: Client) -> None:
    with Client(shared_cluster, set_as_default=False) as other:
        future = other.submit(sum, [1, 2, 3], key="of the other")
        Variable("total", client=other).set({"future": future, "note": [1]})
        del future
    found = Variable("total").get(timeout=30)
    assert found["future"].client is client and found["note"] == [1]
    Variable("total").delete()
    with pytest.raises(TimeoutError, match="'total'"):
        Variable("total").get(timeout=0)
    assert found["future"].result(timeout=60) == 6
    assert client.submit(lambda: Variable("later").set(7) or Variable("later").get(), pure=False).result(timeout=60) == 7


def test_a_future_that_was_cancelled_while_it_was_kept_is_cancelled_for_who_takes_it(client: Client) -> None:
    never = client.submit(Event("never").wait)
    Queue("cancelled").put(never)
    client.cancel(never)
    taken = Queue("cancelled").get()
    wait_until(taken.cancelled)


def test_tasks_hand_values_to_each_other_in_a_queue(client: Client) -> None:
    def produce(n: int, queue: Queue) -> None:
        for i in range(n):
            queue.put((i, get_client().submit(abs, -i)))

    def consume(n: int, queue: Queue) -> list[int]:
        return [future.result() + i for i, future in (queue.get() for _ in range(n))]

    queue = Queue(maxsize=2)
    consumed = client.submit(consume, 6, queue)
    produced = client.submit(produce, 8, queue)
    assert consumed.result(timeout=60) == [0, 2, 4, 6, 8, 10]
    produced.result(timeout=60)
    assert queue.qsize() == 2
    with pytest.raises(TimeoutError, match="no room"):
        queue.put(1, timeout="1 ms")
    with pytest.raises(TimeoutError, match="had not 3"):
        queue.get(timeout=0, batch=3)
    assert [i for i, _ in queue.get(batch=2)] == [6, 7]
    assert queue.get(batch=True) == []
    queue.put(lambda x: x + 1)
    assert queue.get()(1) == 2


def test_a_queue_is_awaited_and_what_nobody_received_stays_in_it(shared_cluster: LocalCluster) -> None:
    async def body(client: Client) -> list[Any]:
        queue = Queue("awaited", client=client)
        waiting = asyncio.ensure_future(queue.get())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        await queue.put(1)
        event = Event(client=client)
        found = [await queue.qsize(), await queue.get(timeout=30), await event.wait(timeout=0)]
        await queue.close()
        return found

    assert in_coroutine(shared_cluster, body) == [1, 1, False]


def test_the_client_of_another_kind_of_cluster_is_refused_with_a_word() -> None:
    stranger: Any = object()
    with pytest.raises(UsageError, match=r"localdask\.Event works on clusters of localdask"):
        Event("x", client=stranger).set()


# ── datasets and metadata ────────────────────────────────────────────────────


def test_datasets_stay_when_their_publisher_goes(shared_cluster: LocalCluster, client: Client) -> None:
    with Client(shared_cluster, set_as_default=False) as other:
        other.publish_dataset(total=other.submit(sum, [4, 5], key="published"), plain=[1, 2])
        other.publish_dataset("x", name=("a", 1))
        with pytest.raises(KeyError, match="Dataset total already exists"):
            other.publish_dataset(new=1, total=2)
        other.publish_dataset(plain=[3], override=True)
    assert set(client.list_datasets()) == {"total", "plain", ("a", 1)} == set(client.datasets)
    assert client.get_dataset("total").result(timeout=60) == 9 and client.datasets["plain"] == [3]
    assert client.submit(lambda: get_client().get_dataset("total").result(), pure=False).result(timeout=60) == 9
    client.datasets["mine"] = 1
    for name in list(client.datasets):
        del client.datasets[name]
    assert len(client.datasets) == 0 and client.get_dataset("zz", default=None) is None
    for missing in (client.get_dataset, client.unpublish_dataset):
        with pytest.raises(KeyError, match="Dataset 'zz' not found"):
            missing("zz")
    with pytest.raises(ValueError, match="its name"):
        client.publish_dataset(1)


def test_metadata_are_nested_plain_data(client: Client) -> None:
    client.set_metadata(["run", "seed"], 42)
    client.set_metadata("name", {"a": [1, (2, 3)]})
    client.get_metadata("run")["seed"] = 0  # a copy
    assert client.submit(lambda: get_client().get_metadata(["run", "seed"]), pure=False).result(timeout=60) == 42
    assert client.get_metadata(["name", "a"]) == [1, (2, 3)] and client.get_metadata(["run", "x"], None) is None
    with pytest.raises(KeyError):
        client.get_metadata("nothing")
    with pytest.raises(TypeError, match="object"):
        client.set_metadata("name", object())


def test_the_room_of_a_queue_is_a_whole_number(client: Client) -> None:
    with pytest.raises(UsageError, match="maxsize='x'; it is a whole number"):
        Queue("roomy", client=client, maxsize="x")  # type: ignore[arg-type]
