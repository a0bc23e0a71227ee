"""What a process writes to stdout and stderr, as lines.

Used by a nanny: its worker's two streams arrive through pipes and leave as lines, and
what the nanny's own hooks print leaves the same way. The last lines are remembered,
because they are the best witness of a death. Nothing here waits, and nothing grows
without a limit: a line without an end is cut, and lines that nobody can take in time
are counted instead of kept.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable

#: A line longer than this is cut into several, and so is the end of a file without a newline.
LINE_BYTES_MAX = 16_384
#: How many of the last lines are kept to tell of a death.
N_LAST_LINES = 20
#: How many lines wait for the pipe upward before more are dropped, and counted.
N_WAITING_MAX = 2_000
#: As much as one turn takes from a stream, so that a flood on one leaves room for everything else.
READ_BYTES = 65_536
#: How much is read of a stream after its writer's death; what its children go on writing is not its own.
LAST_BYTES_MAX = 1 << 20


class LineSplitter:
    """Bytes in, whole lines of text out."""

    __slots__ = ("_part",)

    def __init__(self) -> None:
        self._part = b""

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that are complete now."""
        *lines, part = (self._part + data).split(b"\n")
        while len(part) > LINE_BYTES_MAX:
            lines.append(part[:LINE_BYTES_MAX])
            part = part[LINE_BYTES_MAX:]
        self._part = part
        return [text for line in lines for text in _cut(line)]

    def flush(self) -> list[str]:
        """Return what has no newline yet as a line; nothing more is to come."""
        part, self._part = self._part, b""
        return _cut(part) if part else []


def _cut(line: bytes) -> list[str]:
    # Bytes that are no UTF-8 stay visible as \xNN: a crash's last line may be anything.
    text = line.removesuffix(b"\r").decode("utf-8", "backslashreplace")
    if len(text) <= LINE_BYTES_MAX:
        return [text]
    return [text[start : start + LINE_BYTES_MAX] for start in range(0, len(text), LINE_BYTES_MAX)]


class CapturedStream:
    """The reading end of a pipe that a process writes to as its stdout or stderr.

    Parameters
    ----------
    fd : int
        The pipe's reading end; closed by ``close``.
    number : int
        1 for stdout, 2 for stderr.
    on_lines : callable
        Called with the number and the lines that are complete.
    """

    def __init__(self, fd: int, number: int, on_lines: Callable[[int, list[str]], None]) -> None:
        self.fd = fd
        self.number = number
        self._on_lines = on_lines
        self._splitter = LineSplitter()
        os.set_blocking(fd, False)

    def read(self) -> bool:
        """Take what is there, up to a limit; False at the end of the stream."""
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return True
        self._pass_on(self._splitter.feed(data))
        return bool(data)

    def finish(self) -> None:
        """Take the rest that is there now, and the last line though it has no end.

        It does not wait for the end of the stream: a child of the dead process may hold it open for ever.
        """
        taken = 0
        while taken < LAST_BYTES_MAX:
            try:
                data = os.read(self.fd, READ_BYTES)
            except BlockingIOError:
                break
            if not data:
                break
            taken += len(data)
            self._pass_on(self._splitter.feed(data))
        self._pass_on(self._splitter.flush())

    def close(self) -> None:
        os.close(self.fd)

    def _pass_on(self, lines: list[str]) -> None:
        if lines:
            self._on_lines(self.number, lines)


class LastLines:
    """The last lines of both streams, in the order in which they came."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=N_LAST_LINES)

    def add(self, lines: list[str]) -> None:
        self._lines.extend(lines[-N_LAST_LINES:])

    def take(self) -> tuple[str, ...]:
        """Return them."""
        return tuple(self._lines)


class Outbox:
    """Lines on their way up: bounded, grouped by who wrote them.

    When the pipe upward takes nothing, lines beyond the limit are dropped, and the next
    group says how many: a worker that prints without end must not fill the nanny's memory.
    """

    def __init__(self) -> None:
        self._groups: list[tuple[str, int, list[str]]] = []
        self._n_waiting = 0
        self._n_dropped = 0

    def put(self, source: str, stream: int, lines: list[str]) -> None:
        room = N_WAITING_MAX - self._n_waiting
        if len(lines) > room:
            self._n_dropped += len(lines) - room
            lines = lines[:room]
        if not lines:
            return
        self._n_waiting += len(lines)
        if self._groups and self._groups[-1][:2] == (source, stream):
            self._groups[-1][2].extend(lines)
        else:
            self._groups.append((source, stream, list(lines)))

    def take(self) -> list[tuple[str, int, list[str]]]:
        """Return the groups that wait, each (source, stream, lines), and forget them."""
        groups, self._groups = self._groups, []
        if self._n_dropped:
            source = groups[-1][0] if groups else ""
            groups.append((source, 2, [f"… {self._n_dropped} more lines came faster than they could be passed on, and are lost"]))
        self._n_waiting = self._n_dropped = 0
        return groups


class LineWriter(io.TextIOBase):
    """A ``sys.stdout`` or ``sys.stderr`` whose lines go to a callable instead of a descriptor."""

    def __init__(self, number: int, on_lines: Callable[[int, list[str]], None]) -> None:
        self._number = number
        self._on_lines = on_lines
        self._splitter = LineSplitter()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        # Who asks for the number wants to hand it on; the process's own stream is the nearest thing.
        return self._number

    def write(self, text: str) -> int:
        lines = self._splitter.feed(text.encode("utf-8", "backslashreplace"))
        if lines:
            self._on_lines(self._number, lines)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back but a line that has no end yet."""

    def finish(self) -> None:
        """Pass on the line that has no end yet."""
        lines = self._splitter.flush()
        if lines:
            self._on_lines(self._number, lines)
