"""A cluster on this machine: what begins in order here, ends in reverse.

``LocalCluster`` knows every part (scheduler, segments, scheduler preloads, nannies) and
decides nothing by itself: tasks are the scheduler's, processes are the supervision's.
Made in the user's process; the context manager, ``close`` and the interpreter's exit
all lead to the same end.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from localdask import sizing
from localdask.api import client as client_room
from localdask.api.arguments import check_arguments, check_kinds, make_local_directory, read_lifetime, read_limit, read_preloads
from localdask.api.futures import parse_timeout
from localdask.api.likeness import check_cluster_words
from localdask.api.links import PYTHON
from localdask.errors import ClosedClusterError, PreloadError, UsageError, WorkerStartTimeoutError
from localdask.messages import BeginNanny
from localdask.parameters import check_count, read
from localdask.processes.launching import begin_launcher
from localdask.system.shield import ShieldedLock
from localdask.version import __version__

if TYPE_CHECKING:
    from localdask.api.parts import Adaptive, NannyHandle, PreloadStatus, ReloadRecord, SegmentFolder, Server, ThreadHandle

#: What a worker's running tasks and teardowns are given when the cluster closes, in seconds.
CLOSE_GRACE_S = 8.0
#: How long the start waits for the news what preloads import, which follows that they are ready.
HELPERS_S = 0.1

#: Set by ``api/asynchronous.py``, which stands above this room: the kind for coroutines.
asynchronous_cluster: list[type[LocalCluster]] = []
_open_clusters: weakref.WeakSet[LocalCluster] = weakref.WeakSet()


class LocalCluster:
    """A scheduler in this process, and nannies that supervise workers. Meanings as in Dask.

    Parameters
    ----------
    name : str, optional
        The cluster's name, by which ``Client(name)`` finds it from other processes; a random one by
        default. One that another running cluster of this user has is refused.
    n_workers, threads_per_worker : int, optional
        Dask's rule for this machine's CPUs by default: up to four CPUs give one
        single-threaded worker each.
    processes : bool, default True
        False runs the workers in threads of this process, without nannies: for debugging.
    memory_limit : str, int or float, optional
        For each worker: bytes, ``"4GB"``, a fraction of the machine, 0 for none. An equal
        share by default.
    preload, preload_nanny, preload_scheduler : str, path, or list of them, optional
        Initialisation code: a file, a module's name or Python text. What configuration
        names is used when nothing is given here.
    preload_argv, preload_nanny_argv, preload_scheduler_argv : list, optional
        Arguments for click commands: one list for all, one list for each, or one string.
    resources : dict of str to float, optional
        What each worker offers to tasks submitted with ``resources``.
    env : dict of str to str, optional
        Environment of the workers, over this process's own.
    plugins : list of objects, optional
        Plugins that every worker sets up before it takes tasks; those of nannies and of the scheduler, too. One that fails
        fails the start.
    local_directory : str, optional
        Where workers keep files; a temporary folder by default.
    start_method : {"fork", "spawn"}
        Fork from a clean process (1 ms a worker), or start a new interpreter for each.
    death_timeout : float or str, optional
        Seconds within which all workers must be ready.
    setup_timeout, teardown_timeout : float or str
        Limits of one ``dask_setup`` and one ``dask_teardown``, in seconds.
    lifetime : float or str, optional
        How long a worker lives, as ``"2h"``. Then it is retired: what it runs is waited for, and what only it holds is kept.
    lifetime_stagger : float or str, optional
        A random part of this is added to each lifetime, or taken from it.
    lifetime_restart : bool, default False
        Whether another worker follows one whose time is over. Without it the cluster shrinks to none.
    lifetime_tasks : int, optional
        How many tasks a worker runs before it is retired in the same way, and replaced.
        One in which a task waits for others goes on until that is done.
    lifetime_memory : int or str, optional
        How much memory of its own, as ``"2 GB"``, a worker may have after a task; above it, it is replaced in the same way.
        With ``processes=False`` all workers are one process, and it makes no difference.
    preload_optional : bool, default False
        Whether a ``dask_setup`` that fails is only told, as in Dask, and its process serves without it.
    allow_url_preload : bool, default False
        Whether a preload may be an address, which is fetched.
    trust_preload : bool, default False
        Whether a preload may be a file that other users can change.
    reload_policy : {"atomic", "rolling", "restart", "off"}
        What a saved preload does: swapped in all processes or none, one worker after the other, by
        new worker processes, or nothing.
    reload_grace : float or str
        Seconds after which a reload that waits for running tasks warns.
    reload_overrun : {"wait", "interrupt", "restart-worker"}
        What happens then: wait on, interrupt the tasks (as Ctrl-C would; they run again, on the new code), or replace the worker. One
        whose tasks do not heed the interrupt is replaced after as many seconds more.
    on_reload : callable, optional
        Called on the scheduler's thread with the ``ReloadRecord`` of each reload.
    on_event : callable, optional
        Called on the scheduler's thread as ``on_event(kind, **fields)`` for each start, death and restart.
    on_log : callable, optional
        Called on the scheduler's thread as ``on_log(source, stream, line)`` for each line that
        a worker or nanny writes; by default it goes to this process's ``sys.stdout`` or ``sys.stderr``.
    asynchronous : bool, default False
        Whether it is for coroutines: entered by ``async with`` or started by ``await``, and its blocking methods return
        awaitables there.
    **kwargs
        What Dask's cluster takes and one machine has no use for (``dashboard_address``, ``silence_logs``, ``scheduler_port``)
        is accepted; what would be missed (``security``, a ``host`` elsewhere) is refused.

    Raises
    ------
    PreloadError
        A preload failed; nothing is left running.
    UsageError
        An argument makes no sense.
    WorkerStartTimeoutError
        Not all workers were ready within ``death_timeout``.

    Examples
    --------
    >>> from localdask import Client, LocalCluster
    >>> with LocalCluster(n_workers=2) as cluster, Client(cluster) as client:  # doctest: +SKIP
    ...     client.gather(client.map(abs, [-1, -2]))
    [1, 2]
    """

    #: Whether its blocking methods return awaitables.
    asynchronous = False
    #: What a failed pickle's text says instead (``system/culprits.py``).
    __localdask_mend__ = "call get_client() inside the task"
    _server: Server | None = None
    _adaptive: Adaptive | None = None
    segments: SegmentFolder | None = None

    def __new__(cls, *args: Any, asynchronous: bool = False, **kwargs: Any) -> LocalCluster:
        """Make the kind that is asked for."""
        return object.__new__(asynchronous_cluster[0] if asynchronous and cls is LocalCluster else cls)

    def __init__(
        self,
        name: str | None = None,
        n_workers: int | None = None,
        threads_per_worker: int | None = None,
        processes: bool = True,
        *,
        memory_limit: Any = "",
        preload: Any = None,
        preload_argv: Any = None,
        preload_nanny: Any = None,
        preload_nanny_argv: Any = None,
        preload_scheduler: Any = None,
        preload_scheduler_argv: Any = None,
        resources: Mapping[str, float] | None = None,
        env: Mapping[str, str | None] | None = None,
        plugins: Iterable[Any] = (),
        local_directory: str | os.PathLike[str] | None = None,
        start_method: str = "fork",
        death_timeout: float | str | None = None,
        setup_timeout: float | str = sizing.SETUP_S,
        teardown_timeout: float | str = sizing.TEARDOWN_S,
        lifetime: float | str | None = None,
        lifetime_stagger: float | str | None = None,
        lifetime_restart: bool | None = None,
        lifetime_tasks: int | None = None,
        lifetime_memory: float | str | None = None,
        preload_optional: bool = False,
        allow_url_preload: bool = False,
        trust_preload: bool = False,
        allowed_failures: int | None = None,
        reload_policy: str = "atomic",
        reload_grace: float | str = 10.0,
        reload_overrun: str = "wait",
        on_reload: Callable[[ReloadRecord], None] | None = None,
        on_event: Callable[..., None] | None = None,
        on_log: Callable[[str, int, str], None] | None = None,
        asynchronous: bool = False,
        **kwargs: Any,
    ) -> None:
        dasks_preload, dasks_argv, plugins = check_cluster_words(kwargs, plugins, maker=LocalCluster.__init__)
        check_arguments(name, start_method, processes, preload_nanny)
        check_kinds(preload_argv=preload_argv, preload_nanny_argv=preload_nanny_argv, preload_scheduler_argv=preload_scheduler_argv)
        check_kinds(local_directory=local_directory, allowed_failures=allowed_failures)
        check_kinds(lifetime=lifetime, lifetime_stagger=lifetime_stagger, lifetime_memory=lifetime_memory)
        check_kinds(on_reload=on_reload, on_event=on_event, on_log=on_log)
        limits_s = read_limit("setup_timeout", setup_timeout), read_limit("teardown_timeout", teardown_timeout)
        grace_s, death_s = read_limit("reload_grace", reload_grace), parse_timeout(death_timeout, "death_timeout")
        self.status, self._machine = "created", sizing.read_machine()
        self._plan = sizing.plan_workers(n_workers, threads_per_worker, self._machine.n_cpus, processes=processes)
        memory = sizing.worker_memory(
            memory_limit, self._machine, n_workers=self._plan.n_workers, nthreads=self._plan.nthreads, given=memory_limit != ""
        )
        if processes:
            begin_launcher()
        from localdask.api import parts  # noqa: PLC0415 - 20 ms, during which the launcher starts

        self.name, self._is_named = name or os.urandom(4).hex(), bool(name)
        sources_of = partial(read_preloads, allow_url=allow_url_preload, trust=trust_preload)
        self._sources = {
            "scheduler": sources_of("scheduler", preload_scheduler or dasks_preload, preload_scheduler_argv or dasks_argv),
            "nanny": sources_of("nanny", preload_nanny, preload_nanny_argv) if processes else [],
            "worker": sources_of("worker", preload, preload_argv),
        }
        self._tells_nobody = on_event is None
        self._on_event, self._on_reload = on_event or parts.tell_of_reloads, on_reload
        living = read_lifetime(lifetime, lifetime_stagger, lifetime_restart, lifetime_tasks, lifetime_memory, processes=processes)
        self._settings = parts.worker_settings(self._plan.nthreads, memory, living, limits_s, resources, local_directory, env)
        self._settings.update(preload_optional=preload_optional, method=start_method)
        n_preloads = max(map(len, self._sources.values()))
        reloading = parts.reload_settings(reload_policy, grace_s, reload_overrun, limits_s, n_preloads)
        n_failures = int(parts.config.get("scheduler.allowed-failures", 3)) if allowed_failures is None else allowed_failures
        self.scheduler = parts.Scheduler(self.name, allowed_failures=n_failures, on_event=self._tell, limits_s=limits_s)
        self.scheduler.address = f"local://{self.name}"
        self._journal = parts.Journal(self.scheduler)
        self.scheduler.on_garbage = self._unlink
        hooks: dict[str, Any] = {"setup_s": limits_s[0], "teardown_s": limits_s[1]}
        self._preloads = parts.Preloads(self.scheduler, "scheduler", "scheduler", is_optional=preload_optional, **hooks)
        method, on_log = start_method if processes else None, self._journal.before(on_log or parts.write_through)
        self._supervisor = parts.Supervisor(self.scheduler, self._begin_words, method=method, tell=self._tell, on_log=on_log)
        parts.Hints(self.scheduler, on_log)
        parts.Leftovers(self.scheduler, lambda: self.segments)
        self._lifetimes = parts.Lifetimes(self.scheduler, living, self._supervisor.end_life)
        self._reloader = self._supervisor.reloader = parts.Reloader(
            self._sources,
            reloading,
            loop=self.scheduler.loop,
            trust=trust_preload,
            handles=lambda: self._supervisor.handles,
            on_record=self._reloaded,
            on_trouble=lambda text: self._tell("reload-trouble", detail=text),
        )
        parts.Reception(self, self._reloader)
        self._plugin_keeper = self._supervisor.plugin_keeper = parts.PluginKeeper(self.scheduler, lambda: self._supervisor.handles, plugins)
        self._closing, self._pid = threading.Lock(), os.getpid()
        self._start(death_s, processes=processes)

    # ── beginning ────────────────────────────────────────────────────────────

    def _start(self, timeout_s: float | None, *, processes: bool) -> None:
        from localdask.api import parts  # noqa: PLC0415 - see __init__

        self.status = "starting"
        _open_clusters.add(self)
        try:
            self._supervisor.start_ahead(self._plan.n_workers, with_workers=not self._sources["nanny"])
            places = parts.temporary_places()
            if self._settings["local_directory"] is not None:
                make_local_directory(self._settings["local_directory"])
                places.insert(0, self._settings["local_directory"])
            later = self.scheduler.loop.call_later_threadsafe
            self.segments = parts.SegmentFolder.create(tell=lambda text: self._tell("segments", detail=text), places=places, later=later)
            self._settings["segment_folder"] = self.segments.path
            if processes:
                self._open_door(self.segments.path)
            self._preloads.load(self._sources["scheduler"])
            for error in self._preloads.setup():
                print(f"localdask: {error}", file=sys.stderr)
            self._plugin_keeper.begin()
            self.scheduler.start()
            self._supervisor.is_starting = True
            self._supervisor.ask_for(self._plan.n_workers)
            self._reloader.scheduler_began(self._preloads)
            self._reloader.notify = self.scheduler.notify
            self._reloader.watch()
            parts.sweep_stale([parts.SHARED_MEMORY, *places])  # what clusters left whose process was killed; while the nannies start
            parts.sweep_doors()
            self._supervisor.wait_ready(timeout_s)
            self.scheduler.wait_for(lambda: self._reloader.knows_helpers, HELPERS_S)
        except PreloadError as error:
            self.close()
            raise error.with_traceback(None) from None  # its text has the frames that are the user's
        except BaseException:
            self.close()
            raise
        self._supervisor.is_starting = False
        self.status = "running"
        parts.tell_of_earlier(list(_open_clusters), self)

    def _open_door(self, segment_folder: str) -> None:
        """Let clients of other processes in."""
        from localdask.api import parts  # noqa: PLC0415 - see __init__

        try:
            door = parts.Door.open(self.name, version=__version__, is_named=self._is_named)
        except OSError as error:
            self._tell("unreachable", reason=f"other processes cannot reach cluster {self.name!r}: {error}")
            return
        self.scheduler.address = f"unix://{door.path}"
        self._server = parts.Server(self.scheduler, door, {"cluster": self.name, "python": PYTHON, "segment_folder": segment_folder})
        self._tell("reachable", address=self.scheduler.address)

    def _begin_words(self, worker: str) -> BeginNanny:
        return BeginNanny(
            name="n" + worker[1:],
            worker_name=worker,
            cluster=self.name,
            environ=dict(os.environ),
            cwd=_working_directory(),
            sys_path=[path or _working_directory() for path in sys.path if isinstance(path, str)],
            argv=list(sys.argv),
            settings=self._settings,
            nanny_preloads=self._reloader.rows("nanny"),
            worker_preloads=self._reloader.rows("worker"),
        )

    def _reloaded(self, record: ReloadRecord) -> None:
        self._tell("reload", record=record)
        if self._on_reload is not None:
            self._on_reload(record)
        self.scheduler.notify()

    def _tell(self, kind: str, **fields: Any) -> None:
        self._journal.add_event(kind, fields)
        if kind == "worker-joined":
            self._reloader.worker_started(fields["worker"], fields["life"])
            self._lifetimes.began(fields["worker"], fields["life"])
        elif kind == "worker-down":
            self._lifetimes.left(fields["worker"])
        self._plugin_keeper.happened(kind, fields)
        is_serious = kind in ("unreachable", "segments") or (kind in ("boot-failed", "degraded") and self.status == "running")
        if is_serious and self._tells_nobody:  # somebody may wait for ever
            print(f"localdask: {fields.get('detail') or fields['reason']}", file=sys.stderr)
        try:
            self._on_event(kind, **fields)
        except Exception as error:
            print(f"localdask: on_event raised {error!r} for {kind}", file=sys.stderr)

    def _unlink(self, payloads: list[Any]) -> None:
        for payload in payloads:
            if self.segments is not None:
                self.segments.unlink(payload[0])

    # ── looking ──────────────────────────────────────────────────────────────

    @property
    def scheduler_address(self) -> str:
        """How other processes reach this cluster: ``Client(address)``."""
        return self.scheduler.address

    def worker_address(self, name: str) -> str:
        """Return the address of a worker by its name."""
        return self.scheduler.worker_address(name)

    @property
    def workers(self) -> dict[str, NannyHandle | ThreadHandle]:
        """The nannies, by their worker's name."""
        return dict(self._supervisor.handles)

    @property
    def n_asked(self) -> int:
        """How many workers there are to be."""
        return self._supervisor.n_asked

    @property
    def memory_limit(self) -> int:
        """Bytes that each worker may use; 0 for no limit."""
        return int(self._settings["memory_limit"])

    @property
    def scheduler_info(self) -> dict[str, Any]:
        """The scheduler and its workers, in the shape of ``distributed``'s."""
        from localdask.api import parts  # noqa: PLC0415 - see __init__

        return parts.describe(self.scheduler)

    @property
    def dashboard_link(self) -> str:
        """Empty: no dashboard is served unless one is asked for."""
        return ""

    def wait_for_workers(self, n_workers: int, timeout: float | str | None = None) -> None:
        """Wait until so many workers are there; ``WorkerStartTimeoutError`` when they are not in time."""
        if not isinstance(n_workers, int) or n_workers < 1:
            raise ValueError(f"`n_workers` must be a positive integer. Instead got {n_workers}.")
        seconds = parse_timeout(timeout)
        if not self.scheduler.wait_for(lambda: len(self.scheduler.workers) >= n_workers, seconds):
            self._check_open()
            raise WorkerStartTimeoutError(len(self.scheduler.workers), n_workers, seconds or 0)

    @property
    def preloads(self) -> list[PreloadStatus]:
        """The preloads: generation, hash, helpers, and how each process stands."""
        return self._reloader.preloads()

    @property
    def watching(self) -> str:
        """How saves of preloads are seen: ``"inotify"``, ``"watchfiles"``, ``"polling"``, a mixture, or ``"off"``."""
        return self._reloader.watcher_state

    @property
    def reloads(self) -> list[ReloadRecord]:
        """What was reloaded, oldest first."""
        return list(self._reloader.records)

    @property
    def failed_reload(self) -> ReloadRecord | None:
        """The last edit of a preload, if it failed and was not mended or taken back since."""
        return self._reloader.failed

    def reload(self, path: str | os.PathLike[str] | None = None, *, check: bool = False, wait: bool = True) -> ReloadRecord | None:
        """Read all preloads, or one, and reload them now, changed or not.

        Parameters
        ----------
        path : str or path, optional
            Which one.
        check : bool, default False
            Only run the new bodies everywhere, and forget them again.
        wait : bool, default True
            Whether to wait for the end.

        Returns
        -------
        ReloadRecord or None
            What happened; None without ``wait``.

        Raises
        ------
        UsageError
            There is no such preload, or none that is a file.
        """
        self._check_open()
        records: list[ReloadRecord] = []

        def take(record: ReloadRecord) -> None:
            records.append(record)
            self.scheduler.notify()

        self._reloader.ask(_path_of(path), take, is_check=check)
        if not wait:
            return None
        self.scheduler.wait_for(lambda: bool(records), None)
        self._check_open()
        return records[0]

    def wait_for_generation(self, n: int, path: str | os.PathLike[str] | None = None, timeout: float | str | None = None) -> None:
        """Wait until a preload (without ``path``, any) is at generation n in every process; ``TimeoutError`` when it is not in time."""
        name = _path_of(path)
        reloader, seconds, n = self._reloader, parse_timeout(timeout), check_count("n", n) or 0
        if not self.scheduler.wait_for(lambda: reloader.generation(name) >= n, seconds):
            self._check_open()
            last = f"; the last reload: {reloader.records[-1]}" if reloader.records else "; nothing was reloaded"
            raise TimeoutError(f"{name or 'no preload'} is at generation {reloader.generation(name)} after {seconds:g} s, not {n}{last}")

    def generation_of(self, name: str) -> int | None:
        """Return the highest generation that a nanny's or worker's preloads are at; None when it has none."""
        return max((status.generation for status in self.preloads if status.status.get(name) == "ok"), default=None)

    def __reduce__(self) -> Any:
        raise TypeError("a LocalCluster stays in its process")

    def get_client(self) -> Any:
        """Return the current client if it is of this cluster, else a new one. As in Dask."""
        return client_room.client_of(self)

    def get_logs(self, cluster: bool = True, scheduler: bool = True, workers: bool | list[str] = True) -> dict[str, str]:
        """Return what happened, under ``"Scheduler"``, and what each worker wrote, by its address: the oldest line first. As in Dask.

        Parameters
        ----------
        cluster : bool
            Accepted for Dask's sake: the cluster and its scheduler are one here.
        scheduler : bool, default True
            Whether to tell what happened to the cluster.
        workers : bool or list of str, default True
            Whether to give what workers wrote, or of which, by name or address.
        """
        texts = {}
        with client_room.Client(self, set_as_default=False) as client:
            if scheduler:
                texts["Scheduler"] = "\n".join(line for _, line in reversed(client.get_scheduler_logs()))
            for address, lines in client.get_worker_logs(workers=None if workers is True else workers).items() if workers else ():
                texts[address] = "\n".join(line for _, line in reversed(lines))
        return texts

    # ── changing ─────────────────────────────────────────────────────────────

    def scale(self, n: int = 0, memory: str | float | None = None, cores: int | None = None) -> None:
        """Ask for n workers, or as many as have so much memory or so many threads together. Returns at once.

        Surplus workers are retired: what they run is waited for, and what only they hold is kept.
        """
        from localdask.api import parts  # noqa: PLC0415 - see __init__

        self._check_open()
        n = check_count("n", n) or 0
        if n < 0:
            raise ValueError(f"scale({n}): a cluster has no fewer than 0 workers")
        if memory is not None:
            if not self.memory_limit:
                raise UsageError(
                    "scale(memory=…) counts workers by their memory limit, and these have none; give memory_limit to the cluster"
                )
            n = max(n, math.ceil(read("memory", memory, sizing.parse_bytes, sizing.BYTES) / self.memory_limit))
        if cores is not None:
            n = max(n, math.ceil(read("cores", cores, float, "a number of threads") / self._plan.nthreads))
        names = self.scheduler.decide(partial(parts.retirement.by_staying, names=list(self._supervisor.handles)))
        n_surplus = len(names) - n
        for name in self._plugin_keeper.removable(names)[-n_surplus:] if n_surplus > 0 else ():
            self._supervisor.let_go(name, CLOSE_GRACE_S)
        self._supervisor.ask_for(n)

    def retire_workers(
        self, workers: str | Iterable[str] | None = None, close_workers: bool = True, grace: float | str | None = None
    ) -> dict[str, dict[str, Any]]:
        """Take workers, by name, out of the cluster without losing anything; as ``Client.retire_workers``, which says more."""
        from localdask.api import parts  # noqa: PLC0415 - see __init__

        self._check_open()
        grace_s = parse_timeout(parts.RETIRE_GRACE_S if grace is None else grace, "grace") or 0.0
        names = list(self._supervisor.handles)
        if workers is None:
            names = self._plugin_keeper.removable(self.scheduler.decide(partial(parts.retirement.spare, names=names)))[1:]
        else:
            wanted = set(parts.worker_names(workers))
            names = [name for name in names if name in wanted]
        known = self.scheduler_info["workers"]
        if close_workers:
            handles = [self._supervisor.let_go(name, grace_s) for name in names]
            self._supervisor.wait_gone(handles, grace_s + parts.LAST_GRACE_S)
        else:
            self._supervisor.drain(names, grace_s)
        return {address: info for address, info in known.items() if info["name"] in names}

    def adapt(self, **options: Any) -> Adaptive:
        """Let the number of workers follow the work from now on. Meanings as in Dask; ``scale`` sets it in between.

        Parameters
        ----------
        minimum, maximum : int, optional
            Bounds in workers; by default 0, and as many as this machine has CPUs for.
        minimum_cores, maximum_cores, minimum_memory, maximum_memory : optional
            The same in threads, and in bytes or text like ``"8GB"``.
        interval : float or str, default 1.0
            How often the load is looked at, in seconds.
        target_duration : float or str, default 5.0
            In how many seconds the present work should be done.
        wait_count : int, default 3
            How many looks in a row must find fewer workers enough before there are fewer.

        Returns
        -------
        Adaptive
            With ``stop()`` and ``log``. A second call stops the first, and goes on with its options where it gives none.

        Raises
        ------
        UsageError
            There is no such option, or the bounds are no range.
        """
        from localdask.api import parts  # noqa: PLC0415 - see __init__

        self._check_open()
        self._adaptive = parts.Adaptive(self, options, self._adaptive, nthreads=self._plan.nthreads, n_cpus=self._machine.n_cpus)
        return self._adaptive

    def restart(self, timeout: float | None = None, wait_for_workers: bool = True) -> None:
        """Cancel all tasks and replace every worker process."""
        self._check_open()
        seconds = parse_timeout(timeout)
        self.scheduler.forget_everything("scheduler-restart")
        self._supervisor.restart(seconds, wait=wait_for_workers)

    def _check_open(self) -> None:
        if self.status in ("closing", "closed"):
            raise ClosedClusterError(f"cluster {self.name!r} is closed; make a new LocalCluster")

    # ── ending ───────────────────────────────────────────────────────────────

    def shut_down(self) -> None:
        """Close, because a client asked for it: who holds this cluster is told first."""
        self._tell("shutdown")
        self.close()

    def close(self, timeout: float | str | None = None) -> None:
        """End workers, nannies and scheduler, with their teardowns, and remove all files. Idempotent.

        Parameters
        ----------
        timeout : float or str, optional
            Seconds that running teardowns are given; what remains is ended by force.
        """
        seconds = parse_timeout(timeout)
        with self._closing:
            if self.status == "closed" or os.getpid() != self._pid:
                return
            self.status = "closing"
            handles = self._supervisor.all_handles()
            try:
                if self._adaptive is not None:
                    self._adaptive.stop()
                self.scheduler.plugins.before_close()
                self._reloader.close()
                self._supervisor.ask_to_end(handles, CLOSE_GRACE_S if seconds is None else seconds)
            finally:
                # An interrupt ends the waiting above, but not this, which is bounded: a cluster is never left half closed.
                with ShieldedLock():
                    self._end_the_rest(handles)

    def _end_the_rest(self, handles: list[NannyHandle | ThreadHandle]) -> None:
        self._supervisor.end_the_rest(handles)
        for error in self._preloads.teardown():
            print(f"localdask: {error}", file=sys.stderr)
        self.scheduler.close()
        if self._server is not None:
            self._server.close()
        if self.segments is not None:
            self.segments.close()
        self.status = "closed"
        _open_clusters.discard(self)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        workers = list(self.scheduler.workers.values())
        memory = sizing.format_bytes(sum(worker.memory_limit for worker in workers))
        threads = sum(worker.nthreads for worker in workers)
        return f"LocalCluster({self.name}, {self.scheduler_address!r}, workers={len(workers)}, threads={threads}, memory={memory})"

    def _repr_html_(self) -> str:
        from localdask.api import portraits  # noqa: PLC0415 - only notebooks show one

        return portraits.cluster_html(self)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"


def _path_of(preload: Any) -> str | None:
    return None if preload is None else read("path", preload, os.fspath, "a preload's path")


def _close_all() -> None:
    started = time.monotonic()
    for cluster in list(_open_clusters):
        cluster.close(timeout=max(0.5, CLOSE_GRACE_S - (time.monotonic() - started)))


atexit.register(_close_all)
client_room.cluster_factory.append(LocalCluster)
