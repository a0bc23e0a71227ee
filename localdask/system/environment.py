"""The environment variables that one process takes over from another.

A nanny takes those of the user's process, as they were when its cluster began. It was forked
from the launcher, which was exec'd with nearly always the same ones: what the launcher noted
spares each nanny a look at every variable.
"""

from __future__ import annotations

import os

__all__ = ["note_environ", "take_environ"]

_noted: dict[str, str] = {}


def note_environ() -> None:
    """Remember the environment of this process, which its forks will start with; nobody changes it from now on."""
    _noted.update(os.environ)


def take_environ(environ: dict[str, str]) -> None:
    """Make this the environment; at the beginning of a process's life."""
    if environ == _noted:
        return
    for key in [key for key in os.environ if key not in environ]:
        del os.environ[key]
    for key, value in environ.items():
        if os.environ.get(key) != value:
            os.environ[key] = value
