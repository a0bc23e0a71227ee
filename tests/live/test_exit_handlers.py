"""What a preload or a task registered with ``atexit``: it runs as its process ends, after the teardowns, and in no other process."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from localdask import Client, LocalCluster
from tests.conftest import wait_until, write

NOTING = """\
import atexit, os

def note(text):
    with open({folder!r} + "/" + str(os.getpid()), "a") as file:
        file.write(text + " ")

atexit.register(note, "exit")

def dask_setup(service):
    note(type(service).__name__)

def dask_teardown(service):
    note("teardown")
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_they_run_once_after_the_teardown_of_the_process_that_registered_them(tmp_path: Path, method: str) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    preload = str(write(tmp_path / "noting.py", NOTING.format(folder=str(notes))))
    with LocalCluster(n_workers=1, threads_per_worker=1, start_method=method, preload=preload, preload_nanny=preload):
        pass
    assert sorted(file.read_text() for file in notes.iterdir()) == ["Nanny teardown exit ", "Worker teardown exit "]


def test_a_temporary_folder_that_a_task_keeps_goes_with_its_worker(client: Client) -> None:
    def keep() -> str:
        import builtins
        import tempfile

        builtins.kept: Any = tempfile.TemporaryDirectory()  # type: ignore[attr-defined]
        return str(builtins.kept.name)  # type: ignore[attr-defined]

    folder = Path(client.submit(keep).result())
    assert folder.is_dir()
    client.cluster.close()
    assert not folder.exists()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_logs_that_lie_in_a_buffer_are_written(tmp_path: Path, method: str) -> None:
    def log(path: str) -> None:
        import logging.handlers

        kept = logging.handlers.MemoryHandler(1000, target=logging.FileHandler(path))
        logging.getLogger("census").addHandler(kept)
        logging.getLogger("census").warning("counted")

    with LocalCluster(n_workers=1, threads_per_worker=1, start_method=method) as cluster, Client(cluster) as client:
        client.submit(log, f"{tmp_path}/log").result()
        assert (tmp_path / "log").read_text() == ""
    assert (tmp_path / "log").read_text() == "counted\n"


def test_a_process_that_a_task_started_is_not_waited_for(client: Client, capfd: pytest.CaptureFixture[str]) -> None:
    def start() -> int:
        import multiprocessing
        import time

        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
        child.start()
        return child.pid or 0

    pid = client.submit(start).result()
    client.cluster.close()
    assert not Path(f"/proc/{pid}").exists()
    assert "atexit" not in capfd.readouterr().err


def test_one_that_hangs_is_told_and_left(capfd: pytest.CaptureFixture[str]) -> None:
    def hang() -> None:
        import atexit
        import time

        atexit.register(time.sleep, 1000)

    with LocalCluster(n_workers=1, threads_per_worker=1, teardown_timeout=0.2) as cluster, Client(cluster) as client:
        client.submit(hang).result()
    assert "worker w0: what was registered with atexit did not end within 0.2 s" in capfd.readouterr().err


def test_a_worker_that_is_asked_to_end_by_a_signal_runs_them(client: Client, tmp_path: Path) -> None:
    def register(path: str) -> int:
        import atexit
        import os

        atexit.register(lambda: open(path, "w").close())
        return os.getpid()

    pid = client.submit(register, str(tmp_path / "ran")).result()
    os.kill(pid, signal.SIGTERM)
    wait_until((tmp_path / "ran").exists)
