"""What scripts written for Dask say and one machine has no use for: taken, answered or refused with a word, in one place.

``Client`` is made of this among others, and ``LocalCluster`` asks it about its keywords. What would make no
difference here is accepted; what would be missed is refused before anything begins.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from localdask.api.control import run_coroutine
from localdask.api.futures import parse_timeout
from localdask.errors import UsageError
from localdask.parameters import FILE, read
from localdask.spelling import mend_of
from localdask.system.signatures import parameters_of

__all__ = ["Likeness", "check_cluster_words", "take_client_words"]

#: Keywords of ``distributed.LocalCluster`` that make no difference here.
_IDLE_OF_CLUSTER = frozenset(
    [
        "loop",
        "start",
        "ip",
        "scheduler_port",
        "silence_logs",
        "dashboard_address",
        "worker_dashboard_address",
        "diagnostics_port",
        "services",
        "worker_services",
        "service_kwargs",
        "blocked_handlers",
        "scheduler_sync_interval",
    ]
)
#: Those that would be missed. keyword → what to do instead.
_MISSED_OF_CLUSTER = {
    "host": "nothing of it is on a network; leave it out",
    "interface": "nothing of it is on a network; leave it out",
    "protocol": "its processes talk over pipes; leave it out",
    "security": "its socket belongs to this user alone; leave it out",
    "worker_class": "a worker is made its own by preload=… and plugins=…",
    "scheduler_file": "call client.write_scheduler_file(path)",
}
#: Values of these that ask for what is here anyway.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "host": ("127.0.0.1", "localhost"),
    "protocol": ("inproc", "inproc://", "tcp", "tcp://"),
    "security": (False,),
}
#: Keywords of ``distributed.Client`` that make no difference here.
_IDLE_OF_CLIENT = frozenset(
    ["loop", "heartbeat_interval", "serializers", "deserializers", "extensions", "direct_to_workers", "connection_limit", "security"]
)


#: What Dask's ``scheduler_kwargs`` may ask for here.
_OF_SCHEDULER = ("preload", "preload_argv", "plugins")


def check_cluster_words(
    words: Mapping[str, Any], plugins: Iterable[Any] = (), *, maker: Callable[..., Any]
) -> tuple[Any, Any, tuple[Any, ...]]:
    """Refuse keywords of a cluster that it does not have, unless they are Dask's and make no difference.

    ``maker`` is what takes the others, one of which may have been misspelt. Returns the preloads and their
    arguments that ``scheduler_kwargs`` asks for, and its plugins after the given ones.
    """
    preload, argv = None, None
    told: tuple[Any, ...] = read("plugins", plugins, tuple, "a list of plugins")
    for name, value in words.items():
        if name == "scheduler_kwargs" and value:
            unknown = [word for word in value if word not in _OF_SCHEDULER and word not in _IDLE_OF_CLUSTER]
            if unknown:
                known = ", ".join(_OF_SCHEDULER)
                raise UsageError(f"scheduler_kwargs: a scheduler here has no {', '.join(unknown)}; it takes {known}")
            preload, argv, told = value.get("preload"), value.get("preload_argv"), (*told, *(value.get("plugins") or ()))
        elif name in _IDLE_OF_CLUSTER or value is None or value in _HARMLESS.get(name, ()):
            continue
        elif name in _MISSED_OF_CLUSTER:
            raise UsageError(f"{name}={value!r:.80}: a cluster on one machine has none; {_MISSED_OF_CLUSTER[name]}")
        elif name != "scheduler_kwargs":
            mend = mend_of(name, parameters_of(maker) or (), "docs/api.md lists those that it has")
            raise TypeError(f"LocalCluster has no argument {name!r}; {mend}")
    return preload, argv, told


def take_client_words(address: Any, words: dict[str, Any]) -> Any:
    """Take Dask's own keywords of a client out of ``words``; return the address, or what a scheduler file says it is."""
    for name in _IDLE_OF_CLIENT & words.keys():
        del words[name]
    path = words.pop("scheduler_file", None)
    if path is None:
        return address
    import json  # noqa: PLC0415 - 3 ms, and few clients are told by a file

    with open(read("scheduler_file", path, os.fspath, FILE), encoding="utf-8") as file:
        return json.load(file)["address"]


class Likeness:
    """What ``Client`` has so that scripts written for Dask find it."""

    loop: Any = None
    _ask: Callable[..., Any]

    def rebalance(self, futures: Any = None, workers: Any = None, **kwargs: Any) -> None:
        """Do nothing: a value is in this machine's memory once, and every worker reads it there."""

    def replicate(self, futures: Any, n: int | None = None, workers: Any = None, branching_factor: int = 2, **kwargs: Any) -> None:
        """Do nothing: a value is in this machine's memory once, and every worker reads it there."""

    def start(self, **kwargs: Any) -> None:
        """Do nothing: a client has begun when it is made."""

    def sync(self, func: Callable[..., Any], *args: Any, callback_timeout: float | str | None = None, **kwargs: Any) -> Any:
        """Run a coroutine function on an event loop of its own, in another thread, and return what it returns.

        Parameters
        ----------
        func : callable
            Called with the arguments; what it returns is awaited.
        callback_timeout : float or str, optional
            Seconds after which it is cancelled, with ``TimeoutError``.
        """
        return run_coroutine(lambda: func(*args, **kwargs), parse_timeout(callback_timeout))

    def write_scheduler_file(self, scheduler_file: str | os.PathLike[str]) -> None:
        """Write how the cluster is reached to a file, for ``Client(scheduler_file=…)`` in other processes of this user."""
        import json  # noqa: PLC0415 - 3 ms, and few write one

        path = read("scheduler_file", scheduler_file, os.fspath, FILE)
        info = self._ask("scheduler_info")
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"type": "Scheduler", "id": info["id"], "address": info["address"], "workers": {}}, file, indent=2)
