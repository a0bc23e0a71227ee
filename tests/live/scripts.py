"""Users' scripts for the live tests, run as processes of their own, and looks at what they leave."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from tests.conftest import own_files, wait_until

ROOT = Path(__file__).parent.parent.parent
TIMEOUT_S = 30


def environment() -> dict[str, str]:
    """This process's environment, with localdask importable and output unbuffered."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


class Script:
    """A script that runs in a process group of its own; what it writes to stdout and stderr comes together."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.text = ""
        self._family: dict[int, psutil.Process] = {}
        assert process.stdout is not None
        self._fd = process.stdout.fileno()
        os.set_blocking(self._fd, False)

    def read(self) -> str:
        """Return all that was written so far."""
        with contextlib.suppress(BlockingIOError):
            while select.select([self._fd], [], [], 0)[0] and (chunk := os.read(self._fd, 65536)):
                self.text += chunk.decode(errors="replace")
        return self.text

    def wait_for(self, text: str) -> None:
        """Return when it wrote this; fail when it ends without."""

        def is_there() -> bool:
            ended = self.process.poll() is not None
            assert text in self.read() or not ended, f"ended with {self.process.returncode} and never wrote {text!r}:\n{self.text}"
            return text in self.text

        wait_until(is_there, TIMEOUT_S, f"{text!r}, but it wrote:\n{self.text}")

    def end(self) -> int:
        """Wait for its end, reading on, and return its exit code."""
        wait_until(lambda: [self.read(), self.process.poll()][1] is not None, TIMEOUT_S, "its end")
        self.read()
        return self.process.returncode

    def family(self) -> list[psutil.Process]:
        """Return, and remember, all processes below it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                self._family[child.pid] = child
        return list(self._family.values())

    def interrupt_group(self) -> None:
        """Do what a terminal does at Ctrl-C: SIGINT to the whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def left(self) -> list[psutil.Process]:
        """Return those of its processes, as last looked at, that still run."""
        return [process for process in self._family.values() if is_alive(process)]


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def running(code: str, *, folder: Path, arguments: Sequence[str] = ()) -> Iterator[Script]:
    """Run Python code as a script; at the end nothing of it may be left."""
    path = folder / "user_script.py"
    path.write_text(code)
    command = [sys.executable, str(path), *arguments]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    script = Script(process)
    try:
        yield script
    finally:
        script.family()
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        for member in script.left():
            with contextlib.suppress(psutil.NoSuchProcess):
                member.wait(2)


def files_of_killed() -> set[str]:
    """Return what a killed cluster may leave for the next start to sweep: its segments and its door."""
    return {path for path in own_files() if "localdask-data-" in path or path.endswith((".lock", ".sock"))}
