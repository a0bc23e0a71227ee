"""Tasks that no process survives, and objects that no pipe carries: each fails alone, and its error says of what.

In a file of its own: its one cluster replaces workers while the next test runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from localdask import Client, Future, KilledWorker, LocalCluster
from tests.live.bestiary import CASES

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with LocalCluster(n_workers=2, threads_per_worker=1, allowed_failures=0) as cluster, Client(cluster) as client:
        yield client


def inc(x: int) -> int:
    return x + 1


def nap(x: int) -> int:
    time.sleep(0.02)
    return x


def test_the_error_tells_task_death_and_last_lines(client: Client) -> None:
    def leave() -> None:
        print("about to leave", flush=True)
        os._exit(7)

    future = client.submit(leave, key="leaver")
    error = future.exception()
    assert isinstance(error, KilledWorker)
    assert (error.task, error.exit_text, error.last_lines) == ("leaver", "exit code 7", ("about to leave",))
    assert error.peak_rss > 0
    assert "the worker running task 'leaver' died once; last was w" in str(error)
    assert "which ended by exit code 7 with a peak of" in str(error)
    assert str(error).endswith("Its last lines:\n    about to leave")


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_the_error_names_the_signal(client: Client, signum: signal.Signals) -> None:
    error = client.submit(lambda number: os.kill(os.getpid(), number), int(signum), pure=False).exception()
    assert isinstance(error, KilledWorker) and error.exit_text == signum.name


def test_a_segfault_shows_where_it_happened(client: Client) -> None:
    error = client.submit(ctypes.string_at, 0).exception()
    assert isinstance(error, KilledWorker) and error.exit_text == "SIGSEGV"
    assert "in string_at" in str(error) and "processes/nanny.py" not in str(error)


def check(case_name: str, client: Client, bystander: Future[int]) -> None:
    """Submit a bad object, and see that it harms nobody but itself."""
    case = CASES[case_name]
    error: BaseException | None = None
    try:
        future = client.submit(*case.submission(), pure=False)
    except BaseException as raised:
        assert case.call == "submit", f"submit raised {raised!r}"
        error = raised
    else:
        assert case.call != "submit", "submit raised nothing"
        error = raised_by(future.result)
    if error is None:
        assert case.error is None or case.may_succeed, f"{case.error} was to be raised"
    else:
        assert case.error is not None and isinstance(error, case.error), repr(error)
        assert type(error) is case.error or case.position != "raised"
        assert case.text in text_of(error)
    assert bystander.result() == 5
    assert client.gather(client.map(inc, range(3), pure=False)) == [1, 2, 3]


def raised_by(call: Callable[[], object]) -> BaseException | None:
    try:
        call()
    except BaseException as error:
        return error
    return None


def text_of(error: BaseException) -> str:
    try:
        return str(error)
    except RuntimeError:
        return ""  # an exception whose own __str__ raises


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("case_name", CASES)
def test_a_bad_task_fails_alone(case_name: str, client: Client) -> None:
    check(case_name, client, client.submit(nap, 5, pure=False))
