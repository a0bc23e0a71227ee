"""A user's script as Python itself would run it: a file, a module, code on the command line, or standard input.

Runs in the user's process, under ``run``, in the main thread. ``__main__``, ``sys.argv``
and ``sys.path`` are the script's, and so is the traceback: no frame of ours is in it.
It knows nothing of clusters.
"""

from __future__ import annotations

import builtins
import io
import os
import runpy
import sys
import threading
import types
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

from localdask.errors import UsageError
from localdask.spelling import nearest

__all__ = ["Script", "print_syntax_error", "read_script"]

INTERRUPTED = 130


class Script(NamedTuple):
    """What to run. ``kind`` is "file", "folder" (an archive too), "module" or "code"; the first and the last are compiled already."""

    kind: str
    path: str
    argv: list[str]
    code: types.CodeType | None

    def place_path(self) -> None:
        """Make ``sys.path`` the script's: its folder first, as with python. To be called before a cluster starts, which copies the path."""
        first = {"file": os.path.dirname(os.path.realpath(self.path)), "folder": None, "module": os.getcwd(), "code": ""}[self.kind]
        replaced = [] if getattr(sys.flags, "safe_path", False) else sys.path[:1]
        if replaced:
            del sys.path[0]
        if first is not None:
            sys.path.insert(0, first)

    def run(self) -> int:
        """Run the script in this thread and return its exit code; wait for the threads it started, as python does."""
        before = threading.enumerate()
        sys.argv[:] = self.argv
        try:
            self._execute()
            code = 0
        except SystemExit as end:
            code = _exit_code(end)
        except KeyboardInterrupt as error:
            _print_traceback(error)
            code = INTERRUPTED
        except BaseException as error:
            _print_traceback(error)
            code = 1
        try:
            for thread in threading.enumerate():
                if thread not in before and not thread.daemon:
                    thread.join()
        except KeyboardInterrupt:
            code = INTERRUPTED
        return code

    def _execute(self) -> None:
        if self.kind == "module":
            runpy.run_module(self.path, run_name="__main__", alter_sys=True)
        elif self.kind == "folder":
            runpy.run_path(self.path, run_name="__main__")
        else:
            # runpy would take __main__ away again when the code ends, and threads may still need it.
            module: Any = types.ModuleType("__main__")
            module.__builtins__ = builtins
            module.__annotations__ = {}
            if self.kind == "file":
                module.__file__ = self.path
                module.__cached__ = None
            sys.modules["__main__"] = module
            assert self.code is not None
            exec(self.code, module.__dict__)


def read_script(words: Sequence[str]) -> Script:
    """Return the script that the words after the options name. A script that is not there, or nothing at all, is a usage error."""
    if not words:
        raise UsageError(
            "there is no script to run: name one, or give -m MODULE or -c CODE; options of a preload end with -- before the script"
        )
    first, *rest = words
    if first in ("-m", "-c"):
        if not rest:
            raise UsageError(f"{first} needs {'a module' if first == '-m' else 'code'} after it")
        what, *arguments = rest
        if first == "-m":
            return Script("module", what, [what, *arguments], None)
        return Script("code", "-c", ["-c", *arguments], _compiled(what, "<string>"))
    if first == "-":
        return Script("code", "-", ["-", *rest], _compiled(sys.stdin.read(), "<stdin>"))
    return _read_file(first, list(words))


def _read_file(path: str, argv: list[str]) -> Script:
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, "__main__.py")):
            raise UsageError(f"{path} is a folder without __main__.py: name the script in it")
        return Script("folder", path, argv, None)
    try:
        with io.open_code(os.path.abspath(path)) as file:
            text = file.read()
    except OSError as error:
        folder = os.path.dirname(path) or "."
        hint = nearest(os.path.basename(path), os.listdir(folder)) if os.path.isdir(folder) else None
        mend = f"did you mean {os.path.join(os.path.dirname(path), hint)}?" if hint else "mend the path"
        raise UsageError(f"the script {path} cannot be read: {error.strerror}; {mend}") from error
    if text.startswith(b"PK\x03\x04"):
        return Script("folder", path, argv, None)
    return Script("file", os.path.abspath(path), argv, _compiled(text, os.path.abspath(path)))


def _compiled(text: str | bytes, filename: str) -> types.CodeType:
    """Compile a script without this room's own ``from __future__`` lines, which ``compile`` would hand on."""
    return compile(text, filename, "exec", dont_inherit=True)


def _exit_code(end: SystemExit) -> int:
    """Return the code that python would exit with; what is no number is told."""
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return int(end.code) & 0xFF
    print(end.code, file=sys.stderr)
    return 1


def _print_traceback(error: BaseException) -> None:
    """Show the error as python would, by the script's own hook if it has one, without the frames above the script's."""
    trace = scripts_traceback(error.__traceback__)
    sys.excepthook(type(error), error.with_traceback(trace), trace)


def print_syntax_error(error: SyntaxError) -> None:
    """Show what is wrong with a script that does not compile, as python would."""
    sys.excepthook(type(error), error.with_traceback(None), None)


def scripts_traceback(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback from the script's first frame on; None when the script has no frame in it."""
    while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


def _is_ours(filename: str) -> bool:
    return filename in (__file__, runpy.__file__, "<frozen runpy>")
