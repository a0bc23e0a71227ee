"""What a task prints is with its future: its own, in order, the end of it, and whether it failed or not."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from localdask import Client, LocalCluster, wait
from localdask.errors import FutureCancelledError
from localdask.processes.task_output import OUTPUT_NBYTES_MAX

pytestmark = pytest.mark.shared


def say(number: int) -> int:
    print("number", number)
    print("trouble", number, file=sys.stderr)
    return number


def fail() -> None:
    print("before")
    raise ValueError("no")


def quiet(x: Any) -> Any:
    return x


def log(text: str) -> None:
    logger = logging.getLogger("of a task")
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    logger.warning(text)
    logger.removeHandler(handler)


def say_much(n: int) -> None:
    for _ in range(n):
        print("ü" * 99)
    print("the end")


def say_in_a_thread() -> None:
    print("mine")
    thread = threading.Thread(target=print, args=("nobody's",))
    thread.start()
    thread.join()


def close_streams() -> None:
    print("last words")
    sys.stdout.close()


def test_a_future_has_what_its_task_wrote_to_both_streams(client: Client) -> None:
    futures = client.map(say, range(20))
    assert [future.output() for future in futures] == [f"number {n}\ntrouble {n}\n" for n in range(20)]
    assert client.submit(quiet, 1).output() == ""
    assert client.submit(log, "a warning").output() == "a warning\n"


def test_a_failed_task_s_future_has_it_too(client: Client) -> None:
    future = client.submit(fail)
    assert future.output() == "before\n"
    assert future.status == "error"


def test_output_waits_for_the_task_and_not_for_ever(client: Client) -> None:
    future = client.submit(time.sleep, 0.3)
    with pytest.raises(TimeoutError):
        future.output(timeout=0.01)
    assert future.output("10s") == ""
    future.cancel()
    with pytest.raises(FutureCancelledError):
        future.output()


def test_of_much_the_end_is_kept_and_the_rest_counted() -> None:
    with LocalCluster(n_workers=1, on_log=lambda *_: None) as cluster, Client(cluster, set_as_default=False) as client:
        head, rest = client.submit(say_much, 2000).output().split("\n", 1)
    assert head.startswith("… ") and head.endswith(" bytes before this are left out")
    assert rest.endswith(f"{'ü' * 99}\nthe end\n")
    left_out = int(head.split()[1].replace(",", ""))
    assert len(rest.encode()) <= OUTPUT_NBYTES_MAX
    assert left_out + len(rest.encode()) == 2000 * 199 + len("the end\n")


def test_what_other_threads_print_is_not_the_task_s(client: Client) -> None:
    assert client.submit(say_in_a_thread).output() == "mine\n"


def test_a_task_that_closes_its_streams_spoils_nothing_for_the_next(client: Client) -> None:
    for _ in range(4):
        assert client.submit(close_streams, pure=False).output() == "last words\n"
    assert {client.submit(say, n).output() for n in range(100, 104)} == {f"number {n}\ntrouble {n}\n" for n in range(100, 104)}


def test_of_several_runs_it_is_the_last_one_s(client: Client, tmp_path: Any) -> None:
    def flaky(folder: str) -> None:
        import os

        n = len(os.listdir(folder))
        open(f"{folder}/{n}", "w").close()
        print("run", n)
        if n < 2:
            raise OSError

    future = client.submit(flaky, str(tmp_path), retries=2)
    assert future.output() == "run 2\n"
    failed = client.submit(fail, pure=False)
    wait(failed)
    failed.retry()
    assert failed.output() == "before\n"


def test_threads_of_one_worker_keep_theirs_apart() -> None:
    def slowly(letter: str) -> None:
        for _ in range(20):
            print(letter, end="")
            time.sleep(0.001)

    with LocalCluster(n_workers=1, threads_per_worker=4) as cluster, Client(cluster) as client:
        futures = client.map(slowly, "abcd")
        assert [future.output() for future in futures] == [letter * 20 for letter in "abcd"]


def test_workers_in_threads_leave_the_streams_as_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with LocalCluster(n_workers=2, processes=False) as cluster, Client(cluster) as client:
        assert client.submit(say, 1).output() == "number 1\ntrouble 1\n"
        print("of the user's own")
        assert client.submit(quiet, 2).output() == ""
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "number 1\nof the user's own\n"


@pytest.mark.parametrize("reach", [lambda cluster: cluster, lambda cluster: cluster.scheduler_address])
def test_asynchronous_clients_await_the_output(shared_cluster: LocalCluster, reach: Callable[[LocalCluster], Any]) -> None:
    async def ask() -> list[str]:
        async with Client(reach(shared_cluster), asynchronous=True) as client:
            futures = client.map(say, range(200, 203), pure=False)
            return [await future.output() for future in futures]

    assert asyncio.run(ask()) == [f"number {n}\ntrouble {n}\n" for n in range(200, 203)]


def test_clients_of_other_processes_have_the_output(shared_cluster: LocalCluster) -> None:
    with Client(shared_cluster.scheduler_address, set_as_default=False) as client:
        assert client.submit(say, 300, pure=False).output() == "number 300\ntrouble 300\n"


def test_what_a_worker_prints_arrives_where_only_ascii_is_taken() -> None:
    code = "from localdask import Client\nwith Client(n_workers=1) as client:\n    client.submit(print, '\\xe9 \\u2192').result()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("\\xe9 \\u2192\n", "")
