"""The user's process's half of the launcher: start it, reuse it, and ask it for a nanny.

One launcher serves all clusters of a process, and lives as long as the process. It is
started at the first cluster, without waiting, so that its imports and the user's own
go on at the same time.
"""

from __future__ import annotations

import _socket
import atexit
import os
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING

from localdask.messages import ForkNanny
from localdask.sizing import KEEP_FREED
from localdask.system import process

if TYPE_CHECKING:
    from localdask.system.transport import Channel

#: How long a launcher whose pipe ended may take to end, in seconds, before it is left to the next start.
COLLECT_S = 0.1

_lock = threading.Lock()
#: Our end of the pipe to the launcher until the first word is said there: to make a channel of it takes imports of some milliseconds.
_end: _socket.socket | None = None
_channel: Channel | None = None
_pid = 0
#: Launchers that ended before this process did, and are still to be collected.
_ended: list[int] = []
_ours: weakref.WeakSet[object] = weakref.WeakSet()


def begin_launcher() -> None:
    """Start this process's launcher if it has none, and return at once."""
    with _lock:
        if _end is None and not _is_alive():
            _begin()


def start_nanny(method: str, *, with_worker: bool = False) -> PrivatePipe:
    """Ask for a nanny, and return the pipe to it. The pipe tells the rest: the nanny speaks, or it closes.

    ``with_worker`` has its worker forked at once; for a nanny that has no preloads.
    """
    import socket  # noqa: PLC0415 - see _end

    from localdask.system.transport import Channel  # noqa: PLC0415 - see _end

    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _lock:
            channel = _living_launcher()
            channel.send([ForkNanny(method, with_worker)], fds=[its.fileno()])
            while not channel.flush():
                channel.wait_for_message(0.01)
    except BaseException:
        ours.close()
        raise
    finally:
        its.close()
    return PrivatePipe(Channel(ours, passes_fds=True))


def _living_launcher() -> Channel:
    _take_up()
    if not _is_alive():
        _begin()
        _take_up()
    assert _channel is not None
    return _channel


def _is_alive() -> bool:
    global _channel
    if _channel is None:
        return False
    try:
        _channel.receive()
    except (EOFError, OSError):
        _channel.close()
        _channel = None
        _ended.append(_pid)
        return False
    return True


def _begin() -> None:
    global _end, _pid
    _ended[:] = [pid for pid in _ended if not _is_collected(pid)]
    ours, its = _socket.socketpair()
    # Nothing that an import makes is garbage, and looking for it takes a tenth of the start; the launcher enables it again.
    code = f"import gc, sys; gc.disable(); sys.path[:] = {_search_path()!r}; "
    code += f"from localdask.processes.launcher import main; main({its.fileno()})"
    environ = {**{name: str(nbytes) for name, nbytes in KEEP_FREED.items()}, **os.environ}
    try:
        _pid = process.spawn([sys.executable, "-c", code], pass_fds=[its.fileno()], environ=environ, new_session=True)
    finally:
        its.close()
    _end = ours


def _take_up() -> None:
    """Make a channel of our end, if a launcher was begun."""
    global _channel, _end
    if _end is not None:
        import socket  # noqa: PLC0415 - see _end

        from localdask.system.transport import Channel  # noqa: PLC0415 - see _end

        _channel, _end = Channel(socket.socket(fileno=_end.detach())), None


def _search_path() -> list[str]:
    return [os.path.abspath(path) for path in sys.path if isinstance(path, str)]


def _is_collected(pid: int) -> bool:
    """Collect a launcher that ended. Its pipe ends a moment before it does, so one look may be too early."""
    deadline = time.monotonic() + COLLECT_S
    while True:
        try:
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                return True
        except ChildProcessError:
            return True  # somebody else collected it
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)


class PrivatePipe:
    """Closes a channel in children that the user's process forks.

    A copy of the upper end in such a child would keep nannies and workers alive after
    the death of the process that they belong to.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        _ours.add(self)


def _forget_in_child() -> None:
    global _channel, _end, _lock
    _lock = threading.Lock()
    if _end is not None:
        _end.close()
        _end = None
    if _channel is not None:
        _channel.close()
        _channel = None
    for pipe in list(_ours):
        if isinstance(pipe, PrivatePipe):
            pipe.channel.close()


def _let_go() -> None:
    """At the interpreter's exit: the launcher ends when its pipe does."""
    with _lock:
        for pipe in (_end, _channel):
            if pipe is not None:
                pipe.close()


atexit.register(_let_go)
os.register_at_fork(after_in_child=_forget_in_child)
