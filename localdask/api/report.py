"""A page on what a block of code did on the cluster: ``performance_report``.

Everything is in one HTML file: text, tables and drawings (SVG), without scripts and without a network. Each
drawing shows more when the pointer rests on it. What is drawn is limited, and the page says what it left out.
"""

from __future__ import annotations

import html
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from localdask import sizing
from localdask.api.task_stream import TaskWatch
from localdask.parameters import FILE, read
from localdask.version import __version__

__all__ = ["performance_report", "profile_page"]

#: How many tasks are drawn: the longest.
TASKS_DRAWN = 4_000
#: Calls that were seen in less than this part of the samples are not drawn.
SHARE_MIN = 0.002
DEPTH_DRAWN = 60
FUNCTIONS_SHOWN = 30
WIDTH = 1000
ROW = 16
_COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#76b7b2", "#b07aa1", "#edc948", "#9c755f", "#ff9da7", "#8cd17d", "#86bcb6")
_ERROR = "#d1242f"
_STYLE = """
:root { color-scheme: light dark } body { font: 14px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1040px; padding: 0 1em }
table { border-collapse: collapse } td, th { text-align: left; padding: .1em 1.2em .1em 0; font-variant-numeric: tabular-nums }
th { font-weight: normal; opacity: .65 } svg { width: 100%; height: auto; background: rgba(128,128,128,.12) } svg text { font-size: 10px }
rect:hover { opacity: .7 } pre { white-space: pre-wrap; background: rgba(128,128,128,.12); padding: .6em } .faint { opacity: .65 }
"""


class performance_report(TaskWatch):
    """Write a page on what a block of code does on the cluster: summary, task stream, profile, workers.

    Also ``async with``. The page is written when the block raises, too. Where it cannot be written, ``OSError`` says so
    before the block begins.

    Parameters
    ----------
    filename : path, default "dask-report.html"
        Where to write it: one file, which needs no other and no network.
    stacklevel, mode, storage_options
        Accepted for Dask's sake.

    Examples
    --------
    >>> with performance_report("report.html"):  # doctest: +SKIP
    ...     client.gather(client.map(load, paths))
    """

    def __init__(
        self, filename: str | os.PathLike[str] = "dask-report.html", stacklevel: int = 1, mode: Any = None, storage_options: Any = None
    ) -> None:
        super().__init__()
        self._filename = read("filename", filename, os.fspath, FILE)

    def __enter__(self) -> performance_report:
        with open(self._filename, "a", encoding="utf-8"):
            pass  # in hours, when the block is done, it would be too late to learn that there is no such folder
        self._begin()
        self._client._begin_sampling()
        return self

    def __exit__(self, *error: object) -> None:
        client, began_at = self._client, self._began_at
        stream = self._end()
        info = client._ask("scheduler_info")
        page = report_page(stream, client._profile_since(began_at), info, began_at, time.time())
        with open(self._filename, "w", encoding="utf-8") as file:
            file.write(page)

    async def __aenter__(self) -> performance_report:
        return await self._apart(self.__enter__)

    async def __aexit__(self, *error: object) -> None:
        await self._apart(self.__exit__, *error)


def report_page(stream: Sequence[dict[str, Any]], tree: dict[str, Any], info: Mapping[str, Any], start: float, stop: float) -> str:
    """Return the whole page."""
    parts = [
        f"<h1>Performance report</h1>{_summary(stream, info, start, stop)}",
        f"<h2>Functions</h2>{_functions(stream)}",
        f"<h2>Task stream</h2>{_stream(stream, start, stop)}",
        f"<h2>Profile</h2>{_flames(tree)}",
        f"<h2>Workers</h2>{_workers(info)}",
    ]
    return _page("Performance report", "".join(parts))


def profile_page(tree: dict[str, Any]) -> str:
    """Return a page of a profile alone."""
    return _page("Profile", f"<h1>Profile</h1>{_flames(tree)}")


def _page(title: str, body: str) -> str:
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _summary(stream: Sequence[dict[str, Any]], info: Mapping[str, Any], start: float, stop: float) -> str:
    busy_s = sum(_lasted(row) for row in stream)
    threads = info["total_threads"]
    n_failed = sum(row["status"] != "OK" for row in stream)
    share = f" ({busy_s / ((stop - start) * threads):.0%} of {threads} threads)" if threads and stop > start else ""
    rows = [
        ("from", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start))),
        ("duration", _span(stop - start)),
        ("tasks", f"{len(stream)}" + (f", {n_failed} failed" if n_failed else "")),
        ("compute time", _span(busy_s) + share),
        ("results", sizing.format_bytes(sum(row["nbytes"] for row in stream))),
        ("workers", f"{info['n_workers']} with {threads} threads, {sizing.format_bytes(info['total_memory'])} of memory"),
        ("localdask", __version__),
    ]
    return _table((), rows)


def _functions(stream: Sequence[dict[str, Any]]) -> str:
    counts: Counter[str] = Counter()
    sums: dict[str, float] = {}
    longest: dict[str, float] = {}
    for row in stream:
        name, lasted_s = row["name"], _lasted(row)
        counts[name] += 1
        sums[name] = sums.get(name, 0.0) + lasted_s
        longest[name] = max(longest.get(name, 0.0), lasted_s)
    first = sorted(sums.items(), key=lambda item: -item[1])[:FUNCTIONS_SHOWN]
    rows = [(name, counts[name], _span(total), _span(total / counts[name]), _span(longest[name])) for name, total in first]
    return _table(("function", "tasks", "together", "each", "longest"), rows)


def _stream(stream: Sequence[dict[str, Any]], start: float, stop: float) -> str:
    if not stream:
        return '<p class="faint">No task ran.</p>'
    drawn = sorted(stream, key=_lasted, reverse=True)[:TASKS_DRAWN]
    lanes = {lane: number for number, lane in enumerate(sorted({(row["worker"], row["thread"]) for row in drawn}))}
    names = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(dict.fromkeys(row["name"] for row in drawn))}
    start = min(start, *(row["startstops"][0]["start"] for row in drawn)) if drawn else start
    scale = WIDTH / max(stop - start, 1e-6)
    rects = []
    for row in drawn:
        (times,) = row["startstops"]
        colour = names[row["name"]] if row["status"] == "OK" else _ERROR
        title = f"{row['key']}\n{row['worker']}, {_span(_lasted(row))}, {row['status']}, {row['type']}"
        place = ((times["start"] - start) * scale, lanes[row["worker"], row["thread"]] * ROW, max(_lasted(row) * scale, 0.3))
        rects.append(_rect(*place, colour, title))
    legend = " ".join(f'<span style="color:{colour}">■</span> {_text(name)}' for name, colour in list(names.items())[:20])
    left_out = f'<p class="faint">The {TASKS_DRAWN} longest of {len(stream)} tasks.</p>' if len(stream) > TASKS_DRAWN else ""
    return f"{_svg(rects, len(lanes))}<p>{legend}</p>{left_out}"


def _flames(tree: dict[str, Any]) -> str:
    if not tree["count"]:
        return '<p class="faint">No task was seen: they were few, or shorter than a hundredth of a second.</p>'
    rects = list(_flame(tree, 0.0, 0, tree["count"]))
    depth = max(level for level, _ in rects) + 1
    note = f'<p class="faint">{tree["count"]} samples, outermost call on top; calls seen in less than {SHARE_MIN:.1%} are left out.</p>'
    return _svg([rect for _, rect in rects], depth) + note


def _flame(node: dict[str, Any], left: float, level: int, total: int) -> Iterator[tuple[int, str]]:
    """Return the rectangles of a node's children and theirs, each with its level."""
    for child in sorted(node["children"].values(), key=lambda child: -child["count"]):
        share = child["count"] / total
        if share < SHARE_MIN or level >= DEPTH_DRAWN:
            continue
        what = child["description"]
        colour = _COLOURS[sum(map(ord, what["filename"] + what["name"])) % len(_COLOURS)]
        title = f"{what['name']}  {share:.1%}\n{what['filename']}:{what['line_number']}"
        label = what["name"] if share * WIDTH > 7 * len(what["name"]) else ""
        yield level, _rect(left * WIDTH, level * ROW, share * WIDTH, colour, title, label)
        yield from _flame(child, left, level + 1, total)
        left += share


def _rect(x: float, y: float, width: float, colour: str, title: str, label: str = "") -> str:
    text = f'<text x="{x + 3:.1f}" y="{y + 11}" fill="#fff" pointer-events="none">{_text(label)}</text>' if label else ""
    shape = f'x="{x:.2f}" y="{y}" width="{width:.2f}" height="{ROW - 1}" fill="{colour}"'
    return f"<rect {shape}><title>{_text(title)}</title></rect>{text}"


def _svg(shapes: Iterable[str], n_rows: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {max(n_rows, 1) * ROW}" role="img">{"".join(shapes)}</svg>'


def _workers(info: Mapping[str, Any]) -> str:
    rows = [
        (address, worker["pid"], worker["nthreads"], sizing.format_bytes(worker["memory_limit"]), worker["done"], worker["status"])
        for address, worker in info["workers"].items()
    ]
    return _table(("worker", "pid", "threads", "memory limit", "tasks done", "status"), rows)


def _table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "<tr>" + "".join(f"<th>{title}</th>" for title in titles) + "</tr>" if titles else ""
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{head}{body}</table>"


def _lasted(row: Mapping[str, Any]) -> float:
    (times,) = row["startstops"]
    return float(times["stop"] - times["start"])


def _span(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _text(text: object) -> str:
    return html.escape(str(text))
