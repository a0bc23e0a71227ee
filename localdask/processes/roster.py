"""The workers of a scheduler as scripts see them: by address, as in Dask.

Made by ``Scheduler.workers`` each time; a view, which changes nothing and holds nothing. A
worker is found by its name as well, which is how everything here calls it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, ValuesView

from localdask.state.tasks import WorkerState

__all__ = ["Roster"]


class Roster(Mapping[str, WorkerState]):
    """A view on the workers that are registered.

    Parameters
    ----------
    workers : dict of str to WorkerState
        By name.
    """

    def __init__(self, workers: dict[str, WorkerState]) -> None:
        self._workers = workers

    def __getitem__(self, key: str) -> WorkerState:
        found = self._workers.get(key)
        if found is None:
            found = self._workers[key.rpartition("/")[2]]
            if found.address != key:
                raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter([worker.address for worker in list(self._workers.values())])

    def values(self) -> ValuesView[WorkerState]:
        return self._workers.values()  # each round trip looks at all, and a search by address is slow

    def __len__(self) -> int:
        return len(self._workers)

    def __repr__(self) -> str:
        return f"<workers {', '.join(self) or 'none'}>"
