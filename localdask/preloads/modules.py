"""Where modules lie, found without running them, and whose they are.

Runs in the cluster's process to find a module preload and to see whether a file's name
would hide another module, and in every process that loads preloads to tell the user's own
files from installed ones. It never imports, not even a parent package.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec

__all__ = ["added_directories", "explain_shadow", "find_module", "is_below", "is_users_own", "refresh_finders"]

_STDLIB = os.path.join(os.path.dirname(os.path.realpath(os.__file__)), "")
_LOCALDASK = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "")
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")

#: Folders of preloads that stand on ``sys.path`` because localdask put them there.
added_directories: set[str] = set()


def find_module(name: str) -> ModuleSpec | None:
    """Return where the module ``name`` would come from; its parents are looked up, not imported."""
    parts = name.split(".")
    path: list[str] | None = None
    for count in range(1, len(parts) + 1):
        partial = ".".join(parts[:count])
        loaded = sys.modules.get(partial)
        spec = getattr(loaded, "__spec__", None) or _ask_finders(partial, path)
        if spec is None or count == len(parts):
            return spec
        locations = getattr(loaded, "__path__", None) or spec.submodule_search_locations
        if locations is None:
            return None
        path = list(locations)
    return None


def _ask_finders(name: str, path: list[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = find(name, path) if find else None
        if isinstance(spec, ModuleSpec):
            return spec
    return None


def is_users_own(path: str) -> bool:
    """Whether a source file is the user's: neither the standard library's, nor installed, nor localdask's."""
    real = os.path.realpath(path)
    return path.endswith(".py") and not real.startswith((_STDLIB, _LOCALDASK)) and not any(part in real for part in _INSTALLED)


def is_below(path: str, folders: Iterable[str]) -> bool:
    """Whether ``path`` lies in one of the folders, however deep."""
    return any(path.startswith(os.path.join(folder, "")) for folder in folders)


def refresh_finders(folders: Iterable[str] | None = None) -> None:
    """Forget what folders were seen to hold: a file made within the last tick of the clock is missed otherwise.

    ``importlib.invalidate_caches`` would do, but imports importlib.metadata (30 ms) on older Pythons.
    """
    wanted = ("",) if folders is None else tuple(os.path.join(folder, "") for folder in folders)
    for place, finder in list(sys.path_importer_cache.items()):
        if f"{place}/".startswith(wanted) and (forget := getattr(finder, "invalidate_caches", None)) is not None:
            forget()


def explain_shadow(stem: str, path: str) -> str:
    """Return what the file ``path``, imported as ``stem``, would hide; empty when it hides nothing."""
    if stem in ("__main__", "localdask"):
        return f"the module {stem} itself"
    spec: ModuleSpec | None = getattr(sys.modules.get(stem), "__spec__", None)
    if spec is not None and getattr(spec.loader, "is_preload", False):
        spec = None  # an earlier preload of that name makes way
    elif stem in sys.builtin_module_names or stem in sys.stdlib_module_names:
        origin = spec.origin if spec else None
        return "" if origin and _is_same(origin, path) else f"the standard library's module {stem}"
    if spec is None:
        spec = _ask_finders(stem, [folder for folder in sys.path if folder not in added_directories])
    if spec is None or spec.origin is None or _is_same(spec.origin, path):
        return ""
    return f"the module {stem} at {spec.origin}"


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
