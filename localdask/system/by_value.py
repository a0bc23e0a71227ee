"""What plain pickle cannot send to another process: things of a script or notebook, which travel with their code.

``codec`` tries the plain pickler first, and asks here whether its bytes can be read elsewhere. What cannot is
cloudpickle's, imported when first needed. cloudpickle leaves to its module what ``functools.lru_cache``
made, and a worker has no such ``__main__``; so that is taken apart here. Its newer versions forget the file
in which code was written, without which no traceback shows a line; so the file is sent along.
"""

from __future__ import annotations

import sys
from collections import ChainMap
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from io import BytesIO
from pickle import PickleBuffer
from types import CodeType
from typing import Any

__all__ = ["dumps_by_value", "registered", "travels", "warm"]

_CACHED: Any = type(lru_cache(len))
_cloudpickle: Any = None
_pickler: Any = None


def warm() -> Any:
    """Import cloudpickle now and return it, so that no task waits for it later."""
    global _cloudpickle
    if _cloudpickle is None:
        import cloudpickle  # noqa: PLC0415 - heavy, and many programs never need it

        _cloudpickle = cloudpickle
    return _cloudpickle


def registered() -> Any:
    """Return the names of the modules that the user registered to travel by value; usually there are none."""
    registry = sys.modules.get("cloudpickle.cloudpickle")  # also when the user imported it, not we
    if registry is None:
        return ()
    try:
        return registry._PICKLE_BY_VALUE_MODULES  # the public function copies it, at a cost each pickle would feel
    except AttributeError:  # another version, or another thread imports it just now and nothing can be registered yet
        return getattr(registry, "list_registry_pickle_by_value", tuple)()


def travels(data: bytes) -> bool:
    """Return whether a plain pickle can be loaded in a process with another ``__main__``."""
    if b"__main__" in data:
        return False
    names = registered()
    return not names or not any(name.encode() in data for name in tuple(names))


def dumps_by_value(obj: object, on_buffer: Callable[[PickleBuffer], bool] | None = None) -> bytes:
    """Return cloudpickle's pickle of an object, in which cached functions of ``__main__`` travel with what they wrap."""
    global _pickler
    if _pickler is None:
        kind = warm().Pickler
        ours = {_CACHED: _reduce_cached, CodeType: partial(_reduce_code, kind.dispatch_table[CodeType])}
        _pickler = type("Pickler", (kind,), {"dispatch_table": ChainMap(ours, kind.dispatch_table)})
    file = BytesIO()
    _pickler(file, protocol=5, buffer_callback=on_buffer).dump(obj)
    return file.getvalue()


def _reduce_code(reduce: Callable[[CodeType], Any], code: CodeType) -> Any:
    # A text of its own each time: the same code is then the same bytes, whoever else has the file's name.
    return _placed, (*reduce(code), "".join(code.co_filename))


def _placed(make: Callable[..., CodeType], args: tuple[Any, ...], filename: str) -> CodeType:
    return make(*args).replace(co_filename=filename)


def _reduce_cached(function: Any) -> Any:
    if function.__module__ in ("__main__", *registered()) or "<" in function.__qualname__:
        return _cached, (function.__wrapped__, function.cache_parameters())
    return function.__reduce__()


def _cached(function: Callable[..., Any], parameters: Mapping[str, Any]) -> Any:
    return lru_cache(**parameters)(function)
