"""How a call ended, as a value that crosses processes: ``Ok`` with what it returned, ``Err`` with what it raised.

The runner makes outcomes in a worker; the client opens them in the user's process.
The scheduler and the nannies pass their bytes on unread, and make only those of their
own errors.

An exception must arrive whatever it is, so its bytes have layers. The outer one is
plain data that always loads: for each exception of the chain its type's name, its
text, its frames, and how causes, contexts and group members belong together. The inner
one is the pickle of the exception itself. It was loaded once where it was made, so it
loads; where it does not (a class that only the worker can import), a ``RemoteError``
made from the outer layer stands in.

By themselves exceptions pickle badly: they call ``__init__`` again with what happens to
be in ``args``, and drop slots, causes and contexts. So unless a class has pickling
code of its own, its exceptions are rebuilt without ``__init__``: type, ``args``,
attributes, slots. What of those cannot be pickled is replaced by its text.
"""

from __future__ import annotations

import builtins
import io
import pickle
import sys
from collections import deque
from collections.abc import Callable
from functools import cache, partial
from types import CodeType, MemberDescriptorType, TracebackType
from typing import Any, NoReturn, TypeAlias

from localdask.errors import RemoteError
from localdask.records import record
from localdask.system import codec
from localdask.system.culprits import safe_text

__all__ = ["Err", "Frame", "Ok", "dumps_error", "dumps_outcome", "loads_error", "loads_outcome"]

#: Filename, line number, function's name, source line.
Frame: TypeAlias = "tuple[str, int, str, str]"

#: Bounds of what travels besides the exception itself.
MAX_EXCEPTIONS = 256
MAX_FRAMES = 200
MAX_LOST = 10
MAX_TEXT = 10_000
MAX_TRACEBACK_TEXT = 100_000
MAX_LINE_NUMBER = 100_000
MAX_REMEMBERED_FILES = 100

_ATOMS = frozenset({int, float, bool, type(None), str, bytes})
#: The slots of ``BaseException`` as it defines them: a subclass may have made them properties, or refuse to set anything.
_CAUSE, _CONTEXT, _SUPPRESS, _TRACEBACK = (
    vars(BaseException)[name] for name in ("__cause__", "__context__", "__suppress_context__", "__traceback__")
)
#: Python 3.10 has no groups.
_GROUP: Any = getattr(builtins, "BaseExceptionGroup", None)
#: What rebuilding or describing a user's exception may raise.
_FAILURES = (Exception, SystemExit, GeneratorExit)


@record
class Ok:
    """A call returned this."""

    value: Any

    def unwrap(self) -> Any:
        """Return the value."""
        return self.value


@record
class Err:
    """A call raised this. ``traceback_text`` is what the other process would have printed."""

    exception: BaseException
    traceback_text: str = ""
    frames: tuple[Frame, ...] = ()
    remote_traceback: TracebackType | None = None

    def unwrap(self) -> NoReturn:
        """Raise the exception, with the remote frames below the caller's."""
        # Each raise grows the traceback on the exception: start again from the remote one.
        raise _with_traceback(self.exception, self.remote_traceback)


Outcome: TypeAlias = "Ok | Err"


def _with_traceback(exception: BaseException, found: TracebackType | None) -> BaseException:
    _TRACEBACK.__set__(exception, found)
    return exception


# ── out ──────────────────────────────────────────────────────────────────────


#: One exception of a chain as it travels: pickled (or None), type's name, text, what was lost or why nothing could be
#: pickled, frames, and the numbers of its cause and its context in the chain (-1 is none), whether the context is
#: suppressed, and the numbers of a group's members.
_Link: TypeAlias = "tuple[bytes | None, str, str, str, tuple[Frame, ...], int, int, bool, tuple[int, ...]]"


def dumps_error(exception: BaseException, skip: int = 0) -> bytes:
    """Return bytes from which ``loads_error`` makes an ``Err``, whatever the exception is.

    ``skip`` is how many of the outermost frames are the runner's own and nobody's business.
    """
    try:
        found = _TRACEBACK.__get__(exception)
        for _ in range(skip):
            found = found.tb_next if found is not None else None
        return pickle.dumps((_traceback_text(exception, found), _links(exception, found)), 5)
    except BaseException as failure:  # memory is out, or the exception fights back: something must arrive all the same
        name = type(exception).__name__
        link: _Link = (None, name, "", f"describing it failed with {type(failure).__name__}", (), -1, -1, False, ())
        return pickle.dumps((f"{name}\n", [link]), 5)


def dumps_outcome(outcome: Outcome, skip: int = 0) -> bytes:
    """Return an outcome's bytes; a value that cannot be pickled is sent as the error that says so."""
    if isinstance(outcome, Ok):
        try:
            return pickle.dumps((True, codec.dumps(outcome.value, "the result")), 5)
        except BaseException as error:
            return pickle.dumps((False, dumps_error(error)), 5)
    return pickle.dumps((False, dumps_error(outcome.exception, skip)), 5)


def _traceback_text(exception: BaseException, found: TracebackType | None) -> str:
    import traceback  # noqa: PLC0415 - 4 ms, and only an error needs it

    try:
        text = "".join(traceback.format_exception(type(exception), exception, found))
    except _FAILURES as failure:
        text = f"{_type_name(exception)}: {safe_text(exception)}\n(its traceback could not be formatted: {_reason(failure)})\n"
    if len(text) > MAX_TRACEBACK_TEXT:
        half = MAX_TRACEBACK_TEXT // 2
        text = f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"
    return text


def _links(exception: BaseException, found: TracebackType | None) -> list[_Link]:
    """Return the exception and all that hangs on it, itself first, each once, breadth first."""
    numbers = {id(exception): 0}
    waiting = deque([exception])
    links: list[_Link] = []

    def number(other: BaseException | None) -> int:
        if other is None:
            return -1
        if id(other) not in numbers:
            if len(numbers) >= MAX_EXCEPTIONS:
                return -1
            numbers[id(other)] = len(numbers)
            waiting.append(other)
        return numbers[id(other)]

    while waiting:
        current = waiting.popleft()
        is_group = _GROUP is not None and isinstance(current, _GROUP)
        pickled, why = _pickled(current, is_group)
        cause, context = number(_CAUSE.__get__(current)), number(_CONTEXT.__get__(current))
        members = [number(member) for member in current.exceptions] if is_group else []  # type: ignore[attr-defined]
        frames = _frames(found if current is exception else _TRACEBACK.__get__(current))
        text = safe_text(current, MAX_TEXT)
        suppress = bool(_SUPPRESS.__get__(current))
        links.append((pickled, _type_name(current), text, why, frames, cause, context, suppress, tuple(members)))
    return links


def _frames(found: TracebackType | None) -> tuple[Frame, ...]:
    import traceback  # noqa: PLC0415 - see above

    places = list(traceback.walk_tb(found))
    if len(places) > MAX_FRAMES:
        places = places[: MAX_FRAMES // 2] + places[-(MAX_FRAMES // 2) :]
    summary = traceback.StackSummary.extract(iter(places))
    return tuple((frame.filename, frame.lineno or 0, frame.name, frame.line or "") for frame in summary)


def _type_name(exception: BaseException) -> str:
    kind = type(exception)
    module, name = safe_text(kind.__module__, 200), safe_text(kind.__qualname__, 200)
    return name if module in ("builtins", "__main__") else f"{module}.{name}"


def _reason(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {safe_text(failure)}"


# ── one exception out ────────────────────────────────────────────────────────


def _pickled(exception: BaseException, is_group: bool) -> tuple[bytes | None, str]:
    """Return the pickle of one exception without what hangs on it, and what was lost or why there is none."""
    why = ""
    try:
        kind = type(exception)
        native = next(base for base in kind.__mro__ if base.__module__ == "builtins")
        if kind is native and not is_group and not vars(exception) and all(type(arg) in _ATOMS for arg in exception.args):
            return _alone(exception), ""
        if not is_group and _pickles_itself(kind, native):
            try:
                return _checked(codec.dumps(exception, "the exception"), kind), ""
            except BaseException as failure:
                why = _reason(failure)
        try:
            return _checked(_rebuilding(exception, native, is_group, lambda _place, value: value), kind, is_group), ""
        except BaseException as failure:
            why = why or _reason(failure)
        lost: list[str] = []
        data = _checked(_rebuilding(exception, native, is_group, partial(_or_text, lost)), kind, is_group)
        return data, "; ".join(lost)
    except BaseException as failure:
        return None, why or _reason(failure)


def _alone(exception: BaseException) -> bytes:
    """Return the pickle of a plain exception, as if nobody had registered another way to pickle its kind.

    Libraries do (tblib, which ``distributed`` brings along), and theirs takes what hangs on an exception along.
    """
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 5)
    pickler.dispatch_table = {}
    pickler.dump(exception)
    return buffer.getvalue()


def _pickles_itself(kind: Any, native: Any) -> bool:
    """Return whether a class brings pickling code of its own."""
    return kind.__reduce_ex__ is not object.__reduce_ex__ or any(
        getattr(kind, name, None) is not getattr(native, name, None) for name in ("__reduce__", "__getstate__", "__setstate__")
    )


def _checked(data: bytes, kind: type, is_group: bool = False) -> bytes:
    """Return a pickle that was seen to load into an exception of the right type."""
    loaded = pickle.loads(data)
    if is_group:  # its members travel by themselves: try it with another of the sort that it admits
        loaded = loaded.with_members([Exception() if issubclass(kind, Exception) else BaseException()])
    if type(loaded) is not kind:
        raise TypeError(f"it loads as {type(loaded).__name__}")
    return data


def _fields(exception: BaseException) -> dict[str, Any]:
    """Return an exception's own attributes, those in slots too."""
    fields = {}
    for kind in type(exception).__mro__:
        if kind.__module__ == "builtins":
            continue  # their members come back through their own ``__init__``
        for name, slot in vars(kind).items():
            if isinstance(slot, MemberDescriptorType):
                try:
                    fields[name] = slot.__get__(exception)
                except AttributeError:  # never filled
                    continue
    fields.update(vars(exception))
    return fields


class _Call:
    """Pickles to a call, and so loads as what the call returns."""

    __slots__ = ("args", "function")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.function = function
        self.args = args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (self.function, self.args)


def _rebuilding(exception: BaseException, native: Any, is_group: bool, convert: Callable[[str, Any], Any]) -> bytes:
    """Return the pickle of a call that makes the exception again without its ``__init__``."""
    if is_group:
        args: tuple[Any, ...] = (exception.message,)  # type: ignore[attr-defined]
        fields = _fields(exception)
    else:
        reduced = native.__reduce__(exception)
        args = reduced[1]
        fields = {**(reduced[2] or {} if len(reduced) > 2 else {}), **_fields(exception)}
    fields = {name: convert(name, value) for name, value in fields.items()}
    args = tuple(convert(f"args[{index}]", value) for index, value in enumerate(args))
    call = _Call(_GroupShell if is_group else _remake, (type(exception), native, args, fields))
    return codec.dumps(call, "the exception")


def _or_text(lost: list[str], place: str, value: Any) -> Any:
    """Return a value if it survives pickling, else its text, and note what was lost."""
    try:
        pickle.loads(codec.dumps(value, "a part of the exception"))
    except BaseException as failure:
        if len(lost) < MAX_LOST:
            lost.append(f"{place} ({_reason(failure.__cause__ or failure)})")
        return safe_text(value, MAX_TEXT, repr)
    return value


def _remake(kind: type[BaseException], native: type[BaseException], args: tuple[Any, ...], fields: dict[str, Any]) -> BaseException:
    exception = native.__new__(kind, *args)
    native.__init__(exception, *args)
    return _fill(exception, fields)


def _fill(exception: BaseException, fields: dict[str, Any]) -> BaseException:
    for name, value in fields.items():
        object.__setattr__(exception, name, value)  # past a frozen dataclass's refusal
    return exception


class _GroupShell:
    """An exception group whose members come later."""

    def __init__(self, kind: type[BaseException], native: type[BaseException], args: tuple[str], fields: dict[str, Any]) -> None:
        self._native = native
        self._kind = kind
        self._message = args[0]
        self._fields = fields

    def with_members(self, members: list[BaseException]) -> BaseException:
        made: Any = self._native.__new__
        return _fill(made(self._kind, self._message, members), self._fields)


# ── in ───────────────────────────────────────────────────────────────────────


def loads_error(data: bytes) -> Err:
    """Return the ``Err`` that ``dumps_error`` wrote, its exceptions with tracebacks of the frames they had there."""
    text, links = pickle.loads(data)
    exceptions = [_loaded(link) for link in links]
    for number in reversed(range(len(links))):  # a group's members mostly have higher numbers, so they are whole before it
        shell = exceptions[number]
        if isinstance(shell, _GroupShell):
            exceptions[number] = _with_members(shell, links[number], [exceptions[member] for member in links[number][8] if member >= 0])
    for exception, link in zip(exceptions, links, strict=True):
        _pickled_part, _type, _text, _why, frames, cause, context, suppress, _members = link
        _TRACEBACK.__set__(exception, _rebuilt_traceback(frames))
        if cause >= 0:
            _CAUSE.__set__(exception, exceptions[cause])
        if context >= 0:
            _CONTEXT.__set__(exception, exceptions[context])
        _SUPPRESS.__set__(exception, suppress)
    first: Any = exceptions[0]
    return Err(first, text, links[0][4], _TRACEBACK.__get__(first))


def loads_outcome(data: bytes) -> Outcome:
    """Return the outcome that ``dumps_outcome`` wrote; a value that cannot be loaded here is an ``Err`` that says so."""
    worked, payload = pickle.loads(data)
    if not worked:
        return loads_error(payload)
    try:
        return Ok(codec.loads(payload, "the result"))
    except _FAILURES as error:
        return Err(error, _traceback_text(error, error.__traceback__))


def _loaded(link: _Link) -> BaseException | _GroupShell:
    pickled, type_name, text, why = link[:4]
    if pickled is not None:
        try:
            loaded = pickle.loads(pickled)
        except _FAILURES as failure:
            why = f"it cannot be loaded in this process: {_reason(failure)}"
        else:
            if why and hasattr(loaded, "add_note"):
                loaded.add_note(f"(could not be pickled and arrived as text only: {why})")
            if isinstance(loaded, (BaseException, _GroupShell)):
                return loaded
            why = f"it loads as {type(loaded).__name__}"
    return RemoteError(type_name, text, why)


def _with_members(shell: _GroupShell, link: _Link, members: list[BaseException | _GroupShell]) -> BaseException:
    whole = [member for member in members if isinstance(member, BaseException)]
    try:
        return shell.with_members(whole)
    except _FAILURES as failure:  # no member was left, or a stand-in is not what this group admits
        return RemoteError(link[1], link[2], _reason(failure))


# ── tracebacks ───────────────────────────────────────────────────────────────


@cache
def _template() -> CodeType:
    """Return the code that gives its own frame, without columns, so that no marks are put under another's words."""
    code = compile("_getframe()", "<remote>", "eval")
    if not hasattr(code, "co_qualname"):  # Python 3.10 has no columns
        return code
    n_units = len(code.co_code) // 2
    # CPython's location table: entries of up to eight instructions, kind 13 (a line, no columns), line difference 0.
    lengths = [8] * (n_units // 8) + ([n_units % 8] if n_units % 8 else [])
    return code.replace(co_linetable=b"".join(bytes((0x80 | 13 << 3 | length - 1, 0)) for length in lengths))


def _rebuilt_traceback(frames: tuple[Frame, ...]) -> TracebackType | None:
    """Return a traceback of frames that ran elsewhere, made of tiny functions with their names and places."""
    _remember_lines(frames)
    found, template = None, _template()
    for filename, lineno, name, _line in reversed(frames):
        names = {"co_name": name, "co_qualname": name} if hasattr(template, "co_qualname") else {"co_name": name}
        code = template.replace(co_filename=filename, co_firstlineno=max(lineno, 1), **names)  # type: ignore[arg-type]
        frame = eval(code, {"_getframe": sys._getframe, "__name__": "<remote>"})
        found = TracebackType(found, frame, 0, max(lineno, 1))
    return found


_remembered: dict[str, dict[int, str]] = {}


def _remember_lines(frames: tuple[Frame, ...]) -> None:
    """Let tracebacks show source lines of files that are not here (a notebook's cell, a text preload)."""
    import linecache  # noqa: PLC0415 - 1 ms, and only an error needs it

    for filename, lineno, _name, line in frames:
        if not line or lineno > MAX_LINE_NUMBER:
            continue
        if filename not in _remembered:
            if linecache.getline(filename, lineno):
                continue  # it is here
            if len(_remembered) >= MAX_REMEMBERED_FILES:
                linecache.cache.pop(oldest := next(iter(_remembered)), None)
                del _remembered[oldest]
            _remembered[filename] = {}
        known = _remembered[filename]
        if known.get(lineno) != line:
            known[lineno] = line
            lines = [f"{known.get(number, '')}\n" for number in range(1, max(known) + 1)]
            linecache.cache[filename] = (sum(map(len, lines)), None, lines, filename)  # None: never checked against a file
