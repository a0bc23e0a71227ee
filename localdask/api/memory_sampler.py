"""How much memory a cluster has in use while a block of code runs: ``MemorySampler``.

A thread of the client's process looks at intervals, and asks the scheduler as ``scheduler_info`` does; the
cluster itself does nothing for it.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from localdask.api.futures import find_client, parse_timeout
from localdask.errors import LocaldaskError, UsageError

__all__ = ["MemorySampler", "cluster_nbytes"]

#: What each measure counts of a worker, as ``scheduler_info`` describes it.
_MEASURES: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "process": lambda metrics: metrics["memory"],
    "managed": lambda metrics: metrics["managed_bytes"],
    "spilled": lambda metrics: metrics["spilled_bytes"]["disk"],
}


def cluster_nbytes(workers: Iterable[Mapping[str, Any]], measure: str) -> int:
    """Return how much memory workers have in use together, by one measure."""
    count = _MEASURES[measure]
    if measure != "process":
        return sum(count(worker["metrics"]) for worker in workers)
    return sum({worker["pid"]: count(worker["metrics"]) for worker in workers}.values())  # workers that are threads share one process


class MemorySampler:
    """Note how much memory a cluster has in use while blocks of code run, to compare them.

    Attributes
    ----------
    samples : dict of str to list of (float, int)
        By the label of a block: when (``time.time()``), and how many bytes. The first and the last are of its beginning and its end.

    Examples
    --------
    >>> from localdask import LocalCluster, MemorySampler
    >>> sampler = MemorySampler()
    >>> with LocalCluster(n_workers=1) as cluster, cluster.get_client() as client:
    ...     with sampler.sample("squares"):
    ...         total = client.submit(sum, [x * x for x in range(10)]).result()
    >>> list(sampler.samples)
    ['squares']
    """

    def __init__(self) -> None:
        self.samples: dict[str, list[tuple[float, int]]] = {}
        self._numbers = itertools.count(1)

    def sample(self, label: str | None = None, *, client: Any = None, measure: str = "process", interval: float | str = 0.5) -> _Sampling:
        """Return a block, for ``with`` or ``async with``, in which the memory is sampled.

        Parameters
        ----------
        label : str, optional
            What to call it in ``samples``; a number by default. Another block of that name is replaced.
        client : Client, optional
            Whose cluster; the current client's by default.
        measure : {"process", "managed", "spilled"}
            What the workers' processes have to themselves, what their results take, or what of these lies on disk. Dask's other
            measures take results for a part of their process's memory, and here large ones are in memory that all share.
        interval : float or str, default 0.5
            Seconds between two samples.
        """
        if measure not in _MEASURES:
            raise UsageError(f"measure={measure!r}; it is {', '.join(map(repr, _MEASURES))}")
        seconds = parse_timeout(interval, "interval")
        if seconds is None or not seconds > 0:
            raise UsageError(f"interval={interval!r}; it is a time, such as 0.5 or '100 ms'")
        return _Sampling(self.samples, label or f"sample-{next(self._numbers)}", client, measure, seconds)

    def to_pandas(self, *, align: bool = False) -> Any:
        """Return the samples as a ``pandas.DataFrame``: a column for each label, by time.

        Parameters
        ----------
        align : bool, default False
            Whether times count from the first sample of each label, so that blocks can be compared that ran one after another.
        """
        import pandas  # noqa: PLC0415 - an extra of the user's

        columns = {}
        for label, samples in self.samples.items():
            times = pandas.to_datetime([at for at, _ in samples], unit="s")
            column = pandas.Series([nbytes for _, nbytes in samples], index=times - times[0] if align else times)
            columns[label] = column[~column.index.duplicated()]
        frame = pandas.DataFrame(columns)
        return frame.ffill().where(frame.bfill().notna()) if len(columns) > 1 else frame  # each holds until its next, or last, sample

    def plot(self, *, align: bool = False, **kwargs: Any) -> Any:
        """Draw the samples with ``pandas`` and ``matplotlib``, in GiB; ``kwargs`` are those of ``pandas.DataFrame.plot``."""
        return (self.to_pandas(align=align) / 2**30).plot(**{"xlabel": "time", "ylabel": "Cluster memory (GiB)", **kwargs})


class _Sampling:
    """A block in which the memory is sampled. It looks at once, at intervals, and once more at its end."""

    def __init__(self, samples: dict[str, list[tuple[float, int]]], label: str, client: Any, measure: str, interval_s: float) -> None:
        self._samples = samples
        self._label = label
        self._client = client
        self._measure = measure
        self._interval_s = interval_s
        self._is_over = threading.Event()
        self._taken: list[tuple[float, int]] = []

    def _look(self) -> None:
        info = self._client._ask("scheduler_info")
        self._taken.append((time.time(), cluster_nbytes(info["workers"].values(), self._measure)))

    def _live(self) -> None:
        with contextlib.suppress(LocaldaskError, OSError):  # the cluster is gone, as who uses it learns from what they ask of it
            while not self._is_over.wait(self._interval_s):
                self._look()
            self._look()

    def __enter__(self) -> None:
        self._client = self._client or find_client[0]()
        self._look()
        self._thread = threading.Thread(target=self._live, name="localdask-memory-sampler", daemon=True)
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._samples[self._label] = self._taken

    async def __aenter__(self) -> None:
        import asyncio  # noqa: PLC0415 - only asynchronous users pay for it

        self._client = self._client or find_client[0]()  # here: it may be this thread's own
        await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *error: object) -> None:
        import asyncio  # noqa: PLC0415 - only asynchronous users pay for it

        await asyncio.to_thread(self.__exit__, *error)
