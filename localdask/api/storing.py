"""Large arguments and functions: the part of a client that stores them apart, once.

A task whose arguments or function are large does not carry them. Each large part is
stored in a segment, as if it had been scattered, and the task reads it in place; given
again, it is recognised (``api/scattering.py``). It lives as long as a task does that names
it, and a little of what was given last stays for as long as the user's own object does, so
that a loop of calls stores it once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from localdask.api.futures import Future
from localdask.api.scattering import INLINE_MAX, Scattering
from localdask.messages import Function
from localdask.system import codec

#: Arguments given last that stay stored though no task names them, in bytes.
KEPT_MAX = 256 * 2**20


class Storing(Scattering):
    """What ``Client`` does with arguments and functions that are too large to travel with a task."""

    _release_dropped: Callable[[], None]

    def _begin_storing(self) -> None:
        self._begin_scattering()
        #: What was given last: the user's object, its future and its size, by its key. It leaves with the object.
        self._kept: dict[str, tuple[weakref.ref[Any], Future[Any], int]] = {}

    def _end_storing(self) -> None:
        self._kept.clear()
        self._stored.clear()

    def _pack_function(self, func: Callable[..., Any]) -> tuple[Function, tuple[Future[Any], ...]]:
        """Return the word for a function, and what its calls take as their first argument if it is stored apart."""
        if self._link.segments is None:
            return codec.dumps_function(func), ()
        try:
            return codec.dumps_function(func, refuse_large=True), ()
        except codec.TooLargeError:
            name = codec.function_name(func)
            header, buffers = codec.dumps_buffers(func, f"the function {name}")
            stored = self._store(name, header, buffers, is_argument=True)
            self._keep(func, stored, codec.nbytes_of(header, buffers))
            return Function(f"stored-{stored.key}", name, codec.dumps(codec.call_stored)), (stored,)

    def _pack_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, list[Any], tuple[Future[Any], ...]]:
        """Return a call's pickled arguments, the futures that they name, and those of them that stand for large arguments."""
        if self._link.segments is None:
            return *codec.dumps_arguments(args, kwargs), ()
        try:
            arguments, inputs = codec.dumps_arguments(args, kwargs, refuse_large=True)
            return arguments, inputs, ()
        except codec.TooLargeError:
            keeps: list[Future[Any]] = []
            args = tuple([self._stand_in(arg, keeps) for arg in args])
            return *codec.dumps_arguments(args, self._pack_shared(kwargs, keeps, codec.LARGE_MIN)), tuple(keeps)

    def _pack_shared(self, kwargs: dict[str, Any], keeps: list[Future[Any]], large_min: int = INLINE_MAX) -> dict[str, Any]:
        """Return keywords with futures for what is large; add those to ``keeps``. What many calls share is large sooner."""
        if self._link.segments is None:
            return kwargs
        return {name: self._stand_in(arg, keeps, large_min) for name, arg in kwargs.items()}

    def _stand_in(self, value: Any, keeps: list[Future[Any]], large_min: int = codec.LARGE_MIN) -> Any:
        """Return a future of what is large; of a container with futures in it, one without its large parts; else the value."""
        if isinstance(value, Future):
            return value
        header, buffers, met = codec.dumps_watching(value, "the argument")
        if met:
            if type(value) is dict:
                return {key: self._stand_in(part, keeps, large_min) for key, part in value.items()}
            if type(value) in (list, tuple):
                return type(value)([self._stand_in(part, keeps, large_min) for part in value])
            return value
        nbytes = codec.nbytes_of(header, buffers)
        if nbytes <= large_min:
            return value
        stored = self._store(type(value).__name__, header, buffers, is_argument=True)
        self._keep(value, stored, nbytes)
        keeps.append(stored)
        return stored

    def _keep(self, value: object, stored: Future[Any], nbytes: int) -> None:
        """Hold what was given last for as long as the user has it."""
        self._kept.pop(stored.key, None)
        if nbytes > KEPT_MAX:
            return
        try:
            ref = weakref.ref(value, partial(_leave, weakref.ref(self), stored.key))
        except TypeError:  # bytes, str, list and dict cannot be watched
            return
        self._make_room(nbytes)
        self._kept[stored.key] = (ref, stored, nbytes)

    def _make_room(self, nbytes: int) -> None:
        """Let go of what was given first, until so much more may be kept; done before more is written, which may use its pages again."""
        sizes = {key: entry[2] for key, entry in list(self._kept.items())}
        surplus = sum(sizes.values()) + nbytes - KEPT_MAX
        if surplus <= 0:
            return
        for key, size in sizes.items():
            self._kept.pop(key, None)
            surplus -= size
            if surplus <= 0:
                break
        self._release_dropped()


def _leave(client: weakref.ref[Storing], key: str, _ref: object) -> None:
    """The user's object is gone. Runs wherever that happens, so it takes no lock."""
    known = client()
    if known is not None:
        known._kept.pop(key, None)
