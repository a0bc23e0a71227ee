"""Dask's collections run on the newest client, as they do with ``distributed``, until it is closed.

Loaded by ``api/companions.py`` once Dask is imported; what a client does as Dask's scheduler is
in ``api/collections.py``.
"""

from __future__ import annotations

from typing import Any

from dask import config

__all__ = ["closed", "opened"]

_clients: list[Any] = []
#: What Dask's configuration named before the first of them.
_before: list[Any] = []


def opened(client: Any) -> None:
    """Make a client Dask's scheduler. An asynchronous one cannot be: Dask waits for its scheduler."""
    if client.asynchronous:
        return
    if not _clients:
        _before[:] = [config.config["scheduler"]] if "scheduler" in config.config else []
    _clients.append(client)
    config.set(scheduler=client)


def closed(client: Any) -> None:
    """Give Dask back what it had before this client, unless somebody has set another since."""
    if client not in _clients:
        return
    _clients.remove(client)
    if config.get("scheduler", None) is not client:
        return
    if _clients:
        config.set(scheduler=_clients[-1])
    elif _before:
        config.set(scheduler=_before[0])
    else:
        del config.config["scheduler"]
