"""Plugins whose class is made anew when its file is saved: ``client.register_plugin(…, reload=True)``.

Runs in the client's process. One watcher for all such plugins of a client calls here, on
its thread, with the bytes that were saved; they are compiled here and registered again, in
the place of the former plugin. Where they fail, everywhere or in one worker, every process
has the former one, and it is said. It runs nothing of a plugin, and lives as long as the client.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from localdask.preloads.plugin_sources import ShippedPlugin, find_helpers
from localdask.preloads.sources import Source
from localdask.processes.source_book import SourceBook
from localdask.records import replace
from localdask.system.watcher import Watcher

__all__ = ["PluginReloads"]

#: Has a plugin registered, for the first time or again; returns what ``register_plugin`` does.
Register: TypeAlias = "Callable[[ShippedPlugin, bool], dict[str, Any] | None]"
#: The only preload, as it were, in the book of a plugin.
_KEY = ("worker", 0)


class _Watched:
    """One plugin: what it is made of, and how it is registered again."""

    def __init__(self, shipped: ShippedPlugin, register: Register) -> None:
        self.shipped = shipped
        self.register = register
        self.book = SourceBook({"scheduler": [], "nanny": [], "worker": [shipped.source]})
        self.look_for_helpers(shipped.source)

    def look_for_helpers(self, source: Source) -> None:
        """Note what a source imports now, and ship it along."""
        now = {helper.module_name: helper for helper in (*find_helpers(source), *source.helpers)}
        self.book.note_helpers("worker", [(0, helper.module_name, helper.path, helper.hash) for helper in now.values()])
        self.shipped.source = replace(source, helpers=tuple(helper for helper in now.values() if helper.hash))


class PluginReloads:
    """The plugins of one client that are reloaded. Methods may be called from any thread but the watcher's."""

    def __init__(self) -> None:
        self._plugins: dict[tuple[str, str], _Watched] = {}
        self._watcher: Watcher | None = None
        self._lock = threading.Lock()

    def add(self, kind: str, name: str, plugin: Any, register: Register) -> dict[str, Any] | None:
        """Register a plugin, return what that returns, and register it again whenever its source changes."""
        shipped = ShippedPlugin(plugin, name)
        with self._lock:
            watched = _Watched(shipped, register)
            answer = register(shipped, True)
            shipped.is_first = False
            if answer != {}:  # else another one has that name, and stays
                self._plugins[kind, name] = watched
                self._watch()
            return answer

    def drop(self, kind: str, name: str) -> None:
        """Watch a plugin no more."""
        with self._lock:
            if self._plugins.pop((kind, name), None) is not None:
                self._watch()

    def close(self) -> None:
        """Watch nothing any more. Whoever waits in a registration must have been let go before."""
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.close()

    def _watch(self) -> None:
        paths = {path: code for watched in self._plugins.values() for path, code in watched.book.watched().items()}
        known = {path: code for path, code in paths.items() if code is not None}
        if self._watcher is not None:
            self._watcher.set_paths(list(paths), known)
        elif paths:
            self._watcher = Watcher(list(paths), self._saved, _tell, known=known)

    def _saved(self, saved: dict[Path, bytes]) -> None:
        """Files have new bytes. On the watcher's thread."""
        with self._lock:
            for (_, name), watched in list(self._plugins.items()):
                mine = {path: code for path, code in saved.items() if path in watched.book.watched()}
                if mine:
                    self._reload(name, watched, mine)
            self._watch()

    def _reload(self, name: str, watched: _Watched, saved: dict[Path, bytes]) -> None:
        began = time.monotonic()
        found = watched.book.take_saved(saved)
        source = found.renewed.get(_KEY)
        if source is None:
            _tell(f"reload failed  {found.detail}   the plugin {name} stays as it was")
            return
        watched.look_for_helpers(source)
        try:
            answer = watched.register(watched.shipped, False)
        except BaseException as error:  # whatever a user's setup raised
            _tell(f"reload failed  {found.cause}   {type(error).__name__}: {error}   the plugin {name} stays as it was")
            return
        where = f"set up in {len(answer)} · " if answer else ""
        _tell(f"reload of plugin {name}  {found.cause}   {where}{1000 * (time.monotonic() - began):.0f} ms")


def _tell(text: str) -> None:
    if sys.stderr is not None:
        print(f"localdask: {text}", file=sys.stderr)
