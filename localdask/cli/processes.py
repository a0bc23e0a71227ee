"""``localdask ps`` and ``localdask top``: the processes of a cluster, once or again and again.

Runs in the user's process. The cluster tells what its processes do; their memory and
processor time are read here, where it costs the cluster nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click
import psutil

from localdask.api import addresses
from localdask.api.client import Client
from localdask.cli.listing import format_option, print_rows, shown_rows
from localdask.cli.talk import escape, plural, span, takes_commands, wants_colour
from localdask.cli.verbs import Verb
from localdask.cli.visits import ANSWER_S, cluster_argument, until_ctrl_c, visit
from localdask.errors import ClusterNotFoundError
from localdask.sizing import format_bytes, parse_duration

__all__ = ["ps", "top"]

#: How long processor time is measured for one look.
SAMPLE_S = 0.1
KEYS = ("name", "role", "pid", "state", "generation", "tasks", "done", "cpu", "rss", "limit", "restarts", "uptime", "last", "watching")
#: Around what is drawn anew: the screen is cleared, and lines that are too long are cut instead of wrapped.
FRAME = ("\x1b[?7l\x1b[H\x1b[J", "\x1b[?7h")


def _size(nbytes: int | None) -> str:
    return "" if not nbytes else format_bytes(nbytes)


_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "name": lambda row: row["name"],
    "role": lambda row: row["role"],
    "pid": lambda row: "" if row["pid"] is None else str(row["pid"]),
    "state": lambda row: row["state"],
    "gen": lambda row: "" if row["generation"] is None else str(row["generation"]),
    "tasks": lambda row: str(row["tasks"]),
    "done": lambda row: str(row["done"]),
    "cpu": lambda row: "" if row["cpu"] is None else f"{row['cpu']:.0f} %",
    "memory": lambda row: _size(row["rss"]) + (f" / {_size(row['limit'])}" if row["limit"] else ""),
    "restarts": lambda row: str(row["restarts"]),
    "uptime": lambda row: "" if row["uptime"] is None else span(row["uptime"]),
    "last": lambda row: row["last"] or ("" if row["watching"] in ("", "off") else f"watches preloads: {row['watching']}"),
}
_WITH_CLUSTER: dict[str, Callable[[Mapping[str, Any]], str]] = {"cluster": lambda row: row["cluster"], **_COLUMNS}


@click.command(
    "ps",
    cls=Verb,
    usage=("[CLUSTER]",),
    examples=(
        ("localdask ps", "the processes of the only cluster, or of all of them"),
        ("localdask ps etl --watch", "those of etl, every two seconds"),
        ("localdask ps --format json", "for programs"),
    ),
    help="List a cluster's scheduler, nannies and workers.",
)
@cluster_argument
@format_option()
@click.option("-w", "--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option("--interval", metavar="TIME", default="2s", help="Between two looks. [default: 2s]")
def ps(cluster: str | None, format: str, watch: bool, interval: str) -> int:
    pause_s = parse_duration(interval) or 0.1
    is_drawn = watch and format == "table" and takes_commands(sys.stdout, os.environ)
    with until_ctrl_c(watch):
        while True:
            rows, columns = _look(cluster)
            with _frame(is_drawn):
                print_rows(rows, format, columns)
            if not watch:
                break
            time.sleep(pause_s)
    return 0


@contextlib.contextmanager
def _frame(is_drawn: bool) -> Iterator[None]:
    """Have what is written meanwhile take the place of what is on the screen."""
    if not is_drawn:
        yield
        return
    sys.stdout.write(FRAME[0])
    try:
        yield
    finally:
        sys.stdout.write(FRAME[1])
        sys.stdout.flush()


def _look(cluster: str | None) -> tuple[list[dict[str, Any]], dict[str, Callable[[Mapping[str, Any]], str]]]:
    """Return the rows of one cluster, or without a name of all that run."""
    running = addresses.list_clusters()
    if cluster or len(running) <= 1:
        with visit(cluster) as client:
            return measured(client._ask("processes", timeout=ANSWER_S)), _COLUMNS
    found: list[dict[str, Any]] = []
    for entry in running:
        try:
            with visit(entry) as client:
                found += [{"cluster": entry.name, **row} for row in measured(client._ask("processes", timeout=ANSWER_S))]
        except (ClusterNotFoundError, TimeoutError) as error:
            print(f"{escape(entry.name)}: {escape(str(error))}", file=sys.stderr)
    return found, _WITH_CLUSTER


def measured(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with what each process uses: ``cpu`` in percent of one core, ``rss`` in bytes, ``uptime`` in seconds."""
    processes = {row["pid"]: _process(row["pid"]) for row in rows if row["pid"] is not None}
    before = {pid: _used_s(process) for pid, process in processes.items()}
    began = time.monotonic()
    time.sleep(SAMPLE_S)
    now, taken_s = time.time(), time.monotonic() - began
    found = []
    for row in rows:
        process, first = processes.get(row["pid"]), before.get(row["pid"])
        last = _used_s(process)
        cpu = None if first is None or last is None else round(100 * max(0.0, last - first) / taken_s, 1)
        full = {**row, "cpu": cpu, "rss": None, "uptime": None}
        if process is not None and last is not None:
            with contextlib.suppress(psutil.Error):  # it ended just now
                full |= {"rss": process.memory_info().rss, "uptime": round(max(0.0, now - process.create_time()), 1)}
        found.append({key: full[key] for key in KEYS})
    return found


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def _used_s(process: psutil.Process | None) -> float | None:
    try:
        return None if process is None else sum(process.cpu_times()[:2])
    except psutil.Error:
        return None


# ── top ──────────────────────────────────────────────────────────────────────

_TASK_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "task": lambda row: row["name"],
    "count": lambda row: str(row["n"]),
    "each": lambda row: "" if row["each"] < 0 else span(row["each"]),
}


@click.command(
    "top",
    cls=Verb,
    usage=("[CLUSTER]",),
    examples=(("localdask top", "workers, memory, tasks by name and throughput; Ctrl-C ends it"),),
    help="Watch a cluster at work. Without a terminal it is shown once.",
)
@cluster_argument
@click.option("--interval", metavar="TIME", default="1s", help="Between two looks. [default: 1s]")
def top(cluster: str | None, interval: str) -> int:
    pause_s = parse_duration(interval) or 0.1
    with until_ctrl_c(), visit(cluster) as client:
        is_drawn = takes_commands(sys.stdout, os.environ)
        n_done, looked_at = _n_done(client), time.monotonic()
        while True:
            time.sleep(pause_s)
            done, now = _n_done(client), time.monotonic()
            lines = _screen(client, max(0, done - n_done) / (now - looked_at))
            n_done, looked_at = done, now
            height = shutil.get_terminal_size().lines - 1 if is_drawn else len(lines)
            with _frame(is_drawn):
                sys.stdout.write("\n".join(lines[:height]) + "\n")
            if not is_drawn:
                break
    return 0


def _n_done(client: Client) -> int:
    return sum(row["done"] for row in client._ask("processes", timeout=ANSWER_S))


def _screen(client: Client, rate: float) -> list[str]:
    rows = measured(client._ask("processes", timeout=ANSWER_S))
    workers = [row for row in rows if row["role"] == "worker"]
    functions = [{"name": name, "n": n, "each": each} for name, n, each in client._ask("functions", timeout=ANSWER_S) if n]
    functions.sort(key=lambda row: (-row["n"], row["name"]))
    coloured = wants_colour(sys.stdout, os.environ)
    used = sum(row["rss"] or 0 for row in workers)
    told = f"{escape(rows[0]['last'])} · " if rows[0]["last"] else ""
    head = (
        f"{told}{plural(len(workers), 'worker')} · {rows[0]['tasks']} tasks known · {rate:,.0f} tasks/s"
        f" · {format_bytes(used)} · {sum(row['cpu'] or 0 for row in workers):.0f} % CPU"
    )
    columns = {name: show for name, show in _COLUMNS.items() if name not in ("role", "gen")}
    lines = [head, "", *shown_rows(workers, columns, coloured)]
    return [*lines, "", *shown_rows(functions, _TASK_COLUMNS, coloured)] if functions else lines
