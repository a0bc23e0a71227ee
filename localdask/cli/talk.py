"""How localdask talks: lines on standard error, one for each thing that happened, said by one thread.

Runs in the user's process under ``up`` and ``run``. The cluster's callbacks hand lines
to a ``Talker`` and never wait for the terminal: a stopped terminal must not stop the
scheduler. Nothing here writes to standard output, which belongs to data, and
nothing that came from outside reaches the terminal before ``escape`` has seen it.
``docs/messages.md`` says how the words are chosen.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any, TextIO

__all__ = ["Talker", "colour", "escape", "log_line", "plural", "span", "table", "takes_commands", "wants_colour"]

#: Foreground colours that read well on dark and on light ground; a worker keeps its own.
WORKER_COLOURS = (36, 33, 35, 32, 34, 96, 93, 95, 92, 94)
PENDING_LINES_MAX = 10_000
LINE_LENGTH_MAX = 4_000

_VISIBLE = {9: "\t"}
#: Marks that turn the direction of text around, or are invisible line ends: a name could hide behind them.
_HIDDEN = {0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF}


class _Escapes(dict[int, str]):
    """A translation table that makes every character visible that would act on a terminal."""

    def __missing__(self, code: int) -> str:
        if code < 32 or 127 <= code < 160:
            shown = f"\\x{code:02x}"
        elif code in _HIDDEN or 0xD800 <= code < 0xE000:
            shown = f"\\u{code:04x}"
        else:
            shown = chr(code)
        self[code] = shown
        return shown


_ESCAPES = _Escapes(_VISIBLE)


def escape(text: str) -> str:
    """Return text whose control characters are visible, and which cannot move a cursor or set a title."""
    return text.translate(_ESCAPES)


def wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether to write colours: ``NO_COLOR`` says no, ``FORCE_COLOR`` yes, else a terminal decides."""
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return environ["FORCE_COLOR"] != "0"
    return takes_commands(stream, environ)


def takes_commands(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether a stream is a terminal that understands more than text."""
    if environ.get("TERM") == "dumb":
        return False
    try:
        return stream.isatty()
    except ValueError:
        return False


def colour(text: str, code: int | str, on: bool) -> str:
    """Return text in a colour, if colours are on."""
    return f"\x1b[{code}m{text}\x1b[0m" if on else text


def log_line(source: str, line: str, *, coloured: bool) -> str:
    """Return a line that a process wrote, with that process in front of it."""
    digits = "".join(character for character in source if character.isdigit())
    shade = WORKER_COLOURS[int(digits[-9:] or 0) % len(WORKER_COLOURS)]
    if len(line) > LINE_LENGTH_MAX:
        line = f"{line[:LINE_LENGTH_MAX]}… ({len(line) - LINE_LENGTH_MAX} more characters)"
    return f"{colour(f'{escape(source)} │', shade, coloured)} {escape(line)}"


class Talker:
    """Writes lines to a stream from a thread of its own, in the order they were said.

    ``say`` never waits. When the stream takes no more, up to 10,000 lines are kept; of what
    comes then only the number is told. A stream that is gone (a closed terminal or
    pipe) silences the talker, and nothing else.
    """

    def __init__(self, stream: TextIO, environ: Mapping[str, str] = os.environ) -> None:
        self.coloured = wants_colour(stream, environ)
        self._stream = stream
        self._lines: deque[str] = deque()
        self._n_dropped = 0
        self._is_closing = False
        self._is_writing = False
        self._said = threading.Condition()
        self._thread = threading.Thread(target=self._write, name="localdask-talk", daemon=True)
        self._thread.start()

    def say(self, *lines: str) -> None:
        """Have these lines written; they are expected to be escaped."""
        with self._said:
            room = PENDING_LINES_MAX - len(self._lines)
            self._lines.extend(lines[:room])
            self._n_dropped += len(lines[room:]) if room < len(lines) else 0
            self._said.notify_all()

    def say_log(self, source: str, lines: list[str]) -> None:
        """Have lines written that a process of the cluster wrote."""
        self.say(*(log_line(source, line, coloured=self.coloured) for line in lines))

    def shade(self, text: str, code: int | str) -> str:
        """Return text in a colour, if this talker's stream has colours."""
        return colour(text, code, self.coloured)

    def drain(self, timeout_s: float = 2.0) -> None:
        """Wait until what was said is written, for at most ``timeout_s`` seconds."""
        with self._said:
            self._said.wait_for(lambda: not self._lines and not self._is_writing, timeout_s)

    def close(self, timeout_s: float = 2.0) -> None:
        """Write what was said, for at most ``timeout_s`` seconds, and end the thread."""
        with self._said:
            self._is_closing = True
            self._said.notify_all()
        self._thread.join(timeout_s)

    def _write(self) -> None:
        is_gone = False
        while True:
            with self._said:
                self._is_writing = False
                self._said.notify_all()
                while not self._lines and not self._is_closing:
                    self._said.wait()
                lines = list(self._lines)
                if self._n_dropped:
                    lines.append(f"({self._n_dropped} lines were dropped: the terminal or pipe was too slow)")
                self._lines.clear()
                self._n_dropped = 0
                self._is_writing = True
                is_last = self._is_closing
            if lines and not is_gone:
                try:
                    self._put("\n".join(lines) + "\n")
                except (OSError, ValueError):
                    is_gone = True
            if is_last:
                return

    def _put(self, text: str) -> None:
        """Write to the descriptor itself: the stream's lock, held while a terminal stands still, would hang the interpreter's end."""
        try:
            fd = self._stream.fileno()
        except (OSError, ValueError):
            self._stream.write(text)
            return
        rest = memoryview(text.encode(self._stream.encoding or "utf-8", "backslashreplace"))
        while rest:
            rest = rest[os.write(fd, rest) :]


def plural(number: int, noun: str) -> str:
    """Return ``1 worker`` or ``2 workers``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def span(seconds: float) -> str:
    """Return a duration as people read it: ``38 ms``, ``1.4 s``."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def table(rows: list[tuple[Any, ...]]) -> list[str]:
    """Return rows with their columns aligned."""
    widths = [max(len(str(row[column])) for row in rows if column < len(row)) for column in range(max(map(len, rows), default=0))]
    return ["  ".join(f"{cell!s:<{widths[column]}}" for column, cell in enumerate(row)).rstrip() for row in rows]
