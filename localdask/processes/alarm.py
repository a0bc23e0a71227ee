"""The timer for everything that the scheduler does at a certain time; any thread may set it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from localdask.system.loop import Loop, Timer

__all__ = ["Alarm"]


class Alarm:
    """Has ``look`` called in the loop's ``thread`` at the earliest time for which it was set."""

    __slots__ = ("_at", "_look", "_loop", "_thread", "_timer")

    def __init__(self, loop: Loop, thread: threading.Thread, look: Callable[[], None]) -> None:
        self._loop = loop
        self._thread = thread
        self._look = look
        self._timer: Timer | None = None
        self._at = 0.0

    def set(self, at: float | None) -> None:
        """Have it called at this time, if not earlier. From any thread, under one lock."""
        if at is None or (self._timer is not None and at >= self._at):
            return
        if threading.get_ident() == self._thread.ident:
            self._set(at)
        else:
            self._loop.call_soon_threadsafe(partial(self._set, at))

    def _set(self, at: float) -> None:
        if self._timer is not None:
            if at >= self._at:
                return
            self._timer.cancel()
        self._at = at
        self._timer = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._look()
