"""An executor of ``concurrent.futures`` over a client, for any library that takes one.

``Client`` is made of this among others. Its futures are real ones: a thread of each
executor, which ends by itself, brings them what their tasks came to, because callbacks of
a user's must not run where the scheduler's words are taken in.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures as standard
from functools import partial
from typing import Any, ParamSpec, TypeVar

from localdask.api.annotations import MAP_BATCH, TaskOptions, options_here
from localdask.api.callbacks import CallbackThread
from localdask.api.futures import CANCELLED, PENDING, Future, FutureState
from localdask.errors import ClosedError
from localdask.messages import Function, TaskSpec
from localdask.processes.bodies import call_on_rows
from localdask.processes.unsent import ARE_UNSENT, CANCEL_UNSENT
from localdask.system import codec

P = ParamSpec("P")
R = TypeVar("R")


class ClientExecutor(standard.Executor):
    """Runs calls on a cluster. Made by ``Client.get_executor``; everything means what it does in the standard library.

    A call that no worker was sent yet is cancelled by ``Future.cancel``; one that runs is not,
    and ``cancel`` returns False then. Initialisation code is the cluster's: a preload.
    """

    def __init__(self, client: Any, *, pure: bool, options: Mapping[str, Any]) -> None:
        self._client = client
        self._pure = pure
        self._options = dict(options)
        self._usual_options = TaskOptions(**options)
        self._is_shut = False
        self._shutting = threading.Lock()
        self._pending: weakref.WeakSet[ExecutorFuture] = weakref.WeakSet()
        self._messenger = CallbackThread("localdask-executor")

    @property
    def _max_workers(self) -> int:
        """How many calls run at once; libraries read it of the standard library's executors."""
        return sum(self._client.nthreads().values())

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> standard.Future[R]:
        """Have ``fn(*args, **kwargs)`` called on a worker.

        Returns
        -------
        concurrent.futures.Future
            The call's future.

        Raises
        ------
        RuntimeError
            After ``shutdown``.
        SerializationError
            The function or an argument cannot be pickled; the text names it.
        """
        function = codec.dumps_function(fn)
        return self._submit([self._spec(function, function, args, kwargs)])[0]

    def map(self, fn: Callable[..., R], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1) -> Iterator[R]:
        """Call ``fn`` on the elements of iterables, and iterate over what it returns, in order.

        Parameters
        ----------
        fn : callable
            The function.
        *iterables : iterable
            Its arguments; they are read to the end (of the shortest) at once.
        timeout : float, optional
            Seconds from now; a result that is not there by then is a ``TimeoutError``.
        chunksize : int, default 1
            How many calls make one task.
        """
        if chunksize < 1:
            raise ValueError(f"chunksize={chunksize!r}; it is at least 1")
        deadline = None if timeout is None else time.monotonic() + timeout
        rows: Iterator[tuple[Any, ...]] = zip(*iterables)  # noqa: B905 - the shortest ends it
        named = codec.dumps_function(fn)
        if chunksize == 1:
            made = self._submit_all(named, named, rows)
            return _results(made, deadline, self._cancel)
        packed = codec.dumps_function(partial(call_on_rows, fn))
        made = self._submit_all(Function(packed.function_id, named.name, packed.pickled), named, _chunks(rows, chunksize))
        return itertools.chain.from_iterable(_results(made, deadline, self._cancel))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. Idempotent.

        Parameters
        ----------
        wait : bool, default True
            Whether to return only when all calls are done.
        cancel_futures : bool, default False
            Whether to cancel those that have not started.
        """
        with self._shutting:
            self._is_shut = True
        pending = list(self._pending)
        if cancel_futures:
            self._cancel(pending)
        if wait:
            standard.wait(pending)
            self._messenger.end()

    def abandon(self) -> None:
        """Take no more calls and cancel those that are there, also what a worker was sent; what runs goes on unheard."""
        self.shutdown(wait=False)
        with contextlib.suppress(ClosedError):
            self._client.cancel([task for future in list(self._pending) if (task := future._task) is not None])

    # ── inside ───────────────────────────────────────────────────────────────

    def _spec(self, function: Function, named: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TaskSpec:
        arguments, inputs, keeps = self._client._pack_arguments(args, kwargs)
        options = self._usual_options if options_here() is None else TaskOptions(**self._options)
        spec: TaskSpec = self._client._spec(self._client._key(named, arguments, self._pure), function, arguments, inputs, options)
        spec.keeps = keeps
        return spec

    def _submit_all(self, function: Function, named: Function, rows: Iterator[tuple[Any, ...]]) -> list[ExecutorFuture]:
        made: list[ExecutorFuture] = []
        while batch := [self._spec(function, named, row, {}) for row in itertools.islice(rows, MAP_BATCH)]:
            made += self._submit(batch)
        return made

    def _submit(self, specs: list[TaskSpec]) -> list[ExecutorFuture]:
        with self._shutting:
            if self._is_shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            made = [ExecutorFuture(self, task) for task in self._client._submit(specs)]
            self._pending.update(made)
        self._watch(made)
        return made

    def _watch(self, futures: list[ExecutorFuture]) -> None:
        """Bring these futures what their tasks come to."""
        self._messenger.expect(len(futures))
        for future in futures:
            if (task := future._task) is not None:
                self._client._when_done(task._state, future)

    def _cancel(self, futures: Iterable[ExecutorFuture]) -> None:
        """Cancel those that no worker was sent."""
        tasks = {task.key: future for future in futures if (task := future._task) is not None and not future.done()}
        for key in self._ask(CANCEL_UNSENT, list(tasks)):
            standard.Future.cancel(tasks[key])

    def _ask(self, what: str, keys: list[str]) -> list[str]:
        """Return what the scheduler answers about these keys; nothing once the cluster or the client is closed."""
        try:
            answer: list[str] = self._client._ask(what, keys) if keys else []
        except ClosedError:
            return []
        return answer


def _chunks(rows: Iterator[tuple[Any, ...]], size: int) -> Iterator[tuple[Any, ...]]:
    """Give the arguments of calls of ``call_on_rows``."""
    while chunk := list(itertools.islice(rows, size)):
        yield (chunk,)


def _results(made: list[ExecutorFuture], deadline: float | None, cancel: Callable[[Iterable[ExecutorFuture]], None]) -> Iterator[Any]:
    """Iterate over results, letting go of each; cancel the rest when it ends early."""
    made.reverse()
    try:
        while made:
            yield made.pop().result(None if deadline is None else deadline - time.monotonic())
    finally:
        cancel(made)


class ExecutorFuture(standard.Future[Any]):
    """A standard future of a call that runs as a task."""

    def __init__(self, executor: ClientExecutor, task: Future[Any]) -> None:
        super().__init__()
        self._executor = executor
        self._task: Future[Any] | None = task
        self._bringing = threading.Lock()

    def cancel(self) -> bool:
        """Cancel the call unless it runs or has ended; return whether it is cancelled."""
        task = self._task
        if task is not None and not self.done() and not self._executor._ask(CANCEL_UNSENT, [task.key]) and not task.cancelled():
            return False
        return super().cancel()

    def running(self) -> bool:
        """Return whether a worker was sent the call and has not ended it."""
        task = self._task
        return task is not None and not self.done() and not self._executor._ask(ARE_UNSENT, [task.key]) and not task.done()

    def notify(self, state: FutureState) -> None:
        """Take in that the task is done. Under the link's lock: the rest is the messenger's."""
        self._executor._messenger.submit(ExecutorFuture.bring, self)

    def result(self, timeout: float | None = None) -> Any:
        """Return what the call returned, or raise what it raised."""
        return super().result(timeout if self._come(timeout) else 0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the call raised, or None."""
        return super().exception(timeout if self._come(timeout) else 0)

    def _come(self, timeout: float | None) -> bool:
        """Wait for the task itself, which spares this thread the way over another; return whether it was done in time."""
        task = self._task
        if task is None:
            return True
        is_done: bool = self._executor._client._wait_done([task._state], timeout)
        if is_done:
            self.bring()
        return is_done

    def bring(self) -> None:
        """Take over what the task came to, unless another thread has. The callbacks of a user's run here."""
        with self._bringing:
            task = self._task
            if task is None:
                return
            state = task._state
            if state.status == PENDING:  # lost since it was done, and being made again
                self._executor._watch([self])
                return
            self._task = None
        if state.status == CANCELLED:
            super().cancel()
        if not self.set_running_or_notify_cancel():
            return
        try:
            value = task.result()
        except BaseException as error:  # the task's, or whatever the value's own unpickling raises
            self.set_exception(error)
        else:
            self.set_result(value)
