"""Framed pipes in both directions that never block the sender, and pass descriptors.

Used at both ends of every link of a cluster (cluster and nanny, nanny and worker,
scheduler and worker, launcher) and on the Unix socket of clients elsewhere; workers that are
threads have its twin in ``system/memory_channel.py``. It never looks into a message, never
starts a thread, and waits only where it is asked to (``wait_for_message``).

A frame is eight bytes, little-endian, and a body (``messages.pack``). The lower seven
bytes of the eight are the body's length, the highest is the number of descriptors that
travel with the frame, so that each descriptor belongs to exactly one frame however the
kernel cuts the stream.

What a pipe does not take is kept and sent by ``flush``. A duplex pipe holds about
200 kB: two ends that both send more than this, and only then read, would wait for each
other for ever if sending blocked.

Death is end-of-file. A broken pipe is no error for a sender, which has no better way to
learn of it than the reader: what it sends is dropped, and the reader sees EOFError.

The sending half and the receiving half of a channel share nothing, so one thread may
receive while others send under a lock of their own.
"""

from __future__ import annotations

import errno
import mmap
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeAlias

from localdask.errors import ProtocolError
from localdask.messages import pack, unpack
from localdask.system.descriptors import close_all, duplicate, receive_with_fds, send_with_fds

__all__ = ["SEND_FLAGS", "Channel", "Message", "channel_pair"]

#: Any message of ``localdask.messages``.
Message: TypeAlias = Any

_HEADER = struct.Struct("<Q")
_HEADER_BYTES = _HEADER.size
_LENGTH_BITS = 56
_LENGTH_MASK = (1 << _LENGTH_BITS) - 1
#: Bodies up to this size are copied behind their header, which costs less than a call with two parts.
_COPIED_MAX = 32 * 1024
#: How much is read at once; a longer frame gets a place of its own. Pages of it that are never used take no memory.
_BUFFER_BYTES = 256 * 1024
#: One ``receive`` reads at most this often, so that one talkative pipe cannot starve the others.
_READS_MAX = 16
#: How many waiting frames are handed to the kernel in one call.
_PARTS_MAX = 64
#: The longest body: any length from 4 GiB on is garbage.
_FRAME_MAX = 2**32 - 1

# A user's code may have given SIGPIPE its deadly default back.
SEND_FLAGS: int = getattr(socket, "MSG_NOSIGNAL", 0)
_SO_NOSIGPIPE = 0x1022  # macOS's way to the same end; Python does not name it
#: What a kernel that is short of buffers says; the same as a full pipe.
_FULL = (errno.ENOBUFS, errno.ENOMEM)


class _Carrier:
    """A waiting frame with descriptors: copies of the sender's, closed as soon as the kernel holds them."""

    __slots__ = ("fds", "frame")

    def __init__(self, frame: bytes, fds: Sequence[int]) -> None:
        self.frame = frame
        self.fds = duplicate(fds)


class _Cell:
    """A place for one long frame's body: filled in place, and given memory only as bytes arrive."""

    __slots__ = ("_pages", "filled", "view")

    def __init__(self, n_bytes: int) -> None:
        self._pages = _reserve(n_bytes)
        self.view = memoryview(self._pages)[:n_bytes]
        self.filled = 0


class Channel:
    """One end of a framed pipe.

    Parameters
    ----------
    sock : socket.socket
        A connected stream socket; the channel owns it from now on and makes it non-blocking.
    max_frame : int
        The longest body in bytes that is sent, or believed when received.
    passes_fds : bool
        Whether this end may receive descriptors. An end that may not, never takes any.
    """

    __slots__ = (
        "_batch",
        "_buffer",
        "_cell",
        "_cell_fds",
        "_ending",
        "_fds_arrived",
        "_fds_delivered",
        "_filled",
        "_is_broken",
        "_max_frame",
        "_out",
        "_passes_fds",
        "_poll",
        "_sock",
        "_start",
    )

    def __init__(self, sock: socket.socket, *, max_frame: int = _FRAME_MAX, passes_fds: bool = False) -> None:
        sock.setblocking(False)
        if sys.platform == "darwin":
            sock.setsockopt(socket.SOL_SOCKET, _SO_NOSIGPIPE, 1)
        self._sock = sock
        self._max_frame = min(max_frame, _LENGTH_MASK)
        self._passes_fds = passes_fds
        # sending
        self._batch: list[Message] = []
        self._out: deque[bytes | memoryview | _Carrier] = deque()
        self._is_broken = False
        # receiving: bytes from _start to _filled of the buffer are not yet understood
        self._buffer: memoryview | None = None
        self._start = 0
        self._filled = 0
        self._cell: _Cell | None = None
        self._cell_fds = 0
        self._fds_arrived: deque[int] = deque()
        self._fds_delivered: list[int] = []
        self._ending: Exception | None = None
        self._poll: select.poll | None = None

    # ── sending ──────────────────────────────────────────────────────────────

    def post(self, message: Message) -> None:
        """Add a message to the batch that the next ``flush`` or ``send`` takes along."""
        self._batch.append(message)

    def send(self, messages: Sequence[Message], fds: Sequence[int] = ()) -> None:
        """Send messages, after what was posted, as one frame; keep what the pipe does not take now.

        The caller may close ``fds`` at once. Messages that are too long for a frame together travel in
        several; one that is too long alone raises ProtocolError, and all the others are sent.
        """
        if self._batch:
            batch, self._batch = self._batch, []
            messages = [*batch, *messages] if messages else batch
        if self._is_broken:
            return
        body = pack(messages)
        n_bytes = len(body)
        if n_bytes > self._max_frame:
            self._send_in_parts(messages, n_bytes, fds)
            return
        if fds:
            self._out.append(_Carrier(_HEADER.pack(n_bytes | len(fds) << _LENGTH_BITS) + body, fds))
            self._drain()
        elif n_bytes > _COPIED_MAX or self._out:
            self._out += (_HEADER.pack(n_bytes), body)
            self._drain()
        else:
            frame = _HEADER.pack(n_bytes) + body
            try:
                n_sent = self._sock.send(frame, SEND_FLAGS)
            except BlockingIOError:
                self._out.append(frame)
            except OSError:
                self._out.append(frame)
                self._drain()  # fails again, and decides
            else:
                if n_sent < len(frame):
                    self._out.append(memoryview(frame)[n_sent:])

    def _send_in_parts(self, messages: Sequence[Message], n_bytes: int, fds: Sequence[int]) -> None:
        """Send the halves of a batch that is too long for one frame; descriptors go with the last part, in which their message may be."""
        if len(messages) == 1:
            raise ProtocolError(
                f"a {type(messages[0]).__name__} takes {n_bytes} bytes, and this pipe carries {self._max_frame} at once: "
                "scatter what is large, or return less"
            )
        middle = len(messages) // 2
        try:
            self.send(messages[:middle])
        finally:
            self.send(messages[middle:], fds)

    def flush(self) -> bool:
        """Send what was posted and what was kept; True when nothing is left, else call again once the pipe takes bytes."""
        if self._batch:
            self.send(())
        elif self._out:
            self._drain()
        return not self._out

    @property
    def has_unsent(self) -> bool:
        """Whether something was posted or kept that the kernel does not have yet."""
        return bool(self._out or self._batch)

    def _drain(self) -> None:
        """Hand kept frames to the kernel until it refuses."""
        out = self._out
        try:
            while out:
                first = out[0]
                if isinstance(first, _Carrier):
                    n_sent = self._send_carrier(first)
                    out[0] = memoryview(first.frame)
                else:
                    n_sent = self._sock.sendmsg(self._parts(), (), SEND_FLAGS)
                self._forget_sent(n_sent)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno not in _FULL:
                self._break()

    def _parts(self) -> list[bytes | memoryview]:
        """Return the kept frames up to the next one with descriptors, at most so many as one call takes."""
        parts: list[bytes | memoryview] = []
        for part in self._out:
            if isinstance(part, _Carrier) or len(parts) == _PARTS_MAX:
                break
            parts.append(part)
        return parts

    def _send_carrier(self, carrier: _Carrier) -> int:
        n_sent = send_with_fds(self._sock, carrier.frame, carrier.fds, SEND_FLAGS)
        close_all(carrier.fds)
        return n_sent

    def _forget_sent(self, n_sent: int) -> None:
        out = self._out
        while n_sent:
            part = out[0]
            assert not isinstance(part, _Carrier)
            if n_sent < len(part):
                out[0] = memoryview(part)[n_sent:]
                return
            n_sent -= len(part)
            out.popleft()

    def _break(self) -> None:
        """Drop the output, now and from now on. What arrived can still be read; then comes the end."""
        self._drop_output()
        _shut(self._sock, socket.SHUT_WR)

    def _drop_output(self) -> None:
        self._is_broken = True
        for part in self._out:
            if isinstance(part, _Carrier):
                close_all(part.fds)
        self._out.clear()
        self._batch.clear()

    # ── receiving ────────────────────────────────────────────────────────────

    def receive(self) -> list[Message]:
        """Return the messages that are here now, without waiting; [] when there are none.

        Raises EOFError when the other end is closed, and ProtocolError when it sent what is no message,
        both after everything that came before was returned, and again at each further call.
        """
        messages: list[Message] = []
        if self._ending is None:
            try:
                self._read_all(messages)
            except ProtocolError as error:
                # The pipe is of no use any more; shut, it stays readable, so that a loop comes back for the error.
                self._ending = error.with_traceback(None)
                _shut(self._sock, socket.SHUT_RDWR)
            except EOFError as error:
                self._ending = error.with_traceback(None)
        if not messages and self._ending is not None:
            # A new one each time: one that is kept would hold the frames of all callers, and what they hold.
            raise type(self._ending)(*self._ending.args) from self._ending.__cause__
        return messages

    def take_fds(self) -> list[int]:
        """Return the descriptors that came with the messages received so far, in order; they are the caller's to close."""
        fds, self._fds_delivered = self._fds_delivered, []
        return fds

    def wait_for_message(self, timeout_s: float | None = None) -> list[Message]:
        """Wait for messages, sending meanwhile what was kept; [] when none came in time. Raises as ``receive`` does."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if self._batch:
            self.flush()
        if self._ending is not None:
            return self.receive()
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._sock, select.POLLIN)
        while True:
            if self._out:
                self._poll.modify(self._sock, select.POLLIN | select.POLLOUT)
            wait_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            events = self._poll.poll(wait_ms)
            if self._out:
                self.flush()
                self._poll.modify(self._sock, select.POLLIN)
            if events and (messages := self.receive()):
                return messages
            if deadline is not None and time.monotonic() >= deadline:
                return []

    def _read_all(self, messages: list[Message]) -> None:
        """Read until the pipe is empty, or has had its share, and append what was understood."""
        for _ in range(_READS_MAX):
            place = self._place()
            n_read = self._read(place)
            if n_read < 0:
                return
            if n_read == 0:
                raise EOFError(self._end_text())
            if self._cell is None:
                self._filled += n_read
                self._parse(messages)
            else:
                self._cell.filled += n_read
                if self._cell.filled == len(self._cell.view):
                    cell, self._cell = self._cell, None
                    self._deliver(cell.view, self._cell_fds, messages)
            if n_read < len(place):
                return

    def _place(self) -> memoryview:
        """Return where the next bytes go: into the long frame that is under way, or behind what is in the buffer."""
        if self._cell is not None:
            return self._cell.view[self._cell.filled :]
        if self._buffer is None:
            self._buffer = memoryview(_reserve(_BUFFER_BYTES))
        return self._buffer[self._filled :]

    def _read(self, place: memoryview) -> int:
        """Read into ``place``; 0 at the end of the file, -1 when there is nothing."""
        try:
            if not self._passes_fds:
                return self._sock.recv_into(place)
            n_read, fds = receive_with_fds(self._sock, place)
        except BlockingIOError:
            return -1
        except ConnectionError:
            return 0
        self._fds_arrived.extend(fds)
        return n_read

    def _parse(self, messages: list[Message]) -> None:
        """Append the messages of all complete frames in the buffer, and make room behind the rest."""
        buffer = self._buffer
        assert buffer is not None
        start, filled = self._start, self._filled
        while filled - start >= _HEADER_BYTES:
            (header,) = _HEADER.unpack_from(buffer, start)
            n_bytes, n_fds = header & _LENGTH_MASK, header >> _LENGTH_BITS
            if n_bytes > self._max_frame or (n_fds and not self._passes_fds):
                raise ProtocolError(
                    f"a frame says it has {n_bytes} bytes and {n_fds} descriptors, and this pipe carries {self._max_frame} at most"
                )
            body = start + _HEADER_BYTES
            if body + n_bytes > filled:
                if n_bytes > _BUFFER_BYTES - _HEADER_BYTES:
                    self._begin_cell(n_bytes, n_fds, buffer[body:filled])
                    start = filled
                break
            start = body + n_bytes
            self._deliver(buffer[body:start], n_fds, messages)
        if start == filled:
            start = filled = 0
        elif start:
            rest = filled - start
            buffer[:rest] = buffer[start:filled]
            start, filled = 0, rest
        self._start, self._filled = start, filled

    def _begin_cell(self, n_bytes: int, n_fds: int, beginning: memoryview) -> None:
        self._cell = cell = _Cell(n_bytes)
        self._cell_fds = n_fds
        cell.filled = len(beginning)
        cell.view[: cell.filled] = beginning

    def _deliver(self, body: memoryview, n_fds: int, messages: list[Message]) -> None:
        messages += unpack(body)
        if n_fds:
            if n_fds > len(self._fds_arrived):
                raise ProtocolError(f"a frame came without {n_fds - len(self._fds_arrived)} of its {n_fds} descriptors")
            self._fds_delivered += [self._fds_arrived.popleft() for _ in range(n_fds)]

    def _end_text(self) -> str:
        n_bytes = self._filled - self._start + (self._cell.filled if self._cell is not None else 0)
        return f"the other end closed this pipe, {n_bytes} bytes into a frame" if n_bytes else "the other end closed this pipe"

    # ── both ─────────────────────────────────────────────────────────────────

    def fileno(self) -> int:
        """Return the descriptor to wait for; -1 once closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close this end; what was kept is dropped, so flush before. Harmless when repeated.

        A forked child closes its copy so, and the parent's goes on: only the last copy's closing is the end of the file.
        """
        if self._sock.fileno() < 0:
            return
        self._drop_output()
        if self._ending is None:
            self._ending = EOFError("this end of the pipe is closed")
        self._sock.close()
        close_all([*self._fds_arrived, *self._fds_delivered])
        self._fds_arrived.clear()
        self._fds_delivered.clear()
        self._buffer = self._cell = self._poll = None


def channel_pair(*, max_frame: int = _FRAME_MAX, passes_fds: bool = False) -> tuple[Channel, Channel]:
    """Return the two ends of a new pipe, which a program that is exec'd does not inherit."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Channel(left, max_frame=max_frame, passes_fds=passes_fds), Channel(right, max_frame=max_frame, passes_fds=passes_fds)


def _reserve(n_bytes: int) -> mmap.mmap:
    """Return private memory that takes room only where it is written, whatever length a stranger claims."""
    try:
        return mmap.mmap(-1, max(1, n_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, ValueError, OverflowError) as error:
        raise ProtocolError(f"there is no memory for a frame of {n_bytes} bytes") from error


def _shut(sock: socket.socket, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError:
        return  # it is shut already
