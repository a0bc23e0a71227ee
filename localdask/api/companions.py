"""Libraries that are to know of a client as soon as both are there: Dask, joblib.

A client does not import them, and they may be imported before it or after. A room of
``integrations`` is named here for each; it is loaded when its library is, and told of every
client that was made with ``set_as_default``: ``opened(client)``, and ``closed(client)`` at its end.
While a client is open and a library is not imported, a finder in ``sys.meta_path`` waits for it.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["client_closed", "client_opened"]

#: A library's module → the room that is told of clients. By name, as an entry point is: that room stands above this one.
_ROOMS = {"dask": "localdask.integrations.dask", "joblib": "localdask.integrations.joblib"}

_open: list[Any] = []


def client_opened(client: Any) -> None:
    """Tell of a new client."""
    _open.append(client)
    for name in _ROOMS:
        if name in sys.modules:
            _tell(name, "opened", client)
    if _finder not in sys.meta_path and any(name not in sys.modules for name in _ROOMS):
        sys.meta_path.insert(0, _finder)


def client_closed(client: Any) -> None:
    """Tell of a client's end."""
    if client not in _open:
        return
    _open.remove(client)
    for room in _ROOMS.values():
        if room in sys.modules:
            sys.modules[room].closed(client)
    if not _open and _finder in sys.meta_path:
        sys.meta_path.remove(_finder)


def _tell(name: str, what: str, client: Any) -> None:
    try:
        importlib.import_module(name)  # another thread may be in the middle of it, and would wait for the room as its room does for it
        getattr(importlib.import_module(_ROOMS[name]), what)(client)
    except (ImportError, AttributeError) as error:  # a version that localdask does not know must not break the user's import
        warnings.warn(f"localdask is not {name}'s scheduler: this version of {name} is strange to it: {error}", stacklevel=3)


class _Finder:
    """Waits for libraries that are not imported yet."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Find a library that is waited for as anybody would, and have it tell when it is there."""
        if name not in _ROOMS:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(name, spec.loader)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """Loads a library as its own loader does, and then tells of the clients that are open."""

    def __init__(self, name: str, loader: Any) -> None:
        self._name = name
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Make the module."""
        made: ModuleType | None = self._loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, and tell."""
        module.__loader__ = self._loader  # nobody meets this one again
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        for client in list(_open):
            _tell(self._name, "opened", client)
        _forget_callers()


def _forget_callers() -> None:
    """Have Dask let go of who imported it: without jinja2 it keeps the error, which keeps the frames of all callers, with their futures."""
    error = getattr(sys.modules.get("dask.widgets"), "exception", None)
    if isinstance(error, ImportError):
        error.__traceback__ = None


_finder = _Finder()
