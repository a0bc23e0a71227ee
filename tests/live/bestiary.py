"""Bad objects, and what must come of each: the catalogue that the live tests go through.

A case is an object at a position: the function of a task, its argument, its result, or
what it raises. The case says which of the caller's calls fails and how. Whatever
it is, the cluster lives: a bystander task finishes, and the next tasks run.

Objects misbehave at one point of their life (pickle, unpickle, call, gc, …) in one way:

- ``error``: raises ``RuntimeError``;
- ``exit``: raises ``SystemExit``, as ``sys.exit`` does;
- ``c-exit``: ``os._exit``, as a C library does;
- ``crash``: a segmentation fault.

One that would end a process acts only in a worker: it remembers the process that made
it, and an argument acts away from there, a result at home. Nothing can protect a
caller from an argument that kills the process in which it is pickled, so those
positions do not occur.

The module is imported in the workers, so everything here travels by reference.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from localdask.errors import KilledWorker, RemoteError, SerializationError

TEXT_OF_ERROR = "misbehaves as it was told"


def misbehave(way: str) -> None:
    """Do what the way says; all but ``error`` and ``exit`` end the process."""
    if way == "error":
        raise RuntimeError(TEXT_OF_ERROR)
    if way == "exit":
        sys.exit(TEXT_OF_ERROR)
    if way == "c-exit":
        os._exit(7)
    if way == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)


class _Bad:
    """Misbehaves in one way, ``away`` from the process that made it, or at ``home``, or ``anywhere``."""

    def __init__(self, way: str, where: str) -> None:
        self.way = way
        self.where = where
        self.home = os.getpid()

    def act(self) -> None:
        if self.where == "anywhere" or (self.where == "home") == (os.getpid() == self.home):
            misbehave(self.way)


def _revive(cls: type[_Bad], fields: dict[str, Any]) -> _Bad:
    made = cls.__new__(cls)
    made.__dict__.update(fields)
    return made


def _revive_badly(cls: type[_Bad], fields: dict[str, Any]) -> _Bad:
    made = _revive(cls, fields)
    made.act()
    return made


class BadAtPickle(_Bad):
    def __reduce__(self) -> Any:
        self.act()
        return (_revive, (type(self), self.__dict__))


class BadAtUnpickle(_Bad):
    def __reduce__(self) -> Any:
        return (_revive_badly, (type(self), self.__dict__))


class BadAtGetstate(_Bad):
    def __getstate__(self) -> dict[str, Any]:
        self.act()
        return self.__dict__


class BadAtSetstate(_Bad):
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.act()


class BadAtCall(_Bad):
    def __call__(self, *_args: Any) -> str:
        self.act()
        return "called"


class BadAtGc(_Bad):
    def __del__(self) -> None:
        self.act()


def _callable(cls: type[_Bad]) -> type[_Bad]:
    """Return the class with a harmless call, so that its objects can be functions of tasks."""
    return type(f"{cls.__name__}Function", (cls,), {"__call__": lambda self, *_args: "called", "__module__": __name__})


BadAtPickleFunction = _callable(BadAtPickle)
BadAtUnpickleFunction = _callable(BadAtUnpickle)
BadAtGetstateFunction = _callable(BadAtGetstate)
BadAtSetstateFunction = _callable(BadAtSetstate)
BadAtGcFunction = _callable(BadAtGc)


# ── exceptions ───────────────────────────────────────────────────────────────


class TwoArguments(Exception):
    """Loads with one argument where two are needed, if its ``__init__`` is called."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


class KeywordOnly(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class FormatsTwice(Exception):
    """Formats its argument in ``__init__``, so a second ``__init__`` would format it again."""

    def __init__(self, name: str) -> None:
        super().__init__(f"<{name}>")


class HoldsLock(Exception):
    def __init__(self) -> None:
        super().__init__("holds", threading.Lock())
        self.lock = threading.Lock()
        self.code = 5


class ReduceRaises(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("no reduce")


class ReduceExits(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit("no reduce")


class ReduceLies(Exception):
    def __reduce__(self) -> Any:
        return (str, ("not an exception",))


class ReduceRecurses(Exception):
    def __reduce__(self) -> Any:
        return self.__reduce__()


class StrRaises(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no str")

    __repr__ = __str__


class Slotted(Exception):
    __slots__ = ("code",)

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


class NewNeedsMore(Exception):
    def __new__(cls, code: int, reason: str) -> NewNeedsMore:
        return super().__new__(cls, code)

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code)
        self.reason = reason


class OwnOsError(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "not there", path)
        self.path = path


class PropertyInTheWay(Exception):
    """Refuses to have its cause and traceback read or set by the usual names."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("__cause__", "__context__", "__traceback__", "__notes__"):
            raise RuntimeError("hands off")
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise RuntimeError("hands off")


class OwnBase(BaseException):
    """No ``Exception``, so ``except Exception`` misses it."""


class _Untravelled(Exception):
    pass


def untravelled() -> BaseException:
    """Return an exception whose class no pickle can hold."""
    lock = threading.Lock()

    class Untravelled(_Untravelled):
        held = lock

    Untravelled.__module__ = "nowhere"
    return Untravelled("has a lock in its class")


class EndsAtUnpickle(Exception):
    def __reduce__(self) -> Any:
        return (misbehave, (self.args[0],))


class EndsAtPickle(Exception):
    def __reduce__(self) -> Any:
        misbehave(self.args[0])


def too_deep() -> NoReturn:
    too_deep()


def raised(function: Callable[[], Any]) -> BaseException:
    """Return what a function raises."""
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError(f"{function} raised nothing")


def _with_chain() -> BaseException:
    def fail() -> None:
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise TwoArguments(1, "second")  # noqa: B904 - a context is what is wanted
        except TwoArguments as error:
            raise ValueError("third") from error

    return raised(fail)


def _with_unpicklable_cause() -> BaseException:
    error = ValueError("has a bad cause")
    error.__cause__ = untravelled()
    return error


def _with_circle() -> BaseException:
    one, other = ValueError("round"), KeyError("and round")
    one.__context__, other.__context__ = other, one
    return one


def _with_notes() -> BaseException:
    error = ValueError("has notes")
    error.add_note("a note of the user's")  # type: ignore[attr-defined]
    return error


def _group() -> BaseException:
    group: Any = ExceptionGroup  # type: ignore[name-defined]  # noqa: F821
    return group("several", [TwoArguments(1, "a"), group("inner", [KeyError("b"), HoldsLock()])])  # type: ignore[no-any-return]


def _base_group() -> BaseException:
    group: Any = BaseExceptionGroup  # type: ignore[name-defined]  # noqa: F821
    return group("several", [KeyboardInterrupt("a"), ValueError("b")])  # type: ignore[no-any-return]


HAS_GROUPS = sys.version_info >= (3, 11)

if HAS_GROUPS:

    class OwnGroup(ExceptionGroup):  # type: ignore[name-defined,misc]  # noqa: F821
        def __new__(cls, members: list[Exception], code: int) -> Any:
            made = super().__new__(cls, f"code {code}", members)
            made.code = code
            return made

        def derive(self, members: Any) -> Any:
            return OwnGroup(members, self.code)


def _own_group() -> BaseException:
    group: BaseException = OwnGroup([ValueError("a")], 5)
    return group


# ── cases ────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Case:
    """One bad object at one position, and what the caller sees of it.

    ``make`` runs in the caller for functions and arguments, and in the worker for
    results and raised exceptions. ``call`` names the caller's call that raises
    (``submit`` or ``result``), or is empty where the task just succeeds. ``may_succeed``
    marks those where it is a matter of luck whether the result gets out first.
    """

    name: str
    position: str
    make: Callable[[], Any]
    call: str = "result"
    error: type[BaseException] | None = None
    text: str = ""
    may_succeed: bool = False

    def submission(self) -> tuple[Any, ...]:
        """Return what to submit: the function, then its arguments. Made anew, in the caller."""
        if self.position == "function":
            return (self.make(),)
        if self.position == "argument":
            return (take, self.make())
        return (give if self.position == "result" else fail, self.name)


def take(_argument: Any) -> str:
    """Take an argument and return something harmless."""
    return "taken"


def give(name: str) -> Any:
    """Return the object of a case."""
    return CASES[name].make()


def fail(name: str) -> NoReturn:
    """Raise the exception of a case."""
    raise CASES[name].make()


class _Making:
    """Makes one object of a class, and reads well in a failed test's report."""

    def __init__(self, cls: Any, *args: Any) -> None:
        self.cls = cls
        self.args = args

    def __call__(self) -> Any:
        return self.cls(*self.args)

    def __repr__(self) -> str:
        return f"{self.cls.__name__}{self.args}"


#: The ways that end a process, and those that raise, with the name of what they raise.
ENDS = ("c-exit", "crash")
RAISES: dict[str, type[BaseException]] = {"error": RuntimeError, "exit": SystemExit}

#: Points of an object's life: the class that is bad there, and the same with a call, for functions.
BAD_OUT: dict[str, tuple[type[_Bad], type[_Bad]]] = {
    "pickle": (BadAtPickle, BadAtPickleFunction),
    "getstate": (BadAtGetstate, BadAtGetstateFunction),
}
BAD_IN: dict[str, tuple[type[_Bad], type[_Bad]]] = {
    "unpickle": (BadAtUnpickle, BadAtUnpickleFunction),
    "setstate": (BadAtSetstate, BadAtSetstateFunction),
}


def _raising(way: str, error: type[BaseException]) -> Iterator[Case]:
    """Yield the objects whose own code raises: nobody dies, and the text is told."""
    text = f"{error.__name__}: {TEXT_OF_ERROR}"
    for point, (plain, function) in BAD_OUT.items():
        yield Case(f"function {way} at {point}", "function", _Making(function, way, "home"), "submit", SerializationError, text)
        yield Case(f"argument {way} at {point}", "argument", _Making(plain, way, "home"), "submit", SerializationError, text)
        yield Case(f"result {way} at {point}", "result", _Making(plain, way, "home"), "result", SerializationError, text)
    for point, (plain, function) in BAD_IN.items():
        yield Case(f"function {way} at {point}", "function", _Making(function, way, "away"), "result", SerializationError, text)
        yield Case(f"argument {way} at {point}", "argument", _Making(plain, way, "away"), "result", SerializationError, text)
        yield Case(f"result {way} at {point}", "result", _Making(plain, way, "away"), "result", SerializationError, text)
    yield Case(f"function {way} at call", "function", _Making(BadAtCall, way, "away"), "result", error, TEXT_OF_ERROR)
    # What __del__ raises Python itself tells on stderr, and that is all.
    yield Case(f"function {way} at gc", "function", _Making(BadAtGcFunction, way, "away"), "")
    yield Case(f"argument {way} at gc", "argument", _Making(BadAtGc, way, "away"), "")
    yield Case(f"result {way} at gc", "result", _Making(BadAtGc, way, "home"), "")


def _ending(way: str) -> Iterator[Case]:
    """Yield the objects that end the worker, which is replaced."""
    for point, (plain, function) in BAD_IN.items():
        yield Case(f"function {way} at {point}", "function", _Making(function, way, "away"), "result", KilledWorker, "died")
        yield Case(f"argument {way} at {point}", "argument", _Making(plain, way, "away"), "result", KilledWorker, "died")
    for point, (plain, _function) in BAD_OUT.items():
        yield Case(f"result {way} at {point}", "result", _Making(plain, way, "home"), "result", KilledWorker, "died")
    yield Case(f"function {way} at call", "function", _Making(BadAtCall, way, "away"), "result", KilledWorker, "died")
    for position, cls, where in (("function", BadAtGcFunction, "away"), ("argument", BadAtGc, "away"), ("result", BadAtGc, "home")):
        yield Case(f"{position} {way} at gc", position, _Making(cls, way, where), "result", KilledWorker, "died", may_succeed=True)


def _objects() -> Iterator[Case]:
    for way, error in RAISES.items():
        yield from _raising(way, error)
    for way in ENDS:
        yield from _ending(way)


def _unpicklable() -> list[Case]:
    def closure() -> Any:
        lock = threading.Lock()
        return lambda: lock

    return [
        Case("function with a lock", "function", closure, "submit", SerializationError, "closure variable lock is a _thread.lock"),
        Case(
            "argument with a lock",
            "argument",
            lambda: {"a": [threading.Lock()]},
            "submit",
            SerializationError,
            "args[0]['a'][0] is a _thread.lock",
        ),
        Case(
            "result with a lock",
            "result",
            lambda: {"a": [threading.Lock()]},
            "result",
            SerializationError,
            "result['a'][0] is a _thread.lock",
        ),
        Case(
            "argument that is a generator",
            "argument",
            lambda: (i for i in range(3)),
            "submit",
            SerializationError,
            "make a list",
        ),
        Case(
            "result that is a generator", "result", lambda: (i for i in range(3)), "result", SerializationError, "make a list of it first"
        ),
        Case(
            "function that is a generator's method",
            "function",
            lambda: (i for i in range(3)).send,
            "submit",
            SerializationError,
            "generator",
        ),
    ]


def _exceptions() -> list[Case]:
    table: list[tuple[str, Callable[[], Any], type[BaseException], str]] = [
        ("plain", _Making(ValueError, "plain", 5), ValueError, "plain"),
        ("two arguments", _Making(TwoArguments, 5, "why"), TwoArguments, "5: why"),
        ("keyword only", lambda: KeywordOnly(code=5), KeywordOnly, "code 5"),
        ("formats twice", _Making(FormatsTwice, "a"), FormatsTwice, "<a>"),
        ("holds a lock", HoldsLock, HoldsLock, "holds"),
        ("reduce raises", _Making(ReduceRaises, "text"), ReduceRaises, "text"),
        ("reduce exits", _Making(ReduceExits, "text"), ReduceExits, "text"),
        ("reduce lies", _Making(ReduceLies, "text"), ReduceLies, "text"),
        ("reduce recurses", _Making(ReduceRecurses, "text"), ReduceRecurses, "text"),
        ("str raises", _Making(StrRaises, "text"), StrRaises, ""),
        ("slots", _Making(Slotted, "text", 5), Slotted, "text"),
        ("frozen dataclass", _Making(Frozen, 5), Frozen, ""),
        ("new needs more", _Making(NewNeedsMore, 5, "why"), NewNeedsMore, "5"),
        ("own OSError", _Making(OwnOsError, "/nowhere"), OwnOsError, "[Errno 2] not there: '/nowhere'"),
        ("property in the way", _Making(PropertyInTheWay, "text"), PropertyInTheWay, "text"),
        ("own BaseException", _Making(OwnBase, "text"), OwnBase, "text"),
        ("class that cannot travel", untravelled, RemoteError, "Untravelled: has a lock in its class"),
        ("SystemExit", _Making(SystemExit, 3), SystemExit, "3"),
        ("KeyboardInterrupt", _Making(KeyboardInterrupt, "task"), KeyboardInterrupt, "task"),
        ("GeneratorExit", _Making(GeneratorExit, "task"), GeneratorExit, "task"),
        ("StopIteration", _Making(StopIteration, 5), StopIteration, "5"),
        ("RecursionError", lambda: raised(too_deep), RecursionError, "maximum recursion depth exceeded"),
        ("MemoryError", _Making(MemoryError, "none left"), MemoryError, "none left"),
        ("UnicodeDecodeError", lambda: raised(b"\xff".decode), UnicodeDecodeError, "can't decode byte 0xff"),
        ("SyntaxError", lambda: raised(lambda: compile("a b", "there.py", "exec")), SyntaxError, "there.py, line 1"),
        ("huge message", lambda: ValueError("x" * 5_000_000), ValueError, "x" * 1000),
        ("cause and context", _with_chain, ValueError, "third"),
        ("unpicklable cause", _with_unpicklable_cause, ValueError, "has a bad cause"),
        ("circle of contexts", _with_circle, ValueError, "round"),
    ]
    if HAS_GROUPS:
        table += [
            ("notes", _with_notes, ValueError, "has notes"),
            ("group", _group, ExceptionGroup, "several (2 sub-exceptions)"),  # type: ignore[name-defined]  # noqa: F821
            ("base group", _base_group, BaseExceptionGroup, "several (2 sub-exceptions)"),  # type: ignore[name-defined]  # noqa: F821
            ("own group", _own_group, OwnGroup, "code 5 (1 sub-exception)"),
        ]
    cases = [Case(f"raised {name}", "raised", make, "result", error, text) for name, make, error, text in table]
    for way in ENDS:
        cases.append(Case(f"raised {way} at pickle", "raised", _Making(EndsAtPickle, way), "result", KilledWorker, "died"))
        cases.append(Case(f"raised {way} at unpickle", "raised", _Making(EndsAtUnpickle, way), "result", KilledWorker, "died"))
    return cases


#: Every case by its name, in a steady order.
CASES: dict[str, Case] = {case.name: case for case in (*_objects(), *_unpicklable(), *_exceptions())}
#: Those that end no process: a codec's own tests can go through them without a cluster.
GENTLE = [name for name, case in CASES.items() if case.error is not KilledWorker]
