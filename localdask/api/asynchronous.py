"""Clients and clusters for coroutines: ``Client(asynchronous=True)``, ``LocalCluster(asynchronous=True)``.

They are the same ones, whose blocking methods return awaitables where an event loop runs. What
only waits for futures waits in the loop (``api/awaiting.py``); everything else blocks a thread
of its own, which takes part in nothing else. In a thread without a loop they block, as the others do: that is how
they themselves, and the end of the interpreter, use them.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Generator
from contextvars import copy_context
from types import FunctionType, TracebackType
from typing import Any

from localdask.api import client as client_room
from localdask.api import cluster as cluster_room
from localdask.api.client import Client
from localdask.api.cluster import LocalCluster
from localdask.api.futures import Future, FutureState
from localdask.errors import UsageError

__all__ = ["AsynchronousClient", "AsynchronousCluster", "Done", "in_loop", "in_thread"]

#: What does not block, and is the same in both.
_PLAIN_OF_CLIENT = frozenset({"submit", "map", "get", "compute", "persist", "get_executor", "as_current", "current", "future_of_key"})
_PLAIN_OF_CLUSTER = frozenset({"adapt", "get_client", "worker_address", "generation_of"})
#: What is done at once, and may be awaited.
_AT_ONCE = frozenset({"cancel", "retry", "log_event", "subscribe_topic", "unsubscribe_topic", "start", "write_scheduler_file", "scale"})


def in_loop() -> bool:
    """Return whether an event loop runs in this thread."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


async def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what a blocking call returns, made in a thread of its own. It goes on when nobody awaits it any more."""
    import asyncio  # noqa: PLC0415 - only asynchronous users pay for it

    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    context = copy_context()

    def settle(value: Any, error: BaseException | None) -> None:
        if done.done():
            return  # cancelled
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(value)

    def run() -> None:
        value, error = None, None
        try:
            value = context.run(function, *args, **kwargs)
        except BaseException as trouble:
            error = trouble
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody awaits it
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name="localdask-call", daemon=True).start()
    return await done


class Done:
    """The awaitable of what was done at once."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()
        return self._value


class Known(dict[str, Any]):
    """What is known already, and may be awaited."""

    def __await__(self) -> Generator[Any, None, Known]:
        yield from ()
        return self


def _awaitable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that, where a loop runs, returns an awaitable of what the given one returns."""

    @functools.wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return in_thread(function, self, *args, **kwargs) if in_loop() else function(self, *args, **kwargs)

    return method


def _at_once(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return Done(function(self, *args, **kwargs))

    return method


def _make_awaitable(kind: type, plain: frozenset[str]) -> None:
    """Give a class awaitable forms of its parent's public methods, but for those that it has itself, or that are plain."""
    parent = kind.__bases__[-1]
    for name in dir(parent):
        function = getattr(parent, name)
        if name[0] != "_" and name not in plain and name not in vars(kind) and isinstance(function, FunctionType):
            setattr(kind, name, _at_once(function) if name in _AT_ONCE else _awaitable(function))


class _Begun:
    """What is begun by ``await`` or ``async with``, in a thread, and ended by ``close``."""

    #: Its parent's ``__init__``; None once it is begun.
    _begin_now: Callable[[], None] | None = None
    _is_abandoned = False
    status: str
    close: Callable[..., Any]

    def __await__(self) -> Generator[Any, None, Any]:
        return self._begun().__await__()

    async def _begun(self) -> Any:
        import asyncio  # noqa: PLC0415 - only asynchronous users pay for it

        begin, self._begin_now = self._begin_now, None
        if begin is not None:
            try:
                await in_thread(self._begin, begin)
            except asyncio.CancelledError:  # what began, or begins yet, is not left running
                self._is_abandoned = True
                if self.status == "running":
                    threading.Thread(target=self.close, name="localdask-call").start()
                raise
        return self

    def _begin(self, begin: Callable[[], None]) -> None:
        begin()
        if self._is_abandoned:
            self.close()

    def _check_begun(self) -> None:
        if self._begin_now is not None:
            raise UsageError(f"this {type(self).__bases__[-1].__name__} has not begun: write `await` or `async with` before it")

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            self._check_begun()
        raise AttributeError(f"{type(self).__bases__[-1].__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        parent = type(self).__bases__[-1]
        return super().__repr__() if self._begin_now is None else f"<{parent.__name__}: not begun, await it>"

    async def __aenter__(self) -> Any:
        return await self._begun()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def __enter__(self) -> Any:
        what = type(self).__bases__[-1].__name__
        raise TypeError(f"write `async with {what}(asynchronous=True)`, in a coroutine; or leave asynchronous=True out")


def _aside(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that blocks as one that holds no event loop: where a loop runs, it runs in a thread and is awaited."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return in_thread(method, self, *args, **kwargs) if in_loop() else method(self, *args, **kwargs)

    return call


class AsynchronousCluster(_Begun, LocalCluster):
    """A ``LocalCluster`` for coroutines. It starts when it is awaited or entered."""

    asynchronous = True

    def __init__(self, *args: Any, asynchronous: bool = True, **kwargs: Any) -> None:
        self.status = "created"
        self._begin_now = functools.partial(LocalCluster.__init__, self, *args, **kwargs)

    def close(self, timeout: float | str | None = None) -> Any:
        """End the cluster, as ``LocalCluster.close``."""
        if self._begin_now is not None:
            self._begin_now, self.status = None, "closed"
        if self.status == "closed":
            return Done(None)
        return in_thread(LocalCluster.close, self, timeout) if in_loop() else super().close(timeout)

    wait_for_workers = _aside(LocalCluster.wait_for_workers)
    wait_for_generation = _aside(LocalCluster.wait_for_generation)
    reload = _aside(LocalCluster.reload)
    restart = _aside(LocalCluster.restart)
    retire_workers = _aside(LocalCluster.retire_workers)
    get_logs = _aside(LocalCluster.get_logs)

    def get_client(self) -> Any:
        """Return an asynchronous client of this cluster."""
        return Client(self, asynchronous=True)


class AsynchronousClient(_Begun, Client):
    """A ``Client`` for coroutines. With a running cluster of this process it is there at once, else when it is awaited or entered."""

    asynchronous = True

    def __init__(self, address: Any = None, *, asynchronous: bool = True, **kwargs: Any) -> None:
        self.status = "created"
        self._address = address
        begin = functools.partial(Client.__init__, self, address, **kwargs)
        if isinstance(address, LocalCluster) and address.status == "running":
            begin()
        else:
            self._begin_now = begin

    async def _begun(self) -> Any:
        if self._begin_now is not None and isinstance(self._address, AsynchronousCluster):
            await self._address
        return await super()._begun()

    def _check_running(self) -> None:
        self._check_begun()
        super()._check_running()

    def close(self, timeout: Any = None) -> Any:
        """Release all futures, as ``Client.close``."""
        if self._begin_now is not None:
            self._begin_now, self.status = None, "closed"
        if self.status == "closed":
            return Done(None)
        return in_thread(Client.close, self, timeout) if in_loop() else super().close(timeout)

    def _make_cluster(self, options: dict[str, Any]) -> Any:
        cluster = AsynchronousCluster(**options)
        begin, cluster._begin_now = cluster._begin_now, None
        if begin is not None:
            begin()  # in the thread that begins this client
        return cluster

    def scheduler_info(self, n_workers: int = -1) -> Any:
        """Return what is known of the scheduler and its workers, as ``Client.scheduler_info``; as in Dask, it need not be awaited."""
        return Known(super().scheduler_info(n_workers))

    def gather(self, futures: Any, errors: str = "raise", direct: bool | None = None) -> Any:
        """Return an awaitable of the futures' values in the same nesting, as ``Client.gather``."""
        return self._gather_soon(futures, errors) if in_loop() else super().gather(futures, errors, direct)

    def _value_of(self, state: FutureState, timeout: float | None) -> Any:
        return self._value_soon(state, timeout) if in_loop() else super()._value_of(state, timeout)

    def _exception_of(self, state: FutureState, timeout: float | None) -> Any:
        return self._exception_soon(state, timeout) if in_loop() else super()._exception_of(state, timeout)

    def _traceback_of(self, state: FutureState, timeout: float | None) -> Any:
        return self._traceback_soon(state, timeout) if in_loop() else super()._traceback_of(state, timeout)

    def _output_of(self, state: FutureState, timeout: float | None) -> Any:
        return self._output_soon(state, timeout) if in_loop() else super()._output_of(state, timeout)

    def _wait_for(self, futures: list[Future[Any]], timeout: float | None, n: int | None) -> Any:
        return self._wait_for_soon(futures, timeout, n) if in_loop() else super()._wait_for(futures, timeout, n)


_make_awaitable(AsynchronousCluster, _PLAIN_OF_CLUSTER)
_make_awaitable(AsynchronousClient, _PLAIN_OF_CLIENT)
client_room.asynchronous_client.append(AsynchronousClient)
cluster_room.asynchronous_cluster.append(AsynchronousCluster)
