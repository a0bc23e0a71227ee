"""A worker's process as its nanny makes it: with its pipes and its board, but without a name yet.

So it can be made before the nanny itself knows for whom. To fork and to touch the first pages takes some
milliseconds, in which the user's process has other things to do.
"""

from __future__ import annotations

import os
import socket
import sys

from localdask.processes import worker_process
from localdask.system import process
from localdask.system.board import map_board, open_board
from localdask.system.child import Child
from localdask.system.transport import channel_pair

__all__ = ["Newborn"]


class Newborn:
    """A new process that will be a worker.

    Parameters
    ----------
    by_spawn : bool
        Whether it is exec'd. A process with several threads cannot be forked, and is always.

    Attributes
    ----------
    child : Child
        The process.
    channel : Channel
        The supervise pipe; its first word says who the worker is.
    upper : socket
        The scheduler's end of the data pipe.
    board : mmap
        On which the worker notes what it executes.
    outputs : list of int
        What to read its stdout and its stderr from.
    """

    def __init__(self, *, by_spawn: bool = False) -> None:
        self.channel, its = channel_pair()
        self.upper, lower = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        board_fd = open_board()
        (out, its_out), (err, its_err) = os.pipe(), os.pipe()
        self.outputs = [out, err]
        passed = [its.fileno(), lower.fileno(), board_fd, its_out, its_err]
        try:
            if by_spawn or process.n_threads() > 1:
                taken = f"sys.path[:], sys.argv[:] = {sys.path!r}, {sys.argv!r}"
                code = f"import sys; {taken}; from localdask.processes.newborn import be_worker; be_worker({passed!r})"
                pid = process.spawn([sys.executable, "-c", code], pass_fds=passed, new_session=True)
            else:
                pid = process.fork(lambda: be_worker(passed))
        except BaseException:
            self._close()
            raise
        finally:
            self.board = map_board(board_fd)
            its.close()
            lower.close()
            os.close(its_out)
            os.close(its_err)
        self.child = Child(pid)

    def discard(self) -> None:
        """End it: it is not needed after all."""
        self.child.kill()
        os.waitpid(self.child.pid, 0)
        self.child.close()
        self.board.close()
        self._close()

    def _close(self) -> None:
        self.channel.close()
        self.upper.close()
        for fd in self.outputs:
            os.close(fd)


def be_worker(passed: list[int]) -> None:
    """In a new process: take up the five descriptors, and be the worker."""
    supervise_fd, data_fd, board_fd, out_fd, err_fd = passed
    nanny_pid = os.getppid()
    os.dup2(out_fd, 1)
    os.dup2(err_fd, 2)
    process.close_other_descriptors([supervise_fd, data_fd, board_fd])
    for stream, number in (("stdout", 1), ("stderr", 2)):
        opened = open(number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        setattr(sys, stream, opened)
        setattr(sys, f"__{stream}__", opened)
    if os.getsid(0) != os.getpid():
        os.setsid()
    process.set_parent_death_signal(nanny_pid)
    worker_process.main(supervise_fd, data_fd, board_fd)
