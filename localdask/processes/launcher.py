"""The launcher: a clean interpreter with one thread, which only forks nannies.

It is exec'd once for each user process and reused by every cluster there. Nothing is
ever forked from the user's process, whose threads may hold any lock; this process has
imported what nannies and workers need, and nothing of the user's. When its pipe ends,
the user's process is gone: its nannies end by their own pipes, and it ends what is
left of them. Started by ``processes/launching.py``.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import time
import types

from localdask import records
from localdask.errors import ProtocolError, StartError
from localdask.messages import ForkNanny
from localdask.processes import nanny
from localdask.sizing import KEEP_FREED
from localdask.system import codec, process
from localdask.system.environment import note_environ
from localdask.system.loop import Loop
from localdask.system.sessions import kill_session
from localdask.system.transport import Channel

#: How long nannies may take to end by themselves once the user's process is gone, in seconds.
ORPHANS_GRACE_S = 0.8


class Launcher:
    """Forks a nanny for each ``ForkNanny``, on the descriptor that came with it, and collects the dead."""

    def __init__(self, fd: int) -> None:
        self._channel = Channel(socket.socket(fileno=fd), passes_fds=True)
        self._loop = Loop()
        self._pids: set[int] = set()
        self._is_alone = False

    def run(self) -> None:
        """Serve until the user's process is gone."""
        self._loop.add_reader(self._channel.fileno(), self._read)
        self._loop.on_signal(signal.SIGCHLD, self._collect)
        self._loop.run()
        self._channel.close()
        self._loop.close()

    def _read(self) -> None:
        try:
            words = self._channel.receive()
        except (EOFError, ProtocolError):  # after which nothing comes that could be understood
            self._loop.remove_reader(self._channel.fileno())
            self._wind_up()
            return
        fds = self._channel.take_fds()
        for word, fd in zip(words, fds, strict=False):
            try:
                if isinstance(word, ForkNanny):
                    self._start(word, fd)
            except StartError as error:
                print(f"localdask: {error}", file=sys.stderr)
            finally:
                os.close(fd)  # a nanny that cannot be made is seen at the other end of its pipe, which ends

    def _start(self, word: ForkNanny, fd: int) -> None:
        if word.method == "spawn":
            code = f"import sys; sys.path[:] = {sys.path!r}; from localdask.processes.nanny import main; main({fd})"
            self._pids.add(process.spawn([sys.executable, "-c", code], pass_fds=[fd], new_session=True))
        else:
            self._pids.add(process.fork(lambda: self._be_nanny(fd, word.with_worker)))

    def _be_nanny(self, fd: int, with_worker: bool) -> None:
        process.close_other_descriptors([fd])
        os.setsid()
        nanny.main(fd, with_worker=with_worker)

    def _collect(self) -> None:
        while self._pids:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._pids.clear()
                break
            if not pid:
                break
            self._pids.discard(pid)
        if self._is_alone and not self._pids:
            self._loop.stop()

    def _wind_up(self) -> None:
        self._is_alone = True
        self._loop.call_at(time.monotonic() + ORPHANS_GRACE_S, self._end_the_rest)
        self._collect()

    def _end_the_rest(self) -> None:
        for pid in self._pids:
            kill_session(pid)
        self._loop.stop()


def main(fd: int) -> None:
    """Be the launcher of the process at the other end of ``fd``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.modules["__main__"] = types.ModuleType("__main__")
    for name in KEEP_FREED:  # glibc has read them, and nannies begin with the user's environment
        os.environ.pop(name, None)
    note_environ()
    records.warm()
    codec.warm()
    process.warm()
    gc.freeze()  # what is here lives as long as the process, and children need not touch it
    gc.enable()
    Launcher(fd).run()
