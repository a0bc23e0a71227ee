"""Ctrl-C in a user's script, at each place where it can come: the script is told, once, and the cluster stays usable or is gone."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from localdask import Client, LocalCluster
from tests.conftest import own_files, wait_until
from tests.live.scripts import is_alive, running

BEGIN = """\
import os, sys, time
from localdask import Client, LocalCluster, as_completed, wait

def sleep(seconds):
    time.sleep(seconds)
    return "slept"

def say(text):
    print(text, flush=True)
"""

WAITS = {
    "result": "client.submit(sleep, 1000).result()",
    "result with timeout": "client.submit(sleep, 1000).result(timeout=1000)",
    "gather": "client.gather(client.map(sleep, [1000, 1001, 1002]))",
    "wait": "wait(client.map(sleep, [1000, 1001]))",
    "as_completed": "list(as_completed(client.map(sleep, [1000, 1001])))",
    "run": "client.run(sleep, 1000)",
    "wait_for_workers": "client.wait_for_workers(100)",
}

WAITING = (
    BEGIN
    + """\
with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
    pids = client.run(os.getpid)
    for number in range(2):
        try:
            say(f"waiting {number}")
            {wait}
        except KeyboardInterrupt:
            say(f"interrupted {number}")
    assert client.run(os.getpid) == pids, "a worker was hit"
    client.restart()  # what sleeps is of no use any more
    say(f"then {client.submit(sum, [20, 22]).result(30)}")
"""
)


@pytest.mark.parametrize("name", WAITS)
def test_who_waits_is_told_and_the_cluster_goes_on(name: str, tmp_path: Path) -> None:
    with running(WAITING.replace("{wait}", WAITS[name]), folder=tmp_path) as script:
        for number in range(2):
            script.wait_for(f"waiting {number}")
            wait_until(lambda: sleeps(script.process.pid))
            script.interrupt_group()
            script.wait_for(f"interrupted {number}")
        assert script.end() == 0, script.text
    assert "then 42" in script.text and "Traceback" not in script.text


UNHEARD = (
    BEGIN
    + """\
import signal, threading

def press():  # the kernel gives it to another thread, so that nothing wakes the one that Python tells
    time.sleep(0.3)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)

with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
    threading.Thread(target=press).start()
    try:
        {wait}
    except KeyboardInterrupt:
        say("interrupted")
    client.restart()
"""
)


@pytest.mark.parametrize("name", ["run", "wait_for_workers"])
def test_ctrl_c_that_wakes_nobody_is_heard_all_the_same(name: str, tmp_path: Path) -> None:
    with running(UNHEARD.replace("{wait}", WAITS[name]), folder=tmp_path) as script:
        script.wait_for("interrupted")
        assert script.end() == 0, script.text


def sleeps(pid: int) -> bool:
    """Whether a process waits, as far as can be seen from outside."""
    import psutil

    return psutil.Process(pid).status() == psutil.STATUS_SLEEPING


BUSY = (
    BEGIN
    + """\
import random, signal, threading
N = 60
seen = 0

def interrupt():
    for number in range(N):
        while seen == number:  # Python drops one that comes within a __del__: press again
            time.sleep(random.uniform(0.0005, 0.01))
            os.kill(os.getpid(), signal.SIGINT)
            deadline = time.monotonic() + 0.2
            while seen == number and time.monotonic() < deadline:
                time.sleep(0.0005)

def work(round):
    {work}

with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
    thread = threading.Thread(target=interrupt)
    while seen < N:
        try:
            if not thread.ident:
                thread.start()
            for round in range(10**9):
                work(round)
        except KeyboardInterrupt:
            seen += 1
    thread.join()
    for number in range(100, 200):
        assert client.submit(pow, number, 2).result(30) == number * number
    assert client.gather(client.map(abs, range(-300, 0))) == list(range(300, 0, -1))
    deadline = time.monotonic() + 20
    import gc
    while cluster.scheduler.state.tasks:
        gc.collect()
        assert time.monotonic() < deadline, cluster.scheduler.state.tasks
        time.sleep(0.01)
    say("all right")
"""
)

WORKS = {
    "submit": "client.submit(pow, round, 2)",
    "submit and result": "assert client.submit(pow, round, 2).result() == round * round",
    "map and gather": "assert client.gather(client.map(abs, range(-100 - round, -round))) == list(range(100 + round, round, -1))",
    "scatter": "client.scatter([bytes(100_000), round])",
    "chain": "f = client.submit(abs, round); [f := client.submit(abs, f) for _ in range(20)]; assert f.result() == round",
}


@pytest.mark.parametrize("name", WORKS)
def test_interrupts_at_any_instruction_lose_nothing(name: str, tmp_path: Path) -> None:
    with running(BUSY.replace("{work}", WORKS[name]), folder=tmp_path) as script:
        assert script.end() == 0, script.text
    assert script.text.endswith("all right\n")


STARTING = (
    BEGIN
    + """\
say("starting")
try:
    LocalCluster(n_workers=2, threads_per_worker=1, preload=sys.argv[1])
except KeyboardInterrupt:
    say("interrupted")
with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
    say(f"then {client.submit(sum, [20, 22]).result(30)}")
"""
)
SLOW_SETUP = "import time\ndef dask_setup(worker):\n    print('in setup', flush=True)\n    time.sleep(1000)\n"
SLOW_TEARDOWN = "import time\ndef dask_teardown(worker):\n    print('in teardown', flush=True)\n    time.sleep(1000)\n"


@pytest.mark.parametrize("n_interrupts", [1, 2])
def test_a_start_that_is_interrupted_leaves_nothing(n_interrupts: int, tmp_path: Path) -> None:
    with running(STARTING, folder=tmp_path, arguments=[SLOW_SETUP]) as script:
        script.wait_for("in setup")
        family = script.family()
        script.interrupt_group()
        for _ in range(n_interrupts - 1):
            script.interrupt_group()
        if n_interrupts == 1:
            script.wait_for("then 42")
            assert script.end() == 0, script.text
        else:
            script.end()
    wait_until(lambda: not any(map(is_alive, family)))
    assert not own_files()


CLOSING = (
    BEGIN
    + """\
cluster = LocalCluster(n_workers=2, threads_per_worker=1, preload=sys.argv[1], teardown_timeout=1000)
try:
    cluster.close(timeout=1000)
except KeyboardInterrupt:
    say(f"interrupted {cluster.status}")
    cluster.close()
with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
    say(f"then {client.submit(sum, [20, 22]).result(30)}")
"""
)


def test_a_close_that_is_interrupted_ends_by_force(tmp_path: Path) -> None:
    with running(CLOSING, folder=tmp_path, arguments=[SLOW_TEARDOWN]) as script:
        script.wait_for("in teardown")
        family = script.family()
        script.interrupt_group()
        script.wait_for("interrupted closed")
        script.wait_for("then 42")
        assert script.end() == 0, script.text
    wait_until(lambda: not any(map(is_alive, family)))
    assert not own_files()


UNCAUGHT = (
    BEGIN
    + """\
with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
    future = client.submit(sleep, 1000)
    say("waiting")
    future.result()
"""
)


@pytest.mark.parametrize("n_interrupts", [1, 2])
def test_a_script_that_lets_it_pass_ends_as_python_does(n_interrupts: int, tmp_path: Path) -> None:
    with running(UNCAUGHT, folder=tmp_path) as script:
        script.wait_for("waiting")
        family = script.family()
        for _ in range(n_interrupts):
            script.interrupt_group()
        assert script.end() == -signal.SIGINT, script.text
    assert script.text.rstrip().endswith("KeyboardInterrupt")
    wait_until(lambda: not any(map(is_alive, family)))
    assert not own_files()


def test_an_own_handler_is_left_alone() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda signum, frame: seen.append(signum))
    try:
        with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
            future = client.submit(abs, -1)
            signal.raise_signal(signal.SIGINT)
            assert future.result() == 1 and seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)
