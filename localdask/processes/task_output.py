"""What a task writes to ``sys.stdout`` and ``sys.stderr``, kept for its future.

A worker's two streams write to where they did, so that its lines are shown and logged as ever, and give the
text to the task of the thread that writes. Nothing is done for a task before it writes. Not heard
is what other threads write, those that the task started too: nobody can tell whose they are; nor what C code and child
processes write to the descriptors, which is the whole process's.

A process of the worker's own keeps its streams like this. In the user's (``processes=False``) they are so for as long
as there are workers in its threads, and nothing is done about a stream that somebody else puts in their place.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

from localdask.system.streams import Tee

__all__ = ["OUTPUT_NBYTES_MAX", "TaskOutput", "begin_keeping", "end_keeping"]

#: As much as is kept of what a task writes: the end of it.
OUTPUT_NBYTES_MAX = 65_536


class TaskOutput:
    """What the present task of one thread has written.

    Parameters
    ----------
    is_running : callable
        Whether the thread runs a task now, and not what the worker does between two.

    Attributes
    ----------
    data : bytearray
        The text as UTF-8; empty for a task that wrote nothing.
    """

    __slots__ = ("_is_running", "_n_left_out", "data")

    def __init__(self, is_running: Callable[[], bool]) -> None:
        self._is_running = is_running
        self._n_left_out = 0
        self.data = bytearray()

    def move_in(self) -> None:
        """Keep what this thread writes."""
        _listening.output = self

    def move_out(self) -> None:
        """Keep no more of it."""
        _listening.output = None

    def add(self, text: str) -> None:
        """Keep a text, if it is a task's."""
        if self._is_running():
            self.data += text.encode("utf-8", "backslashreplace")
            if len(self.data) > 2 * OUTPUT_NBYTES_MAX:  # not each time: a cut moves all that stays
                self._cut()

    def _cut(self) -> None:
        """Leave out the beginning, up to where a character begins."""
        n_bytes = len(self.data) - OUTPUT_NBYTES_MAX
        while self.data[n_bytes] & 0xC0 == 0x80:
            n_bytes += 1
        del self.data[:n_bytes]
        self._n_left_out += n_bytes

    def take(self) -> str:
        """Return the text, with a first line about what is left out, and forget it."""
        if len(self.data) > OUTPUT_NBYTES_MAX:
            self._cut()
        text = self.data.decode()
        if self._n_left_out:
            text = f"… {self._n_left_out:,} bytes before this are left out\n{text}"
        self.data.clear()
        self._n_left_out = 0
        return text


class _Listening(threading.local):
    """Where this thread's text is kept."""

    output: TaskOutput | None = None


_listening = _Listening()
_changing = threading.Lock()
_n_workers = 0


def _heard(text: str) -> None:
    output = _listening.output
    if output is not None:
        output.add(text)


def begin_keeping() -> None:
    """Listen to this process's standard streams, on behalf of one worker more."""
    global _n_workers
    with _changing:
        _n_workers += 1
        if _n_workers > 1:
            return
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None:  # as in a program without a console
                setattr(sys, name, Tee(stream, name, _heard))


def end_keeping() -> None:
    """Give the streams back with the last worker, unless somebody has put others there."""
    global _n_workers
    with _changing:
        _n_workers -= 1
        if _n_workers:
            return
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            while isinstance(stream, Tee):
                stream = stream.stream
            setattr(sys, name, stream)
