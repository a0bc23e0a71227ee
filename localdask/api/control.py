"""What a client asks of its cluster beside tasks: functions run at once, restarts, and how things are.

``Client`` is made of this among others. Everything here is asked of the scheduler, and answered by
``api/reception.py``, so that it is the same for a client beside the cluster, in a task, and in another process.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterable
from types import CoroutineType
from typing import Any, TypeVar

from localdask.api.futures import parse_timeout
from localdask.errors import StartError
from localdask.system import codec, outcomes
from localdask.system.signatures import parameters_of

R = TypeVar("R")


def worker_names(workers: Any) -> tuple[str, ...]:
    """Return the names meant by a name, an address, a number, or a collection of them."""
    if workers is None:
        return ()
    if isinstance(workers, (str, int)):
        workers = [workers]
    elif not isinstance(workers, Iterable):
        raise TypeError(f"workers={workers!r:.80}; give a worker's name or address, or a list of them")
    names = []
    for worker in workers:
        text = f"w{worker}" if isinstance(worker, int) else str(worker)
        names.append(text.rsplit("/", 1)[-1])
    return tuple(names)


class Control:
    """What ``Client`` asks of its cluster."""

    status: str
    cluster: Any
    _check_running: Callable[[], None]
    _ask: Callable[..., Any]

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        workers: Any = None,
        wait: bool = True,
        nanny: bool = False,
        on_error: str = "raise",
        **kwargs: Any,
    ) -> Any:
        """Call a function on every worker now, outside the queue of tasks. Meanings as in Dask.

        Parameters
        ----------
        function : callable
            Called in each worker; a parameter named ``dask_worker`` is given the worker.
        workers : list of str, optional
            Which workers; all by default.
        wait : bool, default True
            Whether to wait for the answers.
        nanny : bool, default False
            Whether to call it in the nannies instead: a parameter named ``dask_worker`` is then given the nanny,
            which does nothing else meanwhile.
        on_error : {"raise", "return", "ignore"}
            What to do with a call that raised.

        Returns
        -------
        dict
            Answers by worker address; None when not waiting.
        """
        if on_error not in ("raise", "return", "ignore"):
            raise ValueError(f"on_error={on_error!r}; it is 'raise', 'return' or 'ignore'")
        _check_call("run", function)
        call = codec.dumps((function, args, kwargs), "the function or an argument of run")
        answers: dict[str, bytes | None] = self._ask("run", call, worker_names(workers), wait, nanny)
        if not wait:
            return None
        shown = {}
        for address, answer in answers.items():
            outcome = _outcome(address, answer, "nanny of worker" if nanny else "worker")
            if isinstance(outcome, outcomes.Ok):
                shown[address] = outcome.value
            elif on_error == "raise":
                raise outcome.exception
            elif on_error == "return":
                shown[address] = outcome.exception
        return shown

    def run_on_scheduler(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> R:
        """Call a function in the scheduler's process; a parameter named ``dask_scheduler`` is given the scheduler.

        What a coroutine function returns is awaited, in a thread of its own. From another process or a task the function,
        its arguments and its result travel by pickle.
        """
        _check_call("run_on_scheduler", function)
        self._check_running()
        if self.cluster is not None:
            return call_with_scheduler(self.cluster.scheduler, function, args, kwargs)  # type: ignore[no-any-return]
        call = codec.dumps((function, args, kwargs), "the function or an argument of run_on_scheduler")
        return codec.loads(self._ask("run_on_scheduler", call))  # type: ignore[no-any-return]

    def restart(self, timeout: float | str | None = None, wait_for_workers: bool = True) -> None:
        """Forget all tasks (their futures are cancelled) and replace every worker process."""
        self._ask("restart", parse_timeout(timeout), wait_for_workers)

    def wait_for_workers(self, n_workers: int, timeout: float | str | None = None) -> None:
        """Wait until so many workers are there.

        Raises
        ------
        WorkerStartTimeoutError
            Fewer arrived in time.
        ValueError
            ``n_workers`` is not a positive integer.
        """
        if not isinstance(n_workers, int) or n_workers < 1:
            raise ValueError(f"`n_workers` must be a positive integer. Instead got {n_workers}.")
        self._ask("wait_for_workers", n_workers, parse_timeout(timeout))

    def scheduler_info(self, n_workers: int = -1) -> dict[str, Any]:
        """Return what is known of the scheduler and its workers, in Dask's shape."""
        info: dict[str, Any] = self._ask("scheduler_info")
        if n_workers >= 0:
            info["workers"] = dict(list(info["workers"].items())[:n_workers])
        return info

    def nthreads(self, workers: Any = None) -> dict[str, int]:
        """Return the number of threads of each worker, by address."""
        names = worker_names(workers)
        found = self.scheduler_info()["workers"]
        return {address: worker["nthreads"] for address, worker in found.items() if not names or worker["name"] in names}

    ncores = nthreads


def _check_call(what: str, function: Any) -> None:
    if not callable(function):
        raise TypeError(f"{what} calls a function, and {function!r:.80} is none: give a function and its arguments")


def _outcome(address: str, answer: bytes | None, who: str) -> Any:
    if answer is None:
        return outcomes.Err(StartError(f"{who} {address.rpartition('/')[2]} died before it answered"))
    return outcomes.loads_outcome(answer)


def call_with_scheduler(scheduler: Any, function: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """Call a user's function; its parameter ``dask_scheduler``, if it has one, is given the scheduler."""
    if "dask_scheduler" in (parameters_of(function) or ()):
        kwargs = {**kwargs, "dask_scheduler": scheduler}
    value = function(*args, **kwargs)
    return run_coroutine(lambda: value) if type(value) is CoroutineType else value


def run_coroutine(begin: Callable[[], Awaitable[Any]], timeout: float | None = None) -> Any:
    """Return what an awaitable returns, awaited on an event loop of its own in another thread: in this one, a loop may run already."""
    import asyncio  # noqa: PLC0415 - only who has coroutines pays for it

    found: list[Any] = []
    errors: list[BaseException] = []

    async def run() -> None:
        found.append(await asyncio.wait_for(begin(), timeout))

    def live() -> None:
        try:
            asyncio.run(run())
        except asyncio.TimeoutError as error:
            errors.append(error if isinstance(error, TimeoutError) else TimeoutError(f"timed out after {timeout} s."))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=live, name="localdask-sync", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return found[0]
