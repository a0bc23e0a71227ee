"""The user's process is killed without a word: nothing that it started outlives it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from localdask import LocalCluster
from tests.conftest import own_files, wait_until
from tests.live.scripts import files_of_killed, is_alive, running

SCRIPT = """\
import os, re, signal, subprocess, sys, time
from localdask import Client, LocalCluster, get_worker

def say(text):
    with open(os.environ["MARKS"], "a") as file:
        file.write(text + "\\n")

def nothing():
    say("there")

def sleep():
    say("there")
    time.sleep(1000)

def spin():
    say("there")
    sum(range(10**14))

def backtrack():
    say("there")
    re.match(r"(a|aa)+$", "a" * 100 + "b")

def ignore():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    say("there")
    while True:
        time.sleep(1000)

def breed():
    subprocess.Popen(["sleep", "1000"])
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    subprocess.Popen([sys.executable, "-c", "import os, time\\nif os.fork():\\n    os._exit(0)\\nos.setsid(); time.sleep(1000)"])
    say("there")
    time.sleep(1000)

if __name__ == "__main__":
    os.environ["MARKS"], mode = sys.argv[1:]
    cluster = LocalCluster(n_workers=2, threads_per_worker=1)
    client = Client(cluster)
    held = client.submit(bytes, 300_000), client.scatter(b"x" * 300_000)
    work = [client.submit(globals()[mode], workers=name, pure=False) for name in ("w0", "w1")]
    if mode == "nothing":
        client.gather(work)
    print("ready", flush=True)
    while True:
        time.sleep(1000)
"""

MODES = ["nothing", "sleep", "spin", "backtrack", "ignore", "breed"]


def everybody_is_gone(family: list[psutil.Process]) -> None:
    wait_until(lambda: not [process for process in family if is_alive(process)], 3.0, f"the end of {family}")


@pytest.mark.parametrize("mode", MODES)
def test_nothing_outlives_a_user_who_is_killed(mode: str, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    with running(SCRIPT, folder=tmp_path, arguments=[str(marks), mode]) as script:
        script.wait_for("ready")
        wait_until(lambda: marks.exists() and marks.read_text().count("there") == 2)
        if mode == "breed":  # two programs and a daemon each, the daemon's father gone
            wait_until(lambda: sum(process.name().startswith(("sleep", "python")) for process in script.family()) >= 5 + 6)
        family = script.family()
        assert len(family) >= 5
        script.process.kill()
        everybody_is_gone(family)
    assert {os.path.dirname(path) for path in own_files()} <= {os.path.dirname(path) for path in files_of_killed()}
    with LocalCluster(n_workers=1, threads_per_worker=1):
        pass
    assert not files_of_killed()


@pytest.mark.parametrize("which", ["worker", "nanny"])
def test_nothing_outlives_it_when_one_of_them_was_stopped(which: str, tmp_path: Path) -> None:
    with running(SCRIPT, folder=tmp_path, arguments=[str(tmp_path / "marks"), "nothing"]) as script:
        script.wait_for("ready")
        family = script.family()
        parents = {process.pid: process.ppid() for process in family}
        launcher = next(pid for pid, parent in parents.items() if parent == script.process.pid)
        nannies = [process for process in family if parents[process.pid] == launcher]
        workers = [process for process in family if process not in nannies and process.pid != launcher]
        stopped = (workers if which == "worker" else nannies)[0]
        stopped.suspend()
        wait_until(lambda: stopped.status() == psutil.STATUS_STOPPED)
        script.process.kill()
        everybody_is_gone(family)
    with LocalCluster(n_workers=1, threads_per_worker=1):
        pass
    assert not files_of_killed()


def test_nothing_outlives_it_when_the_launcher_was_killed_before(tmp_path: Path) -> None:
    with running(SCRIPT, folder=tmp_path, arguments=[str(tmp_path / "marks"), "sleep"]) as script:
        script.wait_for("ready")
        family = script.family()
        launcher = next(process for process in family if process.ppid() == script.process.pid)
        launcher.kill()
        script.process.kill()
        everybody_is_gone(family)
    with LocalCluster(n_workers=1, threads_per_worker=1):
        pass


def test_a_cluster_that_lives_is_not_swept_by_the_next_start(tmp_path: Path) -> None:
    with running(SCRIPT, folder=tmp_path, arguments=[str(tmp_path / "marks"), "nothing"]) as script:
        script.wait_for("ready")
        script.family()
        there = files_of_killed()
        assert there
        with LocalCluster(n_workers=1, threads_per_worker=1):
            assert there <= own_files()
        assert there <= own_files()
        script.process.kill()
        everybody_is_gone(script.family())
    with LocalCluster(n_workers=1, threads_per_worker=1):
        pass


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_nothing_outlives_a_user_who_is_ended_by_a_signal_to_the_group(signum: signal.Signals, tmp_path: Path) -> None:
    with running(SCRIPT, folder=tmp_path, arguments=[str(tmp_path / "marks"), "sleep"]) as script:
        script.wait_for("ready")
        family = script.family()
        os.killpg(script.process.pid, signum)
        everybody_is_gone(family)
    with LocalCluster(n_workers=1, threads_per_worker=1):
        pass
