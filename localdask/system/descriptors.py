"""Open descriptors on their way to another process, along a Unix socket.

``transport`` calls this when a frame carries descriptors: the cluster's end of a new
nanny's pipe to the launcher, the scheduler's end of a new worker's data pipe up to the
cluster. It never keeps a descriptor: what it returns, the caller closes.

The sender's descriptors are copied first, so that the sender may close its own at once,
however long the frame waits in a full pipe. What arrives is closed when another program
is executed.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Iterable, Sequence

from localdask.errors import ProtocolError, UsageError

__all__ = ["FDS_MAX", "close_all", "duplicate", "receive_with_fds", "send_with_fds"]

#: The most that the kernel passes at once.
FDS_MAX = 253
_FD_BYTES = array.array("i").itemsize
_ANCILLARY_BYTES = socket.CMSG_SPACE(FDS_MAX * _FD_BYTES)
_RECEIVE_FLAGS: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


def duplicate(fds: Sequence[int]) -> list[int]:
    """Return copies of descriptors, all or none."""
    if len(fds) > FDS_MAX:
        raise UsageError(f"{len(fds)} descriptors cannot travel with one frame, {FDS_MAX} can: send several frames")
    copies: list[int] = []
    try:
        for fd in fds:
            copies.append(os.dup(fd))
    except OSError:
        close_all(copies)
        raise
    return copies


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def send_with_fds(sock: socket.socket, frame: bytes, fds: Sequence[int], flags: int) -> int:
    """Send the descriptors and what fits of the frame, or raise as ``sendmsg`` does; return how many bytes went."""
    return sock.sendmsg([frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))], flags)


def receive_with_fds(sock: socket.socket, place: memoryview) -> tuple[int, list[int]]:
    """Receive bytes into ``place``; return how many they were, and the descriptors that came with them."""
    n_read, ancillary, flags, _ = sock.recvmsg_into([place], _ANCILLARY_BYTES, _RECEIVE_FLAGS)
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds += array.array("i", data[: len(data) - len(data) % _FD_BYTES])
    if not _RECEIVE_FLAGS:
        for fd in fds:
            os.set_inheritable(fd, False)
    if flags & socket.MSG_CTRUNC:
        close_all(fds)
        raise ProtocolError("descriptors were lost on their way, because this process may open no more: raise `ulimit -n`")
    return n_read, fds
