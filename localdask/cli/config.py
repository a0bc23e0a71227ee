"""``localdask config``: what the settings are, who said so, and a file to begin with.

Runs in the user's process and starts nothing. Values of the environment of nannies
may be secrets, and are not shown.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from localdask import config
from localdask.cli.listing import format_option, print_rows
from localdask.cli.verbs import Verb
from localdask.errors import UsageError
from localdask.spelling import mend_of

__all__ = ["command"]

#: Keys whose values are never shown.
_SECRET = ("nanny.environ.", "nanny.pre-spawn-environ.")
_START = """\
# Settings of localdask. Every line is a default: remove its # and change it.
# localdask config show --origin tells what holds, and who says so.

# worker:
#   preload: []            # files, modules or Python text, run in each worker
#   memory:
#     target: 0.60         # parts of --memory-limit
#     spill: 0.70
#     pause: 0.80
#     terminate: 0.95

# nanny:
#   preload: []

# scheduler:
#   preload: []
#   allowed-failures: 3    # deaths of workers that a task may cause before it fails
"""

_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "key": lambda row: row["key"],
    "value": lambda row: _shown(row["value"]),
}
_WITH_ORIGIN: dict[str, Callable[[Mapping[str, Any]], str]] = {**_COLUMNS, "origin": lambda row: row["origin"]}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


@click.command(
    "config",
    cls=Verb,
    usage=("show | get KEY | init [FILE]",),
    examples=(
        ("localdask config show --origin", "every setting, its value, and who said so"),
        ("localdask config get worker.memory.target", "one value"),
        ("localdask config init", "write a file to begin with, where localdask reads it"),
    ),
    help="Show settings, or write a file of them.",
)
@click.argument("action", type=click.Choice(["show", "get", "init"]), default="show")
@click.argument("what", required=False)
@click.option("--origin", is_flag=True, help="Show who said each value: a file, a variable, or the defaults.")
@click.option("-f", "--config-file", multiple=True, metavar="FILE", help="A yaml file of settings, over all other files.")
@format_option()
def command(action: str, what: str | None, origin: bool, config_file: tuple[str, ...], format: str) -> int:
    if config_file:
        config.refresh(config_file)
    if action == "init":
        return _init(what)
    if action == "get":
        return _get(what, origin)
    rows = [{"key": key, "value": _open(key, value), "origin": who} for key, value, who in sorted(config.items(what or ""))]
    if not rows:
        raise _no_such_key(what or "")
    if format != "table":
        rows = [{**row, "value": row["value"]} for row in rows]
    print_rows(rows, format, _WITH_ORIGIN if origin else _COLUMNS)
    return 0


def _open(key: str, value: Any) -> Any:
    return "(not shown)" if key.startswith(_SECRET) else value


def _get(key: str | None, origin: bool) -> int:
    if key is None:
        raise UsageError("config get needs a key; localdask config show lists them")
    try:
        value = config.get(key)
    except KeyError:
        raise _no_such_key(key) from None
    print(f"{_shown(_open(key, value))}  ({config.origin(key)})" if origin else _shown(_open(key, value)))
    return 0


def _no_such_key(key: str) -> UsageError:
    mend = mend_of(key, [known for known, _, _ in config.items()], "localdask config show lists them")
    return UsageError(f"there is no setting {key!r}; {mend}")


def _init(path: str | None) -> int:
    if path is None:
        home = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
        path = os.path.join(home, "localdask.yaml")
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(_START)
    except FileExistsError:
        raise UsageError(f"{path} is there already; it is left as it is") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; name another file") from error
    print(path)
    print("every line in it is a comment until you change it", file=sys.stderr)
    return 0
