"""What a cluster is asked for, checked before anything of it exists.

Called by ``api/cluster.py`` in the user's process. Preloads are read here, once, which
runs nothing of them.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from localdask import sizing
from localdask.errors import PreloadError, StartError, UsageError
from localdask.parameters import check_count, check_function, read
from localdask.sizing import BYTES, SECONDS

if TYPE_CHECKING:
    from localdask.preloads.sources import Source
    from localdask.state.lifetimes import Lifetime

__all__ = ["check_arguments", "check_kinds", "check_name", "make_local_directory", "read_lifetime", "read_limit", "read_preloads"]


def check_arguments(name: Any, start_method: str, processes: bool, preload_nanny: Any) -> None:
    """Refuse what makes no sense, or not here."""
    if os.name != "posix":
        raise StartError("localdask starts processes by fork and Unix sockets: on Windows, run it in WSL")
    if name:
        check_name(name, f"name={name!r}", " (the number of workers is n_workers=)")
    if start_method not in ("fork", "spawn"):
        raise UsageError(f"start_method={start_method!r}; it is 'fork' or 'spawn'")
    if not processes and preload_nanny:
        raise UsageError(
            "preload_nanny goes with processes: processes=False has no nannies; give it as preload, or leave processes=False out"
        )


def check_kinds(**given: Any) -> None:
    """Refuse what is not of the kind that its parameter has."""
    for name, value in given.items():
        if name in _CALLS:
            check_function(name, value, _CALLS[name])
        elif value is not None:
            read(name, value, *_KINDS[name])


def _words(value: Any) -> list[str]:
    """Return arguments of preloads, or raise ``TypeError``; which preload has which is seen later."""
    return [value] if isinstance(value, str) else list(value)


#: Parameters of a cluster that are functions, and how they are called.
_CALLS = {"on_reload": "f(record)", "on_event": "f(kind, **fields)", "on_log": "f(source, stream, line)"}
#: Others: how each is read, and what it is.
_KINDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "local_directory": (os.fspath, "a folder's path"),
    "allowed_failures": (operator.index, "a whole number of deaths"),
    "lifetime": (sizing.parse_duration, SECONDS),
    "lifetime_stagger": (sizing.parse_duration, SECONDS),
    "lifetime_memory": (sizing.parse_bytes, BYTES),
    **dict.fromkeys(
        ("preload_argv", "preload_nanny_argv", "preload_scheduler_argv"),
        (_words, "one text, a list of texts for all preloads, or such a list for each"),
    ),
}


def check_name(name: Any, said: str, more: str = "") -> None:
    """Refuse what can be no cluster's name; ``said`` is how the user gave it."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise UsageError(f"{said}; a cluster's name is letters, digits, '.', '-' and '_'{more}")


def read_lifetime(duration: Any, stagger: Any, restart: bool | None, tasks: int | None, memory: Any, *, processes: bool) -> Lifetime:
    """Return how long workers live, how many tasks they run and how much memory they take: as given, else as configuration says."""
    from localdask import config  # noqa: PLC0415 - only a cluster that is made needs it
    from localdask.state.lifetimes import check_lifetime  # noqa: PLC0415

    given = {"duration": duration, "stagger": stagger, "restart": restart, "tasks": tasks, "memory": memory}
    known = {key: config.get(f"worker.lifetime.{key}", None) if value is None else value for key, value in given.items()}
    names = {"duration": "lifetime", "stagger": "lifetime_stagger"}
    seconds = {key: read(name, known[key], sizing.parse_duration, SECONDS) for key, name in names.items()}
    n_tasks = check_count("lifetime_tasks", known["tasks"], " of tasks (worker.lifetime.tasks)")
    nbytes = None if known["memory"] is None or not processes else read("lifetime_memory", known["memory"], sizing.parse_bytes, BYTES)
    return check_lifetime(seconds["duration"], seconds["stagger"] or 0.0, bool(known["restart"]), n_tasks, nbytes)


def read_limit(name: str, value: float | str) -> float:
    """Return a time that there must be, in seconds."""
    seconds = read(name, value, sizing.parse_duration, SECONDS)
    if seconds is None:
        raise UsageError(f"{name}={value!r}; it is {SECONDS}")
    return seconds


def read_preloads(role: str, specs: Any, argv: Any, *, allow_url: bool = False, trust: bool = False) -> list[Source]:
    """Return a role's preloads: those given, else those that configuration names."""
    if not specs:
        from localdask import config  # noqa: PLC0415 - only a cluster or client that is made needs it

        configured = config.preloads(role)
        if not configured.specs:
            return []
        specs, argv = configured.specs, configured.argv
    from localdask.preloads.sources import read_sources  # noqa: PLC0415 - many clusters and most clients have no preloads

    try:
        return read_sources(specs, argv or (), role=role, allow_url=allow_url, trust=trust)
    except (PreloadError, UsageError) as error:
        raise error.with_traceback(None) from None  # its text has the line that is the user's


def make_local_directory(folder: str) -> None:
    """Make the folder that a user named for temporary files, or say why it cannot be."""
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UsageError(f"local_directory={folder!r} cannot be made: {error.strerror}; name a folder that you may write to") from None
