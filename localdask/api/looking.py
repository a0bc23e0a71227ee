"""Where values lie, what runs where, and how large things are: ``who_has``, ``has_what``, ``processing``, ``nbytes``, ``story``.

``Client`` is made of this among others. All of it is asked of the scheduler and answered by
``api/inspection.py``, in Dask's shapes, so that it works from any client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from localdask.api.control import worker_names
from localdask.api.futures import Future, futures_in, is_collection, parse_timeout
from localdask.system.keys import is_key


def keys_of(futures: Any) -> list[str]:
    """Return the keys of a future, a key, a Dask collection, or several of them."""
    if is_collection(futures):
        futures = futures_in(futures)
    if isinstance(futures, str) or not isinstance(futures, Iterable):
        futures = [futures]
    return [_key_of(future) for future in futures]


def _key_of(future: Any) -> Any:
    if isinstance(future, Future):
        return future.key
    if is_key(future):
        return future
    raise TypeError(f"{future!r:.80} is no future and no key")


class Looking:
    """What ``Client`` tells of its cluster's data, and how workers are taken out of it."""

    _ask: Callable[..., Any]

    def who_has(self, futures: Any = None) -> dict[str, list[str]]:
        """Return the addresses of the workers that hold each result, by key.

        Parameters
        ----------
        futures : list of Future or str, or persisted Dask collection, optional
            Futures or keys; every key by default.

        Returns
        -------
        dict
            An empty list stands for what no worker holds: not there yet, scattered, or outliving the worker that made it.
        """
        return self._ask("who_has", None if futures is None else keys_of(futures))  # type: ignore[no-any-return]

    def has_what(self, workers: Any = None) -> dict[str, list[str]]:
        """Return the keys that each worker holds, by its address."""
        return self._ask("has_what", worker_names(workers))  # type: ignore[no-any-return]

    def processing(self, workers: Any = None) -> dict[str, list[str]]:
        """Return the keys of the tasks that run or wait on each worker, by its address."""
        return self._ask("processing", worker_names(workers))  # type: ignore[no-any-return]

    def nbytes(self, keys: Any = None, summary: bool = True) -> dict[str, int]:
        """Return the size of each result in bytes, by key, or with ``summary`` by the part of the key that names its function."""
        return self._ask("nbytes", None if keys is None else keys_of(keys), bool(summary))  # type: ignore[no-any-return]

    def story(self, *keys_or_futures: Any) -> list[tuple[str, str, str, str, int, tuple[int, ...]]]:
        """Return the remembered moves of these tasks, oldest first: (key, from, to, worker, attempt, generations).

        The generations are those of the worker's preloads, in their order: in the move that ends a task, those that it ran on.
        """
        return [(*row[:5], tuple(row[5])) for row in self._ask("story", keys_of(keys_or_futures))]

    def retire_workers(
        self, workers: Any = None, close_workers: bool = True, grace: float | str | None = None
    ) -> dict[str, dict[str, Any]]:
        """Take workers out of the cluster without losing anything: their tasks finish, and what only they hold is kept.

        They are not replaced; ``cluster.scale(n)`` brings the cluster to n workers again.

        Parameters
        ----------
        workers : list of str, optional
            Names or addresses; those that are not there are passed over. By default the workers that have nothing to do,
            but for one.
        close_workers : bool, default True
            False leaves the processes there, and gives them no more tasks.
        grace : float or str, optional
            Seconds that running tasks are waited for, 60 by default; what runs longer is done again elsewhere.

        Returns
        -------
        dict
            What was known of each retired worker, by address, as in ``scheduler_info()["workers"]``.
        """
        names = None if workers is None else worker_names(workers)
        return self._ask("retire_workers", names, bool(close_workers), parse_timeout(grace, "grace"))  # type: ignore[no-any-return]
