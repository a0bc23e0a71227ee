"""How messages are written on a pipe: a registry of tags, frames out and frames in.

A frame is a pickled list of plain tuples ``(tag, *fields)``. Loading one refuses whatever
names a class, so nothing of a user's is ever loaded here.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar

from localdask.errors import ProtocolError

__all__ = ["Payload", "check_plain", "from_wire", "message", "pack", "register", "to_wire", "unpack"]

#: A value as it travels: its pickle, or a segment ``(path, header, lengths of the buffers)``.
Payload: TypeAlias = "bytes | tuple[str, bytes, tuple[int, ...]]"

T = TypeVar("T")
_CLASSES: dict[int, Callable[..., Any]] = {}
_GETTERS: dict[type, tuple[int, Callable[[Any], Any], int]] = {}


def message(tag: int) -> Callable[[type[T]], type[T]]:
    """Give a record the tag under which it travels."""

    def register_class(cls: type[T]) -> type[T]:
        names: tuple[str, ...] = cls.__match_args__  # type: ignore[attr-defined]
        register(tag, cls, attrgetter(*names) if names else (lambda _: ()), len(names), cls)
        return cls

    return register_class


def register(tag: int, cls: type, getter: Callable[[Any], Any], n_fields: int, make: Callable[..., Any]) -> None:
    """Say how one class of messages becomes ``n_fields`` fields, and is made of them again."""
    assert tag not in _CLASSES, f"tag {tag} is taken"
    _CLASSES[tag] = make
    _GETTERS[cls] = (tag, getter, n_fields)


def to_wire(message: Any) -> tuple[Any, ...]:
    """Return a message as the tuple that travels."""
    tag, getter, n_fields = _GETTERS[type(message)]
    if n_fields == 1:
        return (tag, getter(message))
    return (tag, *getter(message))


def from_wire(row: tuple[Any, ...]) -> Any:
    """Return the message that a tuple stands for, or raise ``ProtocolError``."""
    try:
        return _CLASSES[row[0]](*row[1:])
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ProtocolError(f"no message looks like {row!r:.80}") from error


def pack(messages: Iterable[Any]) -> bytes:
    """Return the bytes of a frame."""
    return pickle.dumps([to_wire(message) for message in messages], 5)


class _PlainUnpickler(pickle.Unpickler):
    """Loads numbers, text, bytes and containers, and nothing that names a class."""

    def find_class(self, module: str, name: str) -> Any:
        raise ProtocolError(f"a frame named {module}.{name}, and frames carry plain data only")


def check_plain(what: str, value: Any) -> None:
    """Raise ``TypeError`` for what no frame carries, and would end the connection."""
    try:
        _PlainUnpickler(io.BytesIO(pickle.dumps(value, 5))).load()
    except Exception:
        known = "numbers, texts, bytes, and lists, tuples, sets and dicts of them"
        raise TypeError(f"{what} is plain data ({known}), and {value!r:.80} is not") from None


def unpack(frame: bytes | bytearray | memoryview) -> list[Any]:
    """Return the messages of a frame; raise ``ProtocolError`` for anything else."""
    try:
        rows = _PlainUnpickler(io.BytesIO(frame)).load()
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(f"a frame of {len(frame)} bytes is damaged: {error}") from error
    if not isinstance(rows, list):
        raise ProtocolError(f"a frame held {type(rows).__name__}, not a list of messages")
    return [from_wire(row) for row in rows]
