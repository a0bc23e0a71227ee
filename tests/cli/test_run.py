"""``localdask run`` as a user meets it: python, with a cluster behind ``Client()``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.terminal import descendants, environment, localdask, running
from tests.cli.test_up import CLICK, is_gone
from tests.conftest import wait_until

SCRIPT = """\
import sys
from localdask import Client

class Point:
    def __init__(self, x):
        self.x = x

def double(point):
    return Point(point.x * 2)

client = Client()
print(sum(point.x for point in client.gather(client.map(double, [Point(n) for n in range(5)]))))
print(__name__, sys.argv, len(client.scheduler_info()["workers"]))
"""


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """A folder with a script that uses the cluster."""
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def test_a_script_has_its_arguments_its_cluster_and_standard_output_for_itself(folder: Path) -> None:
    done = localdask("run", "-n", "2", "script.py", "-n", "9", "--help", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "20\n__main__ ['script.py', '-n', '9', '--help'] 2\n"


def test_the_same_works_as_module_as_code_and_from_standard_input(folder: Path) -> None:
    expected = "20\n__main__ [{}] 1\n"
    done = localdask("run", "-n", "1", "-m", "script", "a", cwd=folder)
    assert (done.stdout, done.returncode) == (expected.format(repr(str(folder / "script.py")) + ", 'a'"), 0), done.stderr
    done = localdask("run", "-n", "1", "-c", SCRIPT, "a", cwd=folder)
    assert (done.stdout, done.returncode) == (expected.format("'-c', 'a'"), 0), done.stderr
    done = localdask("run", "-n", "1", "-", "a", cwd=folder, stdin=SCRIPT)
    assert (done.stdout, done.returncode) == (expected.format("'-', 'a'"), 0), done.stderr


MAIN = """\
import sys

class Named:
    size: int

print(Named.__annotations__, __file__, sys.argv, __name__, __spec__, __package__, __doc__, sorted(globals()))
"""


def test_main_looks_to_the_script_as_under_python(folder: Path) -> None:
    (folder / "main.py").write_text(MAIN)
    python = subprocess.run([sys.executable, "main.py", "a"], cwd=folder, capture_output=True, text=True)
    done = localdask("run", "-n", "1", "main.py", "a", cwd=folder)
    assert (done.stdout, done.stderr) == (python.stdout, python.stderr)


def test_a_script_may_use_multiprocessing_with_spawn(folder: Path) -> None:
    (folder / "spawns.py").write_text(
        "import multiprocessing as mp\n\ndef square(n):\n    return n * n\n\nif __name__ == '__main__':\n"
        "    with mp.get_context('spawn').Pool(1) as pool:\n        print(pool.map(square, [1, 2, 3]))\n"
    )
    done = localdask("run", "-n", "1", "spawns.py", cwd=folder)
    assert (done.stdout, done.returncode) == ("[1, 4, 9]\n", 0), done.stderr


def test_a_script_may_have_a_cluster_of_its_own_besides() -> None:
    code = (
        "from localdask import Client, LocalCluster\n"
        "with LocalCluster(n_workers=2) as mine, Client(mine) as client:\n"
        "    print(len(client.scheduler_info()['workers']), len(Client().scheduler_info()['workers']))\n"
    )
    done = localdask("run", "-n", "1", "-c", code)
    assert (done.stdout, done.returncode) == ("2 1\n", 0), done.stderr


def test_a_reader_that_goes_away_ends_a_script_as_in_python(folder: Path) -> None:
    (folder / "talks.py").write_text("for number in range(100_000):\n    print(number)\n")
    command = f"{sys.executable} -m localdask run -n 1 talks.py | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment(), capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("0\n", 1)
    assert "BrokenPipeError" in done.stderr and "localdask/cli/" not in done.stderr


def test_a_folder_with_a_main_runs(folder: Path) -> None:
    (folder / "tool").mkdir()
    (folder / "tool" / "__main__.py").write_text(SCRIPT)
    done = localdask("run", "-n", "1", "tool", cwd=folder)
    assert done.stdout.startswith("20\n__main__ ['tool'"), done.stderr


def test_the_scripts_folder_comes_first_on_the_path_here_and_in_workers(folder: Path) -> None:
    (folder / "below").mkdir()
    (folder / "below" / "sibling.py").write_text("def here():\n    return __file__\n")
    (folder / "below" / "main.py").write_text(
        "import sys\nfrom localdask import Client\nimport sibling\n"
        "print(sys.path[0]); print(Client().submit(sibling.here).result() == sibling.__file__)\n"
    )
    done = localdask("run", "-n", "1", "below/main.py", cwd=folder)
    assert done.stdout == f"{folder / 'below'}\nTrue\n", done.stderr


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit('no luck')", 1, "no luck\n"),
        ("raise SystemExit(True)", 1, ""),
        ("exit(3)", 3, ""),
    ],
)
def test_the_exit_code_is_the_scripts(code: str, exit_code: int, said: str) -> None:
    done = localdask("run", "-n", "1", "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (exit_code, "", said)


def test_an_error_is_shown_as_python_shows_it(folder: Path) -> None:
    (folder / "failing.py").write_text("def f():\n    return 1 / 0\n\ntry:\n    f()\nexcept ZeroDivisionError:\n    {}['key']\n")
    done = localdask("run", "-n", "1", "failing.py", cwd=folder)
    python = subprocess.run([sys.executable, "failing.py"], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (python.returncode, python.stderr)


def test_an_error_in_a_module_shows_no_frame_of_ours(folder: Path) -> None:
    (folder / "failing.py").write_text("1 / 0\n")
    done = localdask("run", "-n", "1", "-m", "failing", cwd=folder)
    assert done.returncode == 1
    assert done.stderr.count("File ") == 1 and "ZeroDivisionError" in done.stderr


def test_an_error_of_a_task_reaches_the_script_as_itself() -> None:
    code = "from localdask import Client\ndef f():\n    raise KeyError('deep')\nClient().submit(f).result()"
    done = localdask("run", "-n", "1", "-c", code)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("KeyError: 'deep'")


def test_get_client_finds_the_clusters_client() -> None:
    done = localdask("run", "-n", "1", "-c", "from localdask import get_client; print(get_client().submit(abs, -3).result())")
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_a_script_may_say_auto_and_what_it_starts_finds_the_cluster_too() -> None:
    look = "from localdask import Client; print([Client(*how).submit(abs, -3).result() for how in ((), ('auto',))], flush=True)"
    code = f"{look}\nimport subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    done = localdask("run", "-n", "1", "-c", code, look)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[3, 3]\n[3, 3]\n", "")


def test_a_client_that_the_script_closes_leaves_the_cluster_to_the_next() -> None:
    code = "from localdask import Client\nfor n in range(3):\n    with Client() as client:\n        print(client.submit(abs, -n).result())"
    done = localdask("run", "-n", "1", "-c", code)
    assert (done.stdout, done.returncode) == ("0\n1\n2\n", 0), done.stderr


def test_what_workers_print_is_talk_and_names_the_worker() -> None:
    done = localdask("run", "-n", "1", "-c", "from localdask import Client; Client().submit(print, 'from a task').result()")
    assert (done.stdout, done.stderr) == ("", "w0 │ from a task\n")


def test_preloads_run_and_get_their_options(folder: Path) -> None:
    (folder / "clicked.py").write_text(CLICK)
    done = localdask("run", "-n", "1", "--preload", "clicked.py", "--depth", "5", "script.py", "--depth", "6", cwd=folder)
    assert done.returncode == 0
    assert "w0 │ depth 5 for nobody\n" in done.stderr
    assert "['script.py', '--depth', '6']" in done.stdout


def test_a_failing_preload_means_that_the_script_never_runs(folder: Path) -> None:
    (folder / "failing.py").write_text("raise OSError('no')\n")
    done = localdask("run", "-n", "1", "--preload", "failing.py", "script.py", cwd=folder)
    assert (done.returncode, done.stdout) == (5, "")


def test_threads_of_the_script_are_waited_for_with_the_cluster_still_there() -> None:
    code = (
        "import threading, time\nfrom localdask import Client\ngo = threading.Event()\n"
        "def work():\n    go.wait()\n    print(Client().submit(lambda: 4).result(), flush=True)\n"
        "threading.Thread(target=work).start()\nthreading.Timer(0.1, go.set).start()\n"
    )
    done = localdask("run", "-n", "1", "-c", code)
    assert (done.stdout, done.returncode) == ("4\n", 0), done.stderr


WAITING = (
    "from localdask import Client\nimport time\nclient = Client()\nprint('waiting', flush=True)\nclient.submit(time.sleep, 60).result()\n"
)


def test_ctrl_c_ends_the_script_as_in_python_with_exit_code_130(folder: Path) -> None:
    (folder / "waiting.py").write_text(WAITING)
    with running("run", "-n", "1", "waiting.py", cwd=folder, terminal=True, environ=environment(NO_COLOR="1")) as run:
        run.wait_for("waiting")
        pids = descendants(run.process.pid)
        os.write(run.terminal, b"\x03")
        assert run.end() == 130
        assert run.text.rstrip().endswith("KeyboardInterrupt")
        assert "localdask/cli/" not in run.text
        wait_until(lambda: is_gone(pids), what="the processes to end")


def test_a_script_may_catch_ctrl_c_and_go_on(folder: Path) -> None:
    (folder / "patient.py").write_text(
        "from localdask import Client\nimport time\nclient = Client()\n"
        "try:\n    print('waiting', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('still', client.submit(abs, -2).result(), flush=True)\n"
    )
    with running("run", "-n", "1", "patient.py", cwd=folder, terminal=True) as run:
        run.wait_for("waiting")
        os.write(run.terminal, b"\x03")
        run.wait_for("still 2")
        assert run.end() == 0


def test_sigterm_closes_the_cluster_and_ends_with_143(folder: Path) -> None:
    (folder / "waiting.py").write_text(WAITING)
    with running("run", "-n", "1", "waiting.py", cwd=folder, terminal=True) as run:
        run.wait_for("waiting")
        pids = descendants(run.process.pid)
        run.send(signal.SIGTERM)
        assert run.end() == 143
        wait_until(lambda: is_gone(pids), what="the processes to end")


def test_the_environment_names_options_for_run_too() -> None:
    code = "from localdask import Client; print(len(Client().scheduler_info()['workers']))"
    done = localdask("run", "-c", code, environ=environment(LOCALDASK_RUN_WORKERS="2"))
    assert (done.stdout, done.stderr) == ("2\n", "")
