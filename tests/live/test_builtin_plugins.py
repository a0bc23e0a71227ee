"""The plugins that come with localdask: uploads that replace by name, environments, packages, forwarded output and logs."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from localdask import Client, Environ, ForwardOutput, LocalCluster, PipInstall, UploadDirectory, UploadFile, get_worker
from localdask.errors import UsageError
from tests.conftest import wait_until, write
from tests.live.scripts import running


def version() -> Any:
    import uploaded_once  # type: ignore[import-not-found]

    return uploaded_once.VERSION


def versions(client: Client, function: Any = version) -> set[Any]:
    return set(client.run(function).values())


# ── uploads ──────────────────────────────────────────────────────────────────


def test_an_uploaded_file_replaces_that_of_its_name_also_for_workers_to_come(cluster: LocalCluster, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "uploaded_once.py"
    for n in range(3):  # within one second: no stale bytecode is run
        write(path, f"VERSION = {n}\ndef ask(): return VERSION")
        assert client.upload_file(path) == {cluster.worker_address(name): {"status": "OK"} for name in cluster.workers}
        assert versions(client) == {n}
    assert versions(client, lambda dask_worker: tuple(dask_worker.plugins)) == {("upload_file-uploaded_once.py",)}
    os.kill(client.submit(os.getpid, workers="w0").result(), signal.SIGKILL)
    assert client.submit(version, workers="w0", pure=False).result() == 2
    client.unregister_plugin("upload_file-uploaded_once.py")
    assert client.submit(version, pure=False).exception() is not None
    assert versions(client, lambda dask_worker: tuple(os.listdir(dask_worker.local_directory))) == {()}


def test_tasks_call_the_new_code_of_a_function_that_they_have_called_before(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "uploaded_twice.py", "def ask(): return 'old'")
    monkeypatch.syspath_prepend(tmp_path)
    import uploaded_twice  # type: ignore[import-not-found]

    client.upload_file(path)
    assert client.submit(uploaded_twice.ask, workers="w0", pure=False).result() == "old"
    write(path, "def ask(): return 'new'")
    client.upload_file(path)
    assert client.submit(uploaded_twice.ask, workers="w0", pure=False).result() == "new"
    del sys.modules["uploaded_twice"]


def test_an_upload_that_cannot_be_imported_raises_and_the_former_stays(client: Client, tmp_path: Path) -> None:
    path = write(tmp_path / "uploaded_once.py", "VERSION = 'good'")
    client.upload_file(path)
    write(path, "VERSION = 'bad'\nraise LookupError('planted')")
    with pytest.raises(LookupError, match="planted"):
        client.upload_file(path)
    assert versions(client) == {"good"}
    with pytest.raises(UsageError, match="would hide the module json in every worker"):
        UploadFile(write(tmp_path / "json.py", ""))
    with pytest.raises(FileNotFoundError):
        client.upload_file(tmp_path / "missing.py")


class UploadAsInDask:
    """What the ``UploadFile`` of distributed does."""

    name = "upload_file"

    def __init__(self, path: Path) -> None:
        self.filename, self.data = path.name, path.read_bytes()

    async def setup(self, worker: Any) -> None:
        response = await worker.upload_file(filename=self.filename, data=self.data, load=True)
        assert response["nbytes"] == len(self.data)


def test_a_worker_takes_the_file_that_dasks_own_plugin_hands_it(client: Client, tmp_path: Path) -> None:
    client.register_plugin(UploadAsInDask(write(tmp_path / "uploaded_once.py", "VERSION = 'as in dask'\n")))
    assert set(client.run(version).values()) == {"as in dask"}


def test_uploaded_archives_are_imported_from_and_plain_files_lie_in_the_workers_folder(client: Client, tmp_path: Path) -> None:
    def pack(text: str) -> Path:
        with zipfile.ZipFile(tmp_path / "parcel.zip", "w") as archive:
            archive.writestr("uploaded_once.py", text)
            archive.writestr("uploaded_package/__init__.py", "from uploaded_package.inner import NAME")
            archive.writestr("uploaded_package/inner.py", f"NAME = {text!r}")
        return tmp_path / "parcel.zip"

    for n in (1, 2):
        client.upload_file(pack(f"VERSION = {n}"))
        assert versions(client) == {n}
        assert versions(client, lambda: sys.modules["uploaded_package"].NAME) == {f"VERSION = {n}"}
    client.upload_file(write(tmp_path / "table.csv", "1,2"))
    assert versions(client, lambda dask_worker: Path(dask_worker.local_directory, "table.csv").read_text()) == {"1,2"}


def test_a_directory_is_sent_without_what_is_skipped_and_can_be_imported(client: Client, tmp_path: Path) -> None:
    source = tmp_path / "project"
    write(source / "uploaded_once.py", "VERSION = 1")
    write(source / "data" / "x.txt", "x")
    write(source / "tests" / "secret.txt", "s")
    write(source / "stale.pyc", "p")
    client.register_plugin(UploadDirectory(source, update_path=True))
    assert versions(client) == {1}

    def found(dask_worker: Any) -> tuple[str, ...]:
        folder = Path(dask_worker.local_directory)
        return tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"))

    assert versions(client, found) == {("project/data/x.txt", "project/uploaded_once.py")}
    assert versions(client, lambda dask_worker: os.path.exists(f"{dask_worker.local_directory}/project/stale.pyc")) == {False}
    before = client.run(os.getpid)
    write(source / "uploaded_once.py", "VERSION = 22")
    client.register_plugin(UploadDirectory(source, update_path=True, restart_workers=True))
    assert versions(client) == {22} and not set(before.values()) & versions(client, os.getpid)
    with pytest.raises(UsageError, match="is no directory"):
        UploadDirectory(source / "uploaded_once.py")


# ── what workers run in ──────────────────────────────────────────────────────


def test_environ_sets_variables_before_workers_start_and_puts_them_back(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.register_plugin(Environ({"LD_ONE": 1, "LD_TWO": "b"}), name="mine")
    assert versions(client, lambda: (os.environ["LD_ONE"], os.environ["LD_TWO"])) == {("1", "b")}
    client.register_plugin(Environ({"LD_ONE": "2"}), name="mine")
    assert versions(client, lambda: (os.environ["LD_ONE"], os.getenv("LD_TWO"))) == {("2", None)}
    client.unregister_plugin("mine")
    client.restart()
    assert versions(client, lambda: os.getenv("LD_ONE")) == {None}


def make_wheel(folder: Path) -> Path:
    """Return a wheel with one module, made by hand."""
    path = folder / "ld_tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("ld_tiny.py", "WHAT = 'tiny'")
        wheel.writestr("ld_tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: ld-tiny\nVersion: 1.0\n")
        wheel.writestr("ld_tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("ld_tiny-1.0.dist-info/RECORD", "ld_tiny.py,,\nld_tiny-1.0.dist-info/METADATA,,\nld_tiny-1.0.dist-info/WHEEL,,\n")
    return path


def test_packages_are_installed_once_and_workers_find_them(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    options = ["--no-index", "--no-deps", "--disable-pip-version-check", "--target", str(place)]

    def what() -> Any:
        import ld_tiny  # type: ignore[import-not-found]

        return ld_tiny.WHAT

    with LocalCluster(n_workers=2, threads_per_worker=1, env={"PYTHONPATH": str(place)}) as cluster, Client(cluster) as client:
        client.run(lambda: sys.path.append(str(place)))
        assert client.submit(what, pure=False).exception() is not None
        assert client.register_plugin(PipInstall([str(make_wheel(tmp_path))], pip_options=options)) is None
        assert client.submit(what, pure=False).result() == "tiny"
        with pytest.raises(RuntimeError, match=r"pip could not install ld-nothing(.|\n)*No matching distribution"):
            client.register_plugin(PipInstall(["ld-nothing"], pip_options=options), name="bad")
        assert "bad" not in cluster.scheduler.plugins


# ── what workers say ─────────────────────────────────────────────────────────


def test_forwarded_log_records_are_handled_here(client: Client) -> None:
    records: list[logging.LogRecord] = []

    class Keeps(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    def log(text: str) -> None:
        logger = logging.getLogger("of.the.tasks")
        logger.setLevel(logging.INFO)
        try:
            raise ValueError("inside")
        except ValueError:
            logger.info("said %s", text, exc_info=True)

    logger, handler = logging.getLogger("of.the.tasks"), Keeps()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        client.submit(log, "too early").result()
        client.forward_logging("of.the.tasks", level=logging.INFO)
        client.submit(log, "hello", workers="w0").result()
        wait_until(lambda: records)
        (record,) = records
        assert record.getMessage() == "said hello" and record.levelno == logging.INFO and record.worker == "w0"  # type: ignore[attr-defined]
        assert "ValueError: inside" in (record.exc_text or "") and record.process != os.getpid()
        client.unforward_logging("of.the.tasks")
        client.submit(log, "too late").result()
        with pytest.raises(ValueError, match="does not exist"):
            client.unforward_logging("of.the.tasks")
        assert len(records) == 1
    finally:
        logger.removeHandler(handler)


def test_topics_reach_those_who_listen(client: Client) -> None:
    heard: list[Any] = []

    def tell(n: int) -> None:
        get_worker().log_event(["news", "other"], {"n": n})

    def take(event: Any) -> None:
        if event[1] == "bad":
            raise ValueError("a handler's own fault")
        heard.append(event[1])

    client.subscribe_topic("news", take)
    client.log_event("news", "bad")
    client.submit(tell, 1).result()
    wait_until(lambda: heard == [{"n": 1}])
    client.unsubscribe_topic("news")
    with pytest.raises(ValueError, match="No event handler known for topic news"):
        client.unsubscribe_topic("news")
    client.submit(tell, 2).result()
    assert heard == [{"n": 1}]


def test_a_coroutine_function_may_listen_to_a_topic(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[Any] = []

    async def take(event: Any) -> None:
        await asyncio.sleep(0)
        heard.append(event[1])
        if event[1] == "bad":
            raise ValueError("a handler's own fault")

    client.subscribe_topic("soon", take)
    for word in ("one", "bad", "two"):
        client.log_event("soon", word)
    wait_until(lambda: heard == ["one", "bad", "two"])
    assert "the handler of a topic raised ValueError: a handler's own fault" in capsys.readouterr().err


def test_a_coroutine_function_listens_on_the_loop_of_its_client() -> None:
    async def body() -> Any:
        loops, heard = [], asyncio.Event()

        async def take(event: Any) -> None:
            loops.append(asyncio.get_running_loop())
            heard.set()

        async with Client(n_workers=1, processes=False, asynchronous=True, set_as_default=False) as client:
            await client.subscribe_topic("soon", take)
            await client.log_event("soon", 1)
            await asyncio.wait_for(heard.wait(), 30)
        assert loops == [asyncio.get_running_loop()]

    asyncio.run(body())


def test_output_is_forwarded_to_a_client_in_another_process(tmp_path: Path) -> None:
    script = """
from localdask import Client, ForwardOutput
with Client({address!r}) as client:
    client.register_plugin(ForwardOutput())
    client.submit(print, "printed far away").result()
    input_ = None
    import time
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not client.submit(lambda: True, pure=False).result():
        pass
    client.unregister_plugin("forward-output")
print("done")
"""
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        code = script.format(address=cluster.scheduler_address)
        with running(code, folder=tmp_path) as script_:
            script_.wait_for("printed far away")
            script_.wait_for("done")


def test_output_is_not_shown_twice_in_the_clusters_own_process(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    said = io.StringIO()  # not capfd: what is written while that is read is lost
    monkeypatch.setattr(sys, "stdout", said)
    client.register_plugin(ForwardOutput())
    client.submit(print, "only once").result()
    client.submit(print, "and the end").result()
    wait_until(lambda: "and the end" in said.getvalue() and "only once" in said.getvalue())
    assert said.getvalue().count("only once") == 1
