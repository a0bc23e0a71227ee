"""Pipes between threads of one process: what a ``Channel`` is between processes, without bytes.

For workers that are threads (``LocalCluster(processes=False)``). The same tests hold both kinds to the same promises.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

from localdask.system.descriptors import close_all, duplicate
from localdask.system.transport import SEND_FLAGS, Channel, Message

__all__ = ["AnyChannel", "MemoryChannel", "memory_pair"]

_WAKE_BYTES = 4096


class MemoryChannel:
    """One end of a pipe between threads of this process: a ``Channel`` in meaning, without bytes.

    Messages arrive as the very objects that were sent, which is why nobody assigns to one. A socket
    pair carries no more than the wake-up, one byte for as many messages as come before they are looked at.
    """

    __slots__ = ("_batch", "_fds_delivered", "_inbox", "_is_ended", "_is_signalled", "_peer", "_poll", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._peer: MemoryChannel | None = None
        self._batch: list[Message] = []
        self._inbox: deque[tuple[Sequence[Message], Sequence[int]]] = deque()
        self._is_signalled = False
        self._is_ended = False
        self._fds_delivered: list[int] = []
        self._poll: select.poll | None = None

    def post(self, message: Message) -> None:
        """Add a message to the batch that the next ``flush`` or ``send`` takes along."""
        self._batch.append(message)

    def send(self, messages: Sequence[Message], fds: Sequence[int] = ()) -> None:
        """Send messages, after what was posted; dropped when the other end is closed. The caller may close ``fds`` at once."""
        batch, self._batch = self._batch, []
        peer = self._peer
        if peer is not None and peer._sock.fileno() >= 0:
            peer._inbox.append(([*batch, *messages], duplicate(fds)))
            self._wake(peer)

    def _wake(self, peer: MemoryChannel) -> None:
        # As in ``loop``: the reader takes the byte first, clears the flag second, empties the inbox last.
        if peer._is_signalled:
            return
        try:
            peer._is_signalled = True
            self._sock.send(b"\0", SEND_FLAGS)
        except BlockingIOError:
            return  # a full pipe wakes as well as one more byte
        except OSError:
            self._peer = None
        except BaseException:
            peer._is_signalled = False  # Ctrl-C before the byte was out
            raise

    def flush(self) -> bool:
        """Send what was posted; always True."""
        if self._batch:
            self.send(())
        return True

    @property
    def has_unsent(self) -> bool:
        """Whether something was posted that ``flush`` has not sent yet."""
        return bool(self._batch)

    def receive(self) -> list[Message]:
        """Return the messages that are here now, without waiting; EOFError when the other end is closed and nothing is left."""
        try:
            if not self._is_ended and not self._sock.recv(_WAKE_BYTES):
                self._is_ended = True
        except BlockingIOError:
            pass  # nothing new, or a byte that was taken along earlier
        except OSError:
            self._is_ended = True
        self._is_signalled = False
        messages: list[Message] = []
        while self._inbox:
            arrived, fds = self._inbox.popleft()
            messages += arrived
            self._fds_delivered += fds
        if not messages and self._is_ended:
            raise EOFError("this end of the pipe is closed" if self._sock.fileno() < 0 else "the other end closed this pipe")
        return messages

    def take_fds(self) -> list[int]:
        """Return the descriptors that came with the messages received so far, in order; they are the caller's to close."""
        fds, self._fds_delivered = self._fds_delivered, []
        return fds

    def wait_for_message(self, timeout_s: float | None = None) -> list[Message]:
        """Wait for messages; [] when none came in time. Raises EOFError as ``receive`` does."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self.flush()
        while not (messages := self.receive()):
            if self._poll is None:
                self._poll = select.poll()
                self._poll.register(self._sock, select.POLLIN)
            wait_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            if not self._poll.poll(wait_ms) and deadline is not None and time.monotonic() >= deadline:
                return []
        return messages

    def fileno(self) -> int:
        """Return the descriptor to wait for; -1 once closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close this end. Harmless when repeated."""
        self._is_ended = True
        self._peer = None
        self._sock.close()
        self._batch.clear()
        while self._inbox:
            close_all(self._inbox.popleft()[1])
        close_all(self.take_fds())


#: Either kind of channel; whoever holds one need not know which.
AnyChannel: TypeAlias = "Channel | MemoryChannel"


def memory_pair() -> tuple[MemoryChannel, MemoryChannel]:
    """Return the two ends of a new pipe between threads of this process."""
    left, right = (MemoryChannel(sock) for sock in socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
    left._peer, right._peer = right, left
    return left, right
