"""How a cluster, a client and a future look in a notebook: self-contained HTML, without scripts or styles of its own.

Called by their ``_repr_html_``, which may run at any time: nothing here waits long, and what
does not answer is shown as not known. Colours are the page's own, dark or light; what is
fainter is so by its opacity. Every text is escaped, because keys and types are users' words.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from localdask import sizing

__all__ = ["client_html", "cluster_html", "future_html"]

#: How many workers have a line of their own: a repr stays within a few kilobytes.
WORKERS_SHOWN = 24
#: How long a scheduler in another process may take to answer, in seconds.
ANSWER_S = 1.0

_BOX = "border:1px solid rgba(128,128,128,.4);border-radius:4px;padding:.6em .9em;display:inline-block;max-width:100%"
_FAINT = "opacity:.65"
#: What a future's dot looks like. These are told apart on light and on dark.
_DOTS = {"pending": "#b8860b", "finished": "#2e8b57", "error": "#d1442f", "cancelled": "#888", "lost": "#888"}


def client_html(client: Any) -> str:
    """Return how a client is shown: its name, where its cluster is, and the cluster."""
    if client.status != "running":
        return f"<code>{_text(repr(client))}</code>"
    try:
        info = client._ask("scheduler_info", timeout=ANSWER_S)
    except (OSError, RuntimeError) as error:  # gone, or too busy to say (TimeoutError)
        return _box("Client", client.name, [("Status", f"the scheduler does not answer: {error}")])
    return _box("Client", client.name, [("Address", info["address"]), *_facts(info)], _workers(info))


def cluster_html(cluster: Any) -> str:
    """Return how a cluster is shown: its address, what it has, and its workers."""
    if cluster.status != "running":
        return f"<code>LocalCluster: {_text(cluster.status)}</code>"
    info = cluster.scheduler_info
    asked = cluster.n_asked
    missing = [("Asked for", f"{asked} workers")] if asked != info["n_workers"] else []
    return _box("LocalCluster", cluster.name, [("Address", info["address"]), *_facts(info), *missing], _workers(info))


def future_html(future: Any, type_name: str) -> str:
    """Return how a future is shown: one line."""
    dot = f'<span style="color:{_DOTS.get(future.status, "#888")}">●</span>'
    kind = f" <b>{_text(type_name)}</b>" if type_name else ""
    return f'<span>{dot} Future:{kind} <span style="{_FAINT}">{_text(future.status)}, key:</span> <code>{_text(future.key)}</code></span>'


def _facts(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    memory = sizing.format_bytes(info["total_memory"]) if info["total_memory"] else "no limit"
    return [("Workers", str(info["n_workers"])), ("Threads", str(info["total_threads"])), ("Memory", memory)]


def _workers(info: Mapping[str, Any]) -> str:
    workers = list(info["workers"].values())
    columns: list[tuple[str, Callable[[Any], str]]] = [
        ("worker", lambda worker: worker["name"]),
        ("pid", lambda worker: str(worker["pid"])),
        ("threads", lambda worker: str(worker["nthreads"])),
        ("memory", lambda worker: _memory(worker["metrics"]["memory"], worker["memory_limit"])),
        ("running", lambda worker: str(worker["processing"])),
        ("done", lambda worker: str(worker["done"])),
        ("status", lambda worker: worker["status"]),
    ]
    if not workers:
        return ""
    rows = [[title for title, _ in columns], *([look(worker) for _, look in columns] for worker in workers[:WORKERS_SHOWN])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(workers) > WORKERS_SHOWN:
        lines.append(f"… and {len(workers) - WORKERS_SHOWN} more")
    # Text in columns: a table would need its style in each cell, because pages have styles of their own for tables.
    table = f'<pre style="margin:.3em 0 0;background:none;color:inherit">{_text(chr(10).join(lines))}</pre>'
    return f'<details style="margin-top:.4em"><summary style="cursor:pointer">Workers</summary>{table}</details>'


def _memory(used: int, limit: int) -> str:
    return f"{sizing.format_bytes(used)} of {sizing.format_bytes(limit)}" if limit else sizing.format_bytes(used)


def _box(kind: str, name: str, facts: Iterable[tuple[str, str]], more: str = "") -> str:
    shown = " &nbsp; ".join(f'<span style="{_FAINT}">{_text(title)}</span> {_text(value)}' for title, value in facts)
    return f'<div style="{_BOX}"><div><b>{kind}</b> <span style="{_FAINT}">{_text(name)}</span></div><div>{shown}</div>{more}</div>'


def _text(text: object) -> str:
    return html.escape(str(text))
