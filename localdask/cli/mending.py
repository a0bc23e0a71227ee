"""``--wait-for-fix``: instead of ending when a preload fails at the start, wait for it to be saved and start again.

Runs in the user's process, before there is a cluster. Only files that were named, and modules
that they import, are watched.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from localdask.cli.talk import escape
from localdask.errors import PreloadError
from localdask.system.watcher import Watcher

__all__ = ["until_mended"]

T = TypeVar("T")


def until_mended(start: Callable[[], T], named: Iterable[Any]) -> T:
    """Return what ``start`` returns; each time a preload fails, tell it and wait for a save of one of the named files."""
    paths = {Path(os.path.abspath(os.path.expanduser(str(name)))) for name in named if str(name).endswith(".py")}
    while True:
        tried = {path: _read(path) for path in paths}  # before it is run: a save from now on is news
        try:
            return start()
        except PreloadError as error:
            paths |= {Path(path) for path in error.helpers}
            if error.usage or not paths:
                raise
            print(*map(escape, str(error).splitlines()), sep="\n", file=sys.stderr)
            print("waiting for it to be mended and saved; Ctrl-C gives up", file=sys.stderr, flush=True)
            _wait_for_save({path: tried.get(path) or _read(path) for path in paths})


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _wait_for_save(known: dict[Path, bytes]) -> None:
    saved = threading.Event()
    watcher = Watcher(known, lambda found: saved.set(), lambda text: print(escape(text), file=sys.stderr), known=known)
    try:
        saved.wait()
    finally:
        watcher.close()
