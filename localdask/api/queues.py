"""``Queue``: values that tasks and clients of a cluster hand to each other in order, each to one taker."""

from __future__ import annotations

from functools import partial
from typing import Any

from localdask.api.asking import Answer
from localdask.api.client import Client
from localdask.api.coordination import Coordinated, value_of
from localdask.api.futures import parse_timeout
from localdask.api.handing import kept, pack, taken, tell
from localdask.parameters import check_count

__all__ = ["Queue"]


class Queue(Coordinated):
    """A queue of futures, or of any objects, under a name. Meanings as in Dask.

    The futures in a value are kept while it is in the queue. What a task or client takes and
    does not receive, because it dies or gives up at that moment, goes back to the front. Objects are pickled,
    so that large ones are better scattered, and the future put. It outlives the client that made it.

    Parameters
    ----------
    name : str, optional
        What all who share it call it; made up by default, and then it is shared by being sent along.
    client : Client, optional
        Whom it asks; the current client by default.
    maxsize : int, default 0
        How many values there is room for; 0 for any number. The first who uses the queue says it.

    Examples
    --------
    >>> def produce(n):
    ...     queue = Queue("numbers")
    ...     for i in range(n):
    ...         queue.put(i)
    >>> client.submit(produce, 3)  # doctest: +SKIP
    >>> [Queue("numbers").get() for _ in range(3)]  # doctest: +SKIP
    [0, 1, 2]
    """

    def __init__(self, name: str | None = None, client: Client | None = None, maxsize: int = 0) -> None:
        super().__init__(name, client)
        self.maxsize = check_count("maxsize", maxsize) or 0

    def __reduce__(self) -> Any:
        return type(self), (self.name, None, self.maxsize)

    def put(self, value: Any, timeout: float | str | None = None) -> Any:
        """Put a value in; wait while there is no room.

        Parameters
        ----------
        value : Future or object
            The value.
        timeout : float or str, optional
            Seconds, or text as ``"500 ms"``. Waits without end by default.

        Raises
        ------
        TimeoutError
            There was no room in time, and the value is not in the queue.
        """
        payload, keys = pack(value, f"the value for Queue {self.name!r}")
        return self._do("queue_put", self.name, self.maxsize, payload, keys, parse_timeout(timeout), then=partial(kept, value))

    def get(self, timeout: float | str | None = None, batch: bool | int = False) -> Any:
        """Take the first value out; wait while there is none.

        Parameters
        ----------
        timeout : float or str, optional
            Seconds, or text as ``"500 ms"``. Waits without end by default.
        batch : bool or int, default False
            How many values to return, in a list: as many as that, or with True all that are there now.

        Raises
        ------
        TimeoutError
            There were not enough in time; those that were there stay.
        """
        if batch is False:
            return self._take(1, timeout, _first)
        if batch is not True and batch < 1:
            raise ValueError(f"Queue.get(batch={batch}): give True, or how many values to take")
        return self._take(0 if batch is True else batch, timeout, _all)

    def _take(self, n: int, timeout: float | str | None, then: Any) -> Any:
        return self._do("queue_take", self.name, self.maxsize, n, parse_timeout(timeout), then=then, undo=_give_back)

    def qsize(self) -> Any:
        """Return how many values are in it."""
        return self._do("queue_size", self.name, self.maxsize, then=value_of)

    def close(self) -> Any:
        """Use it no more. When all clients that used it have said so, it is forgotten with what is in it."""
        return self._do_at_once("queue_close")


def _all(client: Client, answer: Answer) -> list[Any]:
    return taken("queue_taken", client, answer)


def _first(client: Client, answer: Answer) -> Any:
    return _all(client, answer)[0]


def _give_back(client: Client, request: int) -> None:
    tell(client, "queue_take_back", request)
