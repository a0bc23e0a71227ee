"""Plugins as a client registers them: for workers, nannies and the scheduler, present and future.

``Client`` is made of this and other rooms. A plugin is pickled here and asked to be
registered; who sets it up where, and in which order, is the cluster's affair
(``processes/plugin_keeping.py``). It works alike from a script, from a task and from
another process.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from localdask.system import codec, outcomes

__all__ = ["Registering"]

#: What a call returns for each worker.
OK = {"status": "OK"}
#: What is said of a name that nothing is registered under, by kind: Dask's words.
_UNKNOWN = {
    "worker": "The worker plugin {} does not exist",
    "nanny": "The nanny plugin {} does not exist",
}


class Registering:
    """What ``Client`` does about plugins."""

    _ask: Callable[..., Any]
    _listen_to_output: Callable[[], None]
    #: Made for the first plugin that is reloaded.
    _plugin_reloads: Any = None

    def register_plugin(
        self, plugin: Any, name: str | None = None, idempotent: bool | None = None, reload: bool = False
    ) -> dict[str, Any] | None:
        """Register a plugin for all present and future workers, or nannies, or for the scheduler.

        Which of them is told by its class, or by its hooks: an object need not inherit from anything. Workers that
        come later, or replace others, set it up before their first task, in the order of registration. One of the same
        name is ended first. When a worker cannot set it up, the call raises what was raised there, and every worker is
        as it was before.

        Parameters
        ----------
        plugin : object
            The plugin; it is pickled, and each worker or nanny has a copy.
        name : str, optional
            Its name; its attribute ``name``, or one made up, by default.
        idempotent : bool, optional
            Whether it has no effect when the name is registered already; the attribute ``idempotent`` by default.
        reload : bool, default False
            Whether the plugin is registered anew when the file of its class, or a module of yours that this imports, is
            saved, for as long as this client is open. The new class gets the attributes that the plugin has now. What
            fails is told on standard error, and the former plugin stays.

        Returns
        -------
        dict or None
            ``{address: {"status": "OK"}}`` of the workers; empty when it had no effect; None for the scheduler's.

        Raises
        ------
        TypeError
            A class was given instead of an instance.
        UsageError
            It has no hooks of any kind; or with ``reload``, its class is in no file of yours that can be imported again.

        Examples
        --------
        >>> from localdask import Client, WorkerPlugin
        >>> class Counts(WorkerPlugin):
        ...     def setup(self, worker):
        ...         self.n = 0
        ...
        ...     def transition(self, key, start, finish, **kwargs):
        ...         self.n += finish == "memory"
        >>> client.register_plugin(Counts(), name="counts")  # doctest: +SKIP
        {'local://a1/w0': {'status': 'OK'}}
        """
        from localdask.preloads.plugins import plugin_kind, plugin_name  # noqa: PLC0415 - few clients have plugins

        if isinstance(plugin, type):
            raise TypeError("Please provide an instance of a plugin, not a type.")
        keeps_old = bool(getattr(plugin, "idempotent", False) if idempotent is None else idempotent)
        kind = plugin_kind(plugin)
        if not reload:
            return self._register(kind, plugin, name, keeps_old)
        from localdask.api.plugin_reloads import PluginReloads  # noqa: PLC0415 - few ask for it, and it brings the watcher

        known_as, restarts = plugin_name(plugin, name), _restarts(plugin)
        reloads: PluginReloads = self._plugin_reloads or PluginReloads()
        self._plugin_reloads = reloads

        def register(shipped: Any, is_first: bool) -> dict[str, Any] | None:
            return self._send_plugin(kind, shipped, known_as, keeps_old and is_first, restarts)

        return reloads.add(kind, known_as, plugin, register)

    def register_worker_plugin(
        self, plugin: Any = None, name: str | None = None, nanny: bool | None = None, **kwargs: Any
    ) -> dict[str, Any] | None:
        """Register a plugin for all present and future workers; a name that is registered already has no effect.

        Parameters
        ----------
        plugin : object or class
            The plugin; a class is called with ``kwargs``.
        name : str, optional
            Its name; its attribute ``name``, or one made up, by default.
        nanny : bool, optional
            Whether it is the nannies' instead; told by the plugin by default.
        **kwargs
            For the class.

        Returns
        -------
        dict
            ``{address: {"status": "OK"}}`` of the workers; empty when it had no effect.
        """
        if isinstance(plugin, type):
            plugin = plugin(**kwargs)
        elif kwargs:
            raise TypeError(f"{', '.join(kwargs)}: keywords go with a class; {type(plugin).__name__} is an instance already")
        if plugin is None:
            raise TypeError("register_worker_plugin() needs a plugin: an object with hooks, or a class and its keywords")
        if nanny is None:
            from localdask.preloads.plugins import plugin_kind  # noqa: PLC0415 - few clients have plugins

            nanny = plugin_kind(plugin) == "nanny"
        return self._register("nanny" if nanny else "worker", plugin, name, keeps_old=True)

    def register_nanny_plugin(self, plugin: Any, name: str | None = None) -> dict[str, Any] | None:
        """Register a plugin for all present and future nannies; one of the same name is ended first.

        With an attribute ``restart`` that is true, the workers are replaced after it was set up.
        """
        return self._register("nanny", plugin, name, bool(getattr(plugin, "idempotent", False)))

    def register_scheduler_plugin(self, plugin: Any, name: str | None = None, idempotent: bool | None = None) -> None:
        """Register a plugin for the scheduler; one of the same name is closed first. What its ``start`` raises is raised here."""
        keeps_old = bool(getattr(plugin, "idempotent", False) if idempotent is None else idempotent)
        self._register("scheduler", plugin, name, keeps_old)

    def register_worker_callbacks(self, setup: Callable[..., Any] | None = None) -> dict[str, Any] | None:
        """Call a function in each present and future worker; a parameter named ``dask_worker`` is given the worker."""
        if not callable(setup):
            raise TypeError(f"register_worker_callbacks() takes a function, not {setup!r:.60}")
        from localdask.preloads.plugins import SetupCallback  # noqa: PLC0415 - few clients have plugins

        return self._register("worker", SetupCallback(setup), None, keeps_old=False)

    def upload_file(self, filename: str | os.PathLike[str], load: bool = True) -> dict[str, Any] | None:
        """Bring a file to all present and future workers, and import it there if it is Python code. One of its name is replaced.

        Parameters
        ----------
        filename : str or path
            A ``.py``, ``.zip`` or ``.egg``, or with ``load=False`` any file.
        load : bool, default True
            Whether workers import it; what that raises is raised here, and the former file stays.

        Returns
        -------
        dict
            ``{address: {"status": "OK"}}`` of the workers.
        """
        from localdask.preloads.uploads import UploadFile  # noqa: PLC0415 - few clients upload

        return self.register_plugin(UploadFile(filename, load))

    def unregister_worker_plugin(self, name: str, nanny: bool | None = None) -> dict[str, Any] | None:
        """End a plugin in all workers, or nannies, and forget it; what its end raises is raised here, and it is gone all the same."""
        return self._unregister("nanny" if nanny else "worker", name)

    def unregister_nanny_plugin(self, name: str) -> dict[str, Any] | None:
        """End a plugin in all nannies, and forget it."""
        return self._unregister("nanny", name)

    def unregister_scheduler_plugin(self, name: str) -> None:
        """Close a plugin of the scheduler, and forget it."""
        self._stop_reloading("scheduler", name)
        self._ask("unregister_plugin", "scheduler", name)

    def unregister_plugin(self, name: str) -> dict[str, Any] | None:
        """End a plugin, whosever it is, and forget it; ``ValueError`` when there is none of that name."""
        registered = self._ask("plugins")
        for kind, names in registered.items():
            if name in names:
                if kind != "scheduler":
                    return self._unregister(kind, name)
                self.unregister_scheduler_plugin(name)
                return None
        known = ", ".join(name for names in registered.values() for name in names) or "none"
        raise ValueError(f"The plugin {name} does not exist; registered: {known}")

    def _register(self, kind: str, plugin: Any, name: str | None, keeps_old: bool) -> dict[str, Any] | None:
        from localdask.preloads.forwarding import ForwardOutput  # noqa: PLC0415
        from localdask.preloads.plugins import plugin_name  # noqa: PLC0415 - few clients have plugins

        known_as = plugin_name(plugin, name)
        if isinstance(plugin, ForwardOutput):
            self._listen_to_output()
        if not keeps_old:
            self._stop_reloading(kind, known_as)
        return self._send_plugin(kind, plugin, known_as, keeps_old, _restarts(plugin))

    def _send_plugin(self, kind: str, plugin: Any, known_as: str, keeps_old: bool, restarts: bool) -> dict[str, Any] | None:
        pickled = codec.dumps(plugin, f"the plugin {known_as}")
        answer = self._ask("register_plugin", kind, known_as, pickled, keeps_old, restarts)
        if kind == "scheduler":
            return None
        return _shown(answer, kind, known_as, f"set up the {kind} plugin {known_as}; it is registered nowhere, and all is as before")

    def _stop_reloading(self, kind: str, name: str) -> None:
        if self._plugin_reloads is not None:
            self._plugin_reloads.drop(kind, name)

    def _end_plugin_reloads(self) -> None:
        if self._plugin_reloads is not None:
            self._plugin_reloads.close()

    def _unregister(self, kind: str, name: str) -> dict[str, Any]:
        self._stop_reloading(kind, name)
        answer = self._ask("unregister_plugin", kind, name)
        return _shown(answer, kind, name, f"ended the {kind} plugin {name}; it is gone all the same")


def _restarts(plugin: Any) -> bool:
    return any(getattr(plugin, attribute, False) is True for attribute in ("restart", "restart_workers"))


def _shown(answer: dict[str, Any], kind: str, name: str, did: str) -> dict[str, Any]:
    """Return what a call about plugins returns, or raise the first error, with a note on whose it is."""
    if answer["outcome"] == "unknown":
        raise ValueError(_UNKNOWN[kind].format(name))
    for address, error in answer["failed"]:
        if error is None:
            raise RuntimeError(f"{address} died while it {did}; if something else killed it, register it again")
        raised = outcomes.loads_error(error)
        _note(raised.exception, f"{address} raised this when it {did}")
        raised.unwrap()
    return {address: dict(OK) for address in answer["done"]}


def _note(error: BaseException, text: str) -> None:
    """Add a note to an exception, as ``add_note`` does, which Python 3.10 does not have."""
    notes = getattr(error, "__notes__", None)
    error.__notes__ = [*(notes if isinstance(notes, list) else ()), text]  # type: ignore[attr-defined]
