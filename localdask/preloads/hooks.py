"""Calling a hook, whatever shape it has: a function, a coroutine function, a click command.

Runs in every process that has preloads or plugins, in the thread that asks. A hook has a
time limit. Coroutines run on a private event loop, made when the first one is met and kept
until ``close``, so that what an asynchronous ``dask_setup`` opened is still usable in its
``dask_teardown``. What a hook leaves going (a task, a timer, a server) goes on between
hooks, in a thread that turns the loop; without such there is no thread. It never calls a
hook that it was not told to, and never calls one twice.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from localdask.errors import PreloadError
from localdask.preloads.clicks import as_command, prepare_command
from localdask.preloads.failures import explain_failure, explain_overrun, first_line
from localdask.preloads.limits import LimitPassed, run_within

if TYPE_CHECKING:
    from traceback import FrameSummary

__all__ = ["HookCaller", "HookName"]

#: How long tasks that an asynchronous hook left behind have, to end when they are cancelled.
_CANCEL_S = 1.0


class HookName:
    """Whose hook it is and what it is called: what an error about it must name."""

    __slots__ = ("did", "filename", "preload", "process")

    def __init__(self, preload: str, did: str, filename: str = "", process: str = "") -> None:
        self.preload = preload
        self.did = did
        self.filename = filename
        self.process = process

    @property
    def about(self) -> dict[str, str]:
        return {"preload": self.preload, "process": self.process, "did": self.did, "filename": self.filename}


class HookCaller:
    """Calls hooks one after another, and owns the event loop that asynchronous ones share.

    Parameters
    ----------
    on_call : callable
        Is given the time limit of each hook that begins.
    """

    def __init__(self, on_call: Callable[[float], None] = lambda limit_s: None) -> None:
        self._on_call = on_call
        self._lock = threading.Lock()
        self._loop: Any = None
        self._is_busy = False
        self._task: Any = None
        self._turner: threading.Thread | None = None

    def call(self, hook: Any, service: Any, *, name: HookName, timeout_s: float, argv: Sequence[str] = ()) -> None:
        """Call a preload's ``dask_setup`` or ``dask_teardown``; anything that goes wrong is a ``PreloadError``.

        ``KeyboardInterrupt`` passes through: what it means depends on whose process this is.
        """
        self.run(self.bind(hook, service, name=name, argv=argv), name=name, timeout_s=timeout_s)

    def bind(self, hook: Any, service: Any, *, name: HookName, argv: Sequence[str] = ()) -> Callable[[], Any]:
        """Return the call of a hook with its service, and with its options parsed if it is a click command."""
        command = as_command(hook)
        if command is not None:
            return prepare_command(command, service, argv, preload=name.preload, process=name.process)
        return lambda: hook(service)

    def run(self, call: Callable[[], Any], *, name: HookName, timeout_s: float) -> Any:
        """Return what ``call()`` returns, awaited if need be; anything that goes wrong is a ``PreloadError``."""
        try:
            return self.run_raw(call, timeout_s)
        except LimitPassed as passed:
            error = explain_overrun(passed.frames, timeout_s, **name.about)
        except (PreloadError, KeyboardInterrupt):
            raise
        except BaseException as raised:
            error = explain_failure(raised, **name.about)
        raise error

    def run_raw(self, call: Callable[[], Any], timeout_s: float) -> Any:
        """Return what ``call()`` returns, awaited if need be; let what it raises pass, and ``LimitPassed`` at the limit."""

        def run() -> Any:
            result = call()
            return self._await(result) if isinstance(result, Awaitable) else result

        self._on_call(timeout_s)
        try:
            return run_within(timeout_s, run, in_thread=_is_in_event_loop())
        except LimitPassed as passed:
            if self._task is not None and not self._task.done():
                passed.frames = _waiting_frames(self._task) or passed.frames
            raise

    def _await(self, awaitable: Awaitable[Any]) -> Any:
        import asyncio  # noqa: PLC0415 — 60 ms, and only asynchronous hooks need it

        async def wait() -> Any:
            return await awaitable

        with self._lock:
            if self._loop is None or self._is_busy:  # a hook that was given up in a thread still holds the old one
                self._loop = asyncio.new_event_loop()
            self._is_busy = True
            loop = self._loop
        self._stop_turning(loop)
        task = self._task = loop.create_task(wait())
        try:
            return loop.run_until_complete(task)
        except LimitPassed as passed:
            passed.frames = _waiting_frames(task) or passed.frames
            raise
        finally:
            try:
                if not task.done():
                    _end_tasks(asyncio, loop, [task])
            finally:
                self._leave(loop, task)

    def _leave(self, loop: Any, task: Any) -> None:
        with self._lock:
            if self._task is task:
                self._task = None
            if self._loop is loop:
                self._is_busy = False
                if _is_in_use(loop):
                    self._turner = threading.Thread(target=loop.run_forever, name="localdask-async-hooks", daemon=True)
                    self._turner.start()
            else:
                loop.close()  # it was given up while it ran here

    def _stop_turning(self, loop: Any) -> None:
        """Have the loop to ourselves."""
        turner, self._turner = self._turner, None
        if turner is not None:
            loop.call_soon_threadsafe(loop.stop)
            turner.join()

    def close(self, timeout_s: float = _CANCEL_S) -> str:
        """Cancel what asynchronous hooks left running, and close their event loop; return what could not be ended."""
        with self._lock:
            loop, is_busy = self._loop, self._is_busy
            self._loop, self._is_busy = None, False
        if loop is None or is_busy:
            return ""  # a busy loop is closed by the thread that holds it
        asyncio = sys.modules["asyncio"]
        said = ""

        def end() -> None:
            self._stop_turning(loop)
            _end_tasks(asyncio, loop, asyncio.all_tasks(loop))
            loop.run_until_complete(loop.shutdown_asyncgens())

        try:
            run_within(timeout_s, end, in_thread=_is_in_event_loop())
        except LimitPassed:
            said = f"tasks of asynchronous hooks did not end within {timeout_s:g} s of being cancelled"
        except Exception as error:
            said = f"tasks of asynchronous hooks could not be ended: {first_line(error)}"
        if not loop.is_running():  # else a thread that was given up holds it for ever
            loop.close()
        return said


def _is_in_event_loop() -> bool:
    """Whether this thread runs an event loop, as a notebook's main thread does: ours must then run in another."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


def _is_in_use(loop: Any) -> bool:
    """Whether an event loop has anything to do when nobody waits for it: tasks, timers, or descriptors beside its own waking one."""
    asyncio = sys.modules["asyncio"]
    selector = getattr(loop, "_selector", None)
    n_watched = len(selector.get_map()) if selector is not None else 0
    return bool(asyncio.all_tasks(loop) or getattr(loop, "_scheduled", ()) or n_watched > 1)


def _end_tasks(asyncio: Any, loop: Any, tasks: Any) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))


def _waiting_frames(task: Any) -> list[FrameSummary]:
    """Return the frames of a coroutine that waits; none when it runs, for then its thread's stack says where."""
    coroutine = task.get_coro()
    frames: list[tuple[FrameType, int]] = []
    while coroutine is not None:
        if getattr(coroutine, "cr_running", False):
            return []
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None:
            frames.append((frame, frame.f_lineno))
        coroutine = getattr(coroutine, "cr_await", None)
    from traceback import StackSummary  # noqa: PLC0415 - 4 ms, and only an error needs it

    return list(StackSummary.extract(frames))
