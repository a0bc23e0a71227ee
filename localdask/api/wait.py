"""``wait``: until futures are done, and what it returns: which are done, and which are not.

Imported when somebody waits: the first ``NamedTuple`` of a process takes a millisecond, in which Python makes
the classes of its syntax trees.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from localdask.api.futures import CANCELLED, LOST, Future, dask_of, futures_given, parse_timeout

__all__ = ["DoneAndNotDoneFutures", "done_and_not", "wait"]


class DoneAndNotDoneFutures(NamedTuple):
    """What ``wait`` returns."""

    done: set[Future[Any]]
    not_done: set[Future[Any]]


def wait(fs: Any, timeout: float | str | None = None, return_when: str = "ALL_COMPLETED") -> DoneAndNotDoneFutures:
    """Wait until all futures, or the first of them, are done. Meanings as in Dask.

    Parameters
    ----------
    fs : Future, Dask collection, or nested collection of them
        What to wait for: of a collection, what ``persist`` began.
    timeout : float or str, optional
        Seconds, or text as ``"500 ms"``.
    return_when : {"ALL_COMPLETED", "FIRST_COMPLETED"}
        When to return.

    Returns
    -------
    DoneAndNotDoneFutures
        Two sets, ``done`` and ``not_done``.

    Raises
    ------
    TimeoutError
        Not done in time.
    FuturesCancelledError
        Some of those that are done were cancelled.
    """
    futures = futures_given(fs, "wait")
    if return_when not in ("ALL_COMPLETED", "FIRST_COMPLETED"):
        raise NotImplementedError(f"return_when={return_when!r}; localdask, like Dask, knows 'ALL_COMPLETED' and 'FIRST_COMPLETED'")
    if not futures:
        distributed = dask_of(fs)
        return DoneAndNotDoneFutures(set(), set()) if distributed is None else distributed.wait(fs, timeout, return_when)
    n = 1 if return_when == "FIRST_COMPLETED" else None
    # An asynchronous client gives an awaitable of it.
    found: DoneAndNotDoneFutures = futures[0]._client._wait_for(futures, parse_timeout(timeout), n)
    return found


def done_and_not(futures: list[Future[Any]]) -> DoneAndNotDoneFutures:
    """Return which futures are done and which are not; ``FuturesCancelledError`` if some were cancelled."""
    done = {future for future in futures if future.done()}
    cancelled = [f for f in done if f.status in (CANCELLED, LOST)]
    if cancelled:
        from localdask.cancellations import FutureCancelledError, FuturesCancelledError  # noqa: PLC0415 - see there

        raise FuturesCancelledError([FutureCancelledError(f.key, f._state.reason, f._state.message) for f in cancelled])
    return DoneAndNotDoneFutures(done, {future for future in futures if future not in done})
