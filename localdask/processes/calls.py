"""Functions that ``client.run`` sends, and changes of plugins: done in a worker at once, beside its tasks.

They are queued here, and the worker's main thread calls them between two tasks; if that thread is busy, a new
one does. What a function changes in the process (its directory, its streams) stays, unlike what a task
changes. Outcomes are bytes that always load. Nothing here touches a pipe, or holds the worker's lock during a call.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from types import CoroutineType, FunctionType
from typing import Any

from localdask.errors import SerializationError
from localdask.messages import FunctionRan, RunFunction
from localdask.processes import runner as running
from localdask.processes.plugin_words import PluginWords
from localdask.processes.surroundings import Surroundings
from localdask.system import codec, outcomes
from localdask.system.signatures import parameters_of

__all__ = ["Calls", "call_function", "outcome_of", "tell_outcome"]

#: What fits into one frame, with room for what goes around it.
_OUTCOME_BYTES_MAX = 2**32 - 2**16


def call_function(call: bytes, wait_for: Callable[[Any], Any], **services: Any) -> bytes:
    """Call a pickled ``(function, args, kwargs)`` and return its outcome's bytes.

    A service is passed by its name if the function has a parameter of that name and the
    caller gave none. ``wait_for`` returns what a coroutine returns.
    """

    def call_it() -> Any:
        function, args, kwargs = codec.loads(call, "the function or an argument of run")
        kwargs = {**{name: service for name, service in services.items() if _takes(function, name)}, **kwargs}
        return function(*args, **kwargs)

    return outcome_of(call_it, wait_for, "run's result")


def outcome_of(call: Callable[[], Any], wait_for: Callable[[Any], Any], what: str) -> bytes:
    """Call, and return the outcome's bytes; a traceback begins below what ``call`` itself is."""
    try:
        value = call()
        if type(value) is CoroutineType:
            value = wait_for(value)
        outcome = outcomes.dumps_outcome(outcomes.Ok(value))
        if len(outcome) > _OUTCOME_BYTES_MAX:
            raise SerializationError(f"{what} takes {len(outcome)} bytes, more than a pipe carries at once: return less")
        return outcome
    except BaseException as error:  # as in a task
        return outcomes.dumps_outcome(outcomes.Err(error), skip=2)


def tell_outcome(word: RunFunction, outcome: bytes, answer: Callable[[Any], None]) -> None:
    """Answer with an outcome, or, when nobody waits for it, print what went wrong."""
    if word.wait:
        answer(FunctionRan(word.request, outcome))
        return
    ended = outcomes.loads_outcome(outcome)
    if isinstance(ended, outcomes.Err):
        print(f"localdask: a function called by run(wait=False) failed\n{ended.traceback_text}", file=sys.stderr, flush=True)


def _takes(function: Any, name: str) -> bool:
    """Whether a function has a parameter of that name."""
    plain = getattr(function, "__func__", function)
    if type(plain) is FunctionType and not hasattr(plain, "__wrapped__"):
        code = plain.__code__
        return name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return name in (parameters_of(function) or ())


class Calls:
    """The functions that one worker was asked to call and has not begun.

    Parameters
    ----------
    worker : Worker
        What a parameter ``dask_worker`` is given.
    answer : callable
        Takes the word that tells the outcome; in the thread that called, without the worker's lock.
    surroundings : Surroundings or None
        Those of a process of the worker's own.
    plugins : PluginWords
        Who carries out words about plugins.
    """

    def __init__(self, worker: Any, answer: Callable[[Any], None], surroundings: Surroundings | None, plugins: PluginWords) -> None:
        self._worker = worker
        self._answer = answer
        self._plugins = plugins
        self._surroundings = surroundings
        self._waiting: deque[Any] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, word: Any) -> None:
        """Queue a call."""
        self._waiting.append(word)

    def take(self) -> Any:
        """Return the call that has waited longest."""
        return self._waiting.popleft()

    def call_here(self, word: Any, wait_for: Callable[[Any], Any]) -> None:
        """Call in this thread, and answer."""
        before = self._surroundings.look() if self._surroundings is not None else ()
        is_call = isinstance(word, RunFunction)
        outcome: Any = call_function(word.call, wait_for, dask_worker=self._worker) if is_call else self._plugins.hear(word)
        if self._surroundings is not None:
            self._surroundings.remember(before)
        if not is_call:
            self._answer(outcome)
            return
        tell_outcome(word, outcome, self._answer)

    def call_beside(self, word: Any) -> None:
        """Call in a new thread, and answer."""

        def call() -> None:
            with running.in_thread_of(self._worker) as runner:
                self.call_here(word, runner.wait_for)

        threading.Thread(target=call, name="localdask-call", daemon=True).start()
