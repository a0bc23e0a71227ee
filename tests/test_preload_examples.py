"""The preloads of ``examples/preloads`` keep what they say, also when they are edited and when a worker dies."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localdask import Client, LocalCluster, get_worker
from localdask.errors import PreloadError
from tests.conftest import wait_until
from tests.test_examples import EXAMPLES


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the examples that may be edited."""
    shutil.copytree(EXAMPLES / "preloads", tmp_path / "preloads", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path / "preloads")
    monkeypatch.syspath_prepend(str(tmp_path / "preloads"))
    yield tmp_path / "preloads"


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def model_now() -> Any:
    import model

    return model.model["loaded_at"], model.predict(20)


def test_the_model_outlives_an_edit_of_its_preload(folder: Path) -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1, preload="model.py") as cluster, Client(cluster) as client:
        before = client.run(model_now)
        assert [answer for _, answer in before.values()] == [False, False]
        edit(folder / "model.py", "THRESHOLD = 0.5", "THRESHOLD = 0.1")
        cluster.wait_for_generation(2, timeout=30)
        after = client.run(model_now)
    assert {name: time for name, (time, _) in after.items()} == {name: time for name, (time, _) in before.items()}
    assert [answer for _, answer in after.values()] == [True, True]


def logging_now() -> tuple[int, int]:
    import logging

    return logging.getLogger().level, len(logging.getLogger().handlers)


def test_how_workers_log_is_edited_live(folder: Path) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1, preload="logs.py") as cluster, Client(cluster) as client:
        assert client.submit(logging_now, pure=False).result() == (20, 1)
        edit(folder / "logs.py", "logging.INFO", "logging.DEBUG")
        cluster.wait_for_generation(2, timeout=30)
        assert client.submit(logging_now, pure=False).result() == (10, 1)


def device_now() -> tuple[str, int]:
    return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()


def test_a_worker_that_replaces_a_dead_one_has_the_same_device(folder: Path) -> None:
    with LocalCluster(n_workers=3, threads_per_worker=1, preload_nanny="device.py") as cluster, Client(cluster) as client:
        before = client.run(device_now)
        assert [before[cluster.worker_address(name)][0] for name in ("w0", "w1", "w2")] == ["0", "1", "0"]
        pid = before[cluster.worker_address("w1")][1]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: client.scheduler_info()["workers"].get(cluster.worker_address("w1"), {}).get("pid", pid) != pid)
        assert client.run(device_now, workers=["w1"])[cluster.worker_address("w1")][0] == "1"


def pool_now() -> int:
    return len(get_worker().pool.free)


def test_the_pool_takes_its_sizes_from_its_options(folder: Path) -> None:
    argv = ["--pool-size", "8", "--block-size", "2"]
    with LocalCluster(n_workers=1, preload="pool.py", preload_argv=argv) as cluster, Client(cluster) as client:
        assert client.submit(pool_now).result() == 4
    with pytest.raises(PreloadError, match="--pool-size"):
        LocalCluster(n_workers=1, preload="pool.py", preload_argv=["--pool-size", "much"])


def connection_now() -> str:
    return f"{get_worker().session.host}:{get_worker().session.port}"


def test_the_session_goes_where_its_option_says(folder: Path) -> None:
    with LocalCluster(n_workers=1, preload="session.py", preload_argv="--host example.org:81") as cluster, Client(cluster) as client:
        assert client.submit(connection_now).result() == "example.org:81"


def test_the_plugins_connection_is_there_again_after_a_death_and_closed_at_the_end(folder: Path, tmp_path: Path) -> None:
    import database

    rows = tmp_path / "rows"
    rows.mkdir()
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        client.register_plugin(database.Database(str(rows)))
        client.submit(database.store, 1).result()
        os.kill(client.submit(os.getpid).result(), signal.SIGKILL)
        client.submit(database.store, 2).result()
    with sqlite3.connect(rows / "w0.sqlite") as found:
        assert found.execute("select x from squares order by x").fetchall() == [(1,), (2,)]
        assert found.execute("select * from closed").fetchall() == []
    found.close()
