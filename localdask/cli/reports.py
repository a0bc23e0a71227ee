"""What a cluster is and what happened to it, each in one line for a person.

Runs in the user's process, under ``up`` and ``run``; pure. It is told what the cluster
tells its ``on_event``, and returns text that ``talk`` writes. Names and texts from
outside are escaped here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from localdask.cli.options import Plan, hooks_in
from localdask.cli.talk import colour, escape, plural, span, table
from localdask.preloads.sources import Source
from localdask.processes.reloading import PreloadStatus
from localdask.sizing import format_bytes
from localdask.version import __version__

__all__ = ["banner", "event_line"]

BOLD = 1
RED = 31
GREEN = 32
YELLOW = 33


class Shown(Protocol):
    """The cluster, as far as the banner tells of it."""

    name: str

    @property
    def scheduler_address(self) -> str: ...
    @property
    def preloads(self) -> list[PreloadStatus]: ...
    @property
    def watching(self) -> str: ...


def banner(plan: Plan, cluster: Shown, ready_s: float, coloured: bool, is_detached: bool = False) -> list[str]:
    """Return what ``up`` says once: what there is, what runs in it, how to reach it, and to stop what is not detached."""
    memory = f"{_short(plan.memory_nbytes)} each" if plan.memory_nbytes else "no memory limit"
    machine = plan.machine
    cores = f"{machine.n_cpus} of {machine.n_cores} cores" if machine.n_cpus < machine.n_cores else plural(machine.n_cores, "core")
    limit = f", {machine.limited_by} {_short(machine.memory_nbytes)}" if machine.limited_by else ""
    size = f"{plural(plan.n_workers, 'worker')} × {plural(plan.nthreads, 'thread')} · {memory} ({cores}{limit})"
    version = ".".join(__version__.split(".")[:2])
    lines = [f"{colour(f'localdask {version}', BOLD, coloured)} · {size}      {colour(f'ready in {span(ready_s)}', GREEN, coloured)}"]
    rows: list[tuple[str, ...]] = []
    for role, label in (("worker", "preload"), ("nanny", "nanny"), ("scheduler", "scheduler")):
        known = [status for status in cluster.preloads if status.role == role]
        for number, source in enumerate(plan.sources.get(role, ())):
            helpers = ", ".join(escape(os.path.basename(path)) for path in (known[number].helpers if number < len(known) else ()))
            defined = hooks_in(source) + (f" · helpers: {helpers}" if helpers else "")
            rows.append((label, source.label, defined, _watched(source, cluster.watching)))
    # Only a cluster with a socket can be reached from other processes.
    name = escape(cluster.name)
    reach = ("connect", f'Client("{name}")') if cluster.scheduler_address.startswith("unix://") else ("cluster", name)
    rows.append(reach if is_detached else (*reach, "Ctrl-C stops"))
    return lines + [f"  {line}" for line in table(rows)]


def _watched(source: Source, watching: str) -> str:
    if not source.is_watched or watching == "off":
        return "not watched"
    return f"watching ({watching})" if "polling" in watching else "watching"


def _short(nbytes: int) -> str:
    number, unit = format_bytes(nbytes).split()
    return f"{float(number):.1f} {unit}"


def _worker_down(fields: Mapping[str, Any]) -> str:
    if fields.get("word") == "asked":
        return ""
    text = f"{fields.get('worker')} died: {fields.get('exit') or 'unknown'}"
    if fields.get("word") == "out_of_memory" and "out of memory" not in text:
        text += " (out of memory)"
    if fields.get("word") == "hung":
        text += " (it did not answer)"
    if fields.get("peak_rss"):
        text += f", peak {_short(fields['peak_rss'])}"
    return text


def _worker_joined(fields: Mapping[str, Any]) -> str:
    # A first life is in the banner.
    return f"{fields.get('worker')} replaced, pid {fields.get('pid')}" if (fields.get("life") or 0) > 1 else ""


def _boot_failed(fields: Mapping[str, Any]) -> str:
    # At the start it is the error that ends the command; later, its first line is enough of it here.
    return f"{fields.get('worker')} did not start: {str(fields.get('detail', '')).partition(chr(10))[0]}"


def _nanny_down(fields: Mapping[str, Any]) -> str:
    return "" if fields.get("word") == "asked" else f"nanny of {fields.get('worker')} died ({str(fields.get('word')).replace('_', ' ')})"


def _reload(fields: Mapping[str, Any]) -> str:
    record = fields["record"]
    # A quiet line for what worked; for what failed the place and the mend, with the source line and its caret.
    return str(record)


def _unsaid(fields: Mapping[str, Any]) -> str:
    return ""


def _any_other(kind: str, fields: Mapping[str, Any]) -> str:
    detail = str(fields.get("detail") or fields.get("reason") or "")
    who = str(fields.get("worker") or "")
    rest = " ".join(
        f"{name}={value}" for name, value in fields.items() if name not in ("detail", "reason", "worker") and value not in (None, "", ())
    )
    return " ".join(part for part in (who, kind.replace("-", " ") + (":" if detail else ""), detail, rest) if part)


#: kind → (colour, its line). A kind that is not here is told as it is.
LINES: dict[str, tuple[int, Callable[[Mapping[str, Any]], str]]] = {
    "reload": (GREEN, _reload),
    "worker-down": (RED, _worker_down),
    "worker-joined": (GREEN, _worker_joined),
    "boot-failed": (RED, _boot_failed),
    "nanny-down": (RED, _nanny_down),
    "lifetime-over": (YELLOW, lambda fields: f"{fields.get('worker')} reached its lifetime"),
    "worker-paused": (YELLOW, lambda fields: f"{fields.get('worker')} paused: it uses {_short(fields['nbytes'])}"),
    "worker-resumed": (GREEN, lambda fields: f"{fields.get('worker')} resumed: it uses {_short(fields['nbytes'])}"),
    "nanny-ready": (GREEN, _unsaid),
    "nanny-ended": (GREEN, _unsaid),
}


def event_line(kind: str, fields: Mapping[str, Any], coloured: bool) -> str:
    """Return one line for an event of the cluster; empty for one that nobody needs to read."""
    shade, line = LINES.get(kind, (YELLOW, lambda known: _any_other(kind, known)))
    if kind == "reload" and fields["record"].has_failed:
        shade = RED
    text = "\n".join(escape(part) for part in line(fields).split("\n"))
    return colour(text, shade, coloured) if text else ""
