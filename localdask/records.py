"""Records: classes of named fields, which cost a tenth of a dataclass to make and as much to use.

Messages, events, commands and states are some hundred and fifty classes of fields, and every
process makes them all before it does anything. ``dataclass`` writes, compiles and runs source
for each, a third of a millisecond a class, which was a third of the time that a cluster took to
start. Here the ``__init__`` of one class is that of any other with as many fields under other
names, so it is compiled once for each number of fields, and not before one is called for; all
else is shared.

A record is a dataclass with slots for everybody who looks at it: for type checkers, for
``dataclasses.replace``, ``asdict``, ``fields``, and for ``match``. It knows no keyword-only
fields, no ``__post_init__`` and no class variables.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: Any) -> Any:
        """Tell type checkers, and nobody else."""
        return lambda decorator: decorator


__all__ = ["as_dict", "as_tuple", "field", "record", "replace", "warm"]

T = TypeVar("T")


class _Made:
    """The default of a field that each record gets a new value for."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def field(*, default_factory: Callable[[], T]) -> T:
    """Say that each record gets its own value for a field, made by a call."""
    made: Any = _Made(default_factory)
    return made  # type: ignore[no-any-return]


@overload
def record(cls: type[T]) -> type[T]: ...
@overload
def record(*, frozen: bool = False) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(field_specifiers=(field,))
def record(cls: Any = None, *, frozen: bool = False) -> Any:
    """Make a class with annotated fields a record; a ``frozen`` one refuses assignment, and has a hash.

    Raises TypeError for a field without a default behind one that has it.

    Examples
    --------
    >>> @record
    ... class Point:
    ...     x: int
    ...     y: int = 0
    >>> Point(3)
    Point(x=3, y=0)
    """
    return _record(cls, frozen) if cls is not None else functools.partial(_record, frozen=frozen)


def _record(cls: Any, frozen: bool) -> Any:
    """Return the class anew, with slots: a class that is there cannot be given any."""
    own = tuple(cls.__annotations__)
    body = dict(cls.__dict__)
    body.pop("__dict__", None)
    body.pop("__weakref__", None)
    defaults = {name: body.pop(name) for name in own if name in body}
    names = own
    if cls.__bases__ != (object,):
        for base in cls.__mro__[1:]:
            names = (*getattr(base, "__match_args__", ()), *names)
            defaults = {**getattr(base, "__record_defaults__", {}), **defaults}
        names = tuple(dict.fromkeys(names))
    if names[len(names) - len(defaults) :] != tuple(defaults):
        raise TypeError(f"{cls.__qualname__} has a field without a default behind one with a default")
    body.update(_FROZEN if frozen else _PLAIN)
    body["__slots__"] = own
    body["__match_args__"] = names
    body["__record_defaults__"] = defaults
    body["__init__"] = _Init(names, defaults, frozen)
    return type(cls)(cls.__name__, cls.__bases__, body)


# ── the one method that differs from class to class ──────────────────────────

#: Those that were not called for yet.
_unmade: dict[type, _Init] = {}


def warm() -> None:
    """Make every ``__init__`` now, so that forked children find it done, in memory that they share."""
    for init in list(_unmade.values()):
        init.make()


@functools.cache
def _template(n_fields: int, frozen: bool) -> Any:
    """Return the code of the ``__init__`` of any record of so many fields, which are called a0, a1 … in it."""
    names = [f"a{number}" for number in range(n_fields)]
    lines = [f"set_{name}(self, {name})" if frozen else f"self.{name} = {name}" for name in names]
    made: dict[str, Any] = {}
    exec(f"def __init__({', '.join(['self', *names])}):\n    " + "\n    ".join(lines or ["pass"]), made)
    return made["__init__"].__code__


class _Init:
    """Stands where a class's ``__init__`` will, and makes it when it is first looked up: many a class has no record in a process."""

    __slots__ = ("defaults", "is_frozen", "names", "owner")

    def __init__(self, names: tuple[str, ...], defaults: dict[str, Any], is_frozen: bool) -> None:
        self.names = names
        self.defaults = defaults
        self.is_frozen = is_frozen

    def __set_name__(self, owner: Any, name: str) -> None:
        self.owner = owner
        _unmade[owner] = self

    def __get__(self, instance: Any, cls: Any) -> Any:
        return self.make().__get__(instance, cls)

    def make(self) -> Any:
        """Put the function in its place, and return it."""
        code = _template(len(self.names), self.is_frozen)
        variables, setters = ("self", *self.names), {}
        if self.is_frozen:
            code = code.replace(co_varnames=variables)
            setters = {f"set_a{number}": getattr(self.owner, name).__set__ for number, name in enumerate(self.names)}
        else:
            code = code.replace(co_varnames=variables, co_names=self.names)
        init = FunctionType(code, setters, "__init__", tuple(self.defaults.values()))
        init.__qualname__ = f"{self.owner.__qualname__}.__init__"
        makers = [(name, value) for name, value in self.defaults.items() if type(value) is _Made]
        self.owner.__init__ = made = _with_makers(init, makers) if makers else init
        _unmade.pop(self.owner, None)  # another thread may have made it too
        return made


def _with_makers(init: Any, makers: list[tuple[str, _Made]]) -> Any:
    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        for name, made in makers:
            if getattr(self, name) is made:
                object.__setattr__(self, name, made.make())

    return __init__


# ── records as a whole ───────────────────────────────────────────────────────


def as_tuple(made: Any) -> tuple[Any, ...]:
    """Return the values of a record's fields, as they are."""
    return tuple([getattr(made, name) for name in made.__match_args__])


def as_dict(made: Any) -> dict[str, Any]:
    """Return the fields of a record by name, their values as they are."""
    return {name: getattr(made, name) for name in made.__match_args__}


def replace(made: T, **changes: Any) -> T:
    """Return a record like this one but for some fields."""
    return type(made)(**{**as_dict(made), **changes})


# ── what all records share ───────────────────────────────────────────────────


def _repr(self: Any) -> str:
    fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__match_args__)
    return f"{type(self).__qualname__}({fields})"


def _eq(self: Any, other: Any) -> Any:
    return as_tuple(self) == as_tuple(other) if other.__class__ is self.__class__ else NotImplemented


def _hash(self: Any) -> int:
    return hash(as_tuple(self))


def _refuse(self: Any, name: str, *_: Any) -> None:
    raise AttributeError(f"cannot assign to field {name!r}: a {type(self).__qualname__} stays as it was made")


def _set_state(self: Any, state: tuple[Any, ...]) -> None:
    for name, value in zip(self.__match_args__, state, strict=True):
        object.__setattr__(self, name, value)


class _Fields:
    """What ``dataclasses`` asks a class for; made when it asks first."""

    def __get__(self, _: Any, cls: Any) -> dict[str, Any]:
        return _fields_of(cls)


@functools.cache
def _fields_of(cls: Any) -> dict[str, Any]:
    import dataclasses  # noqa: PLC0415 — 6 ms, and hardly any process asks

    fields: list[Any] = []
    for name in cls.__match_args__:
        default = cls.__record_defaults__.get(name, dataclasses.MISSING)
        kept = {"default_factory": default.make} if type(default) is _Made else {"default": default}
        fields.append((name, Any, dataclasses.field(**kept)))
    like: Any = dataclasses.make_dataclass(cls.__name__, fields)
    made: dict[str, Any] = like.__dataclass_fields__
    return made


_PLAIN = {"__dataclass_fields__": _Fields(), "__repr__": _repr, "__eq__": _eq, "__hash__": None}
_FROZEN = {
    **_PLAIN,
    "__hash__": _hash,
    "__setattr__": _refuse,
    "__delattr__": _refuse,
    "__getstate__": as_tuple,
    "__setstate__": _set_state,
}
