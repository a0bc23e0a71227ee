"""Turning what users make into bytes, and back: functions, arguments, results, buffers.

Runs in the user's process (functions and arguments out, results in) and in workers
(the other way round). The client, the runner and the worker call it. The scheduler's
state and the nannies never do: they pass these bytes on unread.

How errors and outcomes travel (``Ok``, ``Err``, ``dumps_error``, ``loads_error``) is
``outcomes``' business; where large buffers lie is ``segments``'.

The plain C pickler goes first, because it takes a quarter of a microsecond where
cloudpickle takes thirteen. Its bytes are good unless they name ``__main__``, which no
worker has, or a module that the user registered to travel by value. cloudpickle takes
28 ms to import, so it is imported when first needed; ``warm`` does it beforehand.
"""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from functools import partial
from operator import is_
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any, ClassVar, Protocol, TypeAlias
from weakref import WeakKeyDictionary, ref

try:
    from _blake2 import blake2b  # a module of its own: hashlib loads OpenSSL, which takes 10 ms
except ImportError:
    from hashlib import blake2b

from localdask.errors import SerializationError
from localdask.messages import Function
from localdask.system.by_value import dumps_by_value, registered, travels, warm
from localdask.system.culprits import describe_failure, safe_text

__all__ = [
    "LARGE_MIN",
    "FutureLike",
    "InputRef",
    "TooLargeError",
    "blake2b",
    "call_stored",
    "dumps",
    "dumps_arguments",
    "dumps_buffers",
    "dumps_function",
    "dumps_result",
    "dumps_watching",
    "loads",
    "loads_arguments",
    "loads_buffers",
    "nbytes_of",
    "note_future",
    "warm",
]

#: What an out-of-band buffer may be.
Buffer: TypeAlias = "bytes | bytearray | memoryview"

#: Results of these types need no search for buffers.
_ATOMS = frozenset({int, float, bool, complex, type(None), str, bytes, bytearray})
#: Those of them whose length is about the size of their pickle.
_BYTES = frozenset({str, bytes, bytearray})
#: Buffers below this size travel inside the pickle: a segment's alignment and a mapping cost more.
_SMALL_BUFFER = 1024
#: Arguments and functions whose pickle is larger are stored apart, once, where every worker can read them.
LARGE_MIN = 256 * 1024
#: How much of a captured function's world is looked at before it counts as too much to compare.
_MAX_FUNCTIONS = 16
_MAX_TUPLE = 64
#: Positional arguments that are looked at before pickling; futures further on are found by the pickler.
_MAX_LOOKED_AT = 8
_MISSING = object()
_CONTAINERS = frozenset({list, tuple, dict, set, frozenset})
_CHANGEABLE = (dict, list, set)
#: What a user's pickling code may raise and the caller should see as a SerializationError.
#: KeyboardInterrupt is not among them: nothing tells a user's Ctrl-C from an object's.
_FAILURES = (Exception, SystemExit, GeneratorExit)


class FutureLike(Protocol):
    """What a future must have so that arguments may hold it: a key, the mark, and a ``__reduce__`` that calls ``note_future``."""

    __localdask_future__: ClassVar[bool]
    key: str


class InputRef:
    """Stands in pickled arguments where a future was; the worker puts the value in its place."""

    __slots__ = ("key",)

    def __init__(self, key: str) -> None:
        self.key = key

    def __reduce__(self) -> tuple[type[InputRef], tuple[str]]:
        return (InputRef, (self.key,))

    def __repr__(self) -> str:
        return f"InputRef({self.key!r})"


# ── anything ─────────────────────────────────────────────────────────────────


class TooLargeError(Exception):
    """What is being pickled has more than ``LARGE_MIN`` bytes, and the caller has a better way for that."""


def _refuse_large(buffer: pickle.PickleBuffer) -> bool:
    if memoryview(buffer).nbytes > LARGE_MIN:
        raise TooLargeError
    return True  # into the pickle


def dumps(obj: object, what: str = "the argument", on_buffer: Callable[[pickle.PickleBuffer], bool] | None = None) -> bytes:
    """Return an object's pickle, by value where it must be; raise ``SerializationError`` naming what cannot be pickled and where it is.

    ``on_buffer`` is shown each buffer first; it returns True, or raises ``TooLargeError``.
    """
    try:
        data = pickle.dumps(obj, 5, buffer_callback=on_buffer)
        if travels(data):
            return data
    except TooLargeError:
        raise
    except _FAILURES:
        pass  # cloudpickle may do better, and if it does not, its error is the better one
    try:
        return dumps_by_value(obj, on_buffer)
    except TooLargeError:
        raise
    except _FAILURES as error:
        raise SerializationError(describe_failure(obj, what, error, _can_pickle)) from error


def _can_pickle(obj: object) -> bool:
    try:
        dumps_by_value(obj)
    except _FAILURES:
        return False
    return True


def loads(data: Buffer, what: str = "the value", buffers: Sequence[Buffer] = ()) -> Any:
    """Return what was pickled; raise ``SerializationError`` when its own code fails."""
    try:
        return pickle.loads(data, buffers=buffers)
    except _FAILURES as error:
        mend = (
            "; make that module importable here, send it by client.upload_file, or give it to cloudpickle.register_pickle_by_value"
            if isinstance(error, ImportError)
            else ""
        )
        raise SerializationError(f"cannot unpickle {what}: {type(error).__name__}: {safe_text(error)}{mend}") from error


# ── functions ────────────────────────────────────────────────────────────────


class _Portrait:
    """What one function captured when it was pickled; two equal portraits pickle alike.

    Other functions are held weakly, because a recursive function captures itself and
    the cache must not keep it alive.
    """

    __slots__ = ("attributes", "cells", "code", "defaults", "function", "keyword_defaults", "names")

    def __init__(self, function: FunctionType, take: Callable[[Any], Any]) -> None:
        self.function = ref(function)
        self.code = function.__code__
        self.defaults = function.__defaults__
        self.keyword_defaults = tuple((name, take(value)) for name, value in (function.__kwdefaults__ or {}).items())
        self.attributes = tuple((name, take(value)) for name, value in function.__dict__.items())
        names = _names_of(self.code)
        self.names = tuple((name, take(function.__globals__.get(name, _MISSING))) for name in names)
        self.cells = tuple(take(_content(cell)) for cell in function.__closure__ or ())
        for value in self.defaults or ():
            take(value)

    def is_true(self) -> bool:
        """Return whether the function still captures what it did."""
        function = self.function()
        if function is None or function.__code__ is not self.code or function.__defaults__ is not self.defaults:
            return False
        known = function.__globals__
        for name, seen in self.names:
            value = known.get(name, _MISSING)
            if value is not seen and not _is_same_function(seen, value):
                return False
        if self.cells:
            for cell, seen in zip(function.__closure__ or (), self.cells, strict=True):
                value = _content(cell)
                if value is not seen and not _is_same_function(seen, value):
                    return False
        return _holds(function.__kwdefaults__, self.keyword_defaults) and _holds(function.__dict__, self.attributes)


def _is_same_function(seen: object, value: object) -> bool:
    return type(seen) is ref and value is not None and seen() is value


def _holds(mapping: dict[str, Any] | None, items: tuple[tuple[str, Any], ...]) -> bool:
    if not mapping or not items:
        return not mapping and not items
    return len(mapping) == len(items) and all(
        mapping.get(name, _MISSING) is seen or _is_same_function(seen, mapping.get(name)) for name, seen in items
    )


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return _MISSING


def _names_of(code: CodeType) -> tuple[str, ...]:
    """Return every name that code and the code inside it may look up in its globals (and some attributes' names)."""
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if type(constant) is CodeType:
            names.update(dict.fromkeys(_names_of(constant)))
    return tuple(names)


class _TooMuchError(Exception):
    """A function captures something mutable, or more than is worth comparing."""


def _portraits(function: FunctionType) -> tuple[_Portrait, ...] | None:
    """Return portraits of a function and of all that travels by value with it, or None when something of it may change unseen."""
    found: dict[int, _Portrait | None] = {}

    def take(value: Any) -> Any:
        kind = type(value)
        if (kind in _ATOMS and kind is not bytearray) or value is _MISSING or value is Ellipsis:
            return value
        if kind is FunctionType:
            add(value)
            return ref(value)
        if kind is BuiltinFunctionType and type(value.__self__) is ModuleType:
            return value
        if kind is ModuleType and sys.modules.get(value.__name__) is value:
            return value
        if isinstance(value, type) and value.__module__ != "__main__" and _is_importable(value):
            return value
        if kind is tuple and len(value) <= _MAX_TUPLE and not any(type(item) is FunctionType for item in value):
            for item in value:
                take(item)
            return value
        raise _TooMuchError

    def add(function: FunctionType) -> None:
        if id(function) in found or _is_by_reference(function):
            return
        if len(found) >= _MAX_FUNCTIONS:
            raise _TooMuchError
        found[id(function)] = None  # first, so that recursion ends
        found[id(function)] = _Portrait(function, take)

    try:
        add(function)
    except (_TooMuchError, RecursionError):
        return None
    return tuple(portrait for portrait in found.values() if portrait is not None)


def _is_importable(thing: Any) -> bool:
    """Return whether a function's or class's own names lead back to it."""
    found: Any = sys.modules.get(thing.__module__)
    for name in thing.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is thing


def _is_by_reference(function: FunctionType) -> bool:
    return function.__module__ != "__main__" and _is_importable(function)


class _Cached:
    """A pickled function and why its pickle is still good."""

    __slots__ = ("function", "n_modules", "portraits")

    def __init__(self, function: Function, portraits: tuple[_Portrait, ...]) -> None:
        self.function = function
        self.portraits = portraits
        self.n_modules = len(sys.modules)

    def is_good_for(self, function: FunctionType) -> bool:
        if self.function.name is not function.__name__:
            return False
        if not self.portraits:
            return _is_by_reference(function)
        # A submodule imported since belongs into the pickle of a function that uses its package.
        return self.n_modules == len(sys.modules) and all(map(_Portrait.is_true, self.portraits))


_functions: WeakKeyDictionary[FunctionType, _Cached] = WeakKeyDictionary()


def call_stored(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function that came as an argument, because it captures too much to travel with each task."""
    return function(*args, **kwargs)


def dumps_function(function: Callable[..., Any], *, refuse_large: bool = False) -> Function:
    """Return a callable as the word that travels. Its id is the same for the same bytes.

    A plain function is pickled once, and again as soon as anything that it captures has
    changed or could have changed unseen, so a stale global never travels. On request, one
    whose pickle is larger than ``LARGE_MIN`` is a ``TooLargeError``.
    """
    if type(function) is not FunctionType or registered():
        return _pack_function(function, refuse_large)
    cached = _functions.get(function)
    if cached is not None and cached.is_good_for(function):
        return cached.function
    portraits = _portraits(function)  # before pickling: what changes meanwhile makes the portrait wrong
    packed = _pack_function(function, refuse_large)
    if portraits is not None:
        _functions[function] = _Cached(packed, portraits)
    return packed


def _pack_function(function: Callable[..., Any], refuse_large: bool) -> Function:
    name = function_name(function)
    data = dumps(function, f"the function {name}", _refuse_large if refuse_large else None)
    if refuse_large and len(data) > LARGE_MIN:
        raise TooLargeError
    digest = blake2b(data, digest_size=16)
    digest.update(name.encode("utf-8", "surrogatepass"))
    return Function(digest.hexdigest(), name, data)


def function_name(function: object) -> str:
    """Return a callable's name: its ``__name__``, that of what a partial wraps, or its type's."""
    for _ in range(_MAX_FUNCTIONS):
        if not isinstance(function, partial):
            break
        function = function.func
    try:
        name = getattr(function, "__name__", None)
    except _FAILURES:  # a proxy's __getattr__ may raise anything
        name = None
    return name if type(name) is str and name else type(function).__name__


# ── arguments ────────────────────────────────────────────────────────────────


class _Collector(threading.local):
    """The futures that this thread's running ``dumps_arguments`` has met."""

    met: list[FutureLike] | None = None


_collector = _Collector()


def note_future(future: FutureLike) -> None:
    """Tell the pickling that runs in this thread, if any, that it met a future; every future's ``__reduce__`` calls this."""
    if _collector.met is not None:
        _collector.met.append(future)


def dumps_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], *, refuse_large: bool = False) -> tuple[bytes, list[Any]]:
    """Return the pickle of ``(args, kwargs)`` and the futures that plain containers in it hold, each key once.

    When the futures are positional arguments themselves, the pickle ends with their places and
    keys; else an ``InputRef`` stands in each one's place. A future inside any other object stays
    what it pickles to. Nothing is searched unless a future is met. On request, a pickle
    larger than ``LARGE_MIN`` is a ``TooLargeError``.
    """
    is_plain, has_futures = not kwargs and len(args) <= _MAX_LOOKED_AT, False
    for arg in args[:_MAX_LOOKED_AT]:
        kind = type(arg)
        if kind in _ATOMS:
            if refuse_large and kind in _BYTES and len(arg) > LARGE_MIN:
                raise TooLargeError
        elif getattr(kind, "__localdask_future__", False) is True:
            has_futures = True
        else:
            is_plain = False
    if has_futures:
        return _dumps_with_futures(args, kwargs, refuse_large, is_plain)
    if is_plain:
        return _dumps_plain((args, kwargs), refuse_large), []
    data, met = _dumps_structure((args, kwargs), refuse_large)
    return _dumps_with_futures(args, kwargs, refuse_large) if met else (data, [])


def _dumps_plain(structure: tuple[Any, ...], refuse_large: bool) -> bytes:
    """Return the pickle of what runs no code of anybody's, and names nothing."""
    data = pickle.dumps(structure, 5)
    if refuse_large and len(data) > LARGE_MIN:
        raise TooLargeError
    return data


def _dumps_structure(structure: tuple[Any, ...], refuse_large: bool) -> tuple[bytes, list[FutureLike]]:
    """Return a structure's pickle and the futures that the pickler met in it, wherever they are."""
    outer = _collector.met  # an object's __reduce__ may submit a task of its own
    met = _collector.met = []
    try:
        if not refuse_large:
            return dumps(structure, "the arguments"), met
        data = dumps(structure, "the arguments", _refuse_large)
        if len(data) > LARGE_MIN:
            raise TooLargeError
        return data, met
    finally:
        _collector.met = outer


def _dumps_with_futures(
    args: tuple[Any, ...], kwargs: dict[str, Any], refuse_large: bool, is_plain: bool = False
) -> tuple[bytes, list[Any]]:
    """Pickle arguments with futures among them; ``is_plain`` says that all the others are atoms."""
    futures: dict[str, Any] = {}

    def swap(obj: Any) -> Any:
        if getattr(type(obj), "__localdask_future__", False) is not True:
            return obj
        futures.setdefault(obj.key, obj)
        return InputRef(obj.key)

    # Futures as plain arguments are the common case, and need no walk here nor where they are loaded.
    kept, places = list(args), []
    for place, arg in enumerate(args):
        if getattr(type(arg), "__localdask_future__", False) is True:
            kept[place] = None
            places.append((place, arg.key))
            futures.setdefault(arg.key, arg)
    if is_plain:
        return _dumps_plain((kept, kwargs, places), refuse_large), list(futures.values())
    data, met = _dumps_structure((kept, kwargs, places), refuse_large)
    if met:
        data, _ = _dumps_structure(_replace((args, kwargs), swap), refuse_large)
    return data, list(futures.values())


def loads_arguments(data: Buffer, inputs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return ``(args, kwargs)`` with the value of its key in each future's place; a key that is not there is a ``KeyError``."""
    structure = loads(data, "the arguments")
    if len(structure) == 3:
        kept, kwargs, places = structure
        for place, key in places:
            kept[place] = inputs[key]
        return tuple(kept), kwargs
    if inputs:
        structure = _replace(structure, lambda obj: inputs[obj.key] if type(obj) is InputRef else obj)
    return structure[0], structure[1]


def _replace(root: Any, swap: Callable[[Any], Any]) -> Any:
    """Return a structure of containers with its leaves swapped; what holds no swapped leaf stays the same object."""
    done: dict[int, Any] = {}  # by identity: shared parts stay shared, and a container inside itself ends the walk

    def walk(obj: Any) -> Any:
        kind = type(obj)
        if kind not in _CONTAINERS and not isinstance(obj, _CHANGEABLE) and not (isinstance(obj, tuple) and hasattr(kind, "_make")):
            return swap(obj)
        if id(obj) in done:
            return done[id(obj)]
        done[id(obj)] = obj
        if isinstance(obj, dict):
            values: list[Any] = [(walk(key), walk(value)) for key, value in obj.items()]
            same = all(new is old and new_value is value for (new, new_value), (old, value) in zip(values, obj.items(), strict=True))
        else:
            values = [walk(value) for value in obj]
            same = all(map(is_, values, obj))
        new: Any = obj if same else _made_of(obj, values)
        done[id(obj)] = new
        return new

    try:
        return walk(root)
    except RecursionError as error:
        raise SerializationError(
            "cannot pickle the arguments: they hold futures and are nested too deeply to look for them; pass the futures in a flat list"
        ) from error
    finally:
        walk = swap  # type: ignore[assignment]  # it referred to itself: without this, futures would live until the next garbage collection


def _made_of(obj: Any, values: list[Any]) -> Any:
    """Return a container like this one, of other values; a subclass's keeps its attributes."""
    kind = type(obj)
    if kind in _CONTAINERS:
        return kind(values)
    if isinstance(obj, tuple):
        return kind._make(values)
    new = copy(obj)
    new.clear()
    if isinstance(new, list):
        new.extend(values)
    else:
        new.update(values)
    return new


# ── results and large values ─────────────────────────────────────────────────


def dumps_result(value: object, inline_max: int = 65536) -> tuple[bytes | None, int]:
    """Return a result's pickle, or None when it is larger than ``inline_max``, and its size in bytes.

    A large array is measured without being copied.
    """
    kind = type(value)
    if kind in _ATOMS:
        if kind in _BYTES and len(value) > inline_max:  # type: ignore[arg-type]
            return None, len(value)  # type: ignore[arg-type]
        data = pickle.dumps(value, 5)
        return (data, len(data)) if len(data) <= inline_max else (None, len(data))
    header, large = _dumps_out_of_band(value, "the result", inline_max)
    nbytes = nbytes_of(header, large)
    return (header if not large and nbytes <= inline_max else None), nbytes


class _Large:
    """Makes bytes and bytearrays travel as buffers, which they do not by themselves."""

    __slots__ = ("value",)

    def __init__(self, value: bytes | bytearray) -> None:
        self.value = value

    def __reduce__(self) -> tuple[type, tuple[pickle.PickleBuffer]]:
        return (type(self.value), (pickle.PickleBuffer(self.value),))


def dumps_buffers(obj: object, what: str = "the value") -> tuple[bytes, list[memoryview]]:
    """Return an object's pickle without its large buffers, and those, not copied: they change if the object does."""
    if type(obj) is bytes or type(obj) is bytearray:
        obj = _Large(obj)
    return _dumps_out_of_band(obj, what, _SMALL_BUFFER)


def nbytes_of(header: bytes, buffers: Iterable[memoryview]) -> int:
    """Return the size of a pickle with the buffers that are not in it."""
    return len(header) + sum(buffer.nbytes for buffer in buffers)


def dumps_watching(obj: object, what: str) -> tuple[bytes, list[memoryview], list[FutureLike]]:
    """Return what ``dumps_buffers`` does, and the futures that are in the object, wherever they are."""
    outer = _collector.met
    met = _collector.met = []
    try:
        return *dumps_buffers(obj, what), met
    finally:
        _collector.met = outer


def _dumps_out_of_band(obj: object, what: str, in_band_max: int) -> tuple[bytes, list[memoryview]]:
    """Pickle with buffers out of band, except those that together stay within ``in_band_max``."""
    buffers: list[memoryview] = []
    n_in_band = 0

    def keep(buffer: pickle.PickleBuffer) -> bool:
        nonlocal n_in_band
        raw = buffer.raw()
        if n_in_band + raw.nbytes <= in_band_max:
            n_in_band += raw.nbytes
            return True
        buffers.append(raw)
        return False

    try:
        header = pickle.dumps(obj, 5, buffer_callback=keep)
        if travels(header):
            return header, buffers
    except _FAILURES:
        pass  # as in dumps
    buffers.clear()
    n_in_band = 0
    try:
        return dumps_by_value(obj, keep), buffers
    except _FAILURES as error:
        raise SerializationError(describe_failure(obj, what, error, _can_pickle)) from error


def loads_buffers(header: Buffer, buffers: Sequence[Buffer], what: str = "the value") -> Any:
    """Return the object that ``dumps_buffers`` took apart; it lives in these very buffers."""
    return loads(header, what, buffers)
