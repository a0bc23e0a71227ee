"""joblib on a cluster: ``joblib.parallel_config("localdask")``.

Importing this registers the backend, and so does a client that is made while joblib is imported,
or before it (``api/companions.py``). Each batch of joblib's is one task; a ``Parallel`` within a
task gives its batches to the same cluster, and leaves its slot while it waits for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from joblib._parallel_backends import AutoBatchingMixin, ParallelBackendBase, SequentialBackend
from joblib.parallel import register_parallel_backend

from localdask.api.client import get_client
from localdask.api.executor import ClientExecutor
from localdask.errors import UsageError
from localdask.processes.bodies import call

__all__ = ["LocaldaskBackend", "closed", "opened"]

#: How deep ``Parallel`` within ``Parallel`` still goes to the cluster; below that it runs where it is.
NESTING_MAX = 1


class LocaldaskBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """joblib's way to a client.

    Parameters
    ----------
    nesting_level : int, optional
        joblib's own: how many ``Parallel`` are around.
    client : Client, optional
        Which client; the current one by default.
    """

    default_n_jobs = -1
    supports_retrieve_callback = True
    supports_inner_max_num_threads = False

    def __init__(self, nesting_level: int | None = None, client: Any = None, **kwargs: Any) -> None:
        super().__init__(nesting_level=nesting_level, **kwargs)
        self._given = client
        self._executor: ClientExecutor | None = None

    def __reduce__(self) -> tuple[type[LocaldaskBackend], tuple[int | None]]:
        return (LocaldaskBackend, (self.nesting_level,))  # in a task the current client is the task's own

    @property
    def client(self) -> Any:
        """The client that it runs on."""
        if self._given is not None:
            return self._given
        try:
            return get_client()
        except ValueError:
            raise UsageError("joblib is to run on localdask, and there is no client: make one first, as `client = Client()`") from None

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many batches are to run at once; -1 is as many as the cluster has threads."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning; -1 is as many as the cluster has threads")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(sum(self.client.nthreads().values()) + 1 + n_jobs, 1)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **kwargs: Any) -> int:
        """Begin."""
        self.parallel = parallel
        self._executor = self.client.get_executor()
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Any:
        """Have a batch run; ``callback`` is given its future."""
        assert self._executor is not None, "configure comes first"
        future = self._executor.submit(call, func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Any) -> Any:
        """Return what a batch returned, or raise what it raised."""
        return out.result()

    @contextlib.contextmanager
    def retrieval_context(self) -> Iterator[None]:
        """Leave the slot of the task that waits in it, if any."""
        with self.client._link.blocking():
            yield

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """Return the backend of a ``Parallel`` within a batch."""
        level = (self.nesting_level or 0) + 1
        return (LocaldaskBackend(level) if level <= NESTING_MAX else SequentialBackend(nesting_level=level)), None

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancel what has not started: a batch failed."""
        self.terminate()
        if ensure_ready:
            self._executor = self.client.get_executor()

    def terminate(self) -> None:
        """End; what still runs is left to itself."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.abandon()


def opened(client: Any) -> None:
    """Do nothing: the backend is registered, and takes the client that is the current one when it is used."""


def closed(client: Any) -> None:
    """Do nothing."""


register_parallel_backend("localdask", LocaldaskBackend)
