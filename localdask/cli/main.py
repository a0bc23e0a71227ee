"""The command ``localdask``: finds the verb, and turns what went wrong into words and an exit code.

The package's script and ``python -m localdask`` call ``main``. A verb's module is
imported when that verb is called, never for ``--help``, so this room imports click
and little else.

Exit codes: 0 ok · 1 failed · 2 usage · 3 no such cluster or worker · 4 not ready in
time · 5 a preload failed at the start · 6 some workers failed · 130 forced.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from localdask.cli.verbs import SETTINGS, write_examples
from localdask.spelling import mend_of
from localdask.version import __version__

__all__ = ["main"]

#: verb → (its room and its name there, what it does). The order is the help's.
VERBS: dict[str, tuple[str, str]] = {
    "up": ("up:command", "start a cluster and keep it in the foreground, or apart (-d)"),
    "down": ("clusters:down", "stop clusters"),
    "ls": ("clusters:ls", "list the clusters of this user"),
    "ps": ("processes:ps", "list a cluster's processes"),
    "top": ("processes:top", "watch a cluster at work"),
    "logs": ("logs:logs", "show what workers and nannies wrote"),
    "events": ("logs:events", "show what happened: starts, deaths, reloads"),
    "scale": ("workers:scale", "change how many workers there are"),
    "restart": ("workers:restart", "replace workers, one after the other"),
    "reload": ("reload:command", "read preloads again, now"),
    "run": ("run:command", "run a script on a cluster of its own, or on a running one"),
    "exec": ("workers:execute", "run code in workers and show their answers"),
    "stacks": ("workers:stacks", "show what every worker is doing now"),
    "config": ("config:command", "show settings and who said so, or begin a file"),
    "doctor": ("doctor:command", "look whether this machine is good to a cluster"),
    "completion": ("completion:command", "print a shell's completion script"),
    "version": ("version:command", "print the versions of localdask and Python"),
}

EXAMPLES = (
    ("localdask up -n 4 --preload setup.py", "start 4 workers that run setup.py first; Ctrl-C stops them"),
    ("localdask run -n 4 script.py --fast", "run script.py --fast with 4 workers behind its Client()"),
)

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_NOT_READY = 4
EXIT_PRELOAD = 5
EXIT_FORCED = 130


class _Verbs(click.Group):
    """The group of all verbs, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        room, _, name = VERBS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"localdask.cli.{room}"), name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS:
            if args[0].startswith("-"):
                return super().resolve_command(ctx, args)
            mend = mend_of(args[0], VERBS, f"there are: {', '.join(VERBS)}")
            ctx.fail(f"there is no verb {args[0]!r}; {mend}")
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, EXAMPLES)
        formatter.write_paragraph()
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        with formatter.section("Verbs"):
            formatter.write_dl([(name, meaning) for name, (_, meaning) in VERBS.items()])
        click.Command.format_options(self, ctx, formatter)
        formatter.write_paragraph()
        formatter.write_text("localdask VERB -h tells more about a verb.")


@click.group(
    cls=_Verbs,
    context_settings=SETTINGS,
    subcommand_metavar="VERB ...",
    no_args_is_help=True,
    help="A Dask-compatible cluster on one machine.",
)
@click.version_option(__version__, "--version", prog_name="localdask", message="%(prog)s %(version)s", allow_from_autoenv=False)
def root() -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller (>&-): as with print, nobody wants what is written
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - it is for the whole process
    verb = next(iter(sys.argv[1:] if arguments is None else arguments), "")
    if verb != "run" and isinstance(sys.stdout, io.TextIOWrapper):  # the output of ``run`` is the script's own
        sys.stdout.reconfigure(errors="backslashreplace")  # where it is ASCII, a line or a name must not stop what is shown
    try:
        code = root.main(args=arguments, prog_name="localdask", standalone_mode=False)
    except click.ClickException as error:
        code = _tell_click(error)
    except (click.Abort, KeyboardInterrupt):
        code = EXIT_FORCED
    except BrokenPipeError:
        _write_no_more()  # nobody reads what we print
        code = EXIT_FAILED
    except (ValueError, RuntimeError, OSError) as error:
        code = _tell(error)
    sys.exit(code if isinstance(code, int) else 0)


def _write_no_more() -> None:
    """Drop what is still buffered for standard output: it must not raise again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _tell_click(error: click.ClickException) -> int:
    """Tell what click found wrong, and where to read more."""
    text = error.format_message()
    context = getattr(error, "ctx", None)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        print(text, file=sys.stderr)
        return EXIT_USAGE
    _print_error(text[:1].lower() + text[1:].removesuffix("."))
    if context is not None and isinstance(error, click.UsageError):
        print(f"see {context.command_path} --help", file=sys.stderr)
    return error.exit_code


def _tell(error: Exception) -> int:
    """Tell one of localdask's own errors and return its exit code; anything else is our bug and keeps its traceback."""
    from localdask import errors  # noqa: PLC0415 — 6 ms that --help does not need
    from localdask.cli.talk import escape  # noqa: PLC0415 — the same

    if isinstance(error, errors.PreloadError) and error.usage:
        # The preload's own options: what click would have printed, help included.
        print("\n".join(escape(line) for line in str(error).splitlines()), file=sys.stderr if error.exit_code else sys.stdout)
        return error.exit_code
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
        _print_error("the output cannot be written: its disk is full")
        _write_no_more()
        return EXIT_FAILED
    codes = {
        errors.UsageError: EXIT_USAGE,
        errors.ClusterNotFoundError: EXIT_NOT_FOUND,
        errors.WorkerNotFoundError: EXIT_NOT_FOUND,
        errors.WorkerStartTimeoutError: EXIT_NOT_READY,
        errors.PreloadError: EXIT_PRELOAD,
        errors.LocaldaskError: EXIT_FAILED,
    }
    for kind, code in codes.items():
        if isinstance(error, kind):
            _print_error(str(error))
            return code
    raise error


def _print_error(text: str) -> None:
    from localdask.cli.talk import colour, escape, wants_colour  # noqa: PLC0415 — see above

    lines = [escape(line) for line in text.splitlines()] or [""]
    head = colour("error:", "1;31", wants_colour(sys.stderr, os.environ))
    print("\n".join([f"{head} {lines[0]}", *lines[1:]]), file=sys.stderr)
