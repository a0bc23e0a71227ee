"""Futures: what a task's value will be, and the ways to wait for it.

A ``Future`` is a handle; all handles of one key in one client share a ``FutureState``,
which the client's link changes as the scheduler speaks. When the last handle goes, the
client releases the key. Lives in the process that submitted, and in tasks that do.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, ClassVar, Generic, TypeVar

from localdask.api.callbacks import CallbackThread
from localdask.parameters import check_function, read
from localdask.preloads.standins import real_distributed
from localdask.sizing import SECONDS, parse_duration
from localdask.system import codec
from localdask.system.keys import check_key
from localdask.system.shield import LOOK_UP_S

R = TypeVar("R")

PENDING = "pending"
FINISHED = "finished"
ERROR = "error"
CANCELLED = "cancelled"
LOST = "lost"


def parse_timeout(timeout: Any, name: str = "timeout") -> float | None:
    """Return seconds for ``5``, ``"5s"``, ``"100 ms"`` or ``"2 min"``; None stays None. ``name`` is the parameter's."""
    if timeout is None or (hasattr(timeout, "__float__") and timeout == timeout):  # also infinity, and what was over before it began
        return timeout  # type: ignore[no-any-return]
    return read(name, timeout, parse_duration, SECONDS)


class FutureState:
    """What one client knows of one key. Changed only under the link's lock."""

    __slots__ = (
        "__weakref__",
        "error",
        "fetching",
        "is_gone",
        "keeps",
        "key",
        "message",
        "nbytes",
        "payload",
        "reason",
        "released",
        "status",
        "type_name",
        "watchers",
    )

    def __init__(self, key: str, released: Any) -> None:
        self.key = key
        self.status = PENDING
        self.payload: Any = None
        self.nbytes = 0
        self.type_name = ""
        self.error: Any = None
        self.reason = ""
        self.message = ""
        self.fetching = False
        self.is_gone = False
        #: What lives as long as this does: the task's large arguments.
        self.keeps: tuple[Any, ...] = ()
        #: Objects with ``notify(state)``, told once when the key is done or its value has come.
        self.watchers: list[Any] | None = None
        self.released = released

    def __del__(self) -> None:
        # May run anywhere, also within a transition: only an append that needs no lock.
        # Weak references still see the object until this returns, so it says itself that it is gone.
        self.is_gone = True
        self.released(self.key)

    def tell_watchers(self) -> None:
        """Notify and forget everybody who waits. Under the link's lock."""
        watchers, self.watchers = self.watchers, None
        _expected.discard(self)
        if watchers:
            for watcher in watchers:
                watcher.notify(self)

    def watch(self, watcher: Any) -> None:
        """Add a watcher. Under the link's lock."""
        if self.watchers is None:
            self.watchers = [watcher]
        else:
            self.watchers.append(watcher)

    def expect(self, watcher: Any) -> None:
        """Add a watcher, and stay until it is told: a callback may be all that is left of a future. Under the link's lock."""
        _expected.add(self)
        self.watch(watcher)


#: The states that are to tell of themselves, whoever else holds them.
_expected: set[FutureState] = set()


class Waiter:
    """Wakes one thread when ``n`` states are done, or (``eager``) when the first has failed."""

    __slots__ = ("eager", "lock", "n", "ring")

    def __init__(self, n: int, eager: bool = False) -> None:
        self.n = n
        self.eager = eager
        #: Wakes the thread where it waits for something else as well.
        self.ring: Callable[[], None] | None = None
        self.lock = threading.Lock()
        self.lock.acquire()

    def notify(self, state: FutureState) -> None:
        self.n -= 1
        if (self.n == 0 or (self.eager and state.status != FINISHED)) and self.lock.locked():
            self.lock.release()
            if self.ring is not None:
                self.ring()

    @property
    def is_done(self) -> bool:
        """Whether ``wait`` would return at once."""
        return not self.lock.locked()

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is done; return whether it was in time."""
        if self.lock.acquire(blocking=False):
            return True
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not self.lock.acquire(timeout=min(max(deadline - time.monotonic(), 0), LOOK_UP_S)):
            if time.monotonic() >= deadline:
                return False
        return True


class LoopWaiter:
    """Wakes a coroutine of the running loop when ``n`` states are done, or (``eager``) when the first has failed."""

    __slots__ = ("eager", "event", "loop", "n")

    def __init__(self, n: int, eager: bool = False) -> None:
        import asyncio  # noqa: PLC0415 - only asynchronous users pay for it

        self.n = n
        self.eager = eager
        self.loop = asyncio.get_running_loop()
        self.event = asyncio.Event()

    def notify(self, state: FutureState) -> None:
        """Take in that a state is done. Under the link's lock."""
        self.n -= 1
        if self.n == 0 or (self.eager and state.status != FINISHED):
            with contextlib.suppress(RuntimeError):  # the loop was closed, and who waited in it is gone
                self.loop.call_soon_threadsafe(self.event.set)

    async def wait(self, timeout: float | None) -> bool:
        """Return whether it was woken in time."""
        import asyncio  # noqa: PLC0415 - only asynchronous users pay for it

        try:
            await asyncio.wait_for(self.event.wait(), timeout)
        except asyncio.TimeoutError:
            return False
        return True


class Callback:
    """Calls a function, under the link's lock, when a key is done."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call = call

    def notify(self, state: FutureState) -> None:
        self.call()


#: The one thread of a process that runs ``add_done_callback`` functions.
_callbacks = CallbackThread("localdask-callbacks")


class Future(Generic[R]):
    """The result of a task that runs, or will run, on the cluster.

    Made by ``Client.submit``, ``map`` and ``scatter``; or ``Future(key)`` attaches to a
    key that the client's cluster already knows. Meanings as in Dask: equality and hash
    are identity, and the result is kept as long as a future of its key exists.

    Parameters
    ----------
    key : str
        The task's key.
    client : Client, optional
        The client it belongs to. The current one by default.

    Examples
    --------
    >>> future = client.submit(sum, [1, 2, 3])  # doctest: +SKIP
    >>> future.result()  # doctest: +SKIP
    6
    """

    __slots__ = ("__weakref__", "_client", "_state", "key")
    __localdask_future__: ClassVar[bool] = True
    __dask_future__: ClassVar[bool] = True

    def __init__(self, key: str, client: Any = None, _state: FutureState | None = None) -> None:
        if _state is None:
            check_key(key)
            if client is None:
                client = find_client[0]()
            _state = client._attach(key)
        self.key = key
        self._client = client
        self._state = _state

    # ── looking ──────────────────────────────────────────────────────────────

    @property
    def client(self) -> Any:
        """The client this future belongs to."""
        return self._client

    #: Dask's other name of ``client``.
    executor = client

    def bind_client(self, client: Any) -> None:
        """Belong to another client of the same cluster from now on. In Dask, what a task was given needs it; here it is bound already."""
        if client is not self._client:
            self._client, self._state = client, client._attach(self.key)

    @property
    def status(self) -> str:
        """``"pending"``, ``"finished"``, ``"error"``, ``"cancelled"`` or ``"lost"``."""
        return self._state.status

    @property
    def type(self) -> Any:
        """The result's type where it is known, else None."""
        state = self._state
        if state.status != FINISHED:
            return None
        if isinstance(state.payload, bytes):
            return type(codec.loads(state.payload))
        return state.type_name or None

    def done(self) -> bool:
        """Return whether the task finished, failed or was cancelled."""
        return self._state.status != PENDING

    def cancelled(self) -> bool:
        """Return whether the task was cancelled."""
        return self._state.status == CANCELLED

    # ── waiting ──────────────────────────────────────────────────────────────

    def result(self, timeout: float | str | None = None) -> R:
        """Wait for the task and return its value, a fresh copy at each call.

        Parameters
        ----------
        timeout : float or str, optional
            Seconds, or text as ``"500 ms"``. Waits without end by default.

        Raises
        ------
        TimeoutError
            The task is not done in time; it goes on.
        FutureCancelledError
            The task was cancelled.
        Exception
            What the task raised, with its type, notes and remote traceback.
        """
        return self._client._value_of(self._state, parse_timeout(timeout))  # type: ignore[no-any-return]

    def exception(self, timeout: float | str | None = None) -> BaseException | None:
        """Wait for the task and return what it raised, or None; also None when it was cancelled."""
        return self._client._exception_of(self._state, parse_timeout(timeout))  # type: ignore[no-any-return]

    def traceback(self, timeout: float | str | None = None) -> TracebackType | None:
        """Wait for the task and return the traceback of what it raised, or None; also None when it was cancelled."""
        return self._client._traceback_of(self._state, parse_timeout(timeout))  # type: ignore[no-any-return]

    def output(self, timeout: float | str | None = None) -> str:
        """Wait for the task and return what it wrote to ``sys.stdout`` and ``sys.stderr``, as it came; also when it failed.

        Of a task that ran several times it is the last run's text. It is kept for as long as the result, up to its last 64 KiB;
        a first line then says how many bytes were left out. What threads that the task starts
        print is not its own, and what C code or a child process writes to a descriptor is not seen; ``localdask logs`` has both.

        Parameters
        ----------
        timeout : float or str, optional
            Seconds, or text as ``"500 ms"``. Waits without end by default.

        Returns
        -------
        str
            ``""`` for a task that wrote nothing, that never ran, or whose worker died of it: ``KilledWorker`` tells the last lines.

        Raises
        ------
        TimeoutError
            The task is not done in time; it goes on.
        FutureCancelledError
            The task was cancelled.

        Examples
        --------
        >>> client.submit(print, "here").output()  # doctest: +SKIP
        'here\n'
        """
        return self._client._output_of(self._state, parse_timeout(timeout))  # type: ignore[no-any-return]

    def __await__(self) -> Generator[Any, None, R]:
        return self._client._value_soon(self._state, None).__await__()  # type: ignore[no-any-return]

    # ── acting ───────────────────────────────────────────────────────────────

    def add_done_callback(self, fn: Callable[[Future[R]], Any]) -> None:
        """Call ``fn(future)`` on this process's callback thread once the task is done."""
        check_function("fn", fn, "fn(future)")
        _callbacks.expect()

        def call(future: Future[R] = self) -> None:
            _callbacks.submit(fn, future)

        self._client._when_done(self._state, Callback(call))

    def cancel(self, reason: str = "unknown", msg: str = "", *, force: bool = False) -> Any:
        """Cancel the task, and what depends on it. A function that runs already is interrupted only by ``force``."""
        return self._client.cancel([self], force=force, reason=reason, msg=msg)

    def retry(self) -> Any:
        """Run an erred task again."""
        return self._client.retry([self])

    def release(self) -> None:
        """Let go of the result now. The future is cancelled then."""
        self._state = FutureState(self.key, _ignore)
        self._state.status = CANCELLED
        self._state.reason = "released"

    # ── being passed on ──────────────────────────────────────────────────────

    def __reduce__(self) -> Any:
        codec.note_future(self)
        return (self._client.future_of_key, (self.key,))

    def __repr__(self) -> str:
        state = self._state
        shown = ""
        if state.status == FINISHED and (kind := self.type) is not None:
            shown = f" type: {kind if isinstance(kind, str) else _type_name(kind)},"
        return f"<Future: {state.status},{shown} key: {self.key}>"

    def _repr_html_(self) -> str:
        from localdask.api import portraits  # noqa: PLC0415 - only notebooks show one

        return portraits.future_html(self, self._state.type_name if self._state.status == FINISHED else "")


def _type_name(kind: type) -> str:
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _ignore(key: str) -> None:
    return None


#: Set by ``api/client.py``, which stands above this room: gives the current client.
find_client: list[Callable[[], Any]] = []


def dask_of(futures: Any) -> Any:
    """Return ``distributed`` if these are futures of its own, which ``connect`` gives to scripts; else None."""
    distributed = real_distributed()
    if distributed is None:
        return None
    some = next(iter(futures), None) if isinstance(futures, (list, tuple, set, dict)) else futures
    is_theirs = isinstance(some, distributed.Future) or (is_collection(some) and bool(distributed.futures_of(some)))
    return distributed if is_theirs else None


def is_collection(obj: Any) -> bool:
    """Whether it is a collection of Dask's, which may hold futures in its graph."""
    return callable(getattr(type(obj), "__dask_graph__", None))


def futures_in(obj: Any) -> list[Future[Any]]:
    """Return the futures in nested lists, tuples, sets, dicts and Dask collections."""
    found: list[Future[Any]] = []
    stack = [obj]
    while stack:
        item = stack.pop()
        if isinstance(item, Future):
            found.append(item)
        elif type(item) in (list, tuple, set, frozenset):
            stack.extend(item)
        elif type(item) is dict:
            stack.extend(item.values())
        elif is_collection(item):
            stack.extend((item.__dask_graph__() or {}).values())
    found.reverse()
    return found


def futures_given(obj: Any, what: str) -> list[Future[Any]]:
    """Return the futures in what a user gave to ``what``; raise ``TypeError`` when it has other things, and none."""
    found = futures_in(obj)
    stack = [] if found else [obj]
    while stack:
        item = stack.pop()
        if type(item) in (list, tuple, set, frozenset):
            stack.extend(item)
        elif type(item) is dict:
            stack.extend(item.values())
        elif not is_collection(item) and dask_of(item) is None:
            raise TypeError(f"{what} takes futures, and {item!r:.80} is none: give what submit, map or futures_of returned")
    return found


def fire_and_forget(obj: Any) -> None:
    """Run these futures' tasks to the end even when nobody holds the futures. As in Dask.

    Parameters
    ----------
    obj : Future, persisted Dask collection, or nested collection of them
        What to keep going.
    """
    if (distributed := dask_of(obj)) is not None:
        distributed.fire_and_forget(obj)
    for future in futures_given(obj, "fire_and_forget"):
        future._client._fire_and_forget([future.key])
