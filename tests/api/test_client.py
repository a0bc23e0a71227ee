"""The client's promises, each as in ``distributed`` unless its test says otherwise."""

from __future__ import annotations

import os
import threading
import time
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localdask import Client, Future, KilledWorker, LocalCluster, as_completed, fire_and_forget, get_client, get_worker, wait
from localdask.api.futures import FutureState
from localdask.errors import ClosedClientError, FutureCancelledError, SerializationError, StartError, WorkerStartTimeoutError
from tests.conftest import WAIT_S, wait_until
from tests.tasks import wait_for_file

pytestmark = pytest.mark.shared


def inc(x: int) -> int:
    return x + 1


def boom(text: str = "boom") -> None:
    raise ValueError(text)


def slow(x: int, seconds: float = 0.05) -> int:
    time.sleep(seconds)
    return x


def test_submit_returns_a_future_of_the_value(client: Client) -> None:
    assert client.submit(inc, 1).result() == 2


def test_keyword_arguments_reach_the_function(client: Client) -> None:
    assert client.submit(int, "ff", base=16).result() == 255


def test_map_keeps_the_order_and_zips_to_the_shortest(client: Client) -> None:
    assert client.gather(client.map(add, range(5), [10, 20, 30])) == [10, 21, 32]


def test_map_refuses_iterators(client: Client) -> None:
    with pytest.raises(TypeError, match="iterators"):
        client.map(inc, iter([1]))


def test_futures_nested_in_arguments_are_replaced_by_their_values(client: Client) -> None:
    a, b, c, d = client.map(inc, range(4))
    nested = client.submit(lambda x, y, z=None: (x, y, z), [a, (b, {"c": c})], {1, d} if False else {d}, z={"deep": [a]})
    assert nested.result() == ([1, (2, {"c": 3})], {4}, {"deep": [1]})


def test_equal_pure_calls_share_a_key_and_run_once(client: Client) -> None:
    one, two = client.submit(os.urandom, 8), client.submit(os.urandom, 8)
    assert one.key == two.key and one is not two
    assert one.result() == two.result()


def test_impure_calls_run_each(client: Client) -> None:
    one, two = client.submit(os.urandom, 8, pure=False), client.submit(os.urandom, 8, pure=False)
    assert one.key != two.key and one.result() != two.result()


def test_a_known_key_is_shared_and_its_function_not_run(client: Client) -> None:
    first = client.submit(inc, 1, key="the-key")
    assert client.submit(inc, 100, key="the-key").result() == first.result() == 2


def test_a_long_chain_needs_no_recursion(client: Client) -> None:
    future = client.submit(inc, 0)
    for _ in range(3000):
        future = client.submit(inc, future)
    assert future.result() == 3001


def test_futures_as_arguments_reduce_a_tree(client: Client) -> None:
    level = client.map(inc, range(64))
    while len(level) > 1:
        level = [client.submit(add, left, right) for left, right in zip(level[::2], level[1::2], strict=True)]
    assert level[0].result() == sum(range(1, 65))


def test_gather_mirrors_nesting_and_passes_other_things_through(client: Client) -> None:
    a, b = client.map(inc, [1, 2])
    assert client.gather({"a": a, "rest": [b, (a, "text")]}) == {"a": 2, "rest": [3, (2, "text")]}


def test_gather_can_skip_what_failed(client: Client) -> None:
    assert client.gather([client.submit(inc, 1), client.submit(boom), client.submit(inc, 2)], errors="skip") == [2, 3]


def test_gather_raises_the_first_failure_without_waiting_for_the_rest(client: Client) -> None:
    futures = [client.submit(slow, 1, 30), client.submit(boom, "early")]
    with pytest.raises(ValueError, match="early"):
        client.gather(futures)
    client.cancel(futures)
    client.cluster.restart()


def test_an_exception_keeps_type_message_and_remote_traceback(client: Client) -> None:
    import traceback

    future = client.submit(boom, "told you")
    with pytest.raises(ValueError, match="told you") as caught:
        future.result()
    assert "in boom" in "".join(traceback.format_exception(caught.value))
    assert future.status == "error" and isinstance(future.exception(), ValueError)
    assert future.traceback() is not None


def test_a_failed_input_fails_what_depends_on_it(client: Client) -> None:
    with pytest.raises(ValueError, match="root"):
        client.submit(inc, client.submit(boom, "root")).result()


def test_retries_run_again(client: Client, tmp_path: object) -> None:
    path = f"{tmp_path}/count"

    def third_time_lucky() -> int:
        with open(path, "a") as file:
            file.write("x")
        n = os.path.getsize(path)
        if n < 3:
            raise OSError(n)
        return n

    assert client.submit(third_time_lucky, retries=5).result() == 3
    assert os.path.getsize(path) == 3


def test_an_erred_task_can_be_retried(client: Client, tmp_path: object) -> None:
    flag = f"{tmp_path}/flag"

    def needs_flag() -> str:
        return Path(flag).read_text()

    future = client.submit(needs_flag)
    reader = client.submit(str.upper, future)
    with pytest.raises(FileNotFoundError):
        reader.result()
    Path(flag).write_text("there")
    reader.retry()
    assert reader.result() == "THERE"


def test_cancel_cancels_what_depends_on_it(client: Client) -> None:
    blocker = client.map(slow, range(100, 104), seconds=0.3)
    future = client.submit(slow, 1, 5)
    reader = client.submit(inc, future)
    future.cancel(reason="changed my mind")
    with pytest.raises(FutureCancelledError, match="changed my mind"):
        future.result()
    with pytest.raises(FutureCancelledError):
        reader.result()
    assert future.cancelled() and reader.status == "cancelled"
    assert client.gather(blocker) == [100, 101, 102, 103]


def test_result_times_out_and_the_task_goes_on(client: Client) -> None:
    future = client.submit(slow, 7, 0.3)
    with pytest.raises(TimeoutError, match="timed out after"):
        future.result(timeout="20 ms")
    assert future.result() == 7


def test_wait_returns_done_and_not_done(client: Client, tmp_path: Path) -> None:
    quick, long = client.submit(inc, 5), client.submit(wait_for_file, str(tmp_path / "gate"))
    done, not_done = wait([quick, long], return_when="FIRST_COMPLETED")
    assert quick in done and long in not_done
    (tmp_path / "gate").touch()
    assert wait([quick, long]).not_done == set()
    with pytest.raises(NotImplementedError):
        wait([quick], return_when="FIRST_EXCEPTION")


def test_as_completed_yields_in_order_of_completion_and_takes_more_on_the_way(client: Client) -> None:
    waiting = as_completed([client.submit(slow, 1, 0.3), client.submit(slow, 2, 0.05)])
    first = next(waiting)
    waiting.add(client.submit(inc, 41))
    assert first.result() == 2
    assert {future.result() for future in waiting} == {1, 42}


@pytest.mark.parametrize("timeout", [float("inf"), 1e12])
def test_as_completed_waits_for_as_long_as_anybody_says(client: Client, timeout: float) -> None:
    future = client.submit(slow, 3, 0.05, pure=False)
    assert list(as_completed([future], timeout=timeout)) == [future]


def test_as_completed_yields_results_with_their_futures_if_asked(client: Client) -> None:
    assert sorted(result for _, result in as_completed(client.map(inc, range(4)), with_results=True)) == [1, 2, 3, 4]


def test_callbacks_run_with_the_future(client: Client) -> None:
    seen: list[int] = []
    come = threading.Event()

    def callback(future: Future[int]) -> None:
        seen.append(future.result())
        come.set()

    client.submit(inc, 1, pure=False).add_done_callback(callback)
    assert come.wait(10) and seen == [2]
    come.clear()
    done = client.submit(inc, 1)
    done.result()
    done.add_done_callback(callback)
    assert come.wait(10) and seen == [2, 2]


def test_scatter_keeps_every_shape(client: Client) -> None:
    assert client.gather(client.scatter([1, 2])) == [1, 2]
    assert client.gather(client.scatter((1, 2))) == (1, 2)
    assert client.gather(client.scatter({"a": 1})) == {"a": 1}
    assert client.scatter(3).result() == 3
    assert client.gather(client.scatter({4})) == {4}
    one, two = client.scatter(5), client.scatter(5)
    assert one.key == two.key and client.scatter(5, hash=False).key != one.key


def test_scattered_arrays_are_read_by_tasks(client: Client) -> None:
    data = np.arange(1_000_000.0)
    future = client.scatter(data, broadcast=True)
    assert client.submit(np.sum, future).result() == data.sum()
    assert (future.result() == data).all()


def test_large_results_stay_with_their_worker_until_asked_for(client: Client) -> None:
    big = client.submit(np.ones, 500_000)
    sums = [client.submit(np.sum, big, workers=name) for name in client.cluster.workers]
    assert [future.result() for future in sums] == [500_000.0] * 2
    value = big.result()
    value[0] = 5
    assert big.result()[0] == 1


def test_run_calls_on_every_worker_and_gives_it_the_worker(client: Client) -> None:
    names = client.run(lambda dask_worker: dask_worker.name)
    assert sorted(names.values()) == sorted(client.cluster.workers)
    assert client.run(os.getpid, workers=["w0"]).keys() == {a for a, n in names.items() if n == "w0"}
    with pytest.raises(ValueError):
        client.run(boom)
    assert all(isinstance(error, ValueError) for error in client.run(boom, on_error="return").values())


def test_run_reaches_a_worker_that_is_busy(client: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    futures = client.map(wait_for_file, [str(gate)] * 2, pure=False)
    rescue = threading.Timer(WAIT_S, gate.touch)  # from waiting for each other
    rescue.start()
    assert len(client.run(os.getpid)) == 2
    assert not any(future.done() for future in futures)
    rescue.cancel()
    gate.touch()
    assert client.gather(futures) == [str(gate)] * 2


def test_run_calls_in_nannies_and_gives_them_the_nanny(client: Client) -> None:
    def look(x: int, dask_worker: Any = None) -> tuple[int, int, str, int | None]:
        return x, os.getpid(), dask_worker.name, dask_worker.pid

    async def wait_and_answer(x: int) -> int:
        import asyncio

        await asyncio.sleep(0)
        return x

    def fail() -> None:
        raise ValueError("of the nanny's")

    workers = client.scheduler_info()["workers"]
    handles = client.cluster.workers
    found = client.run(look, 1, nanny=True)
    assert found == {
        address: (1, handles[worker["name"]].pid, handles[worker["name"]].name, worker["pid"]) for address, worker in workers.items()
    }
    assert client.run(wait_and_answer, 2, nanny=True, workers="w1") == {client.cluster.worker_address("w1"): 2}
    assert client.run(abs, -1, nanny=True, wait=False) is None
    with pytest.raises(ValueError, match="of the nanny's") as caught:
        client.run(fail, nanny=True)
    assert caught.traceback[-1].name == "fail"
    with pytest.raises(ValueError, match="no worker is called w9; there are w0, w1"):
        client.run(fail, nanny=True, workers="w9")


def test_a_function_that_kills_a_nanny_is_told_and_the_nanny_is_replaced(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        with pytest.raises(StartError, match="nanny of worker w0 died before it answered"):
            client.run(os._exit, 3, nanny=True, workers="w0")
        wait_until(lambda: client.cluster.workers["w0"].pid is not None)
        assert client.submit(abs, -1, workers="w0").result() == 1


def test_run_on_scheduler_is_given_the_scheduler(client: Client) -> None:
    assert client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.workers)) == 2


def test_get_worker_names_the_worker_of_a_task(client: Client) -> None:
    assert client.submit(lambda: get_worker().name, workers="w1", pure=False).result() == "w1"
    with pytest.raises(ValueError, match="No worker found"):
        get_worker()


def test_tasks_submit_tasks_and_wait_for_them_on_one_thread(client: Client) -> None:
    def fib(n: int) -> int:
        if n < 2:
            return n
        mine = get_client()
        return sum(mine.gather([mine.submit(fib, n - 1), mine.submit(fib, n - 2)]))

    assert client.submit(fib, 6).result(timeout=60) == 8


def test_a_future_in_a_custom_object_arrives_as_a_future(client: Client) -> None:
    class Box:
        def __init__(self, future: Future[int]) -> None:
            self.future = future

    inner = client.submit(inc, 1)
    assert client.submit(lambda box: box.future.result() + 1, Box(inner)).result(timeout=30) == 3


def test_what_cannot_be_pickled_is_named_and_nothing_breaks(client: Client) -> None:
    lock = threading.Lock()
    with pytest.raises(SerializationError, match="lock"):
        client.submit(inc, {"deep": [lock]})
    with pytest.raises(SerializationError, match="lock"):
        client.submit(lambda: lock.acquire())
    with pytest.raises(SerializationError, match="result"):
        client.submit(threading.Lock, pure=False).result()
    assert client.submit(inc, 1).result() == 2


def test_sys_exit_in_a_task_is_that_tasks_error(client: Client) -> None:
    import sys

    pids = client.run(os.getpid)
    with pytest.raises(SystemExit):
        client.submit(sys.exit, 3).result()
    assert client.run(os.getpid) == pids


def test_fire_and_forget_runs_without_a_future(client: Client, tmp_path: object) -> None:
    path = f"{tmp_path}/made"

    def make() -> None:
        time.sleep(0.1)
        Path(path).touch()

    fire_and_forget(client.submit(make))
    wait_until(lambda: os.path.exists(path))


def test_released_keys_leave_the_scheduler(client: Client) -> None:
    futures = client.map(inc, range(1000, 1100))
    client.gather(futures)
    assert len(client.scheduler.state.tasks) >= 100
    del futures
    wait_until(lambda: not any(key.startswith("inc") for key in client.scheduler.state.tasks))


def test_priorities_go_first(client: Client) -> None:
    started: list[Future[float]] = []
    blockers = client.map(slow, range(200, 204), seconds=0.1)
    low = [client.submit(time.time, pure=False, priority=-1, workers="w0") for _ in range(3)]
    high = [client.submit(time.time, pure=False, priority=5, workers="w0") for _ in range(3)]
    started += low + high
    client.gather(blockers)
    assert max(client.gather(high)) < min(client.gather(low))


def test_the_repr_of_a_future_tells_status_and_type(client: Client) -> None:
    future = client.submit(inc, 1)
    future.result()
    assert repr(future) == f"<Future: finished, type: int, key: {future.key}>"


def test_a_closed_client_says_so_and_its_futures_are_cancelled(shared_cluster: LocalCluster) -> None:
    client = Client(shared_cluster)
    future = client.submit(slow, 1, 0.2, pure=False)
    client.close()
    client.close()
    assert future.cancelled()
    with pytest.raises(ClosedClientError, match="closed"):
        client.submit(inc, 1)
    assert repr(client) == "<Client: No scheduler connected>"


def test_waiting_for_workers_that_do_not_come_times_out(client: Client) -> None:
    client.wait_for_workers(2)
    with pytest.raises(WorkerStartTimeoutError, match="Only 2/3 workers arrived"):
        client.wait_for_workers(3, timeout=0.05)
    with pytest.raises(ValueError, match="positive"):
        client.wait_for_workers(0)


def test_two_threads_submit_at_once(client: Client) -> None:
    sums: list[int] = []

    def submit_many(start: int) -> None:
        sums.append(sum(client.gather(client.map(inc, range(start, start + 2000)))))

    threads = [threading.Thread(target=submit_many, args=(i * 2000,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(sums) == sum(range(1, 8001))


def test_a_task_that_kills_its_worker_fails_after_the_allowed_deaths(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        with pytest.raises(KilledWorker) as caught:
            client.submit(os._exit, 3).result(timeout=60)
        assert caught.value.allowed_failures == 3 and "exit code 3" in str(caught.value)
        assert client.gather(client.map(inc, range(100))) == list(range(1, 101))


def test_what_an_interrupt_kept_from_being_let_go_is_let_go_later(
    client: Client, shared_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    future = client.submit(inc, 12345)
    future.result()
    key = future.key
    with monkeypatch.context() as patch:
        patch.setattr(FutureState, "__del__", lambda state: None)  # as if Ctrl-C had come right in it
        del future
    for number in range(200):
        client.submit(inc, number).result()
    wait_until(lambda: key not in shared_cluster.scheduler.state.tasks)


@pytest.mark.parametrize("nest", [lambda future: future, lambda future: [future], lambda future: {"a": (1, future)}])
def test_a_future_of_another_cluster_is_refused_at_once_and_named(client: Client, nest: Any) -> None:
    with LocalCluster(n_workers=1, processes=False) as other, Client(other, set_as_default=False) as stranger:
        future = stranger.submit(abs, -1)
        with pytest.raises(ValueError, match=f"{future.key}.*give its result"):
            client.submit(str, nest(future))
        with pytest.raises(ValueError, match=f"{future.key}.*give its result"):
            client.map(str, [nest(future)])
        assert future.result() == 1


def test_a_future_may_be_bound_to_another_client_of_its_cluster(client: Client, shared_cluster: LocalCluster) -> None:
    with Client(shared_cluster, set_as_default=False) as other:
        future = other.submit(inc, 41, pure=False)
        future.bind_client(client)
        future.bind_client(client)
        assert future.client is client
    assert future.result() == 42


def test_a_cluster_gives_the_logs_of_its_workers_and_what_happened(client: Client, shared_cluster: LocalCluster) -> None:
    future = client.submit(print, "written in a task", workers="w0", pure=False)
    future.result()
    addresses = {name: shared_cluster.worker_address(name) for name in ("w0", "w1")}
    wait_until(lambda: "written in a task" in shared_cluster.get_logs()[addresses["w0"]])
    assert set(shared_cluster.get_logs()) == {"Scheduler", *addresses.values()}
    assert "worker-joined" in shared_cluster.get_logs(workers=False)["Scheduler"]
    assert set(shared_cluster.get_logs(scheduler=False, workers=["w1"])) == {addresses["w1"]}
    assert get_client() is client
