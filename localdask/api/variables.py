"""``Variable``: one value under a name, which tasks and clients of a cluster set and read."""

from __future__ import annotations

from functools import partial
from typing import Any

from localdask.api.asking import Answer
from localdask.api.client import Client
from localdask.api.coordination import Coordinated
from localdask.api.futures import parse_timeout
from localdask.api.handing import kept, pack, taken, tell

__all__ = ["Variable"]


class Variable(Coordinated):
    """A value that all who know its name set and read: a future, or any object. Meanings as in Dask.

    The futures in the value are kept for as long as it is set, whoever else lets go of them. Objects
    are pickled, so that large ones are better scattered, and the future set. It outlives the client that set it.

    Parameters
    ----------
    name : str, optional
        What all who share it call it; made up by default, and then it is shared by being sent along.
    client : Client, optional
        Whom it asks; the current client by default.

    Examples
    --------
    >>> Variable("model").set(client.submit(train))  # doctest: +SKIP
    >>> Variable("model").get().result()  # doctest: +SKIP
    """

    def set(self, value: Any, timeout: float | str | None = "30 s") -> Any:
        """Give it a value, in place of the one it has; ``timeout`` is accepted for Dask's sake."""
        payload, keys = pack(value, f"the value of Variable {self.name!r}")
        return self._do("variable_set", self.name, payload, keys, then=partial(kept, value))

    def get(self, timeout: float | str | None = None) -> Any:
        """Return its value; wait for one when it has none.

        Parameters
        ----------
        timeout : float or str, optional
            Seconds, or text as ``"500 ms"``. Waits without end by default.

        Raises
        ------
        TimeoutError
            It was not set in time.
        """
        return self._do("variable_get", self.name, parse_timeout(timeout), then=_got, undo=_undo)

    def delete(self) -> Any:
        """Take its value away, and let go of the futures in it; who reads it waits until it is set again."""
        return self._do_at_once("variable_delete")


def _got(client: Client, answer: Answer) -> Any:
    return taken("variable_got", client, answer)[0]


def _undo(client: Client, request: int) -> None:
    tell(client, "variable_got", request)
