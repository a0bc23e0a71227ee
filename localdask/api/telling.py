"""What a cluster writes on the streams of its own process: what workers wrote, and what a session should know of."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

__all__ = ["tell_of_earlier", "write_through"]


def write_through(source: str, stream: int, line: str) -> None:
    """Write a line of a worker or nanny where this process writes its own."""
    place = sys.stdout if stream == 1 else sys.stderr
    if place is None:
        return
    try:
        place.write(line + "\n")
    except UnicodeEncodeError:  # workers write UTF-8, whatever this process takes
        encoding = place.encoding or "ascii"
        place.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    place.flush()


def tell_of_earlier(clusters: Iterable[Any], new: Any) -> None:
    """Name the clusters that an interactive session still has: a cell that is run again forgets its last one, but does not end it."""
    earlier = {each.name: len(each.workers) for each in clusters if each is not new and each._server is not None}
    if earlier and hasattr(sys, "ps1"):
        listed = ", ".join(f"{name} ({n} worker{'s' * (n != 1)})" for name, n in earlier.items())
        ends = "ends it" if len(earlier) == 1 else "ends the first"
        text = f"started here before, and still running: {listed}; Client({next(iter(earlier))!r}).shutdown() {ends}"
        print(f"localdask: {text}", file=sys.stderr)
