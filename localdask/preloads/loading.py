"""Executing the bodies of preloads and of the modules beside them, from bytes.

Runs in every process that has preloads, in one thread at a time. While a ``Loading`` is
active, modules of the user's that its thread imports are compiled from bytes that were
read or shipped, never from a ``__pycache__``, and who imports whom is noted. When it ends,
nothing is published: ``sys.modules`` is as before until ``publish``, and again after
``withdraw``. It calls no hook and decides nothing about generations.

A body must find itself in ``sys.modules`` while it runs (dataclasses, pickle and typing
look there), and a task in another thread must not find it there half-made. So imports of
the names that are being loaded wait, in other threads, for the loading to end.
"""

from __future__ import annotations

import builtins
import io
import linecache
import sys
import threading
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, FrameType, ModuleType
from typing import Any

from localdask.preloads.modules import is_below, is_users_own, refresh_finders
from localdask.preloads.sources import Helper, Source, read_helper

__all__ = ["ImportGraph", "Loading", "ShippedLoader", "helper_as_published", "import_graph", "shipped_hash"]

#: How long an import in another thread waits for a loading: a bound, so that two that wait for each other end.
_WAIT_S = 5.0
#: Loadings of several services in one process take turns.
_turn = threading.RLock()


class ShippedLoader(SourceFileLoader):
    """Runs a module from bytes that were read once. Other files beside it are read as usual."""

    is_preload = True

    def __init__(self, fullname: str, path: str, shipped: bytes, digest: str) -> None:
        super().__init__(fullname, path)
        self.shipped = shipped
        self.digest = digest

    def get_data(self, path: str) -> bytes:
        return self.shipped if path == self.path else super().get_data(path)

    def get_code(self, fullname: str) -> CodeType:
        prime_lines(self.path, self.shipped)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # the cluster's process told of them
            code: CodeType = compile(self.shipped, self.path, "exec", dont_inherit=True)
            return code

    def get_source(self, fullname: str) -> str:
        return "".join(_lines(self.shipped))

    def exec_module(self, module: ModuleType) -> None:
        if hasattr(module, "__path__"):
            # A package that runs again keeps the submodules that do not.
            prefix = f"{module.__name__}."
            for name, child in list(sys.modules.items()):
                if name.startswith(prefix) and "." not in name[len(prefix) :]:
                    setattr(module, name[len(prefix) :], child)
        super().exec_module(module)


def prime_lines(filename: str, code: bytes) -> None:
    """Show this code in tracebacks and to ``inspect.getsource``, whatever the file holds by then."""
    lines = _lines(code)
    # Without a modification time, linecache never looks at the file.
    linecache.cache[filename] = (len(code), None, lines, filename)


def _lines(code: bytes) -> list[str]:
    encoding, _ = tokenize.detect_encoding(io.BytesIO(code).readline)
    return io.TextIOWrapper(io.BytesIO(code), encoding, errors="replace").readlines()


class ImportGraph:
    """Which of the user's own modules import which, as far as preloads reach.

    Attributes
    ----------
    edges : dict
        Importer to the modules that it imported, by name. Only ever grows, because an import
        that is not seen again (``importlib.import_module``) may still be there.
    helpers : dict
        The user's own modules by name, as they ran, or as they would not.
    """

    def __init__(self) -> None:
        self.edges: dict[str, set[str]] = {}
        self.helpers: dict[str, Helper] = {}

    def reach(self, start: str) -> set[str]:
        """Return every module that ``start`` imports, directly or through others."""
        return _closure(self.edges, {start}) - {start}

    def importers(self, names: Iterable[str]) -> set[str]:
        """Return ``names`` and every module that imports one of them, directly or through others."""
        reverse: dict[str, set[str]] = {}
        for importer, imported in self.edges.items():
            for name in imported:
                reverse.setdefault(name, set()).add(importer)
        return _closure(reverse, set(names))


#: What is known of imports in this process. Like ``sys.modules``, there is one, and a fork hands it on.
import_graph = ImportGraph()


def _closure(edges: Mapping[str, set[str]], names: set[str]) -> set[str]:
    found, pending = set(names), list(names)
    while pending:
        new = edges.get(pending.pop(), set()) - found
        found |= new
        pending += new
    return found


class Loading:
    """One load phase of one or several preloads.

    Parameters
    ----------
    sources : iterable of Source
        The preloads to run; whoever imports one of them gets it, and it runs once.
    held : set of str
        Modules that are put aside: they are run afresh when the new code imports them.
    folders : iterable of str
        Where modules must lie to be the user's own.
    """

    def __init__(self, sources: Iterable[Source], held: set[str], folders: Iterable[str]) -> None:
        self.graph = import_graph
        self.folders = tuple(folders)
        self.executed: dict[str, ModuleType] = {}
        self._sources = {source.module_name: source for source in sources if source.hash}
        self._shipped = {helper.module_name: helper for source in self._sources.values() for helper in source.helpers if helper.hash}
        self._found: dict[str, Helper | Source] = {}
        self._held = held | self._sources.keys()
        self._heads = {name.partition(".")[0] for name in self._held}
        self._before: dict[str, ModuleType | None] = {}
        self._thread = 0
        self._ended = threading.Event()
        self._import: Any = None

    @contextmanager
    def active(self, *, publish: bool = False) -> Iterator[Loading]:
        """Import through this loading for the length of the block, then leave ``sys.modules`` as it was.

        With ``publish``, what a block that did not raise has loaded is importable at once.
        """
        with _turn:
            self._enter()
            is_good = False
            try:
                yield self
                is_good = publish
            finally:
                self._leave()
                if is_good:
                    self.publish()
                else:
                    self.withdraw()
                self._ended.set()

    def _enter(self) -> None:
        refresh_finders(self.folders)
        self._before = {name: sys.modules.get(name) for name in self._held}
        self._thread = threading.get_ident()
        for name in self._held:
            sys.modules.pop(name, None)
        self._add_finder()
        self._import = builtins.__import__
        builtins.__import__ = self._note_import

    def _leave(self) -> None:
        # A body may have put its own import around ours; that stays, and ours is only a way through from now on.
        if builtins.__import__ == self._note_import:
            builtins.__import__ = self._import
        self._remove_finder()
        for name in self._found:
            module = sys.modules.get(name)
            if module is not None:
                self.executed[name] = module

    @contextmanager
    def finding(self) -> Iterator[Loading]:
        """For a hook: load the user's own modules that it imports from their bytes, and note them; they stay."""
        refresh_finders(self.folders)
        self._add_finder()
        try:
            yield self
        finally:
            self._remove_finder()

    def _add_finder(self) -> None:
        paths = [index for index, finder in enumerate(sys.meta_path) if finder is PathFinder]
        sys.meta_path.insert(paths[0] if paths else len(sys.meta_path), self)

    def _remove_finder(self) -> None:
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]

    def on_this_thread(self) -> None:
        """Say that the bodies run on the calling thread (a time limit may have put them on another)."""
        self._thread = threading.get_ident()

    def execute(self, source: Source) -> ModuleType:
        """Run one preload's body, unless an earlier one imported it already, and return its module."""
        name = source.module_name
        module = sys.modules.get(name) if name in self._found else None
        if module is not None:
            return module
        if not source.hash or source.kind == "module":
            __import__(name)
            parts = name.split(".")
            for count in range(1, len(parts)):
                self._note_edge(name, ".".join(parts[:count]))
            return sys.modules[name]
        self._found[name] = source
        spec = self._spec(source)
        module = sys.modules[name] = _new_module(spec)
        self.executed[name] = module
        assert isinstance(spec.loader, ShippedLoader)
        spec.loader.exec_module(module)
        return sys.modules.get(name, module)

    # ── publishing ───────────────────────────────────────────────────────────

    def publish(self) -> None:
        """Make what was loaded importable, in place of what was held."""
        for name in sorted(self._before.keys() | self.executed.keys()):  # a package comes before what is in it
            _put(name, self.executed.get(name))

    def withdraw(self) -> None:
        """Make importable again what was before the loading."""
        for name in sorted(self._before.keys() | self.executed.keys()):
            _put(name, self._before.get(name))

    # ── finding ──────────────────────────────────────────────────────────────

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find a module that is shipped or the user's own; leave every other to those whose it is."""
        if threading.get_ident() != self._thread:
            return None
        known: Source | Helper | None = self._sources.get(fullname) or self._shipped.get(fullname)
        if known is None:
            spec = PathFinder.find_spec(fullname, path, target)
            origin = spec.origin if spec is not None else None
            if spec is None or origin is None or type(spec.loader) is not SourceFileLoader or not self._is_own(origin):
                return spec
            known = read_helper(fullname, origin)
            if not known.hash:
                return spec
        self._before.setdefault(fullname, None)
        self._found[fullname] = known
        if isinstance(known, Helper):
            self.graph.helpers[fullname] = known
        importer = self._importer(sys._getframe(1))
        if importer:
            self.graph.edges.setdefault(importer, set()).add(fullname)
        return self._spec(known)

    def _spec(self, known: Source | Helper) -> ModuleSpec:
        loader = ShippedLoader(known.module_name, known.path, known.code, known.hash)
        spec = ModuleSpec(known.module_name, loader, origin=known.path)
        if not known.path.startswith("<") and "://" not in known.path:
            spec.has_location = True
        if known.path.endswith("__init__.py"):
            spec.submodule_search_locations = [known.path.rpartition("/")[0]]
        return spec

    def _is_own(self, path: str) -> bool:
        return is_below(path, self.folders) and is_users_own(path)

    def _is_tracked(self, name: str) -> bool:
        return name in self._sources or name in self._found or name in self.graph.helpers

    def _importer(self, frame: FrameType | None) -> str:
        """Return the innermost of the user's own modules on the stack: the one that asked."""
        while frame is not None:
            name = frame.f_globals.get("__name__")
            if isinstance(name, str) and self._is_tracked(name):
                return name
            frame = frame.f_back
        return ""

    # ── noting ───────────────────────────────────────────────────────────────

    def _note_import(self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        """Stand in for ``__import__`` while bodies run."""
        if self._ended.is_set() or threading.get_ident() != self._thread:
            if not level and name.partition(".")[0] in self._heads:
                self._ended.wait(_WAIT_S)
            return self._import(name, globals, locals, fromlist, level)
        importer = globals.get("__name__") if globals else None
        if not isinstance(importer, str) or not self._is_tracked(importer):
            return self._import(name, globals, locals, fromlist, level)
        full = _absolute(name, globals, level)
        try:
            for item in fromlist or ():
                # Its package still has the old one, which tasks may be using, and `from . import item` would take that.
                if f"{full}.{item}" in self._held and f"{full}.{item}" not in sys.modules:
                    self._import(f"{full}.{item}")
            return self._import(name, globals, locals, fromlist, level)
        except ModuleNotFoundError as error:
            self._note_missing(importer, error.name or full)
            raise
        finally:
            parts = full.split(".")
            names = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
            names += [f"{full}.{item}" for item in fromlist or () if item != "*"]
            for imported in names:
                self._note_edge(importer, imported)

    def _note_edge(self, importer: str, imported: str) -> None:
        if imported == importer:
            return
        if not self._is_tracked(imported):
            path = getattr(sys.modules.get(imported), "__file__", None)
            if not isinstance(path, str) or not self._is_own(path):
                return
            self.graph.helpers[imported] = read_helper(imported, path)  # imported before, by someone else
        self.graph.edges.setdefault(importer, set()).add(imported)

    def _note_missing(self, importer: str, name: str) -> None:
        """Note where a module that is not there would lie, so that its coming is seen."""
        if name in sys.modules or not self.folders:
            return
        known = self._sources.get(importer) or self.graph.helpers.get(importer)
        folder = next((folder for folder in self.folders if known is not None and is_below(known.path, [folder])), self.folders[0])
        path = f"{folder}/{name.replace('.', '/')}.py"
        self.graph.helpers[name] = Helper(name, path, b"", "")
        self.graph.edges.setdefault(importer, set()).add(name)


def _absolute(name: str, globals: Any, level: int) -> str:
    if not level:
        return name
    package = globals.get("__package__") or globals.get("__name__", "").rpartition(".")[0]
    parts = package.split(".")
    base = ".".join(parts[: len(parts) - level + 1])
    return f"{base}.{name}" if name else base


def _new_module(spec: ModuleSpec) -> ModuleType:
    module = ModuleType(spec.name)
    module.__spec__ = spec
    module.__loader__ = spec.loader
    module.__package__ = spec.parent
    if spec.has_location and spec.origin:
        module.__file__ = spec.origin
    return module


def _put(name: str, module: ModuleType | None) -> None:
    """Set or drop an entry of ``sys.modules``, the parent package's attribute, and the lines that tracebacks show."""
    parent = sys.modules.get(name.rpartition(".")[0])
    child = name.rpartition(".")[2]
    if module is None:
        old = sys.modules.pop(name, None)
        if parent is not None and old is not None and getattr(parent, child, None) is old:
            delattr(parent, child)
        return
    sys.modules[name] = module
    if parent is not None:
        setattr(parent, child, module)
    loader = getattr(module.__spec__, "loader", None)
    if isinstance(loader, ShippedLoader):
        prime_lines(loader.path, loader.shipped)


def shipped_hash(name: str) -> str:
    """Return the hash of the code that the published module of that name ran, when localdask ran it."""
    loader = getattr(getattr(sys.modules.get(name), "__spec__", None), "loader", None)
    return loader.digest if isinstance(loader, ShippedLoader) else ""


def helper_as_published(name: str) -> Helper:
    """Return a helper with the code that the published module of that name ran, as far as it is known."""
    loader = getattr(getattr(sys.modules.get(name), "__spec__", None), "loader", None)
    if isinstance(loader, ShippedLoader):
        return Helper(name, loader.path, loader.shipped, loader.digest)
    return import_graph.helpers.get(name, Helper(name, "", b"", ""))
