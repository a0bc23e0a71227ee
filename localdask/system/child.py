"""A process of ours: asked to end or forced, and how it ended."""

from __future__ import annotations

import os
import select
import signal
import sys

from localdask.records import record
from localdask.system.process import open_pidfd, send_signal
from localdask.system.sessions import kill_session

__all__ = ["Child", "ExitStatus", "explain_status"]


def explain_status(status: int | None) -> str:
    """Return a wait status in words: ``SIGKILL``, ``exit code 3``."""
    if status is None:
        return "an end that nobody saw"
    if not os.WIFSIGNALED(status):
        return f"exit code {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@record(frozen=True)
class ExitStatus:
    """How a process ended.

    Attributes
    ----------
    status : int or None
        As from ``waitpid``; None of a process that was not our child.
    peak_rss : int
        The largest resident memory in bytes, of it or one of its own children; 0 when unknown.
    """

    status: int | None
    peak_rss: int = 0

    @property
    def text(self) -> str:
        """The end in words."""
        return explain_status(self.status)

    @property
    def signal(self) -> int | None:
        """The signal that ended it, if one did."""
        return os.WTERMSIG(self.status) if self.status is not None and os.WIFSIGNALED(self.status) else None

    @property
    def code(self) -> int | None:
        """The exit code, if it exited."""
        return os.WEXITSTATUS(self.status) if self.status is not None and os.WIFEXITED(self.status) else None


class Child:
    """A process of ours: a child, or a descendant that a process between us forked.

    ``fileno`` can be read once it ended. Then call ``kill_session`` if it led one, and ``poll`` after that: as long as
    nobody polled, no stranger gets its number.

    Parameters
    ----------
    pid : int
        Its number. For a descendant that is no child of ours, only numbers that cannot have been given away since.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = open_pidfd(pid)
        self._exit: ExitStatus | None = None

    def __repr__(self) -> str:
        return f"<Child {self.pid} {'runs' if self._exit is None else self._exit.text}>"

    def fileno(self) -> int:
        """Return the pidfd, or -1 where there is none (then poll at each SIGCHLD)."""
        return -1 if self._pidfd is None else self._pidfd

    def poll(self) -> ExitStatus | None:
        """Return how it ended, or None while it runs. The first answer collects it."""
        if self._exit is None:
            try:
                pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            except ChildProcessError:
                if self._is_gone():
                    self._exit = ExitStatus(None)
            else:
                if pid:
                    self._exit = ExitStatus(status, usage.ru_maxrss * (1024 if sys.platform == "linux" else 1))
        return self._exit

    def _is_gone(self) -> bool:
        """Whether a process that is not our child has ended."""
        if self._pidfd is not None:
            ended = select.poll()
            ended.register(self._pidfd, select.POLLIN)
            return bool(ended.poll(0))
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def terminate(self) -> None:
        """Ask it to end (SIGTERM); harmless when it has."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it (SIGKILL), stopped or not; harmless when it has ended."""
        self._send(signal.SIGKILL)

    def _send(self, signum: int) -> None:
        if self._exit is not None:
            return
        try:
            send_signal(self.pid, self._pidfd, signum)
        except ProcessLookupError:
            return  # it ended by itself

    def kill_session(self) -> list[int]:
        """End it and everything in the session it leads; return the pids of what is left, normally none."""
        self.kill()
        return kill_session(self.pid)

    def close(self) -> None:
        """Let go of the pidfd; the process stays as it is."""
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            os.close(pidfd)
