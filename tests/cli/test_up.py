"""``localdask up`` as a user meets it: a banner, lines, signals, exit codes, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.terminal import descendants, environment, localdask, running
from tests.conftest import wait_until

SETUP = """\
import os

def dask_setup(worker):
    print("set up", worker.name, flush=True)

def dask_teardown(worker):
    print("torn down", worker.name, flush=True)
"""

CLICK = """\
import click

@click.command()
@click.option("--depth", type=int, default=1)
@click.option("--name", default="nobody")
def dask_setup(service, depth, name):
    print(f"depth {depth} for {name}", flush=True)
"""


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """A folder with a plain preload and one that takes options."""
    (tmp_path / "setup.py").write_text(SETUP)
    (tmp_path / "clicked.py").write_text(CLICK)
    return tmp_path


def is_gone(pids: list[int]) -> bool:
    def lives(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] != b"Z"

    return not any(lives(pid) for pid in pids)


def test_the_banner_comes_when_all_is_ready_and_names_the_preloads(folder: Path) -> None:
    with running("up", "-n", "2", "--preload", "setup.py", cwd=folder) as up:
        up.wait_for("Ctrl-C stops")
        assert re.search(r"^localdask 0\.\d+ · 2 workers × \d threads? · .*GiB each \(.*\)  +ready in [\d.]+ m?s$", up.text, re.MULTILINE)
        assert re.search(r"^  preload  setup\.py +dask_setup dask_teardown  watching$", up.text, re.MULTILINE)
        up.send(signal.SIGINT)
        assert up.end() == 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_ends_gracefully_with_teardowns_and_exit_code_0(folder: Path, signum: signal.Signals) -> None:
    with running("up", "-n", "2", "--preload", "setup.py", cwd=folder) as up:
        up.wait_for("Ctrl-C stops")
        pids = descendants(up.process.pid)
        assert len(pids) >= 4
        up.send(signum)
        assert up.end() == 0
        for name in ("w0", "w1"):
            assert f"{name} │ set up {name}\n" in up.text
            assert f"{name} │ torn down {name}\n" in up.text
        assert "Traceback" not in up.text
        wait_until(lambda: is_gone(pids), what="the processes to end")


def test_ctrl_c_in_a_terminal_reaches_only_the_command_and_lines_have_colours(folder: Path) -> None:
    with running("up", "-n", "2", "--preload", "setup.py", cwd=folder, terminal=True) as up:
        up.wait_for("Ctrl-C stops")
        os.write(up.terminal, b"\x03")
        assert up.end() == 0
        lines = up.text.splitlines()
        assert sum(line.endswith("torn down w0") for line in lines) == 1
        assert sum(line.endswith("torn down w1") for line in lines) == 1
        shades = {shade for line in lines if "set up" in line for shade in re.findall(r"(\x1b\[\d+m)w\d", line)}
        assert len(shades) == 2


def test_a_terminal_without_colours_gets_none(folder: Path) -> None:
    with running("up", "-n", "1", "--preload", "setup.py", cwd=folder, terminal=True, environ=environment(NO_COLOR="1")) as up:
        up.wait_for("Ctrl-C stops")
        os.write(up.terminal, b"\x03")
        assert up.end() == 0
        assert "\x1b" not in up.text


def test_a_second_ctrl_c_forces_the_end_with_exit_code_130(folder: Path) -> None:
    (folder / "slow.py").write_text("import time\ndef dask_teardown(worker):\n    print('stuck', flush=True)\n    time.sleep(60)\n")
    with running("up", "-n", "1", "--preload", "slow.py", cwd=folder) as up:
        up.wait_for("Ctrl-C stops")
        pids = descendants(up.process.pid)
        up.send(signal.SIGINT)
        up.wait_for("stuck")
        up.send(signal.SIGINT)
        assert up.end() == 130
        assert "died" not in up.text
        assert "Traceback" not in up.text
        wait_until(lambda: is_gone(pids), what="the processes to end")


def test_ctrl_c_while_it_starts_ends_it_with_exit_code_0(folder: Path) -> None:
    (folder / "slow.py").write_text("import time\nprint('starting', flush=True)\ntime.sleep(20)\n")
    with running("up", "-n", "1", "--preload", "slow.py", cwd=folder) as up:
        up.wait_for("starting")
        pids = descendants(up.process.pid)
        up.send(signal.SIGINT)
        assert up.end() == 0
        assert "Traceback" not in up.text
        wait_until(lambda: is_gone(pids), what="the processes to end")


def test_a_terminal_that_goes_away_ends_the_cluster(folder: Path) -> None:
    with running("up", "-n", "1", "--preload", "setup.py", cwd=folder, terminal=True) as up:
        up.wait_for("Ctrl-C stops")
        pids = descendants(up.process.pid)
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), up.terminal)  # the last copy of the terminal's other side
        wait_until(lambda: up.process.poll() is not None, what="its end")
        assert up.process.returncode == 0
        wait_until(lambda: is_gone(pids), what="the processes to end")


def test_sighup_without_a_terminal_stops_nothing(folder: Path) -> None:
    with running("up", "-n", "1", cwd=folder) as up:
        up.wait_for("Ctrl-C stops")
        up.send(signal.SIGHUP)
        up.wait_for("SIGHUP")
        assert up.process.poll() is None
        up.send(signal.SIGTERM)
        assert up.end() == 0


def test_a_worker_that_dies_is_told_and_replaced(folder: Path) -> None:
    (folder / "tell.py").write_text("import os\ndef dask_setup(worker):\n    print('pid', os.getpid(), flush=True)\n")
    with running("up", "-n", "1", "--preload", "tell.py", cwd=folder) as up:
        up.wait_for("Ctrl-C stops")
        up.wait_for("w0 │ pid ")
        os.kill(int(re.findall(r"w0 │ pid (\d+)", up.read())[0]), signal.SIGKILL)
        up.wait_for("w0 died: SIGKILL")
        up.wait_for("w0 replaced, pid ")
        up.wait_for("w0 │ pid ", count=2)
        up.send(signal.SIGTERM)
        assert up.end() == 0


def test_what_a_worker_writes_cannot_act_on_the_terminal(folder: Path) -> None:
    (folder / "evil.py").write_text("print('\\x1b]0;owned\\x07\\x1b[2J', flush=True)\n")
    with running("up", "-n", "1", "--preload", "evil.py", cwd=folder) as up:
        up.wait_for("Ctrl-C stops")
        up.wait_for("w0 │ \\x1b]0;owned\\x07\\x1b[2J")
        up.send(signal.SIGTERM)
        assert up.end() == 0
        assert "\x1b" not in up.text


def test_words_that_localdask_does_not_know_reach_the_preload_with_options(folder: Path) -> None:
    with running(
        "up", "-n", "1", "--preload", "setup.py", "--preload", "clicked.py", "--depth", "7", "--", "--name", "me", cwd=folder
    ) as up:
        up.wait_for("w0 │ depth 7 for me")
        up.wait_for("Ctrl-C stops")
        up.send(signal.SIGTERM)
        assert up.end() == 0


@pytest.mark.parametrize("role", ["--preload", "--preload-scheduler"])
def test_a_wrong_option_of_a_preload_is_a_usage_error_with_what_click_says(folder: Path, role: str) -> None:
    done = localdask("up", "-n", "1", role, "clicked.py", "--dpeth", "7", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--dpeth" in done.stderr and "Usage: localdask" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_preloads_own_help_is_data(folder: Path) -> None:
    done = localdask("up", "-n", "1", "--preload", "clicked.py", "--", "--help", cwd=folder)
    assert done.returncode == 0
    assert "--depth INTEGER" in done.stdout


@pytest.mark.parametrize("role", ["--preload", "--preload-nanny", "--preload-scheduler"])
@pytest.mark.parametrize(
    "body", ["def dask_setup(service):\n    raise ConnectionError('db:5432 refused')\n", "raise ConnectionError('db:5432 refused')\n"]
)
def test_a_preload_that_fails_ends_the_start_with_exit_code_5_and_says_where(folder: Path, role: str, body: str) -> None:
    (folder / "failing.py").write_text(body)
    done = localdask("up", "-n", "2", role, "failing.py", cwd=folder)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.count("error: ") == 1
    assert "failing.py" in done.stderr and "ConnectionError: db:5432 refused" in done.stderr
    assert f"failing.py:{body.count(chr(10))}" in done.stderr or f"line {body.count(chr(10))}" in done.stderr


def test_a_syntax_error_in_a_preload_ends_the_start_with_exit_code_5(folder: Path) -> None:
    (folder / "broken.py").write_text("x = (\n")
    done = localdask("up", "-n", "1", "--preload", "broken.py", cwd=folder)
    assert done.returncode == 5
    assert "SyntaxError" in done.stderr and "broken.py" in done.stderr


def test_not_ready_in_time_is_exit_code_4(folder: Path) -> None:
    (folder / "slow.py").write_text("import time\ntime.sleep(20)\n")
    done = localdask("up", "-n", "1", "--preload", "slow.py", "--death-timeout", "300ms", cwd=folder)
    assert (done.returncode, done.stdout) == (4, "")
    assert "Only 0/1 workers arrived" in done.stderr


def test_a_local_directory_that_cannot_be_made_is_a_usage_error_that_names_it(folder: Path) -> None:
    (folder / "file").write_text("")
    done = localdask("up", "-n", "1", "--local-directory", "file/below", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    named = f"local_directory={str(folder / 'file' / 'below')!r}"
    assert done.stderr == f"error: {named} cannot be made: Not a directory; name a folder that you may write to\n"


def test_the_pid_file_is_there_while_the_cluster_is(folder: Path) -> None:
    with running("up", "-n", "1", "--pid-file", "up.pid", cwd=folder) as up:
        up.wait_for("Ctrl-C stops")
        assert (folder / "up.pid").read_text() == f"{up.process.pid}\n"
        up.send(signal.SIGTERM)
        assert up.end() == 0
        assert not (folder / "up.pid").exists()
    done = localdask("up", "-n", "1", "--pid-file", "no/such/folder", cwd=folder)
    assert done.returncode == 2 and "--pid-file no/such/folder cannot be written" in done.stderr


def test_the_cluster_is_called_after_its_folder(folder: Path) -> None:
    named = folder / "my project (2)"
    named.mkdir()
    with running("up", "-n", "1", cwd=named) as up:
        up.wait_for("Ctrl-C stops")
        assert "my-project-2" in up.text
        up.send(signal.SIGTERM)
        assert up.end() == 0


def test_a_module_in_the_working_directory_may_be_a_preload_and_hides_nothing(folder: Path) -> None:
    (folder / "mymodule.py").write_text("print('mymodule here', flush=True)\n")
    (folder / "yaml.py").write_text("raise SystemError('hidden')\n")
    (folder / "json.py").write_text("raise SystemError('hidden')\n")
    with running("up", "-n", "1", "--preload", "mymodule", cwd=folder) as up:
        up.wait_for("w0 │ mymodule here")
        up.wait_for("Ctrl-C stops")
        up.send(signal.SIGTERM)
        assert up.end() == 0


def test_nobody_reading_its_talk_stops_neither_its_start_nor_its_end(folder: Path) -> None:
    (folder / "loud.py").write_text(
        "def dask_setup(worker):\n    for number in range(50_000):\n        print('x' * 100)\n    open('ready', 'w').close()\n"
    )
    with running("up", "-n", "1", "--preload", "loud.py", cwd=folder) as up:
        wait_until((folder / "ready").exists)
        up.send(signal.SIGTERM)
        wait_until(lambda: up.process.poll() is not None, what="its end")
        assert up.process.returncode == 0
        assert up.read().count("w0 │ x") > 100


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="elsewhere nobody tells which signals a process handles")
@pytest.mark.parametrize(("words", "code"), [(["up", "-n", "1"], 0), (["run", "-n", "1"], 128 + signal.SIGTERM)])
def test_whoever_finds_the_pid_file_may_ask_for_the_end_at_once(words: list[str], code: int, folder: Path) -> None:
    os.mkfifo(folder / "pid")  # it is opened when somebody reads it, which nobody does
    (folder / "script.py").write_text("")
    script = ["script.py"] if words[0] == "run" else []
    command = [sys.executable, "-m", "localdask", *words, "--pid-file", "pid", *script]
    process = subprocess.Popen(command, cwd=folder, env=environment())

    def is_heeding() -> bool:
        status = Path(f"/proc/{process.pid}/status").read_text()
        handled = int(status.partition("SigCgt:")[2].split()[0], 16)
        return bool(handled >> (signal.SIGTERM - 1) & 1)

    try:
        wait_until(is_heeding)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == code
    finally:
        process.kill()
        process.wait()


def test_it_starts_and_ends_where_every_standard_stream_is_closed(folder: Path) -> None:
    command = [sys.executable, "-m", "localdask", "up", "-n", "1", "--preload", "setup.py", "--pid-file", "up.pid"]
    up = subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], cwd=folder, env=environment())
    try:
        wait_until(lambda: (folder / "up.pid").exists() or up.poll() is not None)
        up.send_signal(signal.SIGTERM)
        assert up.wait(60) == 0
    finally:
        up.kill()
        up.wait()
