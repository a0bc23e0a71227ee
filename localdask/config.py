"""The configuration of localdask: defaults, Dask's places, its own files, the environment, and what code sets, in that order.

Read in the user's process by the command line and the API; nannies and workers get
settled values with their first message and never read configuration. The manners are
those of ``dask.config``: ``get`` with dotted keys, ``set`` as a plain call or a
context manager, ``refresh`` to read all places again. Places are read at the first
question, not at import. Every value knows its origin.

    defaults
    ├── Dask's yaml files · DASK_DISTRIBUTED__… · dask.config.set in this process
    ├── /etc/localdask/ · ~/.config/localdask.yaml or localdask/ · $LOCALDASK_CONFIG · up -f FILE
    ├── LOCALDASK__WORKER__PRELOAD and its like
    └── localdask.config.set, and arguments in code or on the command line

Each line replaces what the lines above it say; mappings are merged key by key, except
that what code sets replaces all that stood under its key.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from localdask.dask_config import read_dask_files, read_dask_process, read_dask_variables
from localdask.errors import ConfigError
from localdask.layers import MISSING, Layer, look_up, merge, read_environment, read_folder, read_yaml, split_key
from localdask.sizing import KEEP_FREED

__all__ = ["DEFAULTS", "ConfiguredPreloads", "get", "items", "origin", "preloads", "refresh", "set"]

_PRELOADS: dict[str, Any] = {"preload": [], "preload-argv": []}

DEFAULTS: dict[str, Any] = {
    "temporary-directory": None,
    "scheduler-address": None,
    "scheduler": {**_PRELOADS, "allowed-failures": 3},
    "nanny": {
        **_PRELOADS,
        "environ": {},
        "pre-spawn-environ": {
            **KEEP_FREED,
            **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), 1),
        },
    },
    "worker": {
        **_PRELOADS,
        "memory": {"target": 0.60, "spill": 0.70, "pause": 0.80, "terminate": 0.95, "max-spill": False},
        "lifetime": {"duration": None, "stagger": 0, "restart": False, "tasks": None, "memory": None},
        "resources": {},
    },
    "client": dict(_PRELOADS),
}

_NO_DEFAULT = object()


class _Assignment(NamedTuple):
    path: tuple[str, ...]
    value: Any


class _Places:
    """What the places of one moment say, read once, lowest first."""

    def __init__(self, environ: Mapping[str, str], files: Sequence[str]) -> None:
        self.dask = [*read_dask_files(environ), *read_dask_variables(environ)]
        self.own = [*_read_own_files(environ, files), *read_environment(environ, "LOCALDASK__")]
        self.known: Any = {}
        for layer in self.dask:
            self.known = merge(self.known, layer.tree)

    def layers(self, path: tuple[str, ...]) -> list[Layer]:
        """Return the layers that may speak of ``path``, lowest first."""
        process = read_dask_process(path, self.known)
        return [Layer("defaults", DEFAULTS), *self.dask, *([process] if process else []), *self.own]


def _read_own_files(environ: Mapping[str, str], files: Sequence[str]) -> Iterator[Layer]:
    home = environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(home):
        home = os.path.join(os.path.expanduser("~"), ".config")
    for place in ("/etc/localdask", os.path.join(home, "localdask.yaml"), os.path.join(home, "localdask")):
        if os.path.isdir(place):
            yield from read_folder(place)
        elif os.path.isfile(place):
            yield read_yaml(place)
    named = [(environ["LOCALDASK_CONFIG"], "LOCALDASK_CONFIG")] if environ.get("LOCALDASK_CONFIG") else []
    named += [(file, "--config-file") for file in files]
    for place, who in named:
        if not os.path.exists(place):
            raise ConfigError(f"{who} names {place}, which does not exist: mend the path or leave it out")
        yield from read_folder(place) if os.path.isdir(place) else [read_yaml(place)]


_lock = threading.Lock()
_places: _Places | None = None
_assignments: tuple[_Assignment, ...] = ()


def _current() -> _Places:
    global _places
    places = _places
    if places is None:
        with _lock:
            places = _places = _places or _Places(os.environ, ())
    return places


def refresh(files: Sequence[str] = ()) -> None:
    """Read every place again; ``files`` are yaml files or folders that were named on the command line."""
    global _places
    fresh = _Places(os.environ, files)
    with _lock:
        _places = fresh


def _assign(value: Any, path: tuple[str, ...], assignment: _Assignment) -> Any:
    """Return ``value``, which stands at ``path``, as it is after an assignment."""
    depth = len(path)
    if _same(assignment.path, path[: len(assignment.path)]):
        return look_up(assignment.value, path[len(assignment.path) :])
    if not _same(assignment.path[:depth], path):
        return value
    return _grown(value, assignment.path[depth:], assignment.value)


def _grown(tree: Any, path: tuple[str, ...], value: Any) -> Any:
    """Return a copy of ``tree`` in which ``value`` stands at ``path``; the tree itself may be a file's, and is not touched."""
    if not path:
        return value
    kept = {key: item for key, item in tree.items() if not _same((key,), path[:1])} if isinstance(tree, Mapping) else {}
    return {**kept, path[0]: _grown(look_up(tree, path[:1]), path[1:], value)}


def _same(left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    return len(left) == len(right) and all(str(a).replace("_", "-") == str(b).replace("_", "-") for a, b in zip(left, right, strict=True))


def get(key: str, default: Any = _NO_DEFAULT, *, override_with: Any = None) -> Any:
    """Return the value of a dotted key, or ``default``; raise ``KeyError`` when there is neither.

    ``override_with``, unless it is None, is returned as it is: the argument that
    somebody gave in code goes before configuration.
    """
    if override_with is not None:
        return override_with
    path = split_key(key)
    value: Any = MISSING
    for layer in _current().layers(path):
        said = look_up(layer.tree, path)
        if said is None and isinstance(value, Mapping):
            continue
        value = merge(value, said)
    for assignment in _assignments:
        value = _assign(value, path, assignment)
    if value is not MISSING:
        return value
    if default is not _NO_DEFAULT:
        return default
    raise KeyError(f"no configuration is called {key!r}")


def origin(key: str) -> str:
    """Return who said the value of ``key``: a file, a variable, ``defaults``, ``dask.config`` or ``config.set``."""
    path = split_key(key)
    for assignment in reversed(_assignments):
        depth = min(len(path), len(assignment.path))
        if _same(assignment.path[:depth], path[:depth]):
            return "config.set"
    for layer in reversed(_current().layers(path)):
        if look_up(layer.tree, path) is not MISSING:
            return layer.origin
    raise KeyError(f"no configuration is called {key!r}")


def items(prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield every key that has a value, the value, and its origin."""
    tree = get(prefix) if prefix else _everything()
    if not isinstance(tree, Mapping) or not tree:
        yield prefix, tree, origin(prefix)
        return
    for name in tree:
        yield from items(f"{prefix}.{name}" if prefix else str(name))


def _everything() -> dict[str, Any]:
    names: dict[str, Any] = {}
    for layer in _current().layers(()):
        names = merge(names, layer.tree)
    for assignment in _assignments:
        names = _assign(names, (), assignment)
    return names


class set:
    """Set values now; as a context manager, until its end.

    >>> set({"worker.memory.target": 0.5})
    >>> with set(worker__memory__target=0.5): ...

    A value replaces all that stood under its key. Contexts may end in any order.
    """

    def __init__(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        global _assignments
        said = {**(values or {}), **{name.replace("__", "."): value for name, value in more.items()}}
        self._made = tuple(_Assignment(split_key(key), value) for key, value in said.items())
        with _lock:
            _assignments = (*_assignments, *self._made)

    def __enter__(self) -> set:
        return self

    def __exit__(self, *exc: object) -> None:
        global _assignments
        mine = {id(assignment) for assignment in self._made}
        with _lock:
            _assignments = tuple(assignment for assignment in _assignments if id(assignment) not in mine)


class ConfiguredPreloads(NamedTuple):
    """The preloads of a role, in the shape that ``LocalCluster`` takes, and who named them."""

    specs: list[Any]
    argv: Any
    origin: str


def preloads(role: str) -> ConfiguredPreloads:
    """Return the preloads that configuration names for ``role`` (``scheduler``, ``nanny``, ``worker``, ``client``).

    Arguments belong to the preloads beside which they are written: ``preload-argv`` from
    a lower place than ``preload`` is not applied to it. An entry may be
    ``{script: …, argv: …}``. A relative file in one of localdask's own yaml files is
    looked for beside that file.
    """
    path, argv_path = (role, "preload"), (role, "preload-argv")
    who = origin(".".join(path))
    specs = get(".".join(path))
    argv: Any = []
    folder = None
    if who == "config.set":
        argv = get(".".join(argv_path)) if origin(".".join(argv_path)) == "config.set" else []
    else:
        for layer in _current().layers(path):
            if look_up(layer.tree, path) is not MISSING:
                argv, folder = [], layer.folder
            said = look_up(layer.tree, argv_path)
            argv = argv if said is MISSING else said
        if origin(".".join(argv_path)) == "config.set":
            argv = get(".".join(argv_path))
    return _settle(specs, argv, folder, f"{role}.preload in {who}", who)


def _settle(specs: Any, argv: Any, folder: str | None, place: str, who: str) -> ConfiguredPreloads:
    """Bring every accepted way of writing preloads into one list of names and their arguments."""
    if specs is None:
        specs = []
    if isinstance(specs, (str, os.PathLike, Mapping)):
        specs = [specs]
    if not isinstance(specs, (list, tuple)):
        raise ConfigError(f"{place} is {specs!r}: write a file, a module, Python text, or a list of them")
    names: list[Any] = []
    own: list[Any] = []
    for spec in specs:
        words: Any = None
        if isinstance(spec, Mapping):
            if not spec.get("script") or not spec.keys() <= {"script", "argv"}:
                raise ConfigError(f"{place} has the entry {dict(spec)!r}: an entry has the keys 'script' and, if needed, 'argv'")
            spec, words = spec["script"], spec.get("argv", [])
        if not isinstance(spec, (str, os.PathLike)):
            raise ConfigError(f"{place} has the entry {spec!r}: write a file, a module or Python text")
        if folder and isinstance(spec, str) and spec.endswith(".py"):
            spec = os.path.join(folder, os.path.expanduser(spec))
        names.append(spec)
        own.append(words)
    if any(words is not None for words in own):
        if argv:
            raise ConfigError(f"{place} gives arguments with 'argv:' and beside them with preload-argv: keep one of the two")
        argv = [words or [] for words in own]
    return ConfiguredPreloads(names, argv or [], who)
