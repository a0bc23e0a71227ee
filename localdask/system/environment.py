"""What one process takes over from another: environment, working folder, where modules are found, and the command line.

A nanny takes those of the user's process, as they were when its cluster began, and a worker
that was made before takes the nanny's. Both were forked from the launcher, which was exec'd
with nearly always the same variables: what the launcher noted spares a look at each.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

__all__ = ["change_environ", "note_environ", "take_place"]

_noted: dict[str, str] = {}


def note_environ() -> None:
    """Remember the environment of this process, which its forks will start with; nobody changes it from now on."""
    _noted.update(os.environ)


def take_place(environ: dict[str, str], cwd: str, sys_path: list[str], argv: list[str]) -> None:
    """Take these over, at the beginning of a process's life; a folder that is gone is not gone to."""
    _take_environ(environ)
    sys.path[:] = sys_path
    sys.argv[:] = argv
    if os.path.isdir(cwd):
        os.chdir(cwd)


def _take_environ(environ: dict[str, str]) -> None:
    if environ == _noted:
        return
    for key in [key for key in os.environ if key not in environ]:
        del os.environ[key]
    for key, value in environ.items():
        if os.environ.get(key) != value:
            os.environ[key] = value


def change_environ(changes: Mapping[str, str | None]) -> None:
    """Set these variables, and remove those that are None."""
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
