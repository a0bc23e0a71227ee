"""Running a piece of a user's code for at most so many seconds.

Runs in whatever thread calls it. In a main thread the limit is an alarm whose handler
raises in the middle of the code, so that the caller goes on with a clean stack; handler
and timer of others are put back. Elsewhere a helper thread runs the code and is given up
at the limit, because Python cannot stop it. It never decides what a passed limit means.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from types import FrameType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from traceback import FrameSummary

__all__ = ["LimitPassed", "run_within"]

T = TypeVar("T")

#: After the limit the alarm rings again, in case the code caught what the first ring raised.
_AGAIN_S = 0.5


class LimitPassed(BaseException):
    """The limit passed. Not an ``Exception``, so that user's code does not catch it by accident."""

    def __init__(self, frame: FrameType | None) -> None:
        super().__init__("the time limit passed")
        # Read now: as the stack unwinds, the frames' lines move on.
        from traceback import extract_stack  # noqa: PLC0415 - 4 ms, and only an error needs it

        self.frames: list[FrameSummary] = list(extract_stack(frame)) if frame is not None else []


def run_within(limit_s: float, call: Callable[[], T], *, in_thread: bool = False) -> T:
    """Return ``call()``, or raise ``LimitPassed`` with the stack on which the code was at the limit."""
    if in_thread or threading.current_thread() is not threading.main_thread():
        return _run_in_thread(limit_s, call)
    return _run_with_alarm(limit_s, call)


def _run_with_alarm(limit_s: float, call: Callable[[], T]) -> T:
    is_armed = True
    first: LimitPassed | None = None

    def ring(_signal: int, frame: FrameType | None) -> None:
        nonlocal first
        if is_armed:
            passed = LimitPassed(frame)
            first = first or passed
            raise passed

    begun = time.monotonic()
    previous = signal.signal(signal.SIGALRM, ring)
    old_delay_s, old_interval_s = signal.setitimer(signal.ITIMER_REAL, max(limit_s, 1e-3), _AGAIN_S)
    try:
        result = call()
    except BaseException:
        is_armed = False
        if first is not None:
            raise first from None
        raise
    finally:
        is_armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if previous is None else previous)
        if old_delay_s:
            left_s = old_delay_s - (time.monotonic() - begun)
            signal.setitimer(signal.ITIMER_REAL, max(left_s, 1e-3), old_interval_s)
    if first is not None:
        raise first  # the code caught it, and returned as if nothing were
    return result


def _run_in_thread(limit_s: float, call: Callable[[], T]) -> T:
    returned: list[T] = []
    raised: list[BaseException] = []
    context = copy_context()

    def run() -> None:
        try:
            returned.append(context.run(call))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="localdask-hook", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise LimitPassed(sys._current_frames().get(thread.ident or 0))
    if raised:
        raise raised[0]
    return returned[0]
