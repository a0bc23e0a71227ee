"""A cluster in the foreground of a terminal: starting it, waiting, ending it gracefully or by force.

Runs in the user's process, under ``up`` and ``run``. It owns the order of what must end
in reverse (signals, pid file, talker, cluster). What is said is ``reports``' and
``talk``'s; what happens to workers is the cluster's.

A first SIGINT or SIGTERM asks for a graceful end, a second one forces it. SIGHUP is for
reloading, except that a terminal that went away ends the cluster.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TextIO

from localdask.api import addresses
from localdask.api import client as client_room
from localdask.api.client import Client
from localdask.api.cluster import LocalCluster
from localdask.cli.detached import REACHABLE, READY, StartNews
from localdask.cli.options import Plan
from localdask.cli.reports import banner, event_line
from localdask.cli.talk import Talker
from localdask.errors import UsageError
from localdask.system.loop import Loop

__all__ = ["run_elsewhere", "run_on_cluster", "serve"]

EXIT_FORCED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(plan: Plan, pid_path: str | None) -> int:
    """Start a cluster, tell of it until somebody stops it, and return the exit code."""
    terminal = _Terminal()
    with _interruptible():  # first: who finds the pid file may signal at once
        try:
            with _pid_file(pid_path):
                return _serve(plan, terminal)
        except KeyboardInterrupt:
            return 0  # before there was a cluster


def _serve(plan: Plan, terminal: _Terminal) -> int:
    foreground = _Foreground(plan, sys.stderr)
    try:
        cluster = foreground.cluster
        lines = banner(plan, cluster, foreground.ready_s, foreground.talker.coloured, foreground.is_detached) + foreground.troubles
        _wait_for_stop(foreground, terminal, lines)
    except KeyboardInterrupt:
        pass  # it came between two steps, and means the same
    return 0 if foreground.close() else EXIT_FORCED


def run_on_cluster(plan: Plan, pid_path: str | None, run: Callable[[], int]) -> int:
    """Run a script with a client of a new cluster as the default, and return the script's exit code."""
    with _ended_by_signals(), _pid_file(pid_path):
        with _interruptible():
            foreground = _Foreground(plan, sys.stderr)
        code = EXIT_FORCED
        client_room.default_cluster.append(foreground.cluster)
        if foreground.cluster.scheduler_address.startswith("unix:"):  # else no other process can reach it
            os.environ["LOCALDASK_ADDRESS"] = foreground.cluster.scheduler_address
        try:
            Client(foreground.cluster)
            code = run()
        except KeyboardInterrupt:
            pass  # before the script began, or after it ended
        finally:
            client_room.default_cluster.remove(foreground.cluster)
            with _interruptible():
                is_graceful = foreground.close()
        return code if is_graceful else EXIT_FORCED


def run_elsewhere(name: str, run: Callable[[], int]) -> int:
    """Run a script with a client of a running cluster as the default, and return the script's exit code."""
    with Client(name) as client:
        address = os.environ["LOCALDASK_ADDRESS"] = f"unix://{addresses.socket_path(name)}"
        print(f"on cluster {name} ({address})", file=sys.stderr)
        with _ended_by_signals(), client.as_current():
            return run()


class _Foreground:
    """A running cluster and the talker that tells of it. ``ready_s`` is how long its start took."""

    def __init__(self, plan: Plan, stream: TextIO) -> None:
        self.talker = Talker(stream)
        self._is_ready = False
        #: What is told of before the banner, and is nothing that ends the start.
        self.troubles: list[str] = []
        self._news = StartNews()
        self.is_shut_down = False
        #: Called, on the cluster's thread, when a client has asked for its end.
        self.on_shutdown: Callable[[], None] = lambda: None
        began = time.monotonic()
        try:
            self.cluster = LocalCluster(**plan.arguments, on_event=self._tell, on_log=self._tell_log)
        except BaseException:
            self.talker.close()
            self._news.close()
            raise
        self.ready_s = time.monotonic() - began
        self._is_ready = True

    @property
    def is_detached(self) -> bool:
        """Whether ``up -d`` started it, so that no terminal's Ctrl-C reaches it."""
        return self._news.is_wanted

    def _tell_log(self, source: str, stream: int, line: str) -> None:
        self.talker.say_log(source, [line])

    def _tell(self, kind: str, **fields: Any) -> None:
        if kind == "reachable":
            self._news.say(REACHABLE)
        elif kind == "shutdown":
            self.is_shut_down = True
            self.on_shutdown()
        if not self._is_ready and kind != "reload-trouble":
            return  # what goes wrong at the start ends it, and the error says more
        line = event_line(kind, fields, self.talker.coloured)
        if line and self._is_ready:
            self.talker.say(line)
        elif line:
            self.troubles.append(line)

    def tell_ready(self) -> None:
        """Tell who started this apart that it is ready, and that is all they hear."""
        self.talker.drain()
        self._news.say(READY)
        self._news.close()

    def close(self) -> bool:
        """End the cluster, by force when interrupted meanwhile. Return whether it ended gracefully."""
        try:
            try:
                self.cluster.close()
            except KeyboardInterrupt:
                with _interruptible(ignored=True):
                    for nanny in self.cluster.workers.values():
                        nanny.kill()
                    self.cluster.close(timeout=0)
                return False
            return True
        finally:
            self.talker.close()


class _Terminal:
    """The terminal that this process began with, if it did, and whether it went away."""

    def __init__(self) -> None:
        self._fds = [fd for fd in (0, 1, 2) if _is_terminal(fd)]

    def is_gone(self) -> bool:
        return bool(self._fds) and not any(_is_terminal(fd) for fd in self._fds)


def _is_terminal(fd: int) -> bool:
    try:
        os.tcgetpgrp(fd)
    except OSError:
        return False
    return True


def _wait_for_stop(foreground: _Foreground, terminal: _Terminal, lines: list[str]) -> None:
    """Say these lines, and return when a signal or a client asks for the end."""
    loop = Loop()

    def hang_up() -> None:
        if terminal.is_gone():
            loop.stop()
        else:
            try:
                foreground.cluster.reload(wait=False)
            except UsageError as error:
                foreground.talker.say(f"SIGHUP: {error}")

    try:
        for number in _heeded(SIGNALS):
            loop.on_signal(number, hang_up if number == signal.SIGHUP else loop.stop)
        foreground.on_shutdown = loop.stop
        foreground.talker.say(*lines)  # not before signals mean what they say
        foreground.tell_ready()
        if not foreground.is_shut_down:
            loop.run()
    finally:
        loop.close()


def _heeded(numbers: tuple[signal.Signals, ...]) -> list[signal.Signals]:
    """Return the signals that whoever started us did not have ignored, as nohup and a shell's background jobs do."""
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


@contextlib.contextmanager
def _handled(handler: Any, numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in _heeded(numbers)}
    try:
        yield
    finally:
        for number, former in previous.items():
            signal.signal(number, signal.SIG_DFL if former is None else former)


def _interruptible(*, ignored: bool = False) -> contextlib.AbstractContextManager[None]:
    """Let every signal that asks for the end raise ``KeyboardInterrupt`` in the main thread, or be ignored."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    return _handled(signal.SIG_IGN if ignored else interrupt, SIGNALS)


def _ended_by_signals() -> contextlib.AbstractContextManager[None]:
    """Let SIGTERM and SIGHUP end the script as an exit does, so that the cluster is closed. Ctrl-C is left as python has it."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    return _handled(end, (signal.SIGTERM, signal.SIGHUP))


@contextlib.contextmanager
def _pid_file(path: str | None) -> Iterator[None]:
    """Keep this process's number in a file; nothing when no file was asked for."""
    if path is None:
        yield
        return
    is_ours = False
    try:
        try:
            with open(path, "w", encoding="ascii") as file:
                is_ours = True
                file.write(f"{os.getpid()}\n")
        except OSError as error:
            raise UsageError(f"--pid-file {path} cannot be written: {error.strerror}; name a file in a folder of your own") from error
        yield
    finally:
        if is_ours:
            with contextlib.suppress(OSError):
                os.unlink(path)
