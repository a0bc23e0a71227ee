"""The examples on a real Dask cluster, with the same preload files and the same scripts as on ours.

Needs ``distributed``, which the tests of everything else do without, because a process that finds it imports it:
``pip install distributed`` into the environment of the tests, or ``make test-dask``.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import localdask
from localdask.errors import UsageError
from tests.conftest import wait_until
from tests.house import reference
from tests.test_examples import CENSUS, EXAMPLES, PROMISES

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(
        importlib.util.find_spec("distributed") is None,
        reason="THE EXAMPLES WERE NOT RUN ON A REAL DASK CLUSTER: distributed is not installed; `make test-dask` does it",
    ),
]
PRELOADS = EXAMPLES / "preloads"
#: Dask's command line takes one preload that is a click command: the last.
WORKER = [option for path in (PRELOADS / "model.py", PRELOADS / "logs.py", CENSUS / "visitors.py") for option in ("--preload", str(path))]
WORKER += [option for path in (PRELOADS / "device.py", CENSUS / "pin.py") for option in ("--preload-nanny", str(path))]


@pytest.fixture(autouse=True, scope="module")
def nothing_left_behind_by_a_file() -> None:
    """Nobody judges this file: distributed keeps the thread of its loop for as long as the process lives."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the census counts."""
    root = tmp_path_factory.mktemp("library")
    (root / "one.py").write_text('"""One."""\n\n\ndef first():\n    """Do."""\n    return 1\n')
    (root / "two.py").write_text("class Two:\n    pass\n")
    (root / "broken.py").write_text("def (:\n")
    return root


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Iterator[str]:
    """A scheduler and two workers, as a shell starts them; the address of the scheduler."""
    import distributed

    place = tmp_path_factory.mktemp("dask")
    file = str(place / "scheduler.json")
    environ = {**os.environ, "CENSUS_ROOT": str(library), "DASK_TEMPORARY_DIRECTORY": str(place)}
    with (place / "output.txt").open("wb") as output:

        def start(*words: str) -> subprocess.Popen[bytes]:
            return subprocess.Popen([sys.executable, "-m", "dask", *words], env=environ, stdout=output, stderr=subprocess.STDOUT)

        running = [start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file)]
        try:
            wait_until(lambda: os.path.exists(file) or running[0].poll() is not None, what="a scheduler of Dask")
            client = distributed.Client(scheduler_file=file, timeout=30)
            address = client.scheduler.address
            for name in ("w0", "w1"):
                options = ["--name", name, "--nthreads", "1", "--no-dashboard", *WORKER]
                running.append(start("worker", *options, address, "--database", str(place)))
            wait_until(
                lambda: len(client.ncores()) == 2 or any(process.poll() is not None for process in running), what="two workers of Dask"
            )
            assert [process.poll() for process in running] == [None] * 3
            yield address
            client.shutdown()
            wait_until(lambda: all(process.poll() is not None for process in running), what="the end of Dask's processes")
        except BaseException:
            print((place / "output.txt").read_text())
            raise
        finally:
            for process in running:
                process.kill()
                process.wait()


def run_there(address: str, folder: Path, script: str, **environ: str) -> str:
    """Run a script of an example on the cluster of an address; return what it printed."""
    environ = {**os.environ, "LOCALDASK_ADDRESS": address, **environ}
    result = subprocess.run([sys.executable, script], cwd=folder, env=environ, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_page_of_public_names_knows_what_this_dask_has() -> None:
    import distributed

    if not distributed.__version__.startswith("2026.8"):
        pytest.skip(f"the page is of distributed 2026.8, and this is {distributed.__version__}")
    for place, names in reference.DASK.items():
        there = {name for name in dir(distributed if place == "distributed" else getattr(distributed, place)) if name[0] != "_"}
        assert place == "distributed" or there <= set(names.split()), place
        assert {name for name in names.split() if place == "distributed"} <= there, place


def test_the_model_answers_on_dask_as_it_answers_here(address: str) -> None:
    (promised,) = [param.values[2] for param in PROMISES if "predict.py" in str(param.values[1])]
    assert run_there(address, PRELOADS, "predict.py") == promised


def test_the_census_counts_on_dask(address: str, library: Path) -> None:
    printed = run_there(address, CENSUS, "census.py", CENSUS_ROOT=str(library))
    assert "3 (1 are no Python" in printed
    assert "one.py: first (3 lines)" in printed


def worker_name() -> str:
    return str(localdask.get_worker().name)


def test_a_client_from_connect_is_dasks_and_refuses_what_is_ours(address: str) -> None:
    with localdask.connect(address) as client:
        futures = client.map(abs, [-1, -2])
        assert localdask.wait(futures).done == set(futures)
        assert {future.result() for future in localdask.as_completed(futures)} == {1, 2}
        localdask.fire_and_forget(futures)
        assert client.submit(worker_name, workers="w1", pure=False).result() == "w1"
        with pytest.raises(AttributeError, match="localdask's own"):
            client.unregister_plugin("mine")
        with pytest.raises(UsageError, match=r"annotate\(timeout="), localdask.annotate(timeout=1):
            client.submit(abs, -1)
        with pytest.raises(UsageError, match=r"dask\.annotate"), localdask.annotate(priority=1):
            client.map(abs, [-1])
    with pytest.raises(UsageError, match="dask worker --preload"):
        localdask.connect(address, preload="x.py")
