"""What a client's address means: a name, "auto", or a socket's path, and the cluster that it finds.

Called by ``Client`` and the command line. It looks at the doors in this user's runtime folder
(``system/sockets.py``) and never at process ids.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from localdask.errors import ClusterNotFoundError, UsageError

if TYPE_CHECKING:
    from localdask.system.sockets import DoorEntry

__all__ = ["ELSEWHERE", "asks_for_default", "default_address", "find_cluster", "list_clusters", "socket_path"]

#: How addresses of Dask's own clusters begin.
ELSEWHERE = ("tcp://", "tls://", "ws://", "wss://", "ucx://")


def list_clusters() -> list[DoorEntry]:
    """Return this user's running clusters, oldest first."""
    from localdask.system.sockets import find_doors  # noqa: PLC0415 - see socket_link.py

    return [entry for entry in find_doors() if entry.is_alive]


def socket_path(address: str) -> str:
    """Return the socket that an address means.

    Raises ``ClusterNotFoundError``, which lists what runs, and ``UsageError`` for an address of another kind.
    """
    kind, mark, rest = address.partition("://")
    if mark:
        if kind == "unix":
            return rest
        if kind == "local":
            return find_cluster(rest.partition("/")[0]).path
        raise UsageError(
            f"Client({address!r}): localdask reaches clusters on this machine; localdask.connect({address!r}) reaches a Dask cluster"
        )
    return address if "/" in address else find_cluster(address).path


def asks_for_default(address: Any, keywords: Mapping[str, Any]) -> bool:
    """Whether a client was given no address, nor keywords of a new cluster; or ``"auto"``."""
    return not keywords if address is None else isinstance(address, str) and address == "auto"


def default_address(*, elsewhere: bool = False) -> str | None:
    """Return what ``LOCALDASK_ADDRESS`` says, or else the configuration; a Dask cluster that is configured only for ``elsewhere``."""
    if address := os.environ.get("LOCALDASK_ADDRESS"):
        return address
    from localdask import config  # noqa: PLC0415 - only a client without an address needs it

    address = str(config.get("scheduler-address", None) or "")
    return address if address and (elsewhere or not address.startswith(ELSEWHERE)) else None


def find_cluster(name: str | None) -> DoorEntry:
    """Return the running cluster of that name; without one, or for ``"auto"``, the only one that was given a name."""
    running = list_clusters()
    if name is None or name == "auto":
        named = [entry for entry in running if entry.is_named]
        if len(named) == 1:
            return named[0]
        if not named:
            raise ClusterNotFoundError(
                f"no cluster with a name runs; start one with 'localdask up' or LocalCluster(name=…){_listing(running)}"
            )
        raise ClusterNotFoundError(f"{len(named)} clusters run: say which one{_listing(named)}")
    for entry in running:
        if entry.name == name:
            return entry
    raise ClusterNotFoundError(f"no cluster called {name!r} runs{_listing(running) or '; start one with localdask up'}")


def _listing(entries: list[DoorEntry]) -> str:
    if not entries:
        return ""
    now = time.time()
    rows = [f"  {entry.name}  pid {entry.pid}, up {max(0.0, now - entry.started_at):.0f} s, {entry.address}" for entry in entries]
    return "; there is:\n" + "\n".join(rows)
