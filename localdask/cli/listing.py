"""Rows on standard output: as a table for people, as json or lines of json for programs.

Runs in the user's process, under every verb that lists something. Names and texts from
outside are escaped in a table; json escapes them itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from localdask.cli.talk import colour, escape, table, wants_colour

__all__ = ["format_option", "print_rows", "shown_rows"]

BOLD = 1


def format_option(*choices: str) -> Callable[[Any], Any]:
    """Give a verb ``--format``; the first choice is the default."""
    choices = choices or ("table", "json", "jsonl")
    return click.option("--format", type=click.Choice(choices), default=choices[0], help=f"How it is written. [default: {choices[0]}]")


def print_rows(rows: Sequence[Mapping[str, Any]], form: str, columns: Mapping[str, Callable[[Mapping[str, Any]], str]]) -> None:
    """Print rows; ``columns`` are the table's, and say how a row looks in each."""
    if form == "table":
        if rows:
            sys.stdout.write("\n".join(shown_rows(rows, columns, wants_colour(sys.stdout, os.environ))) + "\n")
    else:
        sys.stdout.write(to_json(rows, form))
    sys.stdout.flush()


def shown_rows(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, Callable[[Mapping[str, Any]], str]], coloured: bool) -> list[str]:
    """Return a table's lines, the head first."""
    cells = [tuple(escape(show(row)) for show in columns.values()) for row in rows]
    head, *lines = table([tuple(name.upper() for name in columns), *cells])
    return [colour(head, BOLD, coloured), *lines]


def to_json(rows: Sequence[Mapping[str, Any]], form: str) -> str:
    """Return rows as one list of json, or as a line of json each."""
    import json  # noqa: PLC0415 - only json needs it

    if form == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows)
    return json.dumps(list(rows), indent=2) + "\n"
