"""What a cluster is asked for, checked before anything of it exists.

Called by ``api/cluster.py`` in the user's process. Preloads are read here, once, which
runs nothing of them.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from localdask import sizing
from localdask.errors import PreloadError, StartError, UsageError

if TYPE_CHECKING:
    from localdask.preloads.sources import Source
    from localdask.state.lifetimes import Lifetime

__all__ = ["check_arguments", "check_name", "make_local_directory", "read_lifetime", "read_limits", "read_preloads"]


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
    seconds = {key: None if known[key] is None else sizing.parse_duration(known[key]) for key in ("duration", "stagger")}
    n_tasks = sizing.check_count("lifetime_tasks", known["tasks"], " of tasks (worker.lifetime.tasks)")
    nbytes = None if known["memory"] is None or not processes else sizing.parse_bytes(known["memory"])
    return check_lifetime(seconds["duration"], seconds["stagger"] or 0.0, bool(known["restart"]), n_tasks, nbytes)


def read_limits(setup: float | str, teardown: float | str) -> tuple[float, float]:
    """Return the limits of one ``dask_setup`` and of one ``dask_teardown``, in seconds."""
    limits = []
    for name, value in (("setup_timeout", setup), ("teardown_timeout", teardown)):
        seconds = sizing.parse_duration(value) if isinstance(value, (int, float, str)) else None
        if seconds is None:
            raise UsageError(f"{name}={value!r}; it is seconds, or a text like '30s'")
        limits.append(seconds)
    return limits[0], limits[1]


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
