"""Where one thread of a worker waits: for its pipes, and for a bell that other threads ring.

A worker has two such threads, of which one at a time waits for the pipes: the main thread when it has nothing to
run, and the listener when the main thread is busy for long. Each has an ear of its own. An ear only says which
descriptors have something to read; all that it reads itself is its bell.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable

__all__ = ["Ear"]

_DRAIN_BYTES = 4096


class Ear:
    """One thread's place to wait.

    Parameters
    ----------
    data_fd : int
        The pipe that is also written to.
    others : iterable of int
        Pipes that are only heard.
    """

    def __init__(self, data_fd: int, others: Iterable[int] = ()) -> None:
        self._bell_out, self._bell_in = os.pipe()
        os.set_blocking(self._bell_out, False)
        os.set_blocking(self._bell_in, False)
        self._is_rung = False
        self._data_fd = data_fd
        self._bell = select.poll()
        self._bell.register(self._bell_out, select.POLLIN)
        self._pipes = select.poll()
        for fd in (self._bell_out, data_fd, *others):
            self._pipes.register(fd, select.POLLIN)
        self._wants_out = False

    def ring(self) -> None:
        """Wake the thread that waits here, or will. From any thread, signal handler or ``__del__``."""
        if self._is_rung:
            return
        self._is_rung = True
        try:
            os.write(self._bell_in, b"\0")
        except BlockingIOError:
            return  # so full a bell rings as well
        except OSError:
            self._is_rung = False  # closed: nobody waits any more

    @property
    def bell_fd(self) -> int:
        """Where a byte written rings the bell: for the kernel's own handlers, which run no Python."""
        return self._bell_in

    def wait_for_bell(self, timeout_s: float | None) -> bool:
        """Wait until the bell rings; False when it did not in time."""
        return bool(self._settle(self._bell.poll(None if timeout_s is None else timeout_s * 1000)))

    def wait(self, timeout_s: float | None, *, wants_out: bool = False) -> list[int]:
        """Wait for the pipes or the bell, and with ``wants_out`` for room on the data pipe; return the pipes that have something."""
        if wants_out is not self._wants_out and self._data_fd >= 0:
            self._wants_out = wants_out
            self._pipes.modify(self._data_fd, select.POLLIN | select.POLLOUT if wants_out else select.POLLIN)
        events = self._pipes.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000)
        return [fd for fd in self._settle(events) if fd != self._bell_out]

    def _settle(self, events: list[tuple[int, int]]) -> list[int]:
        fds = [fd for fd, event in events if event != select.POLLOUT]
        if self._bell_out in fds:
            # The byte first, the flag second: who rings between the two writes a byte more, and none is lost.
            os.read(self._bell_out, _DRAIN_BYTES)
            self._is_rung = False
        return fds

    def forget(self, fd: int) -> None:
        """Wait no more for a pipe that ended."""
        self._pipes.unregister(fd)
        if fd == self._data_fd:
            self._data_fd = -1

    def close(self) -> None:
        """Close the bell."""
        for fd in (self._bell_in, self._bell_out):
            os.close(fd)
        self._bell_in = self._bell_out = -1
