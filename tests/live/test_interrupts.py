"""Code that runs is stopped when it must be: cancelled by force, or past its time limit, in Python or in C."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localdask import Client, LocalCluster, annotate
from localdask.errors import FutureCancelledError, TaskTimeoutError, UsageError
from localdask.state import interrupts
from tests.conftest import wait_until

LONG_S = 1000.0


@pytest.fixture(params=[1, 2], ids=["main thread", "threads"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setattr(interrupts, "GRACE_S", 0.1)  # what does not heed an interrupt is replaced by then
    with LocalCluster(n_workers=1, threads_per_worker=request.param) as cluster, Client(cluster) as client:
        yield client


@pytest.fixture
def client_of_one() -> Iterator[Client]:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        yield client


def note(path: str) -> None:
    with open(path, "a") as file:
        file.write("x")


def sleep(path: str) -> None:
    note(path)
    time.sleep(LONG_S)


def spin_in_c(path: str) -> None:
    note(path)
    sum(range(10**12))


def swallow(path: str) -> None:
    note(path)
    while True:
        try:
            time.sleep(LONG_S)
        except KeyboardInterrupt:
            continue


async def wait_async(path: str) -> None:
    import asyncio

    note(path)
    await asyncio.sleep(LONG_S)


def run_program(path: str) -> None:
    note(path)
    subprocess.run([sys.executable, "-c", f"import time; time.sleep({LONG_S})"])


def pid(_: int) -> int:
    import os

    return os.getpid()


@pytest.mark.parametrize("task", [sleep, spin_in_c, swallow, wait_async, run_program])
def test_what_is_cancelled_by_force_stops_and_the_next_task_runs(client: Client, task: Callable[[str], None], tmp_path: Path) -> None:
    path = tmp_path / "began"
    future = client.submit(task, str(path))
    wait_until(path.exists)
    client.cancel(future, force=True)
    assert client.submit(abs, -1, pure=False).result(30) == 1
    with pytest.raises(FutureCancelledError):
        future.result()


def test_an_interrupt_spares_the_worker_where_the_task_heeds_it(client_of_one: Client, tmp_path: Path) -> None:
    path = tmp_path / "began"
    before = client_of_one.submit(pid, 0).result()
    future = client_of_one.submit(sleep, str(path))
    wait_until(path.exists)
    client_of_one.cancel(future, force=True)
    assert client_of_one.submit(pid, 1).result() == before


@pytest.mark.parametrize("task", [sleep, spin_in_c, swallow])
def test_a_task_past_its_limit_fails_and_the_next_task_runs(client: Client, task: Callable[[str], None], tmp_path: Path) -> None:
    with annotate(timeout="50 ms"):
        future = client.submit(task, str(tmp_path / "began"))
    with pytest.raises(TaskTimeoutError, match=r"longer than its limit of 0\.05 s") as caught:
        future.result(30)
    assert isinstance(caught.value, TimeoutError)
    assert client.submit(abs, -1).result(30) == 1


def fail(path: str, kind: type[BaseException]) -> None:
    note(path)
    raise kind("no")


@pytest.mark.parametrize(("kind", "n_runs"), [(ConnectionError, 3), (ValueError, 1)])
def test_only_named_errors_are_worth_another_run(client_of_one: Client, kind: type[BaseException], n_runs: int, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    with annotate(retries=2, retry_on=OSError):
        future = client_of_one.submit(fail, str(path), kind)
    with pytest.raises(kind):
        future.result()
    assert len(path.read_text()) == n_runs


def test_a_limit_that_is_passed_counts_as_an_error_worth_another_run(client_of_one: Client, tmp_path: Path) -> None:
    path = tmp_path / "runs"
    client_of_one.submit(note, str(tmp_path / "warm")).result()  # the limit is not for this module's import
    with annotate(timeout=0.2, retries=1, retry_on=TimeoutError):
        future = client_of_one.submit(sleep, str(path))
    with pytest.raises(TaskTimeoutError):
        future.result(30)
    assert len(path.read_text()) == 2


def test_blocks_add_up_and_a_call_goes_first() -> None:
    from localdask.api.annotations import TaskOptions

    with annotate(retries=3, priority=1), annotate(priority=2, workers="w1"):
        options = TaskOptions()
        assert (options.retries, options.priority, options.workers) == (3, 2, ("w1",))
        assert TaskOptions(workers="w0", retries=0, priority=5).workers == ("w0",)
        assert TaskOptions(retries=0).retries == 0
    assert TaskOptions().retries == 0 and TaskOptions().limits is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"timeuot": 1}, "no such option; there are timeout, retry_on"),
        ({"timeout": -1}, "seconds above 0"),
        ({"retry_on": "OSError"}, "exception classes"),
        ({"retry_on": (OSError, 5)}, "exception classes"),
    ],
)
def test_what_makes_no_sense_is_told_at_once(options: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text), annotate(**options):
        raise AssertionError("the block was entered")


def test_a_future_can_be_cancelled_by_force_itself(client: Client, tmp_path: Path) -> None:
    def run_on(path: str) -> None:
        open(path, "w").close()
        time.sleep(1000)

    future = client.submit(run_on, str(tmp_path / "began"))
    wait_until((tmp_path / "began").exists)
    future.cancel(force=True)
    assert future.cancelled()
    assert client.gather(client.map(abs, [-1, -2])) == [1, 2]
    wait_until(lambda: not any(client.processing().values()))
