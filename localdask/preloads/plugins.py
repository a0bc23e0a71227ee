"""Plugins: objects whose hooks are called along the life of a worker, a nanny or the scheduler.

One registry lives beside each such service and is called by it, in the service's own
thread. Plugins are told by their shape; the classes here are for those who like to inherit,
and cost nothing, because hooks that only do what these do are never called. A registry
never pickles a plugin, and never lets what a notified hook raises out: it is told, once.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from localdask.errors import PreloadError, UsageError
from localdask.preloads.failures import explain_failure, explain_overrun, first_line
from localdask.preloads.hooks import HookCaller, HookName
from localdask.preloads.limits import LimitPassed
from localdask.sizing import SETUP_S, TEARDOWN_S
from localdask.system.signatures import parameters_of

__all__ = ["NannyPlugin", "Plugins", "SchedulerPlugin", "SetupCallback", "WorkerPlugin", "plugin_kind", "plugin_name"]


class WorkerPlugin:
    """A base for plugins of workers; inheriting from it is not needed.

    Every worker gets its own copy, before its first task, also those that come later.

    Attributes
    ----------
    idempotent : bool
        Whether registering another plugin of the same name has no effect, instead of replacing this one.
    """

    idempotent = False

    def setup(self, worker: Any) -> Awaitable[None] | None:
        """Run when the plugin comes to a worker.

        Parameters
        ----------
        worker : Worker
            The worker, not yet given a task if it is new.
        """

    def teardown(self, worker: Any) -> Awaitable[None] | None:
        """Run when the worker closes, or the plugin is replaced or unregistered.

        Parameters
        ----------
        worker : Worker
            The worker.
        """

    def transition(self, key: str, start: str, finish: str, **kwargs: Any) -> None:
        """Run whenever a task changes its state on the worker.

        Parameters
        ----------
        key : str
            The task.
        start, finish : str
            The states, such as ``"ready"``, ``"executing"``, ``"memory"``.
        """

    def release_key(self, key: str, state: str, cause: str | None, reason: None, report: bool) -> None:
        """Run when the worker forgets a key.

        Parameters
        ----------
        key : str
            The key.
        state : str
            The state that it left.
        cause : str or None
            What made the worker forget it.
        reason : None
            Always None; Dask's signature has it.
        report : bool
            Whether the scheduler is told.
        """

    def release_dep(self, dep: str, state: str, report: bool) -> None:
        """Run when the worker drops an input that it had received from elsewhere.

        Parameters
        ----------
        dep : str
            The input's key.
        state : str
            The state that it left.
        report : bool
            Whether the scheduler is told.
        """


class SetupCallback(WorkerPlugin):
    """What ``register_worker_callbacks`` registers: a function, called in each worker."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def setup(self, worker: Any) -> Any:
        """Call the function, with the worker if it has a parameter ``dask_worker``."""
        if "dask_worker" in (parameters_of(self.function) or ()):
            return self.function(dask_worker=worker)
        return self.function()


class NannyPlugin:
    """A base for plugins of nannies; inheriting from it is not needed.

    Attributes
    ----------
    idempotent : bool
        Whether registering another plugin of the same name has no effect, instead of replacing this one.
    restart : bool
        Whether the nanny's worker is replaced after ``setup``, for what a process reads at its start.
    """

    idempotent = False
    restart = False

    def setup(self, nanny: Any) -> Awaitable[None] | None:
        """Run when the plugin comes to a nanny.

        Parameters
        ----------
        nanny : Nanny
            The nanny; its worker may run already.
        """

    def teardown(self, nanny: Any) -> Awaitable[None] | None:
        """Run when the nanny closes, or the plugin is replaced or unregistered.

        Parameters
        ----------
        nanny : Nanny
            The nanny.
        """


class SchedulerPlugin:
    """A base for plugins of the scheduler; inheriting from it is not needed.

    Attributes
    ----------
    idempotent : bool
        Whether registering another plugin of the same name has no effect, instead of replacing this one.
    """

    idempotent = False

    async def start(self, scheduler: Any) -> None:
        """Run when the plugin comes to the scheduler."""

    async def before_close(self) -> None:
        """Run when the scheduler is about to close, with its workers still there."""

    async def close(self) -> None:
        """Run when the scheduler closes, or the plugin is replaced."""

    def update_graph(
        self,
        scheduler: Any,
        *,
        client: str,
        keys: set[str],
        tasks: list[str],
        annotations: dict[str, dict[str, Any]],
        priority: dict[str, Any],
        stimulus_id: str,
        **kwargs: Any,
    ) -> None:
        """Run when a client's tasks were accepted.

        Parameters
        ----------
        scheduler : Scheduler
            The scheduler.
        client : str
            The client's identifier.
        keys : set of str
            What the client wants.
        tasks : list of str
            The new tasks.
        annotations : dict
            Annotation to key to value.
        priority : dict
            Key to priority.
        stimulus_id : str
            What caused it.
        """

    def restart(self, scheduler: Any) -> None:
        """Run when ``client.restart()`` was asked for."""

    def transition(self, key: str, start: str, finish: str, *args: Any, stimulus_id: str, **kwargs: Any) -> None:
        """Run whenever a task changes its state.

        Parameters
        ----------
        key : str
            The task.
        start, finish : str
            The states, such as ``"waiting"``, ``"processing"``, ``"memory"``.
        stimulus_id : str
            What caused it.
        """

    def add_worker(self, scheduler: Any, worker: str) -> Awaitable[None] | None:
        """Run when a worker joined.

        Parameters
        ----------
        scheduler : Scheduler
            The scheduler.
        worker : str
            The worker's address.
        """

    def remove_worker(self, scheduler: Any, worker: str, *, stimulus_id: str, **kwargs: Any) -> Awaitable[None] | None:
        """Run when a worker left.

        Parameters
        ----------
        scheduler : Scheduler
            The scheduler.
        worker : str
            The worker's address.
        stimulus_id : str
            What caused it.
        """

    def add_client(self, scheduler: Any, client: str) -> None:
        """Run when a client connected."""

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Run when a client went."""

    def valid_workers_downscaling(self, scheduler: Any, workers: list[Any]) -> list[Any]:
        """Return which of these workers may be retired."""
        return workers

    def log_event(self, topic: str, msg: Any) -> None:
        """Run for each event that is logged."""


_BASES: dict[str, type] = {"worker": WorkerPlugin, "nanny": NannyPlugin, "scheduler": SchedulerPlugin}
_SCHEDULERS_OWN = frozenset(vars(SchedulerPlugin)) - frozenset(vars(WorkerPlugin))
_HOOKS: dict[str, frozenset[str]] = {
    kind: frozenset(name for name, value in vars(base).items() if callable(value) and not name.startswith("_"))
    for kind, base in _BASES.items()
}


def plugin_kind(plugin: Any) -> str:
    """Return whose plugin an object is, ``"worker"``, ``"nanny"`` or ``"scheduler"``: by its class's ancestors, else by its hooks."""
    for ancestor in type(plugin).__mro__:
        for kind, base in _BASES.items():
            if ancestor.__name__ == base.__name__:  # ours, or the one of distributed
                return kind
    hooks = {name for names in _HOOKS.values() for name in names if callable(getattr(plugin, name, None))}
    if hooks & _SCHEDULERS_OWN:
        return "scheduler"
    if not hooks:
        raise UsageError(f"{plugin!r:.100} is no plugin: it has none of the hooks setup, teardown, transition, start, …")
    code = getattr(getattr(plugin, "setup", None), "__code__", None)
    return "nanny" if code is not None and "nanny" in code.co_varnames[: code.co_argcount] else "worker"


def plugin_name(plugin: Any, name: str | None = None) -> str:
    """Return the name under which a plugin is registered: the given one, its own, or one made up."""
    return name or getattr(plugin, "name", None) or f"{type(plugin).__name__}-{os.urandom(8).hex()}"


class Plugins(Mapping[str, Any]):
    """The plugins of one service by name, in the order in which they were registered.

    Parameters
    ----------
    service : object
        The worker, nanny or scheduler.
    kind : str
        Which of them: ``"worker"``, ``"nanny"`` or ``"scheduler"``.
    process : str
        Who this is, for what is told (``w0``).
    report : callable
        Is given a text about each hook whose errors are not raised.
    setup_s, teardown_s : float
        Limits in seconds for beginning and for ending one plugin.
    on_hook : callable
        Is given the time limit of each beginning or end.
    """

    def __init__(
        self,
        service: Any,
        kind: str,
        process: str,
        *,
        report: Callable[[str], None],
        setup_s: float = SETUP_S,
        teardown_s: float = TEARDOWN_S,
        on_hook: Callable[[float], None] = lambda limit_s: None,
    ) -> None:
        self.service = service
        self.kind = kind
        self.process = process
        self._report = report
        self._setup_s = setup_s
        self._teardown_s = teardown_s
        self._plugins: dict[str, Any] = {}
        self._bound: dict[str, tuple[tuple[str, Callable[..., Any]], ...]] = {}
        self._calls: dict[str, tuple[Callable[..., Any], ...]] = {}
        self._told: set[tuple[str, str]] = set()
        self._caller = HookCaller(on_hook)

    def __getitem__(self, name: str) -> Any:
        return self._plugins[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._plugins)

    def __len__(self) -> int:
        return len(self._plugins)

    # ── coming and going ─────────────────────────────────────────────────────

    def add(self, name: str, plugin: Any, *, keep_old: bool = False, replaces: bool = False) -> bool:
        """Begin a plugin and register it; return whether it was.

        One of the same name is ended first, unless it is to be kept (``keep_old``, or the new
        one is ``idempotent`` and not to replace it all the same): then nothing happens. What the
        beginning raises is raised here, and the plugin is not registered.
        """
        if name in self._plugins:
            if keep_old or (getattr(plugin, "idempotent", False) and not replaces):
                return False
            self.remove(name)
        begin = getattr(plugin, "start" if self.kind == "scheduler" else "setup", None)
        if begin is not None and not self._is_idle(begin):
            arguments = {} if self.kind == "scheduler" else {self.kind: self.service}
            positional = (self.service,) if self.kind == "scheduler" else ()
            own_s = getattr(plugin, "setup_timeout", None)  # some plugins answer to any name, with a function
            limit_s = float(own_s) if isinstance(own_s, (int, float)) else self._setup_s
            try:
                self._caller.run_raw(lambda: begin(*positional, **arguments), limit_s)
            except LimitPassed as passed:
                stack = explain_overrun(passed.frames, limit_s, **self._about(name, begin).about)
                raise TimeoutError(f"the plugin {name} in {self.process} was not set up within {limit_s:g} s\n{stack.detail}") from None
        self._plugins[name] = plugin
        self._forget_hooks(name)
        return True

    def remove(self, name: str, *, raises: bool = False) -> Any:
        """Forget a plugin, end it and return it; what its end raises is told, or raised when the caller wants it."""
        if name not in self._plugins:
            raise UsageError(f"no plugin is named {name!r}; registered in {self.process}: {', '.join(self._plugins) or 'none'}")
        plugin = self._plugins.pop(name)
        self._forget_hooks(name)
        self._end(name, plugin, raises)
        return plugin

    def end(self) -> None:
        """End every plugin, the last one first."""
        for name in reversed(list(self._plugins)):
            self.remove(name)
        if left := self._caller.close():
            self._report(f"plugins in {self.process}: {left}")

    def _end(self, name: str, plugin: Any, raises: bool) -> None:
        hook = getattr(plugin, "close" if self.kind == "scheduler" else "teardown", None)
        if hook is None or self._is_idle(hook):
            return
        arguments = {} if self.kind == "scheduler" else {self.kind: self.service}
        if raises:
            self._caller.run_raw(lambda: hook(**arguments), self._teardown_s)
            return
        try:
            self._caller.run(lambda: hook(**arguments), name=self._about(name, hook), timeout_s=self._teardown_s)
        except PreloadError as error:
            self._report(str(error).replace("the preload", "the plugin", 1))

    # ── being notified ───────────────────────────────────────────────────────

    def hooks(self, hook: str) -> tuple[Callable[..., Any], ...]:
        """Return the bound hooks of that name, in order; empty when no plugin asks, which is cached."""
        calls = self._calls.get(hook)
        if calls is None:
            calls = self._calls[hook] = tuple(bound for _, bound in self._named_hooks(hook))
        return calls

    def _named_hooks(self, hook: str) -> tuple[tuple[str, Callable[..., Any]], ...]:
        named = self._bound.get(hook)
        if named is None:
            found = ((name, getattr(plugin, hook, None)) for name, plugin in list(self._plugins.items()))
            named = self._bound[hook] = tuple((name, bound) for name, bound in found if bound is not None and not self._is_idle(bound))
        return named

    def notify(self, hook: str, *arguments: Any, **more: Any) -> list[Any]:
        """Call every plugin's hook of that name, in order, and return what they returned.

        What one raises is told once for each plugin and hook, and otherwise ignored.
        """
        if not self.hooks(hook):
            return []
        results = []
        for name, bound in self._named_hooks(hook):
            try:
                result = bound(*arguments, **more)
                if isinstance(result, Awaitable):
                    result = self._caller.run_raw(lambda result=result: result, self._setup_s)  # type: ignore[misc]
                results.append(result)
            except (Exception, LimitPassed) as error:
                self._tell(name, hook, bound, error)
        return results

    def _tell(self, name: str, hook: str, bound: Any, error: BaseException) -> None:
        if (name, hook) in self._told:
            return
        self._told.add((name, hook))
        detail = explain_failure(error, **self._about(name, bound).about).detail
        text = first_line(error)
        self._report(f"the plugin {name} in {self.process}: {hook} raised {text}; its further errors are not told\n{detail}")

    def _forget_hooks(self, name: str) -> None:
        self._bound.clear()
        self._calls.clear()
        self._told = {told for told in self._told if told[0] != name}

    def _about(self, name: str, hook: Any) -> HookName:
        code = getattr(getattr(hook, "__func__", hook), "__code__", None)
        return HookName(name, getattr(hook, "__name__", "hook"), code.co_filename if code is not None else "", self.process)

    def _is_idle(self, bound: Any) -> bool:
        """Whether a hook is a base class's own, ours or Dask's, which does nothing."""
        function = getattr(bound, "__func__", None)
        if function is None:
            return False
        if function.__module__ not in (__name__, "distributed.diagnostics.plugin"):
            return False
        return function.__qualname__.partition(".")[0] in ("WorkerPlugin", "NannyPlugin", "SchedulerPlugin")
