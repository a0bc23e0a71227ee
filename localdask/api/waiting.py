"""Waiting for futures, and getting their values: the part of a client that blocks.

``Client`` is made of this and of ``api/control.py``. A wait registers one waiter with all
states it needs, under the link's lock, and sleeps on that alone; a value that is large
is asked for when somebody wants it, and mapped, not copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from localdask.api.futures import (
    CANCELLED,
    ERROR,
    FINISHED,
    LOST,
    PENDING,
    Future,
    FutureState,
    Waiter,
    futures_in,
)
from localdask.api.links import Link
from localdask.errors import ActorLostError, DataLostError, KilledWorker, NoValidWorkerError, TaskTimeoutError
from localdask.messages import FetchKeys
from localdask.system import codec, outcomes

if TYPE_CHECKING:
    from localdask.api.wait import DoneAndNotDoneFutures

W = TypeVar("W")

#: Stands for a value that is not here.
ABSENT = object()
#: What a worker calls an actor that it holds: a proxy of it is to know its client.
ACTOR_TYPE = "localdask.api.actors.HeldActor"


class Waiting:
    """What ``Client`` does to wait for its futures' values."""

    id: str
    _link: Link
    _ask: Callable[..., Any]

    def _when_done(self, state: FutureState, watcher: Any) -> None:
        """Notify a watcher when a state is done, even if nobody else holds it any more."""
        with self._link.lock:
            if state.status == PENDING:
                state.expect(watcher)
                return
        watcher.notify(state)

    def _wait_done(self, states: list[FutureState], timeout: float | None, n: int | None = None, eager: bool = False) -> bool:
        """Wait until all states, or ``n`` of them, are done; return False when that took too long."""
        if all(state.status != PENDING for state in states):
            return True
        waiter, pending = self._watch_pending(Waiter, states, n, eager)
        return waiter is None or self._wait(waiter, pending, timeout)

    def _watch_pending(
        self, make: Callable[[int, bool], W], states: list[FutureState], n: int | None, eager: bool
    ) -> tuple[W | None, list[FutureState]]:
        """Have a waiter told of what is not done; return it, or None when enough is done, and what it watches."""
        with self._link.lock:
            pending = [state for state in states if state.status == PENDING]
            left = len(pending) if n is None else n - (len(states) - len(pending))
            if left <= 0 or (eager and any(state.status not in (PENDING, FINISHED) for state in states)):
                return None, []
            waiter = make(left, eager)
            for state in pending:
                state.watch(waiter)
        return waiter, pending

    def _wait(self, waiter: Waiter, states: list[FutureState], timeout: float | None) -> bool:
        is_done = False
        try:
            with self._link.blocking():
                is_done = self._link.wait(waiter, timeout)
        finally:
            if not is_done or waiter.n > 0:
                self._unwatch(waiter, states)
        return is_done

    def _unwatch(self, waiter: Any, states: list[FutureState]) -> None:
        with self._link.lock:
            for state in states:
                if state.watchers and waiter in state.watchers:
                    state.watchers.remove(waiter)

    def _value_of(self, state: FutureState, timeout: float | None) -> Any:
        """Return a key's value once it is here."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            remaining = None if deadline is None else deadline - time.monotonic()
            if state.status == PENDING and not self._wait_done([state], remaining):
                raise TimeoutError(f"timed out after {timeout} s.")
            value = self._value_now(state)
            if value is not ABSENT:
                return value
            if state.status == FINISHED and not self._fetch([state], remaining):
                raise TimeoutError(f"timed out after {timeout} s.")

    def _value_now(self, state: FutureState) -> Any:
        """Return a key's value, or ``ABSENT`` when it is not here yet; raise what came instead of it."""
        if state.status == ERROR:
            raise self._error_of(state)
        self._check_not_cancelled(state)
        payload = state.payload
        if payload is None:
            return ABSENT
        value = self._load(payload)
        if state.type_name == ACTOR_TYPE:
            value._bind(self)
        return value

    def _exception_of(self, state: FutureState, timeout: float | None) -> BaseException | None:
        """Return what a task raised, or None, once it is done."""
        if not self._wait_done([state], timeout):
            raise TimeoutError(f"timed out after {timeout} s.")
        return self._exception_now(state)

    def _traceback_of(self, state: FutureState, timeout: float | None) -> TracebackType | None:
        error = self._exception_of(state, timeout)
        return None if error is None else error.__traceback__

    def _exception_now(self, state: FutureState) -> BaseException | None:
        return self._error_of(state) if state.status == ERROR else None

    def _output_of(self, state: FutureState, timeout: float | None) -> str:
        """Return what a task wrote, once it is done."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if not self._wait_done([state], None if deadline is None else deadline - time.monotonic()):
                raise TimeoutError(f"timed out after {timeout} s.")
            self._check_not_cancelled(state)
            text: str | None = self._ask("task_output", state.key)
            if text is not None:  # else it is being made again
                return text

    @staticmethod
    def _cancellation_of(state: FutureState) -> Exception | None:
        if state.status not in (CANCELLED, LOST):
            return None
        from localdask.cancellations import FutureCancelledError  # noqa: PLC0415 - see there

        return FutureCancelledError(state.key, state.reason, state.message)

    def _check_not_cancelled(self, state: FutureState) -> None:
        error = self._cancellation_of(state)
        if error is not None:
            raise error

    def _fetch(self, states: list[FutureState], timeout: float | None) -> bool:
        """Ask for values that are not here, and wait for the next news of each."""
        waiter, absent = self._ask_for_values(Waiter, states)
        return not absent or self._wait(waiter, absent, timeout)

    def _ask_for_values(self, make: Callable[[int, bool], W], states: list[FutureState]) -> tuple[W, list[FutureState]]:
        """Ask for values that are not here; return a waiter that is told the next news of each, and which these are."""
        asked: list[FutureState] = []
        try:
            with self._link.lock:
                absent = [state for state in states if state.status == FINISHED and state.payload is None]
                asked = [state for state in absent if not state.fetching]
                waiter = make(len(absent), False)
                for state in absent:
                    state.fetching = True
                    state.watch(waiter)
            if asked:
                self._link.post([FetchKeys(self.id, [state.key for state in asked])])
        except BaseException:
            for state in asked:  # an interrupt, perhaps before the words went out: who comes next asks again
                state.fetching = False
            raise
        return waiter, absent

    @staticmethod
    def _load(payload: Any) -> Any:
        if isinstance(payload, bytes):
            return codec.loads(payload)
        from localdask.system.segments import map_payload  # noqa: PLC0415 - a running cluster has imported it

        header, buffers = map_payload(payload)
        return codec.loads_buffers(header, buffers)

    @staticmethod
    def _error_of(state: FutureState) -> BaseException:
        error = state.error
        if isinstance(error, bytes):
            return outcomes.loads_error(error).exception
        kind, *facts = error
        if kind == "killed":
            return KilledWorker(*facts)
        if kind == "actor-lost":
            return ActorLostError(*facts)
        if kind == "timeout":
            return TaskTimeoutError(*facts)
        if kind == "lost":
            return DataLostError(f"task {facts[0]!r} cannot run: an input was lost with its worker, and it has no recipe ({facts[1]})")
        return NoValidWorkerError(" ".join(map(str, facts)))

    def gather(self, futures: Any, errors: str = "raise", direct: bool | None = None) -> Any:
        """Wait for futures and return their values in the same nesting. Meanings as in Dask.

        Parameters
        ----------
        futures : Future or nested collection
            Lists, tuples, sets, dicts and iterators of futures; what is no future passes through.
        errors : {"raise", "skip"}
            Whether the first failure is raised, or failed futures are left out of their lists.

        Returns
        -------
        object
            Values in place of futures.
        """
        futures, states = self._gathered(futures, errors)
        values: dict[str, Any] = {}
        self._wait_done(states, None, eager=errors == "raise")
        absent = [state for state in states if state.status == FINISHED and state.payload is None]
        if absent:
            self._fetch(absent, None)
        for state in states:
            if state.key in values:
                continue
            payload = state.payload
            if type(payload) is bytes and state.status == FINISHED:
                values[state.key] = codec.loads(payload)
                continue
            if errors == "raise" or state.status == FINISHED:
                if errors == "raise" and state.status == PENDING:
                    self._raise_first(states)
                values[state.key] = self._value_of(state, None)
        return fill(futures, values)

    @staticmethod
    def _gathered(futures: Any, errors: str) -> tuple[Any, list[FutureState]]:
        """Return what is to be gathered, and what of it is to be waited for."""
        if errors not in ("raise", "skip"):
            raise ValueError(f"errors={errors!r}; it is 'raise' or 'skip'")
        if isinstance(futures, Iterator):
            futures = list(futures)
        return futures, [future._state for future in futures_in(futures)]

    def _raise_first(self, states: list[FutureState]) -> None:
        for state in states:
            if state.status not in (PENDING, FINISHED):
                self._value_now(state)

    def _wait_for(self, futures: list[Future[Any]], timeout: float | None, n: int | None) -> DoneAndNotDoneFutures:
        """Wait for futures, as ``wait`` does."""
        if not self._wait_done([future._state for future in futures], timeout, n=n):
            raise TimeoutError(f"timed out after {timeout} s.")
        from localdask.api.wait import done_and_not  # noqa: PLC0415 - see there

        return done_and_not(futures)


def fill(obj: Any, values: dict[str, Any]) -> Any:
    """Return nested collections with values in place of futures; what failed is left out."""
    if isinstance(obj, Future):
        return values[obj.key]
    kind = type(obj)
    if kind is list and obj and all([type(item) is Future and item.key in values for item in obj]):
        return [values[item.key] for item in obj]
    if kind in (list, tuple, set, frozenset):
        return kind([fill(item, values) for item in obj if not isinstance(item, Future) or item.key in values])
    if kind is dict:
        return {key: fill(item, values) for key, item in obj.items() if not isinstance(item, Future) or item.key in values}
    return obj
