"""``up -d``: a cluster that goes on when the command has ended.

Runs in the user's process. The command starts itself once more, without a terminal and in
a session of its own, and listens on a pipe for how far the start has come. What the new
process says until then is passed on; afterwards nobody reads it, and ``localdask logs`` and
``events`` have what matters.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence

__all__ = ["StartNews", "begin_detached"]

#: The variable by which the new process is told where to say how far it is.
NEWS_VARIABLE = "LOCALDASK_UP_NEWS_FD"
REACHABLE, READY = b"r", b"R"


class StartNews:
    """What the new process says of its start; says nothing in a process that was not started by ``begin_detached``."""

    def __init__(self) -> None:
        number, _, wanted = os.environ.pop(NEWS_VARIABLE, "").partition(":")
        self._fd = int(number) if number.isdigit() else -1
        self._wanted = wanted.encode()
        if self._fd >= 0:
            os.set_inheritable(self._fd, False)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for it: whether this process was started apart."""
        return self._fd >= 0

    def say(self, news: bytes) -> None:
        """Say how far the start is. When that is what was waited for, nobody reads standard error any more."""
        if self._fd < 0:
            return
        if news == self._wanted:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
        try:
            os.write(self._fd, news)
        except OSError:  # who wanted to know was killed
            self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def begin_detached(words: Sequence[str], name: str, wait: bool) -> int:
    """Run ``localdask up words…`` apart; return 0 once it can be reached, with ``wait`` once it is ready, else its exit code."""
    import subprocess  # noqa: PLC0415 - only this needs it

    reader, writer = os.pipe()
    talk, its_talk = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "localdask", "up", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=its_talk,
            start_new_session=True,
            pass_fds=(writer,),
            env={**_environment(), NEWS_VARIABLE: f"{writer}:{(READY if wait else REACHABLE).decode()}"},
        )
        os.close(writer)
        os.close(its_talk)
        said = _listen(reader, talk, READY if wait else REACHABLE)
    finally:
        os.close(reader)
        os.close(talk)
    if said:
        process.returncode = 0  # it goes on; nobody waits for it here
        print(f"cluster {name} runs apart (pid {process.pid}); localdask down {name} stops it", file=sys.stderr)
        return 0
    return process.wait() or 1


def _environment() -> dict[str, str]:
    """Return this environment without what would have the new process start yet another one."""
    return {name: value for name, value in os.environ.items() if name not in ("LOCALDASK_UP_DETACH", "LOCALDASK_UP_WAIT")}


def _listen(news: int, talk: int, wanted: bytes) -> bool:
    """Pass on what is said until the wanted news comes; return whether it came."""
    heard = b""
    open_fds = [news, talk]
    while wanted not in heard:
        ready = select.select(open_fds, [], [])[0]
        if talk in ready:
            text = os.read(talk, 65536)
            if text:
                sys.stderr.buffer.write(text)
                sys.stderr.flush()
            else:
                open_fds.remove(talk)
        if news in ready:
            data = os.read(news, 64)
            heard += data
            if not data:
                while talk in open_fds and (text := os.read(talk, 65536)):
                    sys.stderr.buffer.write(text)
                sys.stderr.flush()
                return False
    return True
