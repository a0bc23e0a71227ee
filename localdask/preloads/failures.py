"""Turning what a preload did wrong into one error that names preload, process, file and line.

Runs wherever preloads are compiled or run. The error's text is one line, its detail the
traceback without the frames that are localdask's, click's or the import system's. It only
looks at exceptions; it never raises one and never runs a user's code but ``str`` of theirs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from localdask.errors import PreloadError
from localdask.preloads.modules import is_users_own

if TYPE_CHECKING:
    from traceback import FrameSummary

__all__ = ["explain_failure", "explain_overrun", "explain_syntax", "first_line", "users_frames"]

_OURS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")
MAX_TEXT = 400
MAX_WIDTH = 110


def explain_syntax(error: BaseException, *, preload: str, filename: str, code: bytes) -> PreloadError:
    """Return the error for source that does not compile: ``file:line:column``, the line and a caret."""
    if not isinstance(error, SyntaxError):
        # A null byte (before Python 3.12), or nesting that is too deep for the compiler.
        return PreloadError(f"{filename}: {type(error).__name__}: {error}; is it Python source?", preload=preload, where=filename)
    line_number = error.lineno or 1
    column = max(error.offset or 1, 1)
    where = f"{filename}:{line_number}:{column}"
    line = (error.text or _line(code, line_number)).rstrip("\r\n")
    start = max(0, column - MAX_WIDTH) if len(line) > MAX_WIDTH else 0
    shown = line[start : start + MAX_WIDTH]
    indent = "".join("\t" if character == "\t" else " " for character in shown[: column - 1 - start])
    end = error.end_offset if error.end_lineno == error.lineno and (error.end_offset or 0) > column else column + 1
    carets = "^" * max(1, min((end or 0) - column, len(shown) - len(indent)))
    detail = f"    {shown}\n    {indent}{carets}" if shown.strip() else ""
    return PreloadError(f"{where}: {type(error).__name__}: {error.msg}", preload=preload, where=where, detail=detail)


def _line(code: bytes, number: int) -> str:
    lines = code.splitlines()
    return lines[number - 1].decode("utf-8", "backslashreplace") if number <= len(lines) else ""


def explain_failure(error: BaseException, *, preload: str, process: str, did: str, filename: str) -> PreloadError:
    """Return the error for ``error``, which came out of ``did`` (a body or a hook) of a preload."""
    from traceback import walk_tb  # noqa: PLC0415 - 4 ms, and only an error needs it

    frames = [(frame.f_code.co_filename, number) for frame, number in walk_tb(error.__traceback__)]
    where = _innermost(frames, filename)
    if not where:
        where = next((f"{file}:{number}" for file, number in reversed(frames) if not _is_plumbing(file)), "")
    at = f" at {where}" if where else ""
    who = f" in {process}" if process else ""
    if isinstance(error, SystemExit):
        said = f"{did} called sys.exit({'' if error.code is None else repr(error.code)}){at}; raise an error that says why instead"
    elif isinstance(error, ModuleNotFoundError) and error.name:
        said = f"{did} raised {first_line(error)}{at}; install {error.name}, or put {error.name}.py beside the preload"
    else:
        said = f"{did} raised {first_line(error)}{at}"
        if isinstance(error, ImportError) and "no known parent package" in error.msg and where.startswith(f"{filename}:"):
            said += f"; as a file it is in no package: name the module {_module_name(filename)}"
    text = f"the preload {preload} failed{who}: {said}"
    detail = _trimmed(error, filename)
    if detail == first_line(error):  # no frame of the user's: the text says it all
        detail = ""
    return PreloadError(text, preload=preload, process=process, where=where, detail=detail)


def _module_name(filename: str) -> str:
    """Return what a file is called as a module of the package that it lies in."""
    folder, file = os.path.split(filename)
    name = os.path.basename(folder) + "." + os.path.splitext(file)[0]
    while os.path.isfile(os.path.join(folder := os.path.dirname(folder), "__init__.py")):
        name = f"{os.path.basename(folder)}.{name}"
    return name


def explain_overrun(frames: Sequence[FrameSummary], limit_s: float, *, preload: str, process: str, did: str, filename: str) -> PreloadError:
    """Return the error for a body or hook that was still running at its time limit, with its stack."""
    from traceback import format_list  # noqa: PLC0415 - 4 ms, and only an error needs it

    kept = users_frames(frames, filename)
    where = _innermost([(frame.filename, frame.lineno) for frame in kept], filename)
    at = f" at {where}" if where else ""
    who = f" in {process}" if process else ""
    option = "--teardown-timeout" if did in ("dask_teardown", "teardown", "close") else "--setup-timeout"
    text = (
        f"the preload {preload} failed{who}: {did} was still running after {limit_s:g} s{at}; raise the limit ({option}) if that is right"
    )
    detail = "It was here (most recent call last):\n" + "".join(format_list(kept)).rstrip("\n") if kept else ""
    return PreloadError(text, preload=preload, process=process, where=where, detail=detail)


def first_line(error: BaseException) -> str:
    """Return an exception as ``Type: text`` on one line of bearable length, also when its ``str`` fails."""
    try:
        lines = str(error).strip().splitlines()
    except Exception as broken:
        lines = [f"<its str() raised {type(broken).__name__}>"]
    name = type(error).__name__
    text = f"{name}: {lines[0]}" if lines else name
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"


def users_frames(frames: Iterable[FrameSummary], filename: str) -> list[FrameSummary]:
    """Return the frames from the first of ``filename`` on (else all), without the plumbing between them."""
    stack = list(frames)
    starts = [index for index, frame in enumerate(stack) if frame.filename == filename]
    return [frame for frame in stack[starts[0] if starts else 0 :] if not _is_plumbing(frame.filename)]


def _innermost(frames: Sequence[tuple[str, int | None]], filename: str) -> str:
    """Return the last place in code that the user can mend: the preload's, or a helper's that it imports."""
    return next((f"{file}:{number}" for file, number in reversed(frames) if file == filename or is_users_own(file)), "")


def _is_plumbing(filename: str) -> bool:
    return filename.startswith((_OURS, "<frozen importlib"))


def _trimmed(error: BaseException, filename: str) -> str:
    """Return the traceback of ``error`` and its causes, with the user's frames only."""
    from traceback import TracebackException  # noqa: PLC0415 - 4 ms, and only an error needs it

    summary = TracebackException.from_exception(error)
    pending: list[TracebackException | None] = [summary]
    while pending:
        if (current := pending.pop()) is not None:
            current.stack[:] = users_frames(current.stack, filename)
            pending += [current.__cause__, current.__context__]
    return "".join(summary.format()).rstrip("\n")
