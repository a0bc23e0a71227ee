"""Dask's collections run on the newest client, as they do with ``distributed``, until it is closed.

Loaded by ``api/companions.py`` once Dask is imported; what a client does as Dask's scheduler is
in ``api/collections.py``.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from dask import config
from dask.base import named_schedulers

from localdask.preloads.standins import real_distributed

__all__ = ["closed", "opened"]

#: What Dask calls the scheduler that a client is, in ``compute(scheduler=…)`` and its configuration.
_NAMES = ("distributed", "dask.distributed")

_clients: list[Any] = []
#: What Dask's configuration named before the first of them.
_before: list[Any] = []


class _Newest:
    """What these names mean: the current client of ``distributed``, whose names they are, or else the newest of ours."""

    def __call__(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        return _meant().get(dsk, keys, **kwargs)

    def persist(self, collections: Any, **kwargs: Any) -> Any:
        """Persist there: Dask asks for this."""
        return _meant().persist(collections, **kwargs)


def _meant() -> Any:
    distributed = real_distributed()
    with suppress(ValueError, AttributeError):  # it has none, or is just being imported
        if distributed is not None:
            return distributed.Client.current()
    return _clients[-1]


def opened(client: Any) -> None:
    """Make a client Dask's scheduler, once. An asynchronous one cannot be: Dask waits for its scheduler."""
    if client.asynchronous or client in _clients:
        return
    if not _clients:
        _before[:] = [config.config["scheduler"]] if "scheduler" in config.config else []
    _clients.append(client)
    config.set(scheduler=client)
    named_schedulers.update(dict.fromkeys(_NAMES, _Newest()))


def closed(client: Any) -> None:
    """Give Dask back what it had before this client, unless somebody has set another since."""
    if client not in _clients:
        return
    _clients.remove(client)
    if not _clients:
        for name in _NAMES:
            named_schedulers.pop(name, None)
    if config.get("scheduler", None) is not client:
        return
    if _clients:
        config.set(scheduler=_clients[-1])
    elif _before:
        config.set(scheduler=_before[0])
    else:
        del config.config["scheduler"]
