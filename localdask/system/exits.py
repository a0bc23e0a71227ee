"""What was registered with ``atexit``, in a process that is forked and ends by ``os._exit``, which leaves it out.

Workers and nannies run theirs as they end, and have none of those that the process they were forked from had.
"""

from __future__ import annotations

import atexit
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["forget_exit_handlers", "run_exit_handlers"]


def forget_exit_handlers() -> None:
    """Drop those that came with the fork: they are the parent's to run."""
    atexit._clear()
    # weakref registers its own with the first finalizer; those that are there are the parent's too.
    finalize: Any = weakref.finalize
    finalize._registry.clear()
    finalize._registered_with_atexit = False


def run_exit_handlers(who: str, limit_s: float, end: Callable[[], object]) -> None:
    """Run them, in this thread. When they take longer than ``limit_s`` seconds, say so and call ``end`` beside them."""
    if not (atexit._ncallbacks() or _has_loggers()):
        return

    def give_up() -> None:
        try:
            print(f"localdask: {who}: what was registered with atexit did not end within {limit_s:g} s", file=sys.__stderr__, flush=True)
        finally:
            end()

    timer = threading.Timer(limit_s, give_up)
    timer.daemon = True
    timer.start()
    _terminate_processes()
    atexit._run_exitfuncs()
    if _has_loggers():
        sys.modules["logging"].shutdown()  # it registered that once, when it was imported, perhaps before the fork
    timer.cancel()


def _has_loggers() -> bool:
    """Whether somebody writes logs that may have to be flushed; one handler is logging's own."""
    return len(getattr(sys.modules.get("logging"), "_handlerList", ())) > 1


def _terminate_processes() -> None:
    """End those that ``multiprocessing`` would wait for."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None:
        for child in multiprocessing.active_children():
            if not child.daemon:
                child.terminate()
