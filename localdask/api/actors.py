"""Actors: objects that live in one worker and keep what they are told, with proxies of them everywhere else.

``client.submit(Class, …, actor=True)`` makes one by a task (``Making``), whose value stays in its worker
(``HeldActor``) and is an ``Actor``, the proxy, wherever else it comes. A call of a proxy's method is a question to the scheduler,
which has the worker answer it (``processes/actors.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from queue import SimpleQueue
from typing import Any

from localdask.api.asking import Answer
from localdask.api.futures import Future, find_client, parse_timeout
from localdask.errors import UsageError
from localdask.processes.actor_calls import CALL_ACTOR
from localdask.processes.actors import present_actor
from localdask.processes.runner import current_runner
from localdask.system import codec, outcomes

__all__ = ["Actor", "ActorFuture", "Making"]


class Actor:
    """A proxy of an object that lives in one worker and keeps its state there. Meanings as in Dask.

    Made by ``client.submit(Class, …, actor=True).result()``. Its methods return an ``ActorFuture`` at once; what is no
    method is read as an attribute, and waited for. Calls of one client are done in their order, one at a time, in a thread of
    the actor's own, so they take no task's slot. The object lives as long as a future or a proxy of it, on any client. When
    its worker dies it is lost, because what it was told cannot be told again: the future then fails with ``ActorLostError``,
    and so do calls and what depends on it.

    Examples
    --------
    >>> class Counter:
    ...     n = 0
    ...
    ...     def add(self, x):
    ...         self.n += x
    ...         return self.n
    >>> counter = client.submit(Counter, actor=True).result()  # doctest: +SKIP
    >>> counter.add(2).result(), counter.n  # doctest: +SKIP
    (2, 2)
    """

    __slots__ = ("_future", "_methods", "_type_name", "key")

    def __init__(self, key: str, type_name: str, methods: tuple[str, ...], future: Future[Any] | None = None) -> None:
        #: The key of the task that made it.
        self.key = key
        self._type_name = type_name
        self._methods = methods
        self._future = future

    def __getattr__(self, name: str) -> Any:
        if name[:1] == "_":
            raise AttributeError(f"an actor's {name!r} stays in its worker")
        if name in self._methods:
            call = partial(self._call, name)
            call.__doc__ = f"Call {self._type_name}.{name} where the actor lives; return an ActorFuture."
            return call
        future = self._ask(name, None, None)
        return future if future._client.asynchronous else future.result()

    def _call(self, name: str, /, *args: Any, **kwargs: Any) -> ActorFuture:
        return self._ask(name, args, kwargs)

    def _ask(self, name: str, args: Any, kwargs: Any) -> ActorFuture:
        client = self._bound()
        call = codec.dumps((name, args, kwargs), f"an argument of {self._type_name}.{name}")
        return ActorFuture(self, client, client._ask_nowait(CALL_ACTOR, self.key, call))

    def _bind(self, client: Any) -> None:
        """Belong to a client, and keep the actor alive there."""
        self._future = Future(self.key, client)

    def _bound(self) -> Any:
        """Return the client that is asked; there the actor is kept alive from now on."""
        if self._future is None:
            self._bind(find_client[0]())
        assert self._future is not None
        return self._future.client

    def __reduce__(self) -> Any:
        self._bound()
        return (Actor, (self.key, self._type_name, self._methods, self._future))

    def __dir__(self) -> list[str]:
        return sorted({"key", *self._methods})

    def __repr__(self) -> str:
        return f"<Actor: {self._type_name}, key={self.key}>"


class HeldActor(Actor):
    """An actor in the worker where it lives: what the worker holds of it, and gives to tasks there."""

    __slots__ = ("_calls", "_instance")

    def __init__(self, key: str, instance: Any) -> None:
        kind = type(instance)
        methods = [name for name in dir(kind) if name[:1] != "_" and callable(getattr(kind, name, None))]
        super().__init__(key, kind.__name__, tuple(methods))
        self._instance = instance
        self._calls: SimpleQueue[Any] | None = None

    def _bind(self, client: Any) -> None:
        """Do nothing: it would keep itself alive."""

    def _bound(self) -> Any:
        return find_client[0]()

    def __reduce__(self) -> Any:
        return (Actor, (self.key, self._type_name, self._methods))

    def __del__(self) -> None:
        if (calls := getattr(self, "_calls", None)) is not None:
            calls.put(None)


class Making:
    """What the task that makes an actor calls, in place of the class."""

    def __init__(self, make: Callable[..., Any]) -> None:
        if not callable(make):
            raise TypeError(f"First input to submit must be a callable function, not {type(make).__name__}")
        self.make = make
        self.__name__ = codec.function_name(make)

    def __call__(self, *args: Any, **kwargs: Any) -> HeldActor:
        runner = current_runner()
        assert runner is not None and runner.task is not None, "actors are made by tasks"
        return HeldActor(runner.task.key, self.make(*args, **kwargs))


class ActorFuture:
    """What an actor's method will return: ``result()``, or ``await`` it. Meanings as in Dask."""

    __slots__ = ("__weakref__", "_actor", "_answer", "_client")

    def __init__(self, actor: Actor, client: Any, answer: Answer) -> None:
        self._actor = actor  # which it keeps alive
        self._client = client
        self._answer = answer

    def done(self) -> bool:
        """Return whether the method returned or raised."""
        return self._answer.word is not None

    def result(self, timeout: float | str | None = None) -> Any:
        """Wait for the method and return what it returned.

        Parameters
        ----------
        timeout : float or str, optional
            Seconds, or text as ``"500 ms"``. Waits without end by default.

        Raises
        ------
        TimeoutError
            It did not return in time; it goes on.
        ActorLostError
            The actor, or its worker, is gone.
        Exception
            What the method raised.
        """
        if self._answer.word is None:
            self._check_not_itself()
            with self._client._link.blocking():
                if not self._answer.wait(parse_timeout(timeout)):
                    raise TimeoutError(f"timed out after {timeout} s.")
        return self._value()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._soon().__await__()

    async def _soon(self) -> Any:
        if self._answer.word is None:
            await self._answer.wait_soon(self._client._link)
        return self._value()

    def _value(self) -> Any:
        return outcomes.loads_outcome(self._answer.value()).unwrap()

    def _check_not_itself(self) -> None:
        if present_actor.get() == self._actor.key:
            raise UsageError(f"{self._actor!r} waits in one of its methods for another of its own, which runs after it: call self.… there")

    def __repr__(self) -> str:
        return f"<ActorFuture: {'finished' if self.done() else 'pending'}, of {self._actor._type_name}>"
