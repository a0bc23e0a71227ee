"""The verbs that look at, and change, a cluster that runs in another process: what they write, where, and their exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localdask import Client, LocalCluster
from localdask.cli.main import main
from localdask.system.sockets import find_doors
from tests.cli.terminal import environment, running
from tests.cli.terminal import localdask as localdask_apart
from tests.conftest import wait_until

KEYS = {"name", "role", "pid", "state", "generation", "tasks", "done", "cpu", "rss", "limit", "restarts", "uptime", "last", "watching"}
SETUP = """\
def dask_setup(worker):
    print("set up", worker.name, flush=True)
"""


def localdask(*words: str, cwd: Path | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a verb in this process, a client beside the cluster that it looks at; as a process of its own where it has to be one."""
    if cwd is not None or more:
        return localdask_apart(*words, cwd=cwd, **more)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        main(words)
    return subprocess.CompletedProcess(words, int(end.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verbs")
    (folder / "setup.py").write_text(SETUP)
    return folder


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[LocalCluster]:
    quiet: dict[str, Any] = {"on_log": lambda *line: None, "on_event": lambda kind, **fields: None}
    with LocalCluster(name="shown", n_workers=2, threads_per_worker=1, preload=str(folder / "setup.py"), **quiet) as cluster:
        yield cluster


pytestmark = pytest.mark.shared


# ── up -d, ls, down ──────────────────────────────────────────────────────────


def test_a_detached_cluster_lives_until_it_is_ended(folder: Path) -> None:
    up = localdask("up", "-d", "--wait", "-n", "1", "--name", "apart", "--preload", "setup.py", cwd=folder)
    try:
        assert up.returncode == 0 and up.stdout == ""
        assert re.search(r"1 worker .*ready in", up.stderr) and "w0 │ set up w0" in up.stderr
        assert 'connect  Client("apart")\n' in up.stderr and "Ctrl-C" not in up.stderr
        assert re.search(r"^cluster apart runs apart \(pid \d+\); localdask down apart stops it$", up.stderr, re.MULTILINE)
        with Client("apart") as client:
            assert client.submit(abs, -3).result(timeout=20) == 3
        rows = json.loads(localdask("ls", "--format", "json").stdout)
        (row,) = [row for row in rows if row["name"] == "apart"]
        assert (row["state"], row["workers"]) == ("running", 1)
        again = localdask("up", "-d", "-n", "1", "--name", "apart", cwd=folder)
        assert again.returncode == 2 and "'apart' runs already (pid" in again.stderr
    finally:
        down = localdask("down", "apart")
    assert (down.returncode, down.stdout, down.stderr) == (0, "", "apart is down\n")
    assert localdask("down", "apart").stderr == "apart is down already\n"
    assert not [entry for entry in find_doors() if entry.name == "apart"]


def test_a_detached_start_that_fails_says_why_and_leaves_nothing(folder: Path) -> None:
    (folder / "broken.py").write_text("def dask_setup(worker):\n    1 // 0\n")
    up = localdask("up", "-d", "--wait", "-n", "1", "--name", "broken", "--preload", "broken.py", cwd=folder)
    assert up.returncode == 5 and "ZeroDivisionError" in up.stderr
    assert not [entry for entry in find_doors() if entry.name == "broken"]


def test_down_ends_an_up_in_the_foreground(folder: Path) -> None:
    with running("up", "-n", "1", "--name", "front", cwd=folder) as up:
        up.wait_for("Ctrl-C stops")
        assert localdask("down", "front").returncode == 0
        assert up.end() == 0


def test_a_stopped_cluster_is_down_by_force_only(folder: Path) -> None:
    with running("up", "-n", "1", "--name", "stopped", cwd=folder) as up:
        up.wait_for("Ctrl-C stops")
        up.send(signal.SIGSTOP)
        down = localdask("down", "stopped", "--timeout", "0.2s")
        assert (down.returncode, down.stderr) == (1, "error: stopped did not end within 0.2 s; --force kills it\n")
        assert localdask("down", "stopped", "--timeout", "0.2s", "--force").stderr == "stopped is down\n"
        assert up.end() == -signal.SIGKILL
    localdask("ls", "--clean")


def test_a_killed_cluster_is_stale_until_it_is_cleaned(folder: Path) -> None:
    with running("up", "-n", "1", "--name", "killed", cwd=folder) as up:
        up.wait_for("Ctrl-C stops")
        up.send(signal.SIGKILL)
        up.end()
        assert re.search(r"^killed +stale ", localdask("ls").stdout, re.MULTILINE)
        clean = localdask("ls", "--clean")
        assert clean.stderr == "removed what killed left\n" and "killed" not in clean.stdout


def test_without_a_name_there_must_be_one_cluster(cluster: LocalCluster) -> None:
    with tempfile.TemporaryDirectory() as elsewhere:
        os.mkdir(f"{elsewhere}/localdask", 0o700)  # or the folder for clusters of the whole machine is asked instead
        alone = localdask("logs", environ=environment(XDG_RUNTIME_DIR=elsewhere))
    assert alone.returncode == 3 and alone.stderr.startswith("error: no cluster with a name runs; start one with 'localdask up'")
    with LocalCluster(name="second", n_workers=0):
        for verb in (["logs"], ["scale", "2"], ["down"], ["reload"]):
            done = localdask(*verb)
            assert done.returncode == 3 and done.stderr.startswith("error: 2 clusters run: say which one; there is:\n  shown  pid ")
        rows = json.loads(localdask("ps", "--format", "json").stdout)
        assert {row["cluster"] for row in rows} == {"shown", "second"}
    missing = localdask("ps", "shwon")
    assert missing.returncode == 3 and "no cluster called 'shwon' runs; there is:\n  shown" in missing.stderr


# ── looking ──────────────────────────────────────────────────────────────────


def test_ps_lists_every_process(cluster: LocalCluster) -> None:
    lines = localdask("ps", "shown", "--format", "jsonl").stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(set(row) == KEYS for row in rows)
    assert [row["name"] for row in rows] == ["scheduler", "n0", "w0", "n1", "w1"]
    assert rows[0]["pid"] == os.getpid() and all(row["rss"] > 2**20 and row["uptime"] > 0 for row in rows)
    assert [row["generation"] for row in rows if row["role"] == "worker"] == [1, 1]
    table = localdask("ps").stdout.splitlines()
    assert table[0].split() == ["NAME", "ROLE", "PID", "STATE", "GEN", "TASKS", "DONE", "CPU", "MEMORY", "RESTARTS", "UPTIME", "LAST"]
    assert re.match(r"w0 +worker +\d+ +running +1 ", table[3])
    assert rows[0]["watching"] == cluster.watching != "off" and f"watches preloads: {cluster.watching}" in table[1]


@pytest.mark.parametrize(
    ("verb", "text"), [(("ps", "--watch", "--interval", "0.1s"), "w1"), (("top", "--interval", "0.1s"), "2 workers · ")]
)
def test_a_live_view_goes_on_in_a_terminal_until_ctrl_c(cluster: LocalCluster, verb: tuple[str, ...], text: str) -> None:
    with running(*verb, terminal=True) as live:
        live.wait_for(text, count=3)
        os.write(live.terminal, b"\x03")  # type: ignore[attr-defined]
        assert live.end() == 0


def test_a_live_view_cuts_long_lines_and_commands_no_dumb_terminal(cluster: LocalCluster) -> None:
    for term in ("xterm", "dumb"):
        with running("ps", "--watch", "--interval", "0.1s", terminal=True, environ=environment(TERM=term)) as live:
            live.wait_for("w1", count=2)
            os.write(live.terminal, b"\x03")  # type: ignore[attr-defined]
            assert live.end() == 0
        frames = live.text.count("\x1b[?7l\x1b[H\x1b[J")
        assert frames == live.text.count("\x1b[?7h")
        assert (frames >= 2) == (term == "xterm") and (term == "xterm" or "\x1b" not in live.text)
    assert localdask("top", "--interval", "0.1s").stdout.startswith("2 workers · ")


def test_top_tells_tasks_by_name(cluster: LocalCluster) -> None:
    with Client(cluster, set_as_default=False) as client:
        futures = client.map(abs, range(5), pure=False)
        client.gather(futures)
        shown = localdask("top", "--interval", "0.1s").stdout
    assert re.search(r"^abs +5 ", shown, re.MULTILINE), shown


def test_logs_are_kept_filtered_and_followed(cluster: LocalCluster) -> None:
    with Client(cluster, set_as_default=False) as client:
        client.run(print, "hostile \x1b[31m line \x07", flush=True, workers="w0")
        wait_until(lambda: "hostile" in localdask("logs", "w0").stdout)
        assert localdask("logs", "w0", "--grep", "hostile").stdout == "w0 │ hostile \\x1b[31m line \\x07\n"
        assert "hostile" not in localdask("logs", "w1").stdout and "set up w1" in localdask("logs", "w1").stdout
        (row,) = [json.loads(line) for line in localdask("logs", "--grep", "hostile", "--format", "jsonl").stdout.splitlines()]
        assert (row["source"], row["stream"], row["line"]) == ("w0", "stdout", "hostile \x1b[31m line \x07") and time.time() - row[
            "time"
        ] < 60
        assert localdask("logs", "--tail", "1", "w0").stdout.count("\n") == 1
        assert localdask("logs", "--since", "0.001s").stdout == ""
        colours = localdask("logs", "--tail", "1", environ=environment(FORCE_COLOR="1")).stdout
        assert colours.startswith("\x1b[") and "\x1b[31m" not in colours
        with running("logs", "-f", "--tail", "0", terminal=True) as follow:
            number = 0

            def is_heard() -> bool:
                nonlocal number
                number += 1
                client.run(print, f"number {number}", flush=True, workers="w1")
                return "w1 │" in follow.read() or "│ number" in follow.read()

            wait_until(is_heard)
            assert "set up" not in follow.text
            os.write(follow.terminal, b"\x03")  # type: ignore[attr-defined]
            assert follow.end() == 0, follow.text
    wrong = localdask("logs", "--grep", "(")
    assert wrong.returncode == 2 and "is no regular expression" in wrong.stderr


def test_events_tell_starts(cluster: LocalCluster) -> None:
    rows = [json.loads(line) for line in localdask("events", "--format", "jsonl").stdout.splitlines()]
    assert {"event": "worker-joined", "worker": "w0", "life": 1}.items() <= [
        row for row in rows if row["event"] == "worker-joined" and row["worker"] == "w0"
    ][0].items()
    assert re.search(r"^\d\d:\d\d:\d\d  worker-joined   worker=w1  life=1  pid=\d+$", localdask("events").stdout, re.MULTILINE)


def test_exec_shows_each_workers_answer(cluster: LocalCluster) -> None:
    done = localdask("exec", "import os\nprint('from', worker.name)\nos.getpid()")
    pids = {worker.name: worker.pid for worker in cluster.scheduler.workers.values()}
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout == "".join(f"{name} │ from {name}\n{name} │ {pids[name]}\n" for name in ("w0", "w1"))
    some = localdask("exec", "['only'][worker.name == 'w1']")
    assert some.returncode == 6 and some.stdout == "w0 │ 'only'\n"
    assert some.stderr == (
        'w1 │ Traceback (most recent call last):\nw1 │   File "<exec>", line 1, in <module>\nw1 │ IndexError: list index out of range\n'
    )
    assert localdask("exec", "raise SystemExit", "w0").returncode == 1
    assert localdask("exec", "(", "w0").returncode == 2
    no_text = localdask("exec", "x\udcff", "w0")  # a byte that is no UTF-8, as Python keeps it
    assert no_text.returncode == 2 and "error: the code is no text: " in no_text.stderr
    assert localdask("exec", "1", "n0").returncode == 2
    nobody = localdask("exec", "1", "w7")
    assert nobody.returncode == 3 and "is called 'w7'; there are: n0, w0, n1, w1" in nobody.stderr
    rows = json.loads(localdask("exec", "-", "w0", "--format", "json", stdin="'\\x1b'").stdout)
    assert rows == [{"name": "w0", "printed": "", "value": "'\\x1b'", "error": None}]


def stuck(path: str) -> None:
    """Hold the interpreter in C code: a regular expression that takes for ever."""
    Path(path).touch()
    re.match(r"(a+)+$", "a" * 40 + "b")


def test_stacks_are_shown_also_of_a_worker_that_is_stuck_in_c(cluster: LocalCluster, tmp_path: Path) -> None:
    with Client(cluster, set_as_default=False) as client:
        future = client.submit(stuck, str(tmp_path / "begun"), workers="w1")
        wait_until((tmp_path / "begun").exists)
        done = localdask("stacks")
        assert done.returncode == 0 and done.stderr == ""
        assert re.search(r"^w1 │   File .* in stuck$", done.stdout, re.MULTILINE), done.stdout
        assert re.search(r"^w0 │ Current thread 0x\w+ \(most recent call first\):$", done.stdout, re.MULTILINE)
        late = localdask("exec", "1", "--timeout", "0.3s")
        assert late.returncode == 6 and late.stderr == "w1 │ it did not answer in time\n"
        future.cancel()
        assert localdask("restart", "w1", "--grace", "0s").returncode == 0


def test_stacks_spare_a_worker_that_would_die_of_the_signal(cluster: LocalCluster) -> None:
    code = "import signal; signal.signal(signal.SIGUSR2, signal.SIG_DFL); None"
    assert localdask("exec", code, "w0").returncode in (0, 1)
    with Client(cluster, set_as_default=False) as client:
        import faulthandler

        assert client.run(faulthandler.unregister, signal.SIGUSR2, workers="w0")
        life = cluster.scheduler.workers["w0"].life
        done = localdask("stacks", "w0")
        assert done.returncode == 1 and "w0 shows no stack" in done.stderr
        assert cluster.scheduler.workers["w0"].life == life
        assert localdask("restart", "w0").returncode == 0


# ── changing ─────────────────────────────────────────────────────────────────


def test_restart_is_rolling_and_by_name(cluster: LocalCluster) -> None:
    before = {name: worker.life for name, worker in cluster.scheduler.workers.items()}
    least = [2]
    done_at = threading.Event()

    def watch() -> None:
        while not done_at.wait(0.001):
            least[0] = min(least[0], len(cluster.scheduler.workers))

    watcher = threading.Thread(target=watch)
    watcher.start()
    done = localdask("restart", "w*")
    done_at.set()
    watcher.join()
    assert (done.returncode, done.stderr) == (0, "replaced w0, w1\n")
    assert all(worker.life > before[name] for name, worker in cluster.scheduler.workers.items()) and least == [1]
    nanny = cluster.workers["w0"].pid
    assert localdask("restart", "n0").stderr == "replaced n0\n"
    assert cluster.workers["w0"].pid != nanny
    assert localdask("restart").returncode == 2
    assert localdask("restart", "w5").returncode == 3


def test_reload_swaps_or_says_why_not(cluster: LocalCluster, folder: Path) -> None:
    done = localdask("reload")
    told = r"reload \d+  asked for   loaded 2/2 · swapped 2/2 · \d+ ms\nw0 ok \d+ ms, w1 ok \d+ ms\n"
    assert done.returncode == 0 and re.match(told, done.stderr)
    generation = cluster.preloads[0].generation
    check = localdask("reload", "--check", "setup.py", cwd=folder)
    assert check.returncode == 0 and "swapped" not in check.stderr and cluster.preloads[0].generation == generation
    assert json.loads(localdask("reload", "--format", "json").stdout)["outcome"] == "swapped"
    try:
        (folder / "setup.py").write_text("(")
        broken = localdask("reload", "setup.py", cwd=folder)
        assert broken.returncode == 1 and "SyntaxError" in broken.stderr and "stays" in broken.stderr
        assert re.search(r"^scheduler .* reload failed  .*setup\.py:1", localdask("ps", "shown").stdout, re.MULTILINE)
    finally:
        (folder / "setup.py").write_text(SETUP)
    assert localdask("reload", "other.py").returncode == 2


def test_scale_sets_a_number_and_adds_and_takes_away(cluster: LocalCluster) -> None:
    assert localdask("scale", "+1", "--wait").stderr == "3 workers are there\n"
    assert localdask("scale", "2", "--wait").stderr == "2 workers are there\n"
    assert localdask("scale", "-1", "--wait").stderr == "1 worker is there\n"
    assert localdask("scale", "2", "--wait").returncode == 0
    assert localdask("scale", "many").returncode == 2


def test_run_uses_a_running_cluster_when_told_to(cluster: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import sys\nfrom localdask import Client\n"
        "with Client() as client:\n    print(client.scheduler_info()['id'], client.submit(abs, -4).result(), sys.argv[1:])\nsys.exit(7)\n"
    )
    done = localdask("run", "--cluster", "shown", "script.py", "--own", cwd=tmp_path)
    assert done.returncode == 7 and done.stdout == "Scheduler-shown 4 ['--own']\n"
    assert localdask("run", "--cluster", "shown", "-n", "4", "script.py", cwd=tmp_path).returncode == 2
    assert localdask("run", "--cluster", "nobody", "script.py", cwd=tmp_path).returncode == 3


# ── those that need no cluster ───────────────────────────────────────────────


def test_config_shows_who_said_what(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("worker:\n  memory:\n    target: 0.5\nnanny:\n  environ:\n    TOKEN: secret\n")
    origin = localdask("config", "show", "--origin", "-f", "mine.yaml", cwd=tmp_path)
    assert re.search(r"^worker\.memory\.target +0\.5 +\S*mine\.yaml", origin.stdout, re.MULTILINE)
    assert re.search(r"^worker\.memory\.spill +0\.7 +defaults", origin.stdout, re.MULTILINE)
    assert (
        "secret" not in origin.stdout
        and "secret" not in localdask("config", "get", "nanny.environ.TOKEN", "-f", "mine.yaml", cwd=tmp_path).stdout
    )
    assert localdask("config", "get", "worker.memory.spill").stdout == "0.7\n"
    misspelt = localdask("config", "get", "worker.memory.spil")
    assert misspelt.returncode == 2 and "did you mean worker.memory.spill?" in misspelt.stderr
    path = tmp_path / "new" / "localdask.yaml"
    assert localdask("config", "init", str(path)).stdout == f"{path}\n"
    assert localdask("config", "init", str(path)).returncode == 2
    assert localdask("config", "show", "-f", str(path)).returncode == 0


def test_doctor_tells_each_point_and_its_mend(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(SETUP)
    done = localdask("doctor", "good.py", "--format", "json", cwd=tmp_path)
    rows = json.loads(done.stdout)
    assert done.returncode == 0
    assert all(row["found"] for row in rows if row["what"].startswith("cluster "))
    assert {"python", "start method", "open files", "watcher", "runtime folder", "BLAS threads", "preload good.py"} <= {
        row["what"] for row in rows
    }
    assert all(row["mend"] for row in rows if row["verdict"] == "bad")
    bad = localdask("doctor", "missing.py", cwd=tmp_path)
    assert bad.returncode == 1 and re.search(r"^✗  preload missing\.py", bad.stdout, re.MULTILINE)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_asks_localdask(shell: str) -> None:
    done = localdask("completion", shell)
    assert done.returncode == 0 and f"_LOCALDASK_COMPLETE={shell}_complete" in done.stdout
    assert localdask("completion", "tcsh").returncode == 2


def test_completion_completes_verbs() -> None:
    done = localdask(environ=environment(_LOCALDASK_COMPLETE="bash_complete", COMP_WORDS="localdask re", COMP_CWORD="1"))
    assert {"plain,restart", "plain,reload"} <= set(done.stdout.split()), (done, sys.version)


def test_a_closed_standard_output_is_no_traceback() -> None:
    command = [sys.executable, "-m", "localdask", "config", "show"]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, timeout=30)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is full is of Linux")
def test_a_full_disk_under_the_output_is_an_error_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "localdask", "doctor"], env=environment(), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert (done.returncode, done.stderr) == (1, "error: the output cannot be written: its disk is full\n")


def test_an_output_that_takes_only_ascii_is_no_traceback() -> None:
    done = localdask_apart("doctor", environ=environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"))
    assert "Traceback" not in done.stderr
    assert done.stdout.isascii() and "shared memory" in done.stdout


@pytest.mark.parametrize("words", [("-m", "localdask"), ("-c", "from localdask.__main__ import main; main()")], ids=["module", "script"])
def test_ctrl_c_ends_the_command_quietly_also_while_it_is_imported(words: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    environ = environment(PYTHONPATH=os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]]))
    done = subprocess.run([sys.executable, *words, "version"], env=environ, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize("verb", ["events", "logs"])
def test_following_ends_with_who_reads_it(cluster: LocalCluster, verb: str) -> None:
    command = [sys.executable, "-m", "localdask", verb, "-f"]
    there = localdask(verb).stdout.splitlines()
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as follow:
        assert follow.stdout is not None and follow.stderr is not None
        try:
            assert [follow.stdout.readline().decode().rstrip("\n") for _ in there] == there
            follow.stdout.close()
            assert follow.wait(50) == 0
            assert follow.stderr.read() == b""
        finally:
            follow.kill()
