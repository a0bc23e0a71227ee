"""A standard stream that somebody listens to.

What is written to it goes where it went before, and its text to a callable too. Put in the place of
``sys.stdout`` or ``sys.stderr`` by who wants to know what a worker's code prints; it decides nothing.
Whoever keeps the stream underneath (``sys.__stdout__``), or writes to its descriptor, is not heard.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

__all__ = ["Tee"]


class Tee:
    """Writes to a stream, and then gives the text to a callable. Everything else is the stream's own.

    Parameters
    ----------
    stream : object
        The stream, of whatever kind: in a notebook it is no file.
    name : str
        What it is called in ``sys``; its pickle is that name, as cloudpickle does it with files.
    on_text : callable
        Is given each text, in the thread that wrote it.
    """

    def __init__(self, stream: Any, name: str, on_text: Callable[[str], None]) -> None:
        self._stream = stream
        self._name = name
        self._on_text = on_text

    def write(self, text: str) -> Any:
        """Write, and tell."""
        n_written = self._stream.write(text)
        self._on_text(text)
        return n_written

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of them, and tell."""
        for line in lines:
            self.write(line)

    @property
    def buffer(self) -> Any:
        """The stream's own ``buffer``, heard as well."""
        return Tee(self._stream.buffer, f"{self._name}.buffer", self._on_bytes)

    def _on_bytes(self, data: Any) -> None:
        self._on_text(bytes(data).decode("utf-8", "backslashreplace"))

    @property
    def stream(self) -> Any:
        """What it writes to."""
        return self._stream

    def replace(self, stream: Any) -> None:
        """Write to another stream from now on, at the end of all that stand before each other."""
        if isinstance(self._stream, Tee):
            self._stream.replace(stream)
        else:
            self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __reduce__(self) -> Any:
        return attrgetter(self._name), (sys,)
