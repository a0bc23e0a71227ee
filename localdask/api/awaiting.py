"""Waiting in a coroutine: what ``api/waiting.py`` does, without blocking the event loop that waits.

``Client`` is made of both. A waiter of a coroutine is told by the client's link, whose thread
it only has wake the loop; so futures of any client may be awaited on any loop, several at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from localdask.api.futures import FINISHED, PENDING, Future, FutureState, LoopWaiter
from localdask.api.waiting import ABSENT, Waiting, fill

if TYPE_CHECKING:
    from localdask.api.wait import DoneAndNotDoneFutures

__all__ = ["Awaiting"]


class Awaiting(Waiting):
    """What ``Client`` does to wait in coroutines."""

    _ask_soon: Callable[..., Any]

    async def _done_soon(self, states: list[FutureState], timeout: float | None, n: int | None = None, eager: bool = False) -> bool:
        """Wait until all states, or ``n`` of them, are done; return False when that took too long."""
        waiter, pending = self._watch_pending(LoopWaiter, states, n, eager)
        return waiter is None or await self._wait_soon(waiter, pending, timeout)

    async def _wait_soon(self, waiter: LoopWaiter, states: list[FutureState], timeout: float | None) -> bool:
        is_done = False
        try:
            with self._link.blocking():
                is_done = await waiter.wait(timeout)
        finally:
            if not is_done or waiter.n > 0:
                self._unwatch(waiter, states)
        return is_done

    async def _fetch_soon(self, states: list[FutureState], timeout: float | None) -> bool:
        waiter, absent = self._ask_for_values(LoopWaiter, states)
        return not absent or await self._wait_soon(waiter, absent, timeout)

    async def _value_soon(self, state: FutureState, timeout: float | None) -> Any:
        """Return a key's value once it is here."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            remaining = None if deadline is None else deadline - time.monotonic()
            if state.status == PENDING and not await self._done_soon([state], remaining):
                raise TimeoutError(f"timed out after {timeout} s.")
            value = self._value_now(state)
            if value is not ABSENT:
                return value
            if state.status == FINISHED and not await self._fetch_soon([state], remaining):
                raise TimeoutError(f"timed out after {timeout} s.")

    async def _exception_soon(self, state: FutureState, timeout: float | None) -> BaseException | None:
        if not await self._done_soon([state], timeout):
            raise TimeoutError(f"timed out after {timeout} s.")
        return self._exception_now(state)

    async def _traceback_soon(self, state: FutureState, timeout: float | None) -> TracebackType | None:
        error = await self._exception_soon(state, timeout)
        return None if error is None else error.__traceback__

    async def _output_soon(self, state: FutureState, timeout: float | None) -> str:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if not await self._done_soon([state], None if deadline is None else deadline - time.monotonic()):
                raise TimeoutError(f"timed out after {timeout} s.")
            self._check_not_cancelled(state)
            text: str | None = await self._ask_soon("task_output", state.key)
            if text is not None:  # else it is being made again
                return text

    async def _wait_for_soon(self, futures: list[Future[Any]], timeout: float | None, n: int | None) -> DoneAndNotDoneFutures:
        if not await self._done_soon([future._state for future in futures], timeout, n=n):
            raise TimeoutError(f"timed out after {timeout} s.")
        from localdask.api.wait import done_and_not  # noqa: PLC0415 - see there

        return done_and_not(futures)

    async def _gather_soon(self, futures: Any, errors: str) -> Any:
        futures, states = self._gathered(futures, errors)
        await self._done_soon(states, None, eager=errors == "raise")
        if errors == "raise":
            self._raise_first(states)
        absent = [state for state in states if state.status == FINISHED and state.payload is None]
        if absent:
            await self._fetch_soon(absent, None)
        wanted = {state.key: state for state in states if errors == "raise" or state.status == FINISHED}
        return fill(futures, {key: await self._value_soon(state, None) for key, state in wanted.items()})
