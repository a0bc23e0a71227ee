"""What each worker of a cluster is told of how to be: a plain mapping that its nanny hands on.

Made in the user's process by ``api/cluster.py``, which adds where the cluster keeps its files; read by
``processes/nanny.py`` and ``processes/worker.py``. Nothing is decided here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from localdask import config, sizing
from localdask.api.scattering import INLINE_MAX
from localdask.errors import ConfigError, UsageError
from localdask.state.lifetimes import Lifetime
from localdask.state.memory import read_steps

__all__ = ["worker_settings"]


def worker_settings(
    nthreads: int,
    memory_limit: int,
    lifetime: Lifetime,
    limits_s: tuple[float, float],
    resources: Mapping[str, float] | None,
    local_directory: str | os.PathLike[str] | None,
    env: Mapping[str, str | None] | None,
) -> dict[str, Any]:
    """Return the settings of each worker. ``limits_s`` are those of a setup and of a teardown."""
    folder = config.get("temporary-directory", None) if local_directory is None else local_directory
    return {
        "nthreads": nthreads,
        "resources": sizing.check_resources(config.get("worker.resources", None) if resources is None else resources),
        "memory_limit": memory_limit,
        "memory_steps": read_steps(config.get, sizing.parse_bytes),
        "local_directory": None if folder is None else os.path.abspath(folder),
        "inline_max": INLINE_MAX,
        "setup_timeout_s": limits_s[0],
        "teardown_timeout_s": limits_s[1],
        "lifetime_tasks": lifetime.n_tasks,
        "lifetime_nbytes": lifetime.nbytes,
        "env": _checked_env(env),
        "env_defaults": _env_defaults(),
    }


def _checked_env(env: Mapping[str, str | None] | None) -> dict[str, str | None]:
    """Return the variables that are given, as texts; refuse what a nanny could not set."""
    try:
        given = {name: None if value is None else str(value) for name, value in (env or {}).items()}
    except AttributeError:
        raise UsageError(f"env={env!r}; it is a mapping of environment variables to their values") from None
    for name, value in given.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in f"{name}{value}":
            raise UsageError(f"env={env!r:.200}; {name!r} cannot be set in an environment: a name is a text without '='")
    return given


def _env_defaults() -> dict[str, str]:
    """Return the variables that workers have unless the environment says otherwise, as Dask's keys tell."""
    found: dict[str, str] = {}
    for key in ("nanny.pre-spawn-environ", "nanny.environ"):
        said = config.get(key, None) or {}
        if not isinstance(said, Mapping):
            raise ConfigError(f"{key} is {said!r}; it is a mapping of environment variables to their values")
        found.update((str(name), str(value)) for name, value in said.items() if value is not None)
    return found
