"""``client.get_executor()`` is an executor of ``concurrent.futures``, in all that the standard library promises of one."""

from __future__ import annotations

import asyncio
import operator
import os
import threading
from collections.abc import Iterator
from concurrent import futures as standard
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from localdask import Client, LocalCluster, annotate, get_client
from localdask.api.executor import ClientExecutor
from tests.conftest import wait_until
from tests.tasks import wait_for_file

pytestmark = pytest.mark.shared


def increase(x: int) -> int:
    return x + 1


def fail(text: str) -> None:
    raise ValueError(text)


def hold_all(executor: ClientExecutor, path: Path) -> list[standard.Future[str]]:
    """Occupy both workers until the file exists."""
    held = [executor.submit(wait_for_file, str(path)) for _ in range(2)]
    wait_until(lambda: all(future.running() for future in held))
    return held


@pytest.fixture
def executor(client: Client) -> Iterator[ClientExecutor]:
    with client.get_executor() as executor:
        yield executor


def test_its_futures_are_the_standard_ones(executor: ClientExecutor) -> None:
    future = executor.submit(pow, 2, exp=5)
    assert isinstance(executor, standard.Executor)
    assert isinstance(future, standard.Future)
    assert future.result() == 32
    assert future.done()
    assert not future.running()
    assert not future.cancelled()
    assert future.exception() is None


def test_names_that_clients_use_reach_the_function(executor: ClientExecutor) -> None:
    future = executor.submit(lambda **given: sorted(given), key=1, workers=2, retries=3, pure=4, priority=5)
    assert future.result() == ["key", "priority", "pure", "retries", "workers"]


def test_each_submission_runs_unless_pure_is_asked_for(client: Client, executor: ClientExecutor, tmp_path: Path) -> None:
    def note(path: str) -> int:
        with open(path, "a") as file:
            return file.write(".")

    for _ in range(3):
        executor.submit(note, str(tmp_path / "each")).result()
    with client.get_executor(pure=True) as pure:
        standard.wait([pure.submit(note, str(tmp_path / "once")) for _ in range(3)])
    assert (tmp_path / "each").read_text() == "..."
    assert (tmp_path / "once").read_text() == "."


def test_an_error_is_the_futures_own(executor: ClientExecutor) -> None:
    future = executor.submit(fail, "no luck")
    assert isinstance(future.exception(), ValueError)
    with pytest.raises(ValueError, match="no luck"):
        future.result()


def test_a_result_that_is_late_is_a_timeout_and_comes_all_the_same(executor: ClientExecutor, tmp_path: Path) -> None:
    future = executor.submit(wait_for_file, str(tmp_path / "go"))
    with pytest.raises(standard.TimeoutError):
        future.result(timeout=0.01)
    with pytest.raises(standard.TimeoutError):
        future.exception(timeout=0.01)
    (tmp_path / "go").touch()
    assert future.result(timeout=30) == str(tmp_path / "go")


def test_wait_and_as_completed_take_its_futures(executor: ClientExecutor, tmp_path: Path) -> None:
    slow = executor.submit(wait_for_file, str(tmp_path / "go"))
    quick = executor.submit(increase, 1)
    bad = executor.submit(fail, "x")
    done, not_done = standard.wait([slow, quick, bad], return_when=standard.FIRST_EXCEPTION)
    assert bad in done
    assert slow in not_done
    (tmp_path / "go").touch()
    assert set(standard.as_completed([slow, quick, bad], timeout=30)) == {slow, quick, bad}


def test_map_keeps_the_order_and_stops_at_the_shortest(executor: ClientExecutor) -> None:
    assert list(executor.map(operator.sub, [5, 7, 9], range(100))) == [5, 6, 7]
    assert list(executor.map(increase, [])) == []


@pytest.mark.parametrize("chunksize", [1, 3, 7, 2000])
def test_chunks_change_nothing_but_the_number_of_tasks(executor: ClientExecutor, chunksize: int) -> None:
    assert list(executor.map(increase, range(1000), chunksize=chunksize)) == list(range(1, 1001))


def test_chunks_need_to_be_of_something(executor: ClientExecutor) -> None:
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(increase, [1], chunksize=0)


def test_map_raises_where_the_bad_element_stands(executor: ClientExecutor) -> None:
    results = executor.map(operator.floordiv, [4, 4, 4], [2, 0, 4])
    assert next(results) == 2
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_times_out_from_when_it_was_called(executor: ClientExecutor, tmp_path: Path) -> None:
    results = executor.map(wait_for_file, [str(tmp_path / "go")], timeout=0.05)
    with pytest.raises(standard.TimeoutError):
        next(results)
    (tmp_path / "go").touch()


def test_what_map_has_not_begun_is_cancelled_when_its_reader_leaves(client: Client, tmp_path: Path) -> None:
    started, go = tmp_path / "started", tmp_path / "go"

    def note(i: int) -> int:
        with open(started, "a") as file:
            file.write(".")
        wait_for_file(str(go))
        return i

    with client.get_executor() as executor:
        results = executor.map(note, range(50), timeout=0.2)
        with pytest.raises(standard.TimeoutError):
            next(results)
        go.touch()
    assert len(started.read_text()) < 50


def test_a_call_that_waits_is_cancelled_and_never_runs(client: Client, tmp_path: Path) -> None:
    with client.get_executor() as executor:
        held = hold_all(executor, tmp_path / "go")
        told: list[Any] = []
        waiting = executor.submit((tmp_path / "ran").touch)
        waiting.add_done_callback(told.append)
        assert not waiting.running()
        assert waiting.cancel()
        assert waiting.cancel(), "once more does no harm"
        assert waiting.cancelled()
        done, _ = standard.wait([waiting], timeout=30)
        assert done == {waiting}
        with pytest.raises(standard.CancelledError):
            waiting.result()
        assert told == [waiting]
        (tmp_path / "go").touch()
        assert all(future.result() for future in held)
    assert not (tmp_path / "ran").exists()


def test_a_call_that_runs_or_has_ended_is_not_cancelled(executor: ClientExecutor, tmp_path: Path) -> None:
    running = executor.submit(wait_for_file, str(tmp_path / "go"))
    wait_until(running.running)
    assert not running.cancel()
    (tmp_path / "go").touch()
    assert running.result() == str(tmp_path / "go")
    assert not running.cancel()


def test_callbacks_are_called_once_each_with_the_future(executor: ClientExecutor) -> None:
    called: list[Any] = []
    all_called = threading.Event()
    future = executor.submit(increase, 1)
    future.add_done_callback(called.append)
    future.add_done_callback(lambda future: all_called.set())
    assert all_called.wait(30)
    future.add_done_callback(called.append)
    assert called == [future, future]


def test_a_callback_may_submit_and_wait(client: Client, executor: ClientExecutor) -> None:
    found: list[int] = []
    all_found = threading.Event()

    def go_on(future: standard.Future[int]) -> None:
        found.append(client.submit(increase, future.result()).result())
        all_found.set()

    executor.submit(increase, 1).add_done_callback(go_on)
    assert all_found.wait(30)
    assert found == [3]


def test_after_shutdown_nothing_is_taken_and_what_was_taken_is_done(client: Client) -> None:
    executor = client.get_executor()
    futures = [executor.submit(increase, i) for i in range(10)]
    executor.shutdown()
    assert all(future.done() for future in futures)
    for use in (lambda: executor.submit(increase, 1), lambda: executor.map(increase, [1])):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            use()
    executor.shutdown()


def test_shutdown_need_not_wait(client: Client, tmp_path: Path) -> None:
    executor = client.get_executor()
    future = executor.submit(wait_for_file, str(tmp_path / "go"))
    executor.shutdown(wait=False)
    assert not future.done()
    (tmp_path / "go").touch()
    assert future.result(timeout=30)


def test_shutdown_cancels_what_waits_when_asked_to(client: Client, tmp_path: Path) -> None:
    executor = client.get_executor()
    held = hold_all(executor, tmp_path / "go")
    waiting = [executor.submit(partial(increase, i)) for i in range(20)]  # functions never seen are not sent ahead
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in waiting)
    (tmp_path / "go").touch()
    executor.shutdown()
    assert all(future.result() for future in held)


def test_what_does_not_exist_is_refused(client: Client) -> None:
    with pytest.raises(TypeError, match=r"unsupported arguments to ClientExecutor: \['foo'\]"):
        client.get_executor(foo=1)


def test_options_hold_for_all_its_calls(client: Client) -> None:
    def where() -> str:
        from localdask import get_worker

        return str(get_worker().name)

    with client.get_executor(workers=["w1"]) as executor:
        assert {executor.submit(where).result() for _ in range(4)} == {"w1"}
        assert set(executor.map(lambda _: where(), range(4))) == {"w1"}


def test_annotations_around_a_call_hold_too(client: Client, executor: ClientExecutor, tmp_path: Path) -> None:
    def third_time(path: str) -> int:
        with open(path, "a") as file:
            file.write(".")
        if os.path.getsize(path) < 3:
            raise OSError("not yet")
        return os.path.getsize(path)

    with annotate(retries=5):
        assert executor.submit(third_time, str(tmp_path / "tries")).result() == 3


def test_asyncio_runs_in_it(executor: ClientExecutor) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, increase, i) for i in range(20)))

    assert asyncio.run(main()) == list(range(1, 21))


def test_a_task_may_use_one(client: Client) -> None:
    def nested(n: int) -> list[int]:
        with get_client().get_executor() as executor:
            return [future.result() for future in [executor.submit(increase, i) for i in range(n)]]

    assert client.submit(nested, 5).result() == [1, 2, 3, 4, 5]


def test_a_large_result_comes_whole(executor: ClientExecutor) -> None:
    assert executor.submit(bytes, 3_000_000).result() == bytes(3_000_000)


def test_a_closed_client_cancels_its_calls(shared_cluster: LocalCluster, tmp_path: Path) -> None:
    with Client(shared_cluster) as client:
        executor = client.get_executor()
        future = executor.submit(wait_for_file, str(tmp_path / "go"))
    with pytest.raises(standard.CancelledError):
        future.result(timeout=30)
    assert not future.running()
    executor.shutdown()
    (tmp_path / "go").touch()


def test_its_thread_ends_with_it(client: Client) -> None:
    before = set(threading.enumerate())
    with client.get_executor() as executor:
        executor.submit(increase, 1).result()
        assert set(threading.enumerate()) > before
    assert not set(threading.enumerate()) - before


def test_a_future_that_takes_long_still_calls_back(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from localdask.api import callbacks

    monkeypatch.setattr(callbacks, "IDLE_S", 0.01)
    called = threading.Event()
    client.submit(increase, 0).add_done_callback(lambda future: None)  # its thread is there, and soon idle
    future = client.submit(wait_for_file, str(tmp_path / "go"), pure=False)
    future.add_done_callback(lambda future: called.set())
    with pytest.raises(TimeoutError):
        future.result(timeout=0.1)
    (tmp_path / "go").touch()
    assert called.wait(30)
