"""``localdask reload``: have a running cluster read its preloads again, now, changed or not.

Runs in the user's process; the cluster does it, in all of its processes or in none.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from localdask.cli.listing import format_option, to_json
from localdask.cli.talk import escape
from localdask.cli.verbs import Verb
from localdask.cli.visits import cluster_option, visit
from localdask.sizing import parse_duration

__all__ = ["command"]

EXIT_FAILED = 1


@click.command(
    "reload",
    cls=Verb,
    usage=("[FILE]",),
    examples=(
        ("localdask reload", "all preloads of workers and nannies, between two tasks"),
        ("localdask reload setup.py", "one of them"),
        ("localdask reload --check", "load the new code everywhere and throw it away: would it swap?"),
    ),
    help="Read preloads again and swap them in, in every process or in none. Exit code 1 if it failed; the old code stays then.",
)
@click.argument("file", required=False)
@cluster_option
@click.option("--check", is_flag=True, help="Only load; nothing is swapped.")
@click.option("--timeout", metavar="TIME", help="How long to wait for running tasks. [default: without end]")
@format_option("text", "json")
def command(file: str | None, cluster: str | None, check: bool, timeout: str | None, format: str) -> int:
    path = os.path.abspath(file) if file is not None and os.path.exists(file) else file
    with visit(cluster) as client:
        record: dict[str, Any] = client._ask("reload", path, check, timeout=parse_duration(timeout))
    if format == "json":
        sys.stdout.write(to_json([record], "jsonl"))
    else:
        print("\n".join(escape(line) for line in [*record["text"].splitlines(), record["by_process"]] if line), file=sys.stderr)
    return EXIT_FAILED if record["has_failed"] else 0
