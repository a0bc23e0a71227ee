"""When and where tasks ran: ``client.get_task_stream``, and the blocks that watch what runs in them.

``Client`` is made of this among others. The scheduler notes when the word of a task's end
came and how long the task took (``processes/recording.py``); here these become times and threads. A
word may come a little after the end, in the company of others, so the tasks of a thread are laid out backwards from
what came last, none over another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from localdask.api.futures import find_client, parse_timeout
from localdask.system.keys import group_of

W = TypeVar("W")

__all__ = ["Streaming", "TaskWatch", "get_task_metadata", "get_task_stream", "stream_of"]

#: How long a word may be on its way, in seconds: a task that would end earlier than that ran beside the others.
LATE_S = 0.25


class Streaming:
    """What ``Client`` tells of tasks that ran."""

    _ask: Callable[..., Any]

    def get_task_stream(
        self, start: float | str | None = None, stop: float | str | None = None, count: int | None = None
    ) -> list[dict[str, Any]]:
        """Return when and where tasks ran, in the order of their ends. As in Dask.

        The first call has the cluster note it from then on; of the last 100,000 tasks it is known.

        Parameters
        ----------
        start, stop : float or str, optional
            Times as of ``time.time()``, or text like ``"500 ms"`` for so long ago: only what ran between them.
        count : int, optional
            Only the last so many tasks.

        Returns
        -------
        list of dict
            ``key``, ``name`` (of the function), ``worker``, ``thread`` (a number), ``status``, ``nbytes``, ``type`` and ``startstops``.
        """
        now = self._ask("record_tasks")
        since, until = (now - (parse_timeout(at, "start or stop") or 0.0) if isinstance(at, str) else at for at in (start, stop))
        stream = stream_of(self._ask("recorded_tasks", since, count))
        return [row for row in stream if until is None or row["startstops"][0]["start"] <= until]


def stream_of(rows: Iterable[Iterable[Any]]) -> list[dict[str, Any]]:
    """Return what is told of tasks that ran: their times and threads are made of when word of their ends came."""
    threads: dict[str, list[float]] = {}
    stream = []
    for key, worker, nthreads, came_at, duration_s, is_ok, nbytes, kind in reversed([*rows]):
        begun = threads.setdefault(worker, [math.inf] * nthreads)
        thread = max(range(len(begun)), key=begun.__getitem__)
        if begun[thread] < came_at - LATE_S:
            thread = len(begun)
            begun.append(math.inf)
        stop = min(came_at, begun[thread])
        begun[thread] = start = stop - duration_s
        stream.append(
            {
                "key": key,
                "name": group_of(key),
                "worker": worker,
                "thread": thread,
                "status": "OK" if is_ok else "error",
                "startstops": [{"action": "compute", "start": start, "stop": stop}],
                "nbytes": nbytes,
                "type": kind,
            }
        )
    return stream[::-1]


class TaskWatch:
    """A block within which the tasks of a client's cluster are watched."""

    def __init__(self, client: Any = None) -> None:
        self._client = client
        self._began_at = 0.0

    def _begin(self) -> None:
        self._client = self._client or find_client[0]()
        self._began_at = self._client._ask("record_tasks")

    async def _apart(self, call: Callable[..., W], *args: Any) -> W:
        """Return what a call returns that asks the cluster, made in a thread without an event loop."""
        import asyncio  # noqa: PLC0415 - only asynchronous users pay for it

        self._client = self._client or find_client[0]()  # here: it may be this thread's own
        return await asyncio.to_thread(call, *args)

    def _end(self) -> list[dict[str, Any]]:
        return stream_of(self._client._ask("recorded_tasks", self._began_at, None))


class get_task_stream(TaskWatch):
    """Watch when and where tasks run in a block: ``with get_task_stream() as stream:`` leaves it in ``stream.data``.

    Parameters
    ----------
    client : Client, optional
        Whose cluster; the current client's by default.
    plot, filename
        Accepted for Dask's sake; ``performance_report`` draws it.

    Attributes
    ----------
    data : list of dict
        As ``Client.get_task_stream`` gives it.
    """

    def __init__(self, client: Any = None, plot: bool | str = False, filename: str = "task-stream.html") -> None:
        super().__init__(client)
        self.data: list[dict[str, Any]] = []

    def __enter__(self) -> get_task_stream:
        self._begin()
        return self

    def __exit__(self, *error: object) -> None:
        self.data += self._end()

    async def __aenter__(self) -> get_task_stream:
        return await self._apart(self.__enter__)

    async def __aexit__(self, *error: object) -> None:
        await self._apart(self.__exit__, *error)


class get_task_metadata(TaskWatch):
    """Note what became of the tasks that run in a block: ``with get_task_metadata() as tasks:``.

    Attributes
    ----------
    metadata : dict
        By key: ``worker``, ``start``, ``stop`` (as of ``time.time()``), ``nbytes`` and ``type``, of the last run.
    state : dict
        By key: ``"memory"`` or ``"erred"``.
    """

    def __init__(self, client: Any = None) -> None:
        super().__init__(client)
        self.metadata: dict[str, dict[str, Any]] = {}
        self.state: dict[str, str] = {}

    def __enter__(self) -> get_task_metadata:
        self._begin()
        return self

    def __exit__(self, *error: object) -> None:
        for row in self._end():
            (times,) = row["startstops"]
            told = {name: row[name] for name in ("worker", "nbytes", "type")}
            self.metadata[row["key"]] = {**told, "start": times["start"], "stop": times["stop"]}
            self.state[row["key"]] = "memory" if row["status"] == "OK" else "erred"

    async def __aenter__(self) -> get_task_metadata:
        return await self._apart(self.__enter__)

    async def __aexit__(self, *error: object) -> None:
        await self._apart(self.__exit__, *error)
