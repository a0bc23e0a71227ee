"""The process that is a worker: its session, its signals, and what a fork of it forgets.

A nanny forks or spawns it and calls ``main``, which runs one ``Worker`` in the main thread
from the first word on the supervise pipe to the end. It decides nothing.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from types import ModuleType
from typing import NoReturn

from localdask.errors import ProtocolError
from localdask.messages import BootFailed
from localdask.preloads.sources import Source
from localdask.preloads.standins import install_standins
from localdask.processes.task_output import begin_keeping
from localdask.processes.worker import EXIT_LOST_PARENT, Worker
from localdask.system import outcomes
from localdask.system.board import map_board
from localdask.system.environment import change_environ, take_place
from localdask.system.process import STACKS_SIGNAL, end_in_order, set_parent_death_signal
from localdask.system.transport import Channel

__all__ = ["main"]


def main(supervise_fd: int, data_fd: int, board_fd: int) -> NoReturn:
    """Be a worker process: from the first word on the supervise pipe to the end.

    Parameters
    ----------
    supervise_fd, data_fd : int
        Sockets: the pipes to the nanny and to the scheduler.
    board_fd : int
        Shared memory for the board.
    """
    import faulthandler  # noqa: PLC0415 - only a process of the worker's own is its to arm

    faulthandler.enable()
    # It shows what every thread does also while C code holds the interpreter; on a copy of stderr, which a task may close.
    faulthandler.register(STACKS_SIGNAL, file=os.dup(2), all_threads=True)
    _settle_in()
    supervise, data = (Channel(socket.socket(fileno=fd)) for fd in (supervise_fd, data_fd))
    try:
        begin = supervise.wait_for_message()[0]
    except (EOFError, ProtocolError):
        os._exit(EXIT_LOST_PARENT)
    if begin.place is not None:
        environ, changes, cwd, sys_path, argv = begin.place
        take_place(environ, cwd, sys_path, argv)
        change_environ(changes)
    board = memoryview(map_board(board_fd)).cast("Q")
    worker = Worker(begin.name, begin.life, begin.cluster, begin.settings, data, supervise, board)
    signal.signal(signal.SIGTERM, lambda signum, frame: worker.term_asked())
    signal.signal(signal.SIGINT, lambda signum, frame: worker.interrupted())
    # A signal that comes just before a wait runs its handler only after it; the byte ends the wait.
    signal.set_wakeup_fd(worker.bell_fd, warn_on_full_buffer=False)
    _Fork(worker).watch()
    install_standins()
    begin_keeping()
    try:
        worker.start([Source.from_wire(row) for row in begin.preloads])
    except BaseException as error:
        supervise.send([BootFailed(begin.life, outcomes.dumps_error(error))])
        end_in_order(1, f"worker {begin.name}", worker.preloads.teardown_s)
    worker.serve()
    worker.close()
    end_in_order(0, f"worker {begin.name}", worker.preloads.teardown_s)


def _settle_in() -> None:
    """Make the process the worker's own: a session, a deaf ear for Ctrl-C, an empty stdin, and no ``__main__`` of anybody else's."""
    if os.getsid(0) != os.getpid():
        os.setsid()
    set_parent_death_signal(os.getppid())
    # A handler that does nothing until there is a worker. SIG_IGN would be inherited by what tasks start, which then never heard of Ctrl-C.
    signal.signal(signal.SIGINT, lambda signum, frame: None)
    null = os.open(os.devnull, os.O_RDONLY)
    if null != 0:
        os.dup2(null, 0)
        os.close(null)
    sys.modules["__main__"] = ModuleType("__main__")


class _Fork:
    """What happens around each fork of a worker's process: the child is a plain process, and no signal to it is lost.

    A signal that came to the child before it has handlers of its own would go to the
    worker's, and then be forgotten by Python: ``multiprocessing.Pool.terminate`` would
    wait for ever. So these signals wait meanwhile.
    """

    _SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})

    def __init__(self, worker: Worker) -> None:
        #: None in a forked child, which forgot it.
        self._worker: Worker | None = worker
        self._here = threading.local()

    def watch(self) -> None:
        """Be called at every fork from now on."""
        os.register_at_fork(before=self._hold, after_in_parent=self._let_go, after_in_child=self._forget)

    def _hold(self) -> None:
        self._here.mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._SIGNALS)

    def _let_go(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._here.mask)

    def _forget(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:  # else it is the child of a child, whose handlers are the user's own
            worker.forked()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._let_go()
