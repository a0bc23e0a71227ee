"""Saying why an object cannot be pickled: what inside it is at fault, where that is, and what mends it.

``codec`` calls it when pickling has failed, in the user's process and in workers. It
looks, bounded in depth and in number, and never raises: whatever a user's object does
while it is looked at, there is a text at the end. It never changes what it looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

__all__ = ["describe_failure", "safe_text"]

#: How deep, and at how many objects in all, the search looks.
MAX_DEPTH = 16
MAX_TRIES = 1_000
#: How much of a foreign text goes into ours.
MAX_TEXT = 300
_ATOMS = frozenset({int, float, bool, complex, type(None), str, bytes})
#: What looking at a user's object may raise; a KeyboardInterrupt may be a real Ctrl-C and passes.
_FAILURES = (Exception, SystemExit, GeneratorExit)


def safe_text(obj: object, limit: int = MAX_TEXT, convert: Callable[[Any], str] = str) -> str:
    """Return an object's text, shortened; its ``__str__`` may do what it likes."""
    try:
        text = convert(obj)
        text = text if type(text) is str else str.__str__(text)
    except BaseException as error:
        return f"<its text failed with {type(error).__name__}>"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def describe_failure(obj: object, what: str, error: BaseException, can_pickle: Callable[[object], bool]) -> str:
    """Return the sentence for an object that failed to pickle with this error."""
    if isinstance(error.__cause__, RecursionError):  # cloudpickle's own words for it are vaguer
        error = error.__cause__
    reason = f"{type(error).__name__}: {safe_text(error)}"
    if isinstance(error, RecursionError):
        return f"cannot pickle {what}: it is nested too deeply ({reason}); make it flatter, or build it inside the task"
    try:
        path = what.rsplit(" ", 1)[-1]
        part = obj
        if what == "the arguments" and isinstance(obj, tuple):  # a pair that the user never saw: start at the half that fails
            path, part = ("kwargs", obj[1]) if can_pickle(obj[0]) else ("args", obj[0])
        path, culprit = _find(part, path, can_pickle)
        name = _type_name(culprit)
        article = "an" if name[:1].lower() in "aeio" else "a"
        return f"cannot pickle {what}: {'it' if culprit is obj else path} is {article} {name}; {_mend(culprit)} ({reason})"
    except _FAILURES:  # the search is a courtesy: what an object does to it must not hide the reason
        return f"cannot pickle {what}: {reason}; create it inside the task, or in a preload"


def _find(obj: object, path: str, can_pickle: Callable[[object], bool]) -> tuple[str, object]:
    """Return the innermost thing that cannot be pickled by itself, and the path to it."""
    tries = 0
    on_the_way = {id(obj)}
    for _ in range(MAX_DEPTH):
        for step, child in _parts(obj):
            if type(child) in _ATOMS:
                continue
            tries += 1
            if tries > MAX_TRIES:
                return path, obj
            if id(child) not in on_the_way and not can_pickle(child):
                path, obj = path + step, child
                on_the_way.add(id(obj))
                break
        else:
            return path, obj
    return path, obj


def _parts(obj: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object's pickle is made of, each with the step that leads to it."""
    if isinstance(obj, dict):
        for key, value in obj.items():
            yield f"[{safe_text(key, 40, repr)}]", value
        for key in obj:
            yield f" → key {safe_text(key, 40, repr)}", key
    if isinstance(obj, (list, tuple)):
        for index, value in enumerate(obj):
            yield f"[{index}]", value
    elif isinstance(obj, (set, frozenset)):
        for value in obj:
            yield " → an element", value
    elif isinstance(obj, FunctionType):
        yield from _captured(obj)
    elif isinstance(obj, MethodType):
        yield ".__self__", obj.__self__
        yield ".__func__", obj.__func__
    elif isinstance(obj, partial):
        yield ".func", obj.func
        yield from ((f".args[{index}]", value) for index, value in enumerate(obj.args))
        yield from ((f".keywords[{name!r}]", value) for name, value in obj.keywords.items())
    elif isinstance(obj, type):
        yield from ((f".{name}", value) for name, value in vars(obj).items() if name not in ("__dict__", "__weakref__"))
    if not isinstance(obj, (FunctionType, MethodType, partial, type, ModuleType, GeneratorType)):
        yield from _state(obj)


def _captured(function: FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f" → closure variable {name}", cell.cell_contents
        except ValueError:  # an empty cell
            continue
    for index, value in enumerate(function.__defaults__ or ()):
        yield f" → default {index}", value
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f" → default {name}", value
    for name in _global_names(function.__code__):
        if name in function.__globals__:
            yield f" → global {name}", function.__globals__[name]
    yield from ((f".{name}", value) for name, value in function.__dict__.items())


def _global_names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _state(obj: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object's ``__reduce_ex__`` would have pickled; nothing when that is what fails."""
    try:
        reduced = obj.__reduce_ex__(5)
    except _FAILURES:  # then the object itself is the culprit
        return
    if not isinstance(reduced, tuple):
        return
    made_from = ".args" if isinstance(obj, BaseException) else " → what it is made from"
    state = reduced[2] if len(reduced) > 2 else None
    for part in state if isinstance(state, tuple) and len(state) == 2 else (state,):
        if isinstance(part, dict):
            yield from ((f".{name}", value) for name, value in part.items())
        elif part is not None:
            yield " → its state", part
    for index, value in enumerate(reduced[1] if isinstance(reduced[1], tuple) else ()):
        if not isinstance(value, type):
            yield f"{made_from}[{index}]", value


def _type_name(obj: object) -> str:
    kind = type(obj)
    name = safe_text(getattr(kind, "__qualname__", "object"), 100)
    module = safe_text(getattr(kind, "__module__", ""), 100)
    return name if module in ("builtins", "__main__", "") else f"{module}.{name}"


def _mend(obj: object) -> str:
    own = getattr(type(obj), "__localdask_mend__", None)
    if isinstance(own, str):
        return own
    if isinstance(obj, GeneratorType) or type(obj).__name__.endswith("_iterator"):
        return "make a list of it first"
    if hasattr(type(obj), "fileno") and hasattr(type(obj), "close"):
        return "pass its name and open it inside the task, or in a preload"
    if type(obj).__module__ in ("builtins", "_thread", "threading", "_asyncio", "_contextvars", "sqlite3", "ssl", "_ssl"):
        return "create it inside the task, or in a preload"
    return "give it a __reduce__ that works, or create it inside the task, or in a preload"
