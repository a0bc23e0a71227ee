"""Where a plugin's class comes from, and the plugin made again from that source in another process.

The client's process finds and reads the source, and the modules beside it that it imports;
it runs nothing of them. Whoever loads the pickle of a ``ShippedPlugin`` (a worker, a nanny,
the cluster's process) runs those very bytes as the module, unless they are what runs there
already, and makes the plugin anew from its class and its attributes.
"""

from __future__ import annotations

import copyreg
import os
import sys
from collections.abc import Iterator
from typing import Any

from localdask.errors import UsageError
from localdask.preloads.generations import folders_of, stale_modules
from localdask.preloads.loading import Loading, shipped_hash
from localdask.preloads.modules import find_module, is_below, is_users_own
from localdask.preloads.sources import Helper, Source, read_helper, renew_source
from localdask.preloads.standins import standing_in
from localdask.system import codec

__all__ = ["ShippedPlugin", "find_helpers", "find_source"]


def find_source(plugin: Any, name: str) -> Source:
    """Return the source of the module that a plugin's class is in, as its file is now; ``UsageError`` where there is none to reload."""
    cls = type(plugin)
    known = f"the plugin {name} cannot be reloaded: its class {cls.__qualname__}"
    if cls.__module__ == "__main__":
        raise UsageError(f"{known} is in the script itself, which would run again; put it into a module of its own")
    if "<locals>" in cls.__qualname__:
        raise UsageError(f"{known} is made by a function; put it at the top of its module")
    path = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if not isinstance(path, str) or not is_users_own(path):
        raise UsageError(f"{known} is in {cls.__module__}, which is no file of yours; register it without reload")
    unread = Source(cls.__module__, "module", os.path.abspath(path), cls.__module__, b"", hash="not read")
    return renew_source(unread, trust=True)  # it runs here already


def find_helpers(source: Source) -> tuple[Helper, ...]:
    """Return the user's own modules that a source imports, directly or through others, as its text tells and their files are now."""
    folders = (*folders_of(source), os.getcwd())
    found: dict[str, Helper] = {}
    pending = [(source.module_name, source.path, source.code)]
    while pending:
        for name in _imported_names(*pending.pop()):
            if name in found or name == source.module_name:
                continue
            spec = find_module(name)
            path = spec.origin if spec is not None and spec.has_location else None
            if path and is_below(path, folders) and is_users_own(path):
                helper = found[name] = read_helper(name, path)
                pending.append((name, path, helper.code))
    return tuple(found.values())


def _imported_names(module_name: str, path: str, code: bytes) -> Iterator[str]:
    """Yield the names of all modules that a source may import, packages first."""
    import ast  # noqa: PLC0415 - 2 ms, and only a plugin that is reloaded needs it

    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError):
        return  # whoever runs it says so
    package = module_name if os.path.basename(path) == "__init__.py" else module_name.rpartition(".")[0]
    for node in nodes:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join(part for part in (*above, node.module or "") if part)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1) if parts[0])


class ShippedPlugin:
    """A plugin that travels with the source of its class. Its pickle loads as the plugin itself.

    Parameters
    ----------
    plugin : object
        The plugin; its attributes as they are now are those of every copy.
    name : str
        Its name, for errors.

    Attributes
    ----------
    source : Source
        What the class is made of, with all helpers; to be replaced when a file changes.
    is_first : bool
        Whether the class as this process imported it is good enough here.
    """

    def __init__(self, plugin: Any, name: str) -> None:
        maker, arguments, *rest = plugin.__reduce_ex__(4)
        if maker is not copyreg.__newobj__ or any(rest[1:]):  # type: ignore[attr-defined]
            raise UsageError(
                f"the plugin {name} cannot be reloaded: it says itself how it is pickled, and a new class is given plain attributes; "
                "register it without reload"
            )
        self.source = find_source(plugin, name)
        self.is_first = True
        self._name = name
        self._class_name = type(plugin).__qualname__
        self._state = codec.dumps((arguments[1:], rest[0] if rest else None), f"the plugin {name}")

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        origin = os.getpid() if self.is_first else 0
        return _revive, (self.source.to_wire(), self._name, self._class_name, self._state, origin)


def _revive(wire: tuple[Any, ...], name: str, class_name: str, state: bytes, origin: int) -> Any:
    source = Source.from_wire(wire)
    cls: Any = _module_of(source, origin == os.getpid())
    for part in class_name.split("."):
        cls = getattr(cls, part)
    arguments, values = codec.loads(state, f"the plugin {name}")
    plugin = cls.__new__(cls, *arguments)
    if hasattr(plugin, "__setstate__"):
        plugin.__setstate__(values)
        return plugin
    for part in values if isinstance(values, tuple) else (values,):  # of slots, as pickle has it
        for attribute, value in (part or {}).items():
            setattr(plugin, attribute, value)
    return plugin


def _module_of(source: Source, is_good_here: bool) -> Any:
    """Return the module that runs these bytes, run now unless it runs already."""
    module = sys.modules.get(source.module_name)
    digest = shipped_hash(source.module_name)
    stale = stale_modules([source])
    if module is not None and not stale and (digest == source.hash or (is_good_here and not digest)):
        return module
    loading = Loading([source], stale - {source.module_name}, (*folders_of(source), os.getcwd()))
    with standing_in(), loading.active(publish=True):
        return loading.execute(source)
