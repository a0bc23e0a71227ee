"""What may be said about preloads: addresses, trust, optional ones, clients' own, and waiting for a mend."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localdask import Client, LocalCluster, config, get_worker
from localdask.errors import PreloadError, UsageError
from tests.conftest import wait_until
from tests.live.scripts import environment


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A server on this machine with one preload."""
    (tmp_path / "fetched.py").write_text("def dask_setup(worker): worker.fetched = True\n")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *words: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/fetched.py"
        server.shutdown()
        thread.join()


def is_fetched() -> bool:
    return bool(get_worker().fetched)


def test_an_address_is_fetched_where_that_is_allowed(address: str) -> None:
    with pytest.raises(UsageError, match="allow"):
        LocalCluster(n_workers=1, preload=address)
    with LocalCluster(n_workers=1, preload=address, allow_url_preload=True) as cluster, Client(cluster) as client:
        assert client.submit(is_fetched).result()


def test_a_file_that_others_may_change_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    path = tmp_path / "open_preload.py"
    path.write_text("def dask_setup(worker): worker.fetched = True\n")
    path.chmod(0o666)
    with pytest.raises(UsageError, match="other users can write it"):
        LocalCluster(n_workers=1, preload=path)
    with LocalCluster(n_workers=1, preload=path, trust_preload=True) as cluster, Client(cluster) as client:
        assert client.submit(is_fetched).result()


def test_what_others_may_have_saved_while_a_cluster_runs_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "opened_later.py"
    path.write_text("def dask_setup(worker): worker.value = 1\n")
    with LocalCluster(n_workers=1, preload=path, on_event=lambda kind, **fields: None) as cluster, Client(cluster) as client:
        path.chmod(0o666)
        path.write_text("def dask_setup(worker): worker.value = 2\n")
        wait_until(lambda: len(cluster.reloads) == 1)
        assert "other users can write it" in cluster.reloads[0].detail
        assert client.run(lambda dask_worker: dask_worker.value) == {worker: 1 for worker in client.scheduler_info()["workers"]}
        path.chmod(0o644)
        assert cluster.reload().outcome == "swapped"


def test_an_optional_preload_that_fails_is_told_and_its_process_serves(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "failing_preload.py"
    path.write_text("def dask_setup(service): raise ConnectionError('db refused')\n")
    with pytest.raises(PreloadError, match="db refused"):
        LocalCluster(n_workers=1, preload=path)
    for role in ("preload", "preload_nanny", "preload_scheduler"):
        with LocalCluster(n_workers=1, preload_optional=True, **{role: path}) as cluster, Client(cluster) as client:
            assert client.submit(abs, -1).result() == 1
        assert "db refused" in capfd.readouterr().err


def test_a_clients_preloads_are_set_up_and_torn_down_with_it(tmp_path: Path) -> None:
    path = tmp_path / "of_a_client.py"
    path.write_text("def dask_setup(client): client.greeting = 'hello'\ndef dask_teardown(client): client.greeting = client.status\n")
    with LocalCluster(n_workers=0) as cluster, config.set({"client.preload": [str(path)]}):
        with Client(cluster) as client:
            assert client.greeting == "hello"  # type: ignore[attr-defined]
        assert client.greeting == "running"  # type: ignore[attr-defined]
        path.write_text("def dask_setup(client): raise ValueError('no')\n")
        with pytest.raises(PreloadError, match="of_a_client.py failed in client") as raised:
            Client(cluster)
    assert len(ours(raised)) == 1


def ours(raised: pytest.ExceptionInfo[BaseException]) -> list[str]:
    """Return the files of localdask itself that a raised error's traceback shows."""
    files = [str(entry.path) for entry in raised.traceback]
    return [file for file in files if "/localdask/" in file and "/tests/" not in file]


def test_the_error_of_a_preload_shows_the_users_frames_and_hardly_any_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "failing.py"
    for code, role in (("def dask_setup(dask_thing): 1 / 0\n", "preload"), ("1 / 0\n", "preload_scheduler"), ("def (:\n", "preload")):
        path.write_text(code)
        arguments: dict[str, Any] = {role: path}
        with pytest.raises(PreloadError, match=r"failing\.py:1") as raised:
            LocalCluster(n_workers=1, **arguments)
        assert len(ours(raised)) == 2  # where a cluster is made, and where its start failed
    with pytest.raises(UsageError, match="is no such file") as missing:
        LocalCluster(n_workers=1, preload="missing.py")
    assert len(ours(missing)) == 2


@pytest.mark.parametrize("broken", ["def dask_setup(worker: pass\n", "def dask_setup(worker): 1 / 0\n", "import helper_to_come\n"])
def test_up_waits_for_a_broken_preload_to_be_mended(tmp_path: Path, broken: str, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "mended.py"
    path.write_text(broken)
    command = [sys.executable, "-m", "localdask", "run", "-n", "1", "--preload", str(path), "--wait-for-fix", "--", "-c", "print('ran')"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        request.addfinalizer(process.kill)
        told = []
        for line in process.stderr:
            told.append(line)
            if line.startswith("waiting for it to be mended"):
                break
        assert "mended.py" in "".join(told)
        path.write_text("def dask_setup(worker): pass\n")
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "ran\n")


def test_without_waiting_a_broken_preload_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "broken_preload.py"
    path.write_text("def dask_setup(worker): 1 / 0\n")
    command = [sys.executable, "-m", "localdask", "run", "-n", "1", "--preload", str(path), "--", "-c", "print('ran')"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (5, "") and "broken_preload.py:1" in ended.stderr
