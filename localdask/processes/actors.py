"""The methods of actors, in the worker where these live: one thread an actor, which calls one method after the other.

A worker has these threads beside those that run tasks, so a call takes no task's slot, and an
actor may wait for tasks or for other actors. Calls come from the worker's pipe in the order in which they were
made. An actor lives as long as the worker's data hold it; what was asked before is still answered. Nothing
here touches a pipe, or holds the worker's lock while it calls.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from queue import SimpleQueue
from typing import Any

from localdask.errors import ActorLostError
from localdask.messages import FunctionRan, RunFunction
from localdask.processes import runner as running
from localdask.processes.calls import outcome_of
from localdask.processes.intake import Intake
from localdask.system import codec, outcomes

__all__ = ["Actors", "present_actor"]

#: The key of the actor whose method runs here.
present_actor: ContextVar[str] = ContextVar("localdask-actor", default="")

_Calls = SimpleQueue[Any]


class Actors:
    """The actors of one worker.

    Parameters
    ----------
    worker : Worker
        Whom code in methods belongs to.
    intake : Intake
        What the worker holds. An actor in its ``data`` has ``_instance``, and ``_calls``, which is None until it is first called.
    answer : callable
        Takes the word that tells an outcome; in the actor's thread, without the worker's lock.
    """

    def __init__(self, worker: Any, intake: Intake, answer: Callable[[Any], None]) -> None:
        self._worker = worker
        self._intake = intake
        self._answer = answer
        self._threads: dict[threading.Thread, _Calls] = {}

    def take(self, word: Any) -> bool:
        """Have an actor's thread do what is asked of it; return False for what is asked of nobody here. Under the worker's lock."""
        key = word.actor if isinstance(word, RunFunction) else ""
        if not key:
            return False
        held: Any = self._intake.data.get(key)
        if not hasattr(type(held), "_calls"):
            lost = ActorLostError(key, self._worker.name, "it was released")
            self._intake.words.append(FunctionRan(word.request, outcomes.dumps_outcome(outcomes.Err(lost))))
            return True
        if held._calls is None:
            held._calls = SimpleQueue()
            thread = threading.Thread(target=self._live, args=(key, held._calls), name="localdask-actor", daemon=True)
            self._threads[thread] = held._calls
            thread.start()
        held._calls.put((word, held._instance))
        return True

    def _live(self, key: str, calls: _Calls) -> None:
        """Be an actor's thread, until the actor is let go."""
        present_actor.set(key)
        with running.in_thread_of(self._worker) as runner:
            while (asked := calls.get()) is not None:
                word, instance = asked
                self._answer(FunctionRan(word.request, _call(word, instance, runner.wait_for)))
                asked = instance = None  # else the actor would live as long as its thread waits
        self._threads.pop(threading.current_thread(), None)

    def close(self) -> list[threading.Thread]:
        """Let the threads end after what they do now; return them."""
        threads = dict(self._threads)
        for calls in threads.values():
            calls.put(None)
        return list(threads)


def _call(word: RunFunction, instance: Any, wait_for: Callable[[Any], Any]) -> bytes:
    def call() -> Any:
        name, args, kwargs = codec.loads(word.call, "an argument of an actor's method")
        value = getattr(instance, name)
        return value if args is None else value(*args, **kwargs)

    return outcome_of(call, wait_for, "an actor's answer")
