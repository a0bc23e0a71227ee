"""A real Jupyter kernel: its threads, its interrupt and its restart, and what is defined in cells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import psutil
import pytest

from localdask import LocalCluster
from tests.conftest import own_files, wait_until
from tests.live.scripts import environment, is_alive

jupyter_client = pytest.importorskip("jupyter_client")
pytest.importorskip("ipykernel")
zmq = pytest.importorskip("zmq")

REPLY_S = 60
#: What the kernel and its client warn of among themselves.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning")


class Notebook:
    """A kernel, and the cells that were sent to it."""

    def __init__(self, folder: Path) -> None:
        self._context = zmq.Context()
        self.manager: Any = jupyter_client.KernelManager(kernel_name="python3", context=self._context)
        quiet = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # else the kernel's debugger may warn among what a cell shows
        self.manager.start_kernel(env={**environment(), **quiet}, cwd=str(folder))
        self.client: Any = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=REPLY_S)

    @property
    def pid(self) -> int:
        return int(self.manager.provisioner.pid)

    def run(self, code: str) -> str:
        """Run a cell, and return what it showed."""
        return self.read(self.send(code))

    def send(self, code: str) -> str:
        """Send a cell; return its number."""
        return str(self.client.execute(code))

    def read(self, cell: str, until: str | None = None) -> str:
        """Return what is shown until a cell is done, or until this text came; an error is shown as its name and text."""
        shown = ""
        while until is None or until not in shown:
            try:
                message = self.client.get_iopub_msg(timeout=REPLY_S)
            except Empty:
                raise AssertionError(f"no end; shown was {shown!r}") from None
            content, kind = message["content"], message["msg_type"]
            if kind == "stream":
                shown += content["text"]
            elif message["parent_header"].get("msg_id") != cell:
                continue
            elif kind == "error":
                shown += f"{content['ename']}: {content['evalue']}"
            elif kind == "execute_result":
                shown += content["data"]["text/plain"]
            elif kind == "status" and content["execution_state"] == "idle" and until is None:
                break
        return shown

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel()
        self.manager.cleanup_resources()
        self._context.destroy(linger=0)


@pytest.fixture(scope="module", autouse=True)
def jupyters_event_loop() -> Iterator[None]:
    """Have the event loop that jupyter_client makes at its first use, and keeps."""
    from jupyter_core.utils import ensure_event_loop

    loop = ensure_event_loop()
    yield
    loop.close()


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    notebook = Notebook(tmp_path)
    try:
        yield notebook
    finally:
        notebook.close()


START = """\
import time
from localdask import Client, LocalCluster
client = Client(n_workers=2, threads_per_worker=1)
"""


def test_what_cells_define_works_in_workers_and_follows_the_newest(notebook: Notebook) -> None:
    assert notebook.run(START) == ""
    notebook.run("from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int")
    notebook.run("scale = 2\ndef scaled(x):\n    return scale * x")
    assert notebook.run("client.submit(scaled, 21).result()") == "42"
    notebook.run("scale = 3")
    assert notebook.run("client.submit(scaled, 21).result()") == "63"
    assert notebook.run("client.submit(lambda: Point(5)).result() == Point(5)") == "True"
    assert notebook.run("isinstance(client.submit(lambda: Point(5)).result(), Point)") == "True"
    assert notebook.run("def scaled(x):\n    return 'new'\nclient.submit(scaled, 21).result()") == "'new'"


def test_the_traceback_of_a_task_shows_the_lines_of_the_cell(notebook: Notebook) -> None:
    notebook.run(START)
    notebook.run("def half(x):\n    return x / 0  # the culprit")
    notebook.run(
        "import traceback\ntry:\n    client.submit(half, 1).result()\nexcept ZeroDivisionError:\n    told = traceback.format_exc()"
    )
    assert "return x / 0  # the culprit" in notebook.run("told")


def test_what_a_worker_prints_arrives(notebook: Notebook) -> None:
    notebook.run(START)
    cell = notebook.send("client.submit(print, 'said' + ' in a task', pure=False).result()")
    notebook.read(cell, until="said in a task\n")


def test_futures_can_be_awaited_in_a_cell(notebook: Notebook) -> None:
    notebook.run(START)
    assert notebook.run("await client.submit(pow, 2, 10)") == "1024"
    assert notebook.run("import asyncio\nsum(await asyncio.gather(*client.map(abs, range(-10, 0))))") == "55"


def test_the_kernels_interrupt_ends_the_cell_and_keeps_the_workers(notebook: Notebook) -> None:
    notebook.run(START)
    before = notebook.run("import os; client.run(os.getpid)")
    for cell in ("client.submit(time.sleep, 1000).result()", "client.gather(client.map(time.sleep, [1001, 1002]))"):
        sent = notebook.send(f"print('wait' + 'ing', flush=True)\n{cell}")
        notebook.read(sent, until="waiting")
        notebook.manager.interrupt_kernel()
        assert "KeyboardInterrupt" in notebook.read(sent)
        assert notebook.run("client.run(os.getpid)") == before


def test_a_restart_of_the_kernel_leaves_no_process_and_begins_anew(notebook: Notebook) -> None:
    notebook.run(START)
    notebook.run("held = client.scatter(b'x' * 1_000_000); future = client.submit(time.sleep, 1000)")
    for now in (True, False):
        family = notebook.family()
        assert len(family) >= 5
        notebook.manager.restart_kernel(now=now)
        notebook.client.wait_for_ready(timeout=REPLY_S)
        wait_until(lambda: not any(map(is_alive, family)))
        assert now or not own_files()  # what was killed is swept by the next start
        assert notebook.run(START) == ""
        assert notebook.run("client.submit(pow, 2, 10).result()") == "1024"


def test_a_kernel_that_is_killed_leaves_no_process(notebook: Notebook) -> None:
    notebook.run(START)
    family = notebook.family()
    psutil.Process(notebook.pid).kill()
    wait_until(lambda: not any(map(is_alive, family)))
    with LocalCluster(n_workers=1, threads_per_worker=1):
        pass  # sweeps what was left
    assert not own_files()


def test_a_cell_that_is_run_again_tells_of_the_cluster_that_it_left(notebook: Notebook) -> None:
    assert notebook.run(START) == ""
    name = notebook.run("client.cluster.name").strip("'")
    before = notebook.family()
    mend = f"Client('{name}').shutdown()"
    assert notebook.run(START) == f"localdask: started here before, and still running: {name} (2 workers); {mend} ends it\n"
    notebook.run(mend)
    wait_until(lambda: sum(map(is_alive, before)) == 1)  # the launcher, which serves the other
    assert notebook.run("client.submit(pow, 2, 10).result()") == "1024"
    assert notebook.run("client.close()\n" + START) == ""
