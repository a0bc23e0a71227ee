"""``localdask ls`` and ``localdask down``: the clusters of this user, and their end.

Runs in the user's process. Whether a cluster lives is the kernel's word (``system/sockets.py``);
nothing is ever done to a process id that stands in a file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import click

from localdask.api import addresses
from localdask.cli.listing import format_option, print_rows
from localdask.cli.talk import escape, span
from localdask.cli.verbs import Verb
from localdask.cli.visits import visit
from localdask.errors import ClusterNotFoundError, LocaldaskError
from localdask.sizing import parse_duration
from localdask.system.sockets import DoorEntry, connect, find_doors, peer_of, sweep_doors

__all__ = ["down", "ls"]

PAUSE_S = 0.01

_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "name": lambda row: row["name"],
    "state": lambda row: row["state"],
    "pid": lambda row: str(row["pid"]),
    "workers": lambda row: "" if row["workers"] is None else str(row["workers"]),
    "uptime": lambda row: span(row["uptime"]),
    "address": lambda row: row["address"],
}


@click.command(
    "ls",
    cls=Verb,
    examples=(("localdask ls", "every cluster that you run on this machine"), ("localdask ls --clean", "remove what dead ones left")),
    help="List the clusters of this user. A stale one is dead; its socket is still there.",
)
@format_option()
@click.option("--clean", is_flag=True, help="Remove the sockets of dead clusters.")
def ls(format: str, clean: bool) -> int:
    if clean:
        for entry in sweep_doors():
            print(f"removed what {escape(entry.name)} left", file=sys.stderr)
    print_rows([_row(entry) for entry in find_doors()], format, _COLUMNS)
    return 0


def _row(entry: DoorEntry) -> dict[str, Any]:
    state, n_workers = "stale", None
    if entry.is_alive:
        state = "running"
        try:
            with visit(entry) as client:
                n_workers = client.scheduler_info()["n_workers"]
        except TimeoutError:
            state = "silent"
        except (LocaldaskError, OSError) as error:
            state = "another version" if isinstance(error, ClusterNotFoundError) else "closing"
    return {
        "name": entry.name,
        "state": state,
        "pid": entry.pid,
        "workers": n_workers,
        "uptime": round(max(0.0, time.time() - entry.started_at), 1),
        "address": entry.address,
    }


@click.command(
    "down",
    cls=Verb,
    usage=("[CLUSTER]...",),
    examples=(
        ("localdask down", "the only cluster"),
        ("localdask down etl", "the cluster of that name; fine if it is down already"),
        ("localdask down --all", "every cluster of yours"),
    ),
    help="Stop clusters, with their teardowns, and wait until they are gone.",
)
@click.argument("clusters", nargs=-1)
@click.option("--all", "everyone", is_flag=True, help="Every cluster of this user.")
@click.option("--timeout", metavar="TIME", default="20s", help="How long to wait for each. [default: 20s]")
@click.option("--force", is_flag=True, help="Kill what has not ended by then.")
def down(clusters: tuple[str, ...], everyone: bool, timeout: str, force: bool) -> int:
    code = 0
    limit_s = parse_duration(timeout) or 0.0
    for entry in _meant(clusters, everyone):
        if _end(entry, limit_s, force):
            print(f"{escape(entry.name)} is down", file=sys.stderr)
        else:
            code = 1
            print(f"error: {escape(entry.name)} did not end within {limit_s:g} s; --force kills it", file=sys.stderr)
    return code


def _meant(names: tuple[str, ...], everyone: bool) -> list[DoorEntry]:
    running = addresses.list_clusters()
    if everyone:
        return running
    if not names:
        if len(running) > 1:
            return [addresses.find_cluster(None)]
        if not running:
            print("no cluster runs", file=sys.stderr)
        return running
    found = []
    for name in names:
        entry = next((entry for entry in running if name in (entry.name, entry.path, entry.address)), None)
        if entry is None:
            print(f"{escape(name)} is down already", file=sys.stderr)
        else:
            found.append(entry)
    return found


def _end(entry: DoorEntry, limit_s: float, force: bool) -> bool:
    """Ask a cluster to end, wait for it, and kill it then if that was asked for."""
    deadline = time.monotonic() + limit_s
    with (
        contextlib.suppress(LocaldaskError, OSError),
        visit(entry, limit_s) as client,
    ):  # it may be ending, of another version, or not answer
        client._ask("shutdown", timeout=limit_s)
    while time.monotonic() < deadline:
        if not _is_up(entry):
            return True
        time.sleep(PAUSE_S)
    if not force:
        return False
    with contextlib.suppress(OSError), connect(entry.path, limit_s) as sock:
        os.kill(peer_of(sock)[0], signal.SIGKILL)
    while _is_up(entry):
        time.sleep(PAUSE_S)
    sweep_doors()
    return True


def _is_up(entry: DoorEntry) -> bool:
    return any(other.is_alive and (other.name, other.started_at) == (entry.name, entry.started_at) for other in find_doors())
