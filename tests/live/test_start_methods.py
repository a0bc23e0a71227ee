"""A cluster starts from wherever Python runs: scripts without a main guard, -c, stdin, a prompt; by fork and by spawn."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from localdask import Client, LocalCluster, NannyPlugin, config, get_worker
from localdask.api.addresses import default_address
from localdask.errors import ConfigError, PreloadError, UsageError
from tests.conftest import WAIT_S, own_files, wait_until
from tests.live.scripts import environment, is_alive

METHODS = ["fork", "spawn"]

#: No main guard, and everything that pickle alone could not carry: what it defines is in ``__main__``.
CODE = """\
import sys
from dataclasses import dataclass
from enum import Enum
from localdask import Client, LocalCluster
from localdask.errors import PreloadError

class Color(Enum):
    RED = 1

@dataclass
class Point:
    x: int
    def doubled(self):
        return Point(scale * self.x)

scale = 2
def recursive(n):
    return n and n + recursive(n - 1)

print("once")
cluster = LocalCluster(n_workers=2, threads_per_worker=1, start_method="METHOD")
client = Client(cluster)
assert client.submit(Point(4).doubled).result() == Point(8)
assert client.gather(client.map(lambda n: recursive(n) + scale, range(4))) == [2, 3, 5, 8]
assert client.submit(lambda: Color.RED).result() is Color.RED
client.submit(lambda: print("from a worker")).result()
client.close()
cluster.close()
sys.stdout.write("done\\n")  # in one piece: print writes the end of the line apart, and a worker's line may come between
"""


def run(arguments: Sequence[str], folder: Path, stdin: str = "") -> str:
    ended = subprocess.run(
        [sys.executable, *arguments], input=stdin, cwd=folder, env=environment(), capture_output=True, text=True, timeout=WAIT_S
    )
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    return ended.stdout


@pytest.mark.parametrize("method", METHODS)
def test_workers_have_the_arguments_of_the_script(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "3"])
    with LocalCluster(n_workers=1, start_method=method) as cluster, Client(cluster) as client:
        assert client.submit(lambda: __import__("sys").argv).result() == ["train.py", "--epochs", "3"]
        client.restart()
        assert client.submit(lambda: __import__("sys").argv).result() == ["train.py", "--epochs", "3"]
        assert client.run(lambda: __import__("sys").argv, nanny=True) == {cluster.worker_address("w0"): ["train.py", "--epochs", "3"]}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", ["script", "-c", "stdin", "-m"])
def test_no_main_guard_is_needed(way: str, method: str, tmp_path: Path) -> None:
    code = CODE.replace("METHOD", method)
    (tmp_path / "user_module.py").write_text(code)
    if way == "stdin":
        said = run(["-"], tmp_path, code)
    else:
        said = run({"script": ["user_module.py"], "-c": ["-c", code], "-m": ["-m", "user_module"]}[way], tmp_path)
    assert said.splitlines() == ["once", "from a worker", "done"]
    assert not own_files()


def test_a_script_that_closes_nothing_ends_by_itself(tmp_path: Path) -> None:
    said = run(["-c", CODE.replace("METHOD", "fork").replace("client.close()\ncluster.close()\n", "")], tmp_path)
    assert sorted(said.splitlines()) == ["done", "from a worker", "once"]
    assert not own_files()


@pytest.mark.parametrize("method", METHODS)
def test_a_replacement_is_started_in_the_same_way(method: str) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1, start_method=method) as cluster, Client(cluster) as client:
        pid = client.submit(os.getpid, pure=False).result()
        nanny = psutil.Process(pid).ppid()
        os.kill(pid, 9)
        wait_until(lambda: cluster.scheduler.workers.get("w0") and cluster.scheduler.workers["w0"].pid != pid)
        other = psutil.Process(client.submit(os.getpid, pure=False).result())
        assert other.pid != pid and other.ppid() == nanny
        command = psutil.Process(nanny).cmdline()
        assert (other.cmdline() == command) == (method == "fork")


def same_files(file: os.stat_result) -> list[int]:
    """Return the descriptors of this process that are that file."""
    found = []
    for fd in range(256):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(fd), file):
                found.append(fd)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_what_the_user_holds_is_not_inherited(method: str, tmp_path: Path) -> None:
    with (tmp_path / "held").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        with LocalCluster(n_workers=1, threads_per_worker=1, start_method=method) as cluster, Client(cluster) as client:
            held = os.fstat(file.fileno())
            assert same_files(held) == [file.fileno()]
            assert client.submit(same_files, held).result() == []
            assert list(client.run(same_files, held, nanny=True).values()) == [[]]


class Prompt:
    """An interactive Python on a terminal of its own."""

    def __init__(self, folder: Path) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            settings = {"PYTHON_BASIC_REPL": "1", "TERM": "dumb", "PYTHONSTARTUP": ""}
            os.execve(sys.executable, [sys.executable, "-q"], {**environment(), **settings})
        self.text = ""
        self._exit_code: int | None = None

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def wait_for(self, text: str) -> None:
        """Return when this stands on the terminal after what was waited for before."""
        deadline = time.monotonic() + WAIT_S
        while text not in self.text:
            assert time.monotonic() < deadline, f"no {text!r} in {self.text!r}"
            if select.select([self._fd], [], [], 0.1)[0]:
                self.text += os.read(self._fd, 65536).decode(errors="replace")
        self.text = self.text.partition(text)[2]

    def end(self) -> int:
        """Type Ctrl-D at the prompt, because a terminal forgets it when the prompt comes later, and return the exit code."""
        self.type("print('at' + ' last')\n")
        self.wait_for("at last")
        self.wait_for(">>> ")
        self.type("\x04")
        deadline = time.monotonic() + WAIT_S
        with contextlib.suppress(OSError):  # so a terminal ends on Linux
            while not select.select([self._fd], [], [], 0.1)[0] or os.read(self._fd, 65536):
                assert time.monotonic() < deadline, "Ctrl-D was not heard"
        self._exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._exit_code

    def kill(self) -> None:
        """End it in any case."""
        os.close(self._fd)
        if self._exit_code is None:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)


@pytest.fixture
def prompt(tmp_path: Path) -> Iterator[Prompt]:
    prompt = Prompt(tmp_path)
    try:
        yield prompt
    finally:
        prompt.kill()


def test_a_prompt_on_a_terminal_goes_on_after_ctrl_c(prompt: Prompt) -> None:
    prompt.wait_for(">>> ")
    for line in (
        "from localdask import Client",
        "client = Client(n_workers=2, threads_per_worker=1)",
        "def double(x): return 2 * x\n",
        "print('is', client.submit(double, 21).result())",
    ):
        prompt.type(line + "\n")
    prompt.wait_for("is 42")
    family = psutil.Process(prompt.pid).children(recursive=True)
    pids = [process.pid for process in family]
    assert len(family) == 5
    prompt.type("import time; print('wait' + 'ing'); client.submit(time.sleep, 1000).result()\n")
    prompt.wait_for("waiting")
    prompt.type("\x03")
    prompt.wait_for("KeyboardInterrupt")
    prompt.type("print('is', client.submit(double, 22).result())\n")
    prompt.wait_for("is 44")
    prompt.type("client.submit(print, 'said' + ' in a task', pure=False).result()\n")
    prompt.wait_for("said in a task")
    assert [process.pid for process in psutil.Process(prompt.pid).children(recursive=True)] == pids
    assert prompt.end() == 0
    wait_until(lambda: not any(map(is_alive, family)))
    assert not own_files()


def test_a_start_that_fails_leaves_no_nanny_that_was_forked_ahead() -> None:
    with pytest.raises(PreloadError, match="on purpose"):
        LocalCluster(n_workers=2, preload_scheduler="raise ValueError('on purpose')\n")


@pytest.mark.parametrize("preload_nanny", [None, "pass\n"], ids=["made ahead", "made after the preload"])
def test_a_worker_is_where_its_cluster_was_made(preload_nanny: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalCluster(n_workers=1):
        pass  # the launcher is there now, and knows nothing of what follows
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MADE", "here")
    monkeypatch.delenv("HOME")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "found_here.py").write_text("answer = 42\n")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    settings = {"threads_per_worker": 1, "env": {"OF_NANNY": "yes"}, "preload_nanny": preload_nanny}
    with LocalCluster(n_workers=1, **settings) as cluster, Client(cluster) as client:

        def look() -> tuple[object, ...]:
            import found_here  # type: ignore[import-not-found]

            return os.getcwd(), found_here.answer, *map(os.environ.get, ["MADE", "HOME", "OF_NANNY", "OMP_NUM_THREADS"])

        assert client.submit(look).result() == (str(tmp_path), 42, "here", None, "yes", "1")


@pytest.mark.parametrize("method", METHODS)
def test_the_environment_goes_before_configured_variables_and_env_before_both(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IN_ENVIRONMENT", "mine")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    configured = {
        "nanny.environ": {"IN_ENVIRONMENT": "1", "GIVEN": 2, "CONFIGURED": 3, "UNDONE": None},
        "nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 4},
    }
    with (
        config.set(configured),
        LocalCluster(n_workers=1, env={"GIVEN": "given"}, start_method=method) as cluster,
        Client(cluster) as client,
    ):
        names = ["IN_ENVIRONMENT", "GIVEN", "CONFIGURED", "UNDONE", "OMP_NUM_THREADS"]
        assert client.submit(lambda: list(map(os.environ.get, names))).result() == ["mine", "given", "3", None, "4"]
    assert "OMP_NUM_THREADS" not in os.environ, "what workers have is not this process's"


def test_configured_variables_that_are_no_mapping_are_refused_by_name() -> None:
    with config.set({"nanny.environ": "A=1"}), pytest.raises(ConfigError, match=r"nanny.environ is 'A=1'; it is a mapping"):
        LocalCluster(n_workers=1)


def test_configured_resources_and_folder_are_every_workers_unless_it_is_given_others(tmp_path: Path) -> None:
    with config.set({"worker.resources": {"GPU": 2}, "temporary-directory": str(tmp_path / "made")}):
        with LocalCluster(n_workers=1) as cluster, Client(cluster) as client:
            assert client.submit(abs, -1, resources={"GPU": 2}).result() == 1
            assert client.submit(lambda: get_worker().local_directory).result().startswith(f"{tmp_path}/made/")
        with LocalCluster(n_workers=1, resources={"TPU": 1}, local_directory=tmp_path / "given") as cluster:
            (worker,) = cluster.scheduler.workers.values()
            assert worker.resources == {"TPU": 1} and (tmp_path / "given").is_dir()
    with config.set({"worker.resources": "GPU=1"}), pytest.raises(UsageError, match="GPU=1"):
        LocalCluster(n_workers=1)


def test_a_dask_cluster_that_is_only_configured_is_left_to_connect() -> None:
    with config.set({"scheduler-address": "tcp://127.0.0.1:1"}):
        with Client() as client:
            assert client.cluster is not None
        assert (default_address(), default_address(elsewhere=True)) == (None, "tcp://127.0.0.1:1")


class Umask(NannyPlugin):
    def setup(self, nanny: object) -> None:
        os.umask(0o027)


def test_what_a_nannys_plugin_does_to_its_process_is_for_the_worker_too() -> None:
    with LocalCluster(n_workers=1, plugins=[Umask()]) as cluster, Client(cluster) as client:
        assert client.submit(os.umask, 0o022).result() == 0o027
