"""How far futures are: a line in a terminal, a table in a notebook.

``progress`` looks at the states that the client has anyway, a few times a second, so that it costs
the cluster nothing. In a terminal it blocks, as Dask's does, and writes to standard error;
in a notebook it returns at once, and a thread goes on until all is done or the client is closed.
"""

from __future__ import annotations

import html
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import Any, TextIO

from localdask.api.collections import futures_of
from localdask.api.futures import FINISHED, PENDING, FutureState, dask_of
from localdask.system.keys import group_of
from localdask.system.signatures import parameters_of

__all__ = ["Tally", "progress", "take_progress"]

#: How often the line is written anew, in seconds.
TICK_S = 0.1
#: How many tasks are watched for their end; to watch more would cost the cluster something each time.
WATCHED_MAX = 1000
BAR_WIDTH = 24
BAR_WIDTH_MIN = 4
#: What a terminal that does not tell its size is taken to have.
COLUMNS = 80


class Tally:
    """How many of some tasks are done, by group, as of the last ``look``.

    Parameters
    ----------
    states : iterable of FutureState
        The tasks; what is the same twice counts once.
    group_by : "prefix" or callable
        A function makes a group's name of a key; otherwise it is the name of the task's function.
    """

    def __init__(self, states: Iterable[FutureState], group_by: Any = "prefix") -> None:
        self._named = [(group_by(state.key) if callable(group_by) else group_of(state.key), state) for state in dict.fromkeys(states)]
        #: name → [all, done, failed]
        self.groups: dict[str, list[int]] = {}
        self.n_all = len(self._named)
        self.n_done = self.n_failed = 0
        for name, _ in self._named:
            self.groups.setdefault(name, [0, 0, 0])[0] += 1
        self.look()

    @property
    def pending(self) -> list[FutureState]:
        """What is not done."""
        return [state for _, state in self._named]

    def look(self) -> None:
        """Count what was done since the last look."""
        left = []
        for name, state in self._named:
            if state.status == PENDING:
                left.append((name, state))
                continue
            is_failed = state.status != FINISHED
            self.groups[name][1] += 1
            self.groups[name][2] += is_failed
            self.n_done += 1
            self.n_failed += is_failed
        self._named = left


def line_of(tally: Tally, elapsed_s: float, n_columns: int) -> str:
    """Return the line of a terminal of so many columns: a line that wraps could not be written anew."""
    facts = facts_of(tally.n_all, tally.n_done, tally.n_failed, elapsed_s)
    width = min(BAR_WIDTH, n_columns - len(facts) - 2)
    if width < BAR_WIDTH_MIN:
        return facts[: n_columns - 1]
    filled = width * tally.n_done // tally.n_all if tally.n_all else width
    return f"{'█' * filled}{'░' * (width - filled)} {facts}"


def facts_of(n_all: int, n_done: int, n_failed: int, elapsed_s: float) -> str:
    """Return how far some tasks are, in words."""
    words = [f"{n_done} of {n_all}"]
    if n_failed:
        words.append(f"{n_failed} failed")
    if n_done == n_all:
        words.append(f"in {_time(elapsed_s)}")
    elif n_done:
        words.append(f"{_time(elapsed_s / n_done * (n_all - n_done))} left")
    return " · ".join(words)


def table_of(tally: Tally, elapsed_s: float) -> str:
    """Return the table of a notebook: a row a group."""
    rows = []
    for name, (n_all, n_done, n_failed) in tally.groups.items():
        colour = "#d1442f" if n_failed else "#2e8b57"
        bar = f'<div style="width:{100 * n_done / n_all:.0f}%;height:.7em;background:{colour};border-radius:3px"></div>'
        track = f'<div style="width:12em;border:1px solid rgba(128,128,128,.5);border-radius:4px;padding:1px">{bar}</div>'
        cells = (html.escape(name), track, facts_of(n_all, n_done, n_failed, elapsed_s))
        rows.append("<tr>" + "".join(f'<td style="text-align:left;padding:.1em 1em .1em 0">{cell}</td>' for cell in cells) + "</tr>")
    return f'<table style="border-collapse:collapse;background:none;color:inherit">{"".join(rows)}</table>'


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02} h" if minutes >= 60 else f"{minutes}:{rest:02} min"


def progress(*futures: Any, notebook: bool | None = None, multi: bool = True, complete: bool = True, group_by: Any = "prefix") -> None:
    """Show how far futures are, until they are done: one line in a terminal, a table in a notebook. As in Dask.

    In a terminal it blocks and writes to standard error; where that is no terminal, or ``TERM`` is ``dumb``, it writes
    one plain line at the end. In a notebook it returns at once, and the table follows. A failed task is counted, and raises nothing.
    Ctrl-C ends the showing, and no task.

    Parameters
    ----------
    *futures : Future, Dask collection, or nested collection of them
        What to look at.
    notebook : bool, optional
        Whether to show a table in a notebook; found out by default.
    multi, complete : bool
        Accepted for Dask's sake.
    group_by : "prefix" or callable
        How a table's rows are made: by the functions' names, or by what a function makes of a key.

    Examples
    --------
    >>> futures = client.map(str, range(1000))  # doctest: +SKIP
    >>> progress(futures)  # doctest: +SKIP
    ████████████████████████ 1000 of 1000 · in 41 ms
    """
    distributed = dask_of(futures[0]) if futures else None
    if distributed is not None:
        distributed.progress(*futures, notebook=notebook, multi=multi, complete=complete, group_by=group_by)
        return
    found = futures_of(list(futures))
    if not found:
        return
    client, tally = found[0]._client, Tally([future._state for future in found], group_by)
    show = _notebook_shower() if notebook or (notebook is None and _in_notebook()) else None
    if show is None:
        stream = sys.stderr
        is_live = stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
        show = (_line_shower if is_live else _plain_shower)(stream)
        if not client.asynchronous:
            _follow(client, tally, show)
            return
    else:
        show(tally, 0.0, False)  # here, so that it stands below this cell
    threading.Thread(target=copy_context().run, args=(_follow, client, tally, show), name="localdask-progress", daemon=True).start()


def take_progress(func: Callable[..., Any], kwargs: dict[str, Any]) -> Callable[..., None] | None:
    """Take ``progress`` out of a map's keywords, unless it may be the function's own; return what shows it, if it was true."""
    parameters = parameters_of(func)
    if parameters is None or "progress" in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return progress if kwargs.pop("progress") else None


def _follow(client: Any, tally: Tally, show: Callable[[Tally, float, bool], None]) -> None:
    """Show how far tasks are until they are done, and at the end; also at the end that an interrupt makes."""
    started = time.monotonic()
    try:
        while tally.pending:
            show(tally, time.monotonic() - started, False)
            _wait_a_tick(client, tally.pending)
            tally.look()
    finally:
        show(tally, time.monotonic() - started, True)


def _wait_a_tick(client: Any, pending: list[FutureState]) -> None:
    """Wait for a while, and no longer than until all is done."""
    if len(pending) <= WATCHED_MAX:
        client._wait_done(pending, TICK_S)
        return
    with client._link.blocking():
        time.sleep(TICK_S)


def _line_shower(stream: TextIO) -> Callable[[Tally, float, bool], None]:
    def show(tally: Tally, elapsed_s: float, is_end: bool) -> None:
        stream.write("\r" + line_of(tally, elapsed_s, _columns_of(stream)) + "\x1b[K" + "\n" * is_end)
        stream.flush()

    return show


def _columns_of(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or COLUMNS
    except (OSError, ValueError):
        return COLUMNS


def _plain_shower(stream: TextIO | None) -> Callable[[Tally, float, bool], None]:
    def show(tally: Tally, elapsed_s: float, is_end: bool) -> None:
        if is_end and stream is not None:
            stream.write(facts_of(tally.n_all, tally.n_done, tally.n_failed, elapsed_s) + "\n")
            stream.flush()

    return show


def _in_notebook() -> bool:
    """Whether this is a kernel, whose pages show HTML."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _notebook_shower() -> Callable[[Tally, float, bool], None] | None:
    """Return what shows a table on a notebook's page; None where there is no IPython to show it."""
    try:
        page: Any = importlib.import_module("IPython.display")
    except ImportError:
        return None
    handle: Any = None
    shown = ""

    def show(tally: Tally, elapsed_s: float, is_end: bool) -> None:
        nonlocal handle, shown
        table = table_of(tally, elapsed_s)
        if table == shown:
            return
        shown = table
        if handle is None:
            handle = page.display(page.HTML(table), display_id=True)
        else:
            handle.update(page.HTML(table))

    return show
