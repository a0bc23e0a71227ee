"""The client: hands functions and data to a cluster, and keeps the futures of what comes back.

Names and meanings are those of ``distributed.Client``; where they differ the docstring
says so. A client belongs to one process, and any of its threads may use it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from localdask import sizing
from localdask.api import addresses, companions
from localdask.api import futures as futures_room
from localdask.api.annotations import MAP_BATCH, TaskOptions, check_mapped, options_here
from localdask.api.asking import Asking
from localdask.api.awaiting import Awaiting
from localdask.api.client_preloads import begin_client_preloads, end_client_preloads
from localdask.api.collections import Collections
from localdask.api.control import Control
from localdask.api.datasets import Publishing
from localdask.api.executing import Executing
from localdask.api.futures import CANCELLED, LOST, Future, FutureState, futures_given, parse_timeout
from localdask.api.hearing import Hearing
from localdask.api.likeness import Likeness, take_client_words
from localdask.api.links import Link, SchedulerLink, TaskLink, check_same_cluster
from localdask.api.looking import Looking
from localdask.api.plugins import Registering
from localdask.api.releasing import Releasing
from localdask.api.seeing import Seeing
from localdask.api.topics import Listening
from localdask.errors import ClosedClientError, ClosedClusterError, PreloadError
from localdask.messages import (
    CancelKeys,
    FireAndForget,
    Function,
    ReleaseKeys,
    RetryKeys,
    SubmitTasks,
    TaskSpec,
    WantKeys,
)
from localdask.parameters import check_count, check_text
from localdask.preloads.standins import real_distributed
from localdask.spelling import mend_of
from localdask.system.codec import blake2b
from localdask.system.keys import check_key
from localdask.system.signatures import parameters_of

if TYPE_CHECKING:
    from localdask.preloads.generations import Preloads

P = ParamSpec("P")
R = TypeVar("R")

#: How long a cluster in another process may take to answer, in seconds.
CONNECT_S = 10.0

_clients: list[Client] = []
_current = threading.local()


@functools.lru_cache(maxsize=256)
def _begun_digest(function_id: str) -> Any:
    """Return what the digests of all calls of a function begin with."""
    return blake2b(function_id.encode("utf-8", "surrogatepass"), digest_size=16)


class Client(
    Hearing, Releasing, Collections, Awaiting, Control, Looking, Seeing, Registering, Listening, Publishing, Asking, Executing, Likeness
):
    """Submit work to a cluster and get its results. Meanings as in ``distributed.Client``.

    Parameters
    ----------
    address : LocalCluster or str, optional
        The cluster to use, or how one of another process is found: by its name or by its address
        (``"unix://…"``, ``cluster.scheduler_address``). ``"auto"`` is the default cluster (that
        of ``localdask run``), else what ``LOCALDASK_ADDRESS`` or ``scheduler-address`` of the configuration says, else the only
        one that was given a name.
        Without an address it is one of the first two, else a new ``LocalCluster`` which this client owns and closes.
    timeout : float or str, optional
        Seconds to wait for a cluster in another process; 10 by default.
    set_as_default : bool, default True
        Whether ``get_client()`` and ``Future(key)`` find this client. The newest wins.
    name : str, optional
        A name to tell this client by.
    asynchronous : bool, default False
        Whether it is for coroutines: entered by ``async with`` or begun by ``await``, and its blocking methods, and
        those of its futures, return awaitables there.
    scheduler_file : path, optional
        A file that ``write_scheduler_file`` wrote, in place of an address.
    **kwargs
        For the new ``LocalCluster``. What Dask's client takes and one machine has no use for is accepted.

    Raises
    ------
    ClosedClusterError
        The cluster is closed.
    ClusterNotFoundError
        None runs there; the text lists those that run.

    Examples
    --------
    >>> from localdask import Client
    >>> with Client(n_workers=2) as client:  # doctest: +SKIP
    ...     print(client.submit(sum, [1, 2, 3]).result())
    6
    """

    #: Whether its blocking methods return awaitables.
    asynchronous = False
    #: What a failed pickle's text says instead (``system/culprits.py``).
    __localdask_mend__ = "call get_client() inside the task"

    def __new__(cls, *args: Any, asynchronous: bool = False, **kwargs: Any) -> Client:
        """Make the kind that is asked for."""
        return object.__new__(asynchronous_client[0] if asynchronous and cls is Client else cls)

    def __init__(
        self,
        address: Any = None,
        *,
        timeout: float | str | None = None,
        set_as_default: bool = True,
        name: str | None = None,
        asynchronous: bool = False,
        **kwargs: Any,
    ) -> None:
        self._owns_cluster = False
        check_text("name", name or "")
        address = take_client_words(address, kwargs) if kwargs else address
        if addresses.asks_for_default(address, kwargs):
            address = default_cluster[-1] if default_cluster else addresses.default_address() or address
        if address is None:
            address = self._make_cluster(kwargs)
            self._owns_cluster = True
        elif kwargs:
            mend = mend_of(min(kwargs), parameters_of(Client.__init__) or (), "they go with a new cluster, and one was given")
            raise ValueError(f"Unexpected keyword arguments: {sorted(kwargs)}; {mend}")
        self.cluster: Any = None
        if isinstance(address, str):
            from localdask.api.socket_link import SocketLink  # noqa: PLC0415 - 4 ms, and a client of a cluster in this process needs none

            seconds = parse_timeout(timeout)
            address = SocketLink(addresses.socket_path(address), CONNECT_S if seconds is None else seconds)
        if hasattr(address, "post") and hasattr(address, "blocking"):
            self._link: Link = address
        else:
            if not (hasattr(address, "scheduler") and hasattr(address, "segments")) or isinstance(address, type):
                raise TypeError(f"Client({address!r:.80}): give a LocalCluster, or a text: a cluster's name, its address or 'auto'")
            if getattr(address, "status", "running") in ("closed", "closing"):
                raise ClosedClusterError(f"Trying to connect to an already closed or closing Cluster {address!r}")
            self.cluster = address
            self._link = SchedulerLink(address.scheduler, address.segments)
        self.id = f"Client-{name + '-' if name else ''}{os.urandom(6).hex()}"
        self.name = name or self.id
        self.status = "running"
        self._states: dict[str, weakref.ref[FutureState]] = {}
        self._submitting = threading.RLock()
        self._n_impure = 0
        self._pid = os.getpid()
        self._preloads: Preloads | None = None
        self._begin_asking()
        self._begin_releasing()
        self._begin_storing()
        self._link.connect(self.id, self._deliver)
        if set_as_default:
            _clients.append(self)
            companions.client_opened(self)
        if not isinstance(self._link, TaskLink):
            try:
                self._preloads = begin_client_preloads(self)
            except PreloadError as error:
                self.close()
                raise error.with_traceback(None) from None  # its text has the frames that are the user's
            except BaseException:
                self.close()
                raise

    def _make_cluster(self, options: dict[str, Any]) -> Any:
        return cluster_factory[0](**options)

    # ── submitting ───────────────────────────────────────────────────────────

    # Futures may stand for arguments, so what does not fit a function's own parameters is accepted as well.
    @overload
    def submit(self, func: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]: ...

    @overload
    def submit(self, func: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]: ...

    @overload
    def submit(  # type: ignore[overload-cannot-match]
        self, func: Callable[..., Coroutine[Any, Any, R]], /, *args: Any, **kwargs: Any
    ) -> Future[R]: ...

    @overload
    def submit(  # type: ignore[overload-cannot-match]
        self, func: Callable[..., R], /, *args: Any, **kwargs: Any
    ) -> Future[R]: ...

    def submit(  # type: ignore[misc]
        self,
        func: Callable[..., Any],
        /,
        *args: Any,
        key: str | None = None,
        workers: Any = None,
        resources: Mapping[str, float] | None = None,
        retries: int | None = None,
        priority: float = 0,
        fifo_timeout: Any = None,
        allow_other_workers: bool = False,
        actor: bool = False,
        actors: bool = False,
        pure: bool = True,
        **kwargs: Any,
    ) -> Future[Any]:
        """Run ``func(*args, **kwargs)`` on a worker. Meanings as in Dask.

        Parameters
        ----------
        func : callable
            The function. It travels by reference when workers can import it, else by value.
        *args, **kwargs
            Its arguments. Futures in them, also in nested lists, tuples, dicts and sets, are replaced by their results.
        key : str, optional
            The task's name. A key that is known already is shared and not run again.
        workers : str or list of str, optional
            The workers that may run it, by name or address.
        resources : dict of str to float, optional
            What it takes of its worker's resources while it runs.
        retries : int, default 0
            How often it is run again when it raises.
        priority : float, default 0
            Higher runs first; equal ones in the order of submission.
        allow_other_workers : bool, default False
            Whether ``workers`` is only a preference.
        actor, actors : bool, default False
            Whether what it makes stays in its worker, and the result is an ``Actor``: a proxy of it. Then ``pure`` is False.
        pure : bool, default True
            Whether equal calls are the same task, which runs once.

        Returns
        -------
        Future
            The result to come.

        Raises
        ------
        TypeError
            ``func`` is not callable.
        ValueError
            A future among the arguments is of another cluster.
        SerializationError
            The function or an argument cannot be pickled; the text names it.
        ClosedClientError
            The client is closed.
        """
        if not callable(func):
            raise TypeError(f"First input to submit must be a callable function, not {type(func).__name__}")
        self._check_running()
        if actor or actors:
            from localdask.api.actors import Making  # noqa: PLC0415 - few make actors

            func, pure, actor = Making(func), False, True
        function, stored = self._pack_function(func)
        arguments, inputs, keeps = self._pack_arguments((*stored, *args) if stored else args, kwargs)
        if key is None:
            key = self._key(function, arguments, pure)
        elif type(key) is not str:
            check_key(key)
        if workers is None and not resources and not retries and not priority and not allow_other_workers and options_here() is None:
            spec = TaskSpec(key, function, arguments, self._dependencies(inputs) if inputs else ())
        else:
            spec = self._spec(key, function, arguments, inputs, TaskOptions(workers, allow_other_workers, resources, retries, priority))
        if stored or keeps:
            spec.keeps = (*stored, *keeps)
        if actor:
            spec.is_actor = True
        return self._submit([spec])[0]

    def map(
        self,
        func: Callable[..., R],
        /,
        *iterables: Iterable[Any],
        key: str | list[str] | None = None,
        workers: Any = None,
        retries: int | None = None,
        resources: Mapping[str, float] | None = None,
        priority: float = 0,
        allow_other_workers: bool = False,
        fifo_timeout: Any = None,
        actor: bool = False,
        actors: bool = False,
        pure: bool = True,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[Future[R]]:
        """Run a function on each element, or on each tuple of several iterables. Meanings as in Dask.

        Parameters
        ----------
        func : callable
            The function.
        *iterables : iterable
            Its positional arguments, as for the builtin ``map``; the shortest ends it.
        key : str or list of str, optional
            A prefix for the tasks' names, or their names.
        batch_size : int, optional
            Accepted for Dask's sake; tasks are always handed over in batches.
        progress : bool, optional
            Whether to show how far the tasks are, as ``localdask.progress`` does: in a terminal until they are done. It is the
            function's own if that takes a keyword of this name, or any keyword.
        **kwargs
            The same for every call. The other parameters are those of ``submit``.

        Returns
        -------
        list of Future
            In the order of the elements.
        """
        if not callable(func):
            raise TypeError(f"First input to map must be a callable function, not {type(func).__name__}")
        keys = check_mapped(iterables, key)
        check_count("batch_size", batch_size)
        self._check_running()
        if actor or actors:
            from localdask.api.actors import Making  # noqa: PLC0415 - few make actors

            func, pure, actor = Making(func), False, True  # type: ignore[assignment]
        show = None
        if "progress" in kwargs:
            from localdask.api.progress import take_progress  # noqa: PLC0415 - few maps show how far they are

            show = take_progress(func, kwargs)
        function, stored = self._pack_function(func)
        shared = list(stored)
        if kwargs:
            kwargs = self._pack_shared(kwargs, shared)
        options = TaskOptions(workers, allow_other_workers, resources, retries, priority)
        named = Function(function.function_id, key, function.pickled) if isinstance(key, str) else function
        made: list[Future[R]] = []
        specs: list[TaskSpec] = []
        for args in zip(*iterables):  # noqa: B905 - the shortest ends it, as in Dask
            arguments, inputs, keeps = self._pack_arguments((*stored, *args) if stored else args, kwargs)
            task_key = next(keys) if keys is not None else self._key(named, arguments, pure)
            specs.append(self._spec(task_key, function, arguments, inputs, options))
            specs[-1].is_actor = actor
            if shared or keeps:
                specs[-1].keeps = (*shared, *keeps)
            if len(specs) == MAP_BATCH:
                made += self._submit(specs)
                specs = []
        if specs:
            made += self._submit(specs)
        if show is not None:
            show(made)
        return made

    def _key(self, function: Function, arguments: bytes, pure: bool) -> str:
        if pure:
            digest = _begun_digest(function.function_id).copy()
            digest.update(arguments)
            return f"{function.name}-{digest.hexdigest()}"
        self._n_impure += 1
        return f"{function.name}-{self.id[-12:]}-{self._n_impure}-{os.urandom(4).hex()}"

    def _spec(self, key: str, function: Function, arguments: bytes, inputs: list[Any], options: TaskOptions) -> TaskSpec:
        return options.spec(key, function, arguments, self._dependencies(inputs) if inputs else ())

    def _dependencies(self, inputs: list[Any]) -> tuple[str, ...]:
        for future in inputs:
            if future._state.status in (CANCELLED, LOST):
                from localdask.cancellations import FutureCancelledError  # noqa: PLC0415 - see there

                raise FutureCancelledError(future.key, future._state.reason, "it was given as an argument")
            if future._client is not self:
                check_same_cluster(self._link, future._client._link, future.key)
        return tuple(dict.fromkeys(future.key for future in inputs))

    def _submit(self, specs: list[TaskSpec]) -> list[Future[Any]]:
        made: list[Future[Any]] = []
        new: list[TaskSpec] = []
        known = self._states
        drop = self._drop
        with self._submitting:
            try:
                for spec in specs:
                    key = spec.key
                    ref = known.get(key)
                    state = ref() if ref is not None else None
                    if state is None or state.is_gone or state.status in (CANCELLED, LOST):
                        state = FutureState(key, drop)
                        if spec.keeps:
                            state.keeps = spec.keeps
                        new.append(spec)
                        known[key] = weakref.ref(state)
                    made.append(Future(key, self, state))
                if new:
                    words: list[Any] = [SubmitTasks(self.id, new)]
                    if self._dropped and (gone := self._take_dropped()):
                        words.append(ReleaseKeys(self.id, gone))  # a loop of submits need not wake the other thread for it
                    self._link.post(words)
                self._check_running()  # else nobody tells of the new ones: those before it are cancelled
            except BaseException:
                self._disown([spec.key for spec in new])
                raise
        return made

    def _disown(self, keys: list[str]) -> None:
        """Share none of these with who submits them next: an interrupt came, perhaps before they went out."""
        for key in keys:
            ref = self._states.get(key)
            state = ref() if ref is not None else None
            if state is not None:
                state.is_gone = True

    def _attach(self, key: str) -> FutureState:
        with self._submitting:
            ref = self._states.get(key)
            state = ref() if ref is not None else None
            if state is None or state.is_gone:
                state = FutureState(key, self._drop)
                self._states[key] = weakref.ref(state)
                self._link.post([WantKeys(self.id, [key])])
                self._check_running()
        return state

    def _check_running(self) -> None:
        """Raise if the client is closed. What is to be answered is checked once more after it is said: that may be too late."""
        if self.status != "running":
            raise ClosedClientError("Client is closed; make a new Client.")

    @staticmethod
    def future_of_key(key: str) -> Future[Any]:
        """Return a future of a key in the current client: what a pickled future becomes."""
        return Future(key, get_client())

    # ── control ──────────────────────────────────────────────────────────────

    def cancel(self, futures: Any, force: bool = False, reason: str = "unknown", msg: str = "") -> None:
        """Cancel tasks and what depends on them. Meanings as in Dask, but for ``force``.

        Parameters
        ----------
        futures : Future, persisted Dask collection, or nested collection of them
            What to cancel.
        force : bool, default False
            Whether to stop also what runs already: by an interrupt, as of Ctrl-C, and if the task goes on for half a
            second more, by replacing its worker's process. Otherwise a running function goes on to its end.
        reason, msg : str, optional
            Told by the error that ``result`` raises.
        """
        keys = [future.key for future in futures_given(futures, "cancel")]
        self._link.post([CancelKeys(self.id, keys, reason or "unknown", msg or "", force)])

    def retry(self, futures: Any) -> None:
        """Run erred tasks again, and those that failed because of them."""
        self._link.post([RetryKeys(self.id, [future.key for future in futures_given(futures, "retry")])])

    def _fire_and_forget(self, keys: list[str]) -> None:
        self._link.post([FireAndForget(self.id, keys)])

    # ── living ───────────────────────────────────────────────────────────────

    @property
    def futures(self) -> dict[str, str]:
        """The keys this client holds, with their status."""
        return {key: state.status for key, ref in list(self._states.items()) if (state := ref()) is not None}

    @property
    def scheduler(self) -> Any:
        """The scheduler, for a client in its process."""
        return None if self.cluster is None else self.cluster.scheduler

    @property
    def dashboard_link(self) -> str:
        """The dashboard's address, or an empty text."""
        return getattr(self.cluster, "dashboard_link", "")

    def close(self, timeout: Any = None) -> None:
        """Release all futures, which are cancelled; close the cluster if this client made it. Idempotent."""
        preloads, self._preloads = self._preloads, None
        end_client_preloads(preloads)  # also when the cluster went first
        self._end_plugin_reloads()
        if self.status == "closed":
            return
        self.status = "closed"
        self._stop_being_default()
        if os.getpid() == self._pid:
            self._link.close()
            with self._link.lock:
                self._cancel_all("client-closed", "", "Client was closed before the scheduler answered.")
            if self._owns_cluster:
                self.cluster.close()
        self._states.clear()
        self._end_storing()

    def _stop_being_default(self) -> None:
        with contextlib.suppress(ValueError):  # it never was
            _clients.remove(self)
        companions.client_closed(self)

    def shutdown(self) -> None:
        """Close the client and its cluster, wherever that is."""
        cluster = self.cluster
        if cluster is None and self.status == "running":
            self._ask("shutdown")
        self.close()
        if cluster is not None:
            cluster.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextlib.contextmanager
    def as_current(self) -> Generator[Client, None, None]:
        """Make this the current client of this thread for a while."""
        before = getattr(_current, "client", None)
        _current.client = self
        try:
            yield self
        finally:
            _current.client = before

    @classmethod
    def current(cls, allow_global: bool = True) -> Client:
        """Return the current client; ValueError when there is none."""
        found = getattr(_current, "client", None)
        if found is not None:
            return found  # type: ignore[no-any-return]
        if allow_global:
            return default_client()
        raise ValueError("Not running inside the `as_current` context manager")

    def __reduce__(self) -> Any:
        raise TypeError("a Client stays in its process")

    def __repr__(self) -> str:
        if self.status != "running":
            return "<Client: No scheduler connected>"
        if self.cluster is None:
            return f"<Client: {self._link.address!r}>"
        info = self.cluster.scheduler_info
        memory = f", memory={sizing.format_bytes(info['total_memory'])}" if info["total_memory"] else ""
        return f"<Client: {info['address']!r} processes={info['n_workers']} threads={info['total_threads']}{memory}>"


#: The running clusters that ``Client()`` finds; ``localdask run`` puts its own here.
default_cluster: list[Any] = []
#: Set by ``api/cluster.py``, which stands above this room: makes a LocalCluster.
cluster_factory: list[Callable[..., Any]] = []
#: Set by ``api/asynchronous.py``, which stands above this room: the kind for coroutines.
asynchronous_client: list[type[Client]] = []
_task_clients: dict[int, Client] = {}
_making_task_client = threading.Lock()


def default_client() -> Client:
    """Return the newest client that was made with ``set_as_default``, in a task that of ``get_client``; ValueError when there is none."""
    if not _clients:
        from localdask.processes import runner  # noqa: PLC0415 - what only a worker has

        if runner.own_worker() is not None:
            return get_client()
        raise ValueError("No global client found and no address provided; make a Client first")
    return _clients[-1]


def client_of(cluster: Any) -> Client:
    """Return the current client if it is of this cluster, else a new one."""
    try:
        current = Client.current()
    except ValueError:
        return Client(cluster)
    return current if current.cluster is cluster and current.status == "running" else Client(cluster)


def get_client(address: Any = None, timeout: Any = None, resolve_address: bool = True) -> Client:
    """Return the current client: that of the running task, of this thread, or the default one. As in Dask."""
    from localdask.processes import runner  # noqa: PLC0415 - what only a worker has

    worker = runner.own_worker()
    if worker is None:
        distributed = real_distributed()
        if distributed is None or _clients or getattr(_current, "client", None) is not None:
            return Client.current()
        return distributed.get_client(address, timeout, resolve_address)  # type: ignore[no-any-return]
    with _making_task_client:
        client = _task_clients.get(id(worker))
        if client is None or client.status != "running":
            client = _task_clients[id(worker)] = Client(TaskLink(worker), set_as_default=False)
    return client


futures_room.find_client.append(get_client)
