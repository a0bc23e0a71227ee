"""``localdask logs`` and ``localdask events``: what a cluster's processes wrote, and what happened to them.

Runs in the user's process. The cluster keeps the last of both; following is asking for
what comes next, so a reader that is slow, or stopped, holds up nobody.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from localdask.api.client import Client
from localdask.cli.listing import format_option, to_json
from localdask.cli.talk import escape, log_line, wants_colour
from localdask.cli.targets import choose
from localdask.cli.verbs import Verb
from localdask.cli.visits import ANSWER_S, cluster_argument, cluster_option, until_ctrl_c, visit, watch_reader
from localdask.errors import ClosedClientError, UsageError
from localdask.sizing import parse_duration

__all__ = ["events", "logs"]


def pages(client: Client, what: str, after: int, follow: bool) -> Iterator[list[Any]]:
    """Yield the entries from a number on, and with ``follow`` those that come, until the cluster's end or that of who reads them."""
    wait = False
    if follow:
        watch_reader(client)
    try:
        while True:
            after, n_lost, entries = client._ask(what, after, wait, timeout=None if wait else ANSWER_S)
            if n_lost:
                print(f"({n_lost} older ones are forgotten)", file=sys.stderr)
            if entries:
                yield entries
            elif not follow:
                return
            wait = follow and not entries
    except ClosedClientError:
        if not follow:
            raise


@click.command(
    "logs",
    cls=Verb,
    usage=("[WORKER]...",),
    examples=(
        ("localdask logs", "what workers and nannies wrote"),
        ("localdask logs w0 w2-w5 -f", "of these, and what they write from now on"),
        ("localdask logs --since 5m --grep 'error|warning'", "lines of the last five minutes that match"),
    ),
    help="Show what workers and nannies wrote. A cluster keeps its last 10,000 lines.",
)
@click.argument("targets", nargs=-1)
@cluster_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what they write, until Ctrl-C.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N of the lines that are there.")
@click.option("--since", metavar="TIME", help="Only lines of the last so long: 90s, 5m.")
@click.option("--grep", metavar="PATTERN", help="Only lines in which this regular expression is found.")
@format_option("text", "json", "jsonl")
def logs(
    targets: tuple[str, ...], cluster: str | None, follow: bool, tail: int | None, since: str | None, grep: str | None, format: str
) -> int:
    try:
        pattern = re.compile(grep or "")
    except re.error as error:
        raise UsageError(f"--grep {grep!r} is no regular expression: {error}") from error
    if follow and format == "json":
        raise UsageError("--follow has no end, and json needs one: use --format jsonl")
    earliest = 0.0 if since is None else time.time() - (parse_duration(since) or 0.0)
    with until_ctrl_c(follow), visit(cluster) as client:
        names = None
        if targets:
            names = {row["name"] for row in choose(targets, client._ask("processes", timeout=ANSWER_S))}

        def wanted(entries: list[Any]) -> list[dict[str, Any]]:
            return [
                {"time": at, "source": source, "stream": "stdout" if stream == 1 else "stderr", "line": line}
                for at, source, stream, line in entries
                if at >= earliest and (names is None or source in names) and pattern.search(line)
            ]

        end = client._ask("logs", 2**62, False, timeout=ANSWER_S)[0]
        there = [row for entries in pages(client, "logs", 0, False) for row in wanted(entries)]
        there = there if tail is None else there[len(there) - min(tail, len(there)) :]
        _write(there, format)
        if follow:
            for entries in pages(client, "logs", end, True):
                _write(wanted(entries), format)
    return 0


def _write(rows: list[dict[str, Any]], format: str) -> None:
    if format == "text":
        coloured = wants_colour(sys.stdout, os.environ)
        sys.stdout.write("".join(log_line(row["source"], row["line"], coloured=coloured) + "\n" for row in rows))
    else:
        sys.stdout.write(to_json(rows, format))
    sys.stdout.flush()


@click.command(
    "events",
    cls=Verb,
    usage=("[CLUSTER]",),
    examples=(
        ("localdask events", "starts, deaths, restarts and reloads"),
        ("localdask events -f --format jsonl", "for programs, as they happen"),
    ),
    help="Show what happened to a cluster. It keeps its last 2,000 events.",
)
@cluster_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@format_option("lines", "jsonl")
def events(cluster: str | None, follow: bool, format: str) -> int:
    with until_ctrl_c(follow), visit(cluster) as client:
        for entries in pages(client, "events", 0, follow):
            rows = [{"time": at, "event": kind, **fields} for at, kind, fields, _ in entries]
            sys.stdout.write(to_json(rows, "jsonl") if format == "jsonl" else "".join(_event_line(row) for row in rows))
            sys.stdout.flush()
    return 0


def _event_line(row: dict[str, Any]) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(row["time"]))
    facts = "  ".join(
        f"{name}={escape(str(value))}" for name, value in row.items() if name not in ("time", "event") and value not in ("", None)
    )
    return f"{clock}  {escape(row['event']):<14}  {facts}".rstrip() + "\n"
