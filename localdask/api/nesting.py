"""Work that a task gives to its own cluster: ``worker_client``, and the slot a task may leave meanwhile.

A task that waits for others by ``result``, ``gather`` or ``wait`` leaves its slot while it
waits, so none of this is needed against deadlocks; it says so for a whole block, as code written
for Dask does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from localdask.api.client import Client, get_client
from localdask.processes.runner import current_runner, rejoin, secede

__all__ = ["local_client", "worker_client"]


@contextlib.contextmanager
def worker_client(timeout: Any = None, separate_thread: bool = True) -> Iterator[Client]:
    """Give a task the client of its own cluster for a block. Meanings as in Dask.

    Parameters
    ----------
    timeout : optional
        Accepted for Dask's sake: a task's client is always there.
    separate_thread : bool, default True
        Whether other tasks get this one's slot for the length of the block.

    Raises
    ------
    ValueError
        It is not called in a task's own thread.

    Examples
    --------
    >>> def total(n):
    ...     with worker_client() as client:
    ...         return sum(client.gather(client.map(abs, range(n))))
    """
    runner = current_runner()
    if runner is None:
        raise ValueError("worker_client() was called where no task runs; elsewhere use get_client()")
    leaves_slot = separate_thread and not runner.has_seceded
    if leaves_slot:
        secede()
    try:
        with get_client().as_current() as client:
            yield client
    finally:
        if leaves_slot:
            rejoin()


#: Dask's old name of ``worker_client``.
local_client = worker_client
