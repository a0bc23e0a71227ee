"""``as_completed``: futures one by one, in the order in which they are done.

Each future that is watched puts itself into a queue when it is done, under its link's lock; whoever
iterates takes from that queue, in a thread or in a coroutine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from localdask.api.futures import ERROR, Future, FutureState, LoopWaiter, dask_of, parse_timeout

R = TypeVar("R")


class _Arrivals:
    """Where futures arrive as they are done, and the coroutine that waits for one, if any."""

    __slots__ = ("queue", "sleeper")

    def __init__(self) -> None:
        self.queue: SimpleQueue[Any] = SimpleQueue()
        self.sleeper: LoopWaiter | None = None


class _Arrival:
    __slots__ = ("arrivals", "future")

    def __init__(self, arrivals: _Arrivals, future: Future[Any]) -> None:
        self.arrivals = arrivals
        self.future = future

    def notify(self, state: FutureState) -> None:
        self.arrivals.queue.put(self.future)
        sleeper = self.arrivals.sleeper
        if sleeper is not None:
            sleeper.notify(state)


class as_completed(Generic[R]):
    """Iterate over futures in the order in which they are done. Meanings as in Dask.

    Parameters
    ----------
    futures : iterable of Future
        What to wait for; ``add`` and ``update`` add more on the way.
    with_results : bool, default False
        Yield ``(future, result)`` instead of futures. The result of a cancelled one is its ``CancelledError``.
    raise_errors : bool, default True
        With results: raise a failed task's error; otherwise ``(type, error, traceback)`` takes the result's place.
    timeout : float or str, optional
        Seconds from now within which all must be done, else ``TimeoutError``.

    Examples
    --------
    >>> for future in as_completed(client.map(abs, range(3))):  # doctest: +SKIP
    ...     print(future.result())
    """

    def __new__(cls, futures: Any = (), *args: Any, **kwargs: Any) -> Any:
        """Make one; of futures of a Dask cluster, make Dask's."""
        distributed = dask_of(futures)
        return object.__new__(cls) if distributed is None else distributed.as_completed(futures, *args, **kwargs)

    def __init__(
        self,
        futures: Iterable[Future[R]] = (),
        loop: Any = None,
        with_results: bool = False,
        raise_errors: bool = True,
        *,
        timeout: float | str | None = None,
    ) -> None:
        seconds = parse_timeout(timeout)
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._timeout = seconds
        self._arrivals = _Arrivals()
        self._client: Any = None
        self._n_out = 0
        self.with_results = with_results
        self.raise_errors = raise_errors
        self.update(futures)

    def add(self, future: Future[R]) -> None:
        """Wait for one more future."""
        if not isinstance(future, Future):
            raise TypeError(f"as_completed yields futures, and {future!r:.80} is none: give what submit, map or futures_of returned")
        self._n_out += 1
        self._client = future._client
        self._client._when_done(future._state, _Arrival(self._arrivals, future))

    def update(self, futures: Iterable[Future[R]]) -> None:
        """Wait for more futures."""
        if not isinstance(futures, Iterable):
            raise TypeError(f"as_completed takes an iterable of futures, and {futures!r:.80} is none: give a list")
        for future in futures:
            self.add(future)

    def count(self) -> int:
        """Return how many are not handed out yet."""
        return self._n_out

    def is_empty(self) -> bool:
        """Return whether all were handed out."""
        return self._n_out == 0

    def has_ready(self) -> bool:
        """Return whether one can be had without waiting."""
        return not self._arrivals.queue.empty()

    def clear(self) -> None:
        """Wait for nothing any more."""
        self._arrivals = _Arrivals()
        self._n_out = 0

    def _take(self, block: bool) -> Future[R]:
        queue = self._arrivals.queue
        try:
            future: Future[R] = queue.get_nowait()
        except Empty:
            if not block:
                raise
            future = self._take_next(queue)
        self._n_out -= 1
        return future

    def _take_next(self, queue: SimpleQueue[Any]) -> Future[R]:
        try:
            with self._client._link.blocking():
                return queue.get(timeout=self._remaining())  # type: ignore[no-any-return]
        except Empty:
            raise TimeoutError(f"timed out after {self._timeout} s.") from None

    def _remaining(self) -> float | None:
        return None if self._deadline is None else min(max(self._deadline - time.monotonic(), 0), threading.TIMEOUT_MAX)

    def _shown(self, future: Future[R]) -> Any:
        if not self.with_results:
            return future
        instead = self._instead(future)
        return future, future.result() if instead is None else instead

    def _instead(self, future: Future[R]) -> Any:
        """Return what takes the place of a done future's result, or None when it has one, or an error to raise."""
        state = future._state
        if state.status == ERROR and not self.raise_errors:
            error = self._client._exception_now(state)
            return None if error is None else (type(error), error, error.__traceback__)
        return self._client._cancellation_of(state)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._n_out == 0:
            raise StopIteration
        return self._shown(self._take(block=True))

    def next_batch(self, block: bool = True) -> list[Any]:
        """Return all that are done now, at least one when ``block``."""
        batch = [self._shown(self._take(block=True))] if block and self._n_out else []
        while self._n_out:
            try:
                batch.append(self._shown(self._take(block=False)))
            except Empty:
                break
        return batch

    def batches(self) -> Iterator[list[Any]]:
        """Iterate over batches of what is done."""
        while self._n_out:
            yield self.next_batch(block=True)

    def __aiter__(self) -> as_completed[R]:
        return self

    async def __anext__(self) -> Any:
        if self._n_out == 0:
            raise StopAsyncIteration
        await self._one_ready()
        future = self._take(block=False)
        if not self.with_results:
            return future
        instead = self._instead(future)
        return future, await future if instead is None else instead

    async def _one_ready(self) -> None:
        """Wait until one can be had without waiting."""
        arrivals = self._arrivals
        if not arrivals.queue.empty():
            return
        sleeper = arrivals.sleeper = LoopWaiter(1)
        try:
            if arrivals.queue.empty():
                with self._client._link.blocking():
                    if not await sleeper.wait(self._remaining()):
                        raise TimeoutError(f"timed out after {self._timeout} s.")
        finally:
            arrivals.sleeper = None
