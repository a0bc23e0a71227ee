"""``localdask version``: what a bug report should begin with. It starts nothing and imports no other part of localdask."""

from __future__ import annotations

import platform
import sys

import click

from localdask.cli.verbs import Verb
from localdask.version import __version__

__all__ = ["command"]


@click.command(
    "version",
    cls=Verb,
    examples=(("localdask version", "for a bug report"),),
    help="Print the versions of localdask, Python and the system.",
)
def command() -> None:
    print(f"localdask {__version__}")
    print(f"Python {platform.python_version()} ({sys.executable})")
    print(f"{platform.system()} {platform.release()} {platform.machine()}")
