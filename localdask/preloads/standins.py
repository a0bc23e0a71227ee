"""Standing in for ``distributed``, where it is not installed, for scripts written for Dask.

Runs in any process that runs preloads or tasks. ``from distributed import get_worker`` and
its like then give localdask's own. It asks last, so the real package always wins, and what
it made in the user's own process is gone again when the preload's code has run.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import FrameType, ModuleType
from typing import Any

from localdask.preloads.modules import is_users_own

__all__ = ["install_standins", "real_distributed", "standing_in"]

#: The modules of Dask that preloads and tasks import from.
_NAMES = frozenset(
    {
        "distributed",
        "distributed.client",
        "distributed.diagnostics",
        "distributed.diagnostics.plugin",
        "distributed.worker",
        "distributed.nanny",
        "distributed.scheduler",
    }
)
_ROOMS = os.path.join(os.path.dirname(__file__), "")
_DASK = frozenset({"dask", "dask.distributed"})


class _Standin(ModuleType):
    """A module whose names are localdask's of the same name."""

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            public = __import__("localdask")
            if hasattr(public, name):
                return getattr(public, name)
        raise AttributeError(
            f"module {self.__name__!r} has no attribute {name!r}: distributed is not installed, and localdask, "
            f"which stands in for it, has no such name; pip install distributed"
        )


class _StandinFinder:
    """Finds the modules above when nobody else did."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        top = sys.modules.get(fullname.partition(".")[0])
        is_ours = fullname in _NAMES and (top is None or isinstance(top, _Standin))
        # A dask without distributed has a dask.distributed of its own, which imports ours.
        if not is_ours and not (fullname in _DASK and (top is None or isinstance(top, _Standin))):
            return None
        if _asked_by_library(sys._getframe(1)):
            return None
        loader: Any = self
        spec = ModuleSpec(fullname, loader, origin="localdask", is_package=True)
        spec.submodule_search_locations = []
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Standin(spec.name, "localdask, standing in for distributed, which is not installed.")

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__all__"] = list(__import__("localdask").__all__) if module.__name__ == "distributed" else []


def _asked_by_library(frame: FrameType | None) -> bool:
    """Whether an installed library imports it: such a one only wants to know whether Dask is there, and it is not."""
    while frame is not None:
        filename = frame.f_code.co_filename
        if not filename.startswith(("<frozen importlib", _ROOMS)):
            return not filename.startswith("<") and not is_users_own(filename)
        frame = frame.f_back
    return False


_finder = _StandinFinder()
#: How many blocks stand in at the moment, in however many threads.
_n_blocks = 0
_lock = threading.Lock()


def real_distributed() -> Any:
    """Return the package itself where this process has imported it; else None."""
    found = sys.modules.get("distributed")
    return None if found is None or isinstance(found, _Standin) else found


def install_standins() -> None:
    """Stand in for the rest of this process's life: for workers, where tasks import too."""
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)


@contextmanager
def standing_in() -> Iterator[None]:
    """Stand in for the length of the block, and leave no trace in ``sys.modules``, unless standing in for good."""
    global _n_blocks
    if _finder in sys.meta_path and not _n_blocks:
        yield  # for good
        return
    with _lock:
        _n_blocks += 1
        if _n_blocks == 1:
            sys.meta_path.append(_finder)
    try:
        yield
    finally:
        with _lock:
            _n_blocks -= 1
            if not _n_blocks:
                _withdraw()


def _withdraw() -> None:
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not _finder]
    for name in (_NAMES | _DASK) & sys.modules.keys():
        if isinstance(sys.modules[name], _Standin):
            del sys.modules[name]
