"""Running the command line as a user does: as a process of its own, with pipes or a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.conftest import wait_until

ROOT = Path(__file__).parent.parent.parent
COMMAND = (sys.executable, "-m", "localdask")
TIMEOUT_S = 60


def environment(**more: str) -> dict[str, str]:
    """This process's environment without anything that would steer localdask, and with localdask importable."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LOCALDASK", "DASK_")) and name not in ("NO_COLOR", "FORCE_COLOR")
    }
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm", **more}


def localdask(
    *words: str, cwd: Path | None = None, stdin: str | None = None, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``localdask words…`` to its end."""
    return subprocess.run(
        [*COMMAND, *words], cwd=cwd, input=stdin, env=environ or environment(), capture_output=True, text=True, timeout=TIMEOUT_S
    )


class Running:
    """A command that is running, and all it has written to standard error so far."""

    def __init__(self, process: subprocess.Popen[bytes], output: int) -> None:
        self.process = process
        self.text = ""
        self._output = output
        os.set_blocking(output, False)

    def read(self) -> str:
        """Return what was written so far."""
        with contextlib.suppress(BlockingIOError, OSError):
            while select.select([self._output], [], [], 0)[0]:
                chunk = os.read(self._output, 65536)
                if not chunk:
                    break
                self.text += chunk.decode(errors="replace")
        return self.text

    def wait_for(self, text: str, count: int = 1) -> None:
        """Return when ``text`` was written ``count`` times; fail when the process ends without it."""

        def is_there() -> bool:
            if self.read().count(text) >= count:
                return True
            if self.process.poll() is not None:
                self.read()
                assert self.text.count(text) >= count, f"ended with {self.process.returncode} and never wrote {text!r}:\n{self.text}"
            return False

        wait_until(is_there, TIMEOUT_S, f"{text!r}")

    def send(self, signum: int) -> None:
        """Send a signal to the process alone."""
        self.process.send_signal(signum)

    def end(self) -> int:
        """Wait for the end, reading on, and return the exit code."""
        wait_until(lambda: [self.read(), self.process.poll()][1] is not None, TIMEOUT_S, "its end")
        self.read()
        return self.process.returncode


@contextlib.contextmanager
def running(*words: str, cwd: Path | None = None, environ: Mapping[str, str] | None = None, terminal: bool = False) -> Iterator[Running]:
    """Start ``localdask words…``, with a terminal of its own if asked; it is killed at the end if it still runs."""
    if terminal:
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [*COMMAND, *words], cwd=cwd, env=environ or environment(), stdin=slave, stdout=slave, stderr=slave, preexec_fn=_take_terminal
        )
        os.close(slave)
        output = master
    else:
        output, writer = os.pipe()
        process = subprocess.Popen(
            [*COMMAND, *words], cwd=cwd, env=environ or environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=writer
        )
        os.close(writer)
    command = Running(process, output)
    command.terminal = output if terminal else -1  # type: ignore[attr-defined]
    try:
        yield command
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        os.close(output)


def _take_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def descendants(pid: int) -> list[int]:
    """Return the numbers of all processes below ``pid``."""
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
