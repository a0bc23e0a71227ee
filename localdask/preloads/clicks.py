"""``dask_setup`` as a click command: the preload's own options, parsed where it runs.

Runs in the process that runs the hook, and touches click only if the preload imported it.
The command is called as Dask calls it: the service first, then leftover positional
arguments, then the parsed options by name. It never ends the process: a wrong option and
``--help`` become errors that carry what click would have printed.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from localdask.errors import PreloadError

__all__ = ["as_command", "prepare_command"]


def as_command(hook: Any) -> Any:
    """Return the click command that a hook is, or None when it is a function.

    A function with click's options but without ``@click.command()`` is made one, as the
    example in Dask's documentation of preloads is written.
    """
    click = sys.modules.get("click")
    if click is None:
        return None
    if isinstance(hook, click.Command):
        return hook
    if getattr(hook, "__click_params__", None):
        command = click.command(name="dask_setup")(hook)
        hook.__click_params__ = list(reversed(command.params))  # click took them away; another setup needs them again
        return command
    return None


def prepare_command(command: Any, service: Any, argv: Sequence[str], *, preload: str, process: str) -> Callable[[], Any]:
    """Parse ``argv`` and return the call of the command's callback; ``PreloadError`` with an exit code when it is wrong."""
    import click  # noqa: PLC0415 — imported already, by whoever made the command

    program = f"localdask … {preload}"
    about: dict[str, Any] = {"preload": preload, "process": process}
    if isinstance(command, click.Group):
        text = f"the preload {preload} failed: dask_setup is a click group, and nothing says which command to run; make it a command"
        raise PreloadError(text, exit_code=2, **about)
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            context = command.make_context(program, list(argv), allow_extra_args=False)
    except click.exceptions.Exit as error:
        text = printed.getvalue().rstrip("\n") or f"the preload {preload} ended by its own option, before dask_setup ran"
        raise PreloadError(text, exit_code=0 if error.exit_code == 0 else 2, **about) from None
    except click.ClickException as error:
        raise _usage_error(error, program, about) from None
    except click.Abort:
        raise PreloadError(
            f"the preload {preload} failed: an option asked a question, and nobody can answer; give a default", **about
        ) from None

    @contextmanager
    def translated() -> Iterator[None]:
        try:
            yield
        except click.exceptions.Exit as error:
            if error.exit_code:
                raise PreloadError(f"the preload {preload} failed: dask_setup exited with {error.exit_code}", **about) from None
        except click.UsageError as error:
            raise _usage_error(error, program, about) from None

    async def finish(result: Awaitable[Any]) -> Any:
        with translated(), context:
            return await result

    def call() -> Any:
        result = None
        with translated(), context.scope(cleanup=False):
            result = context.invoke(command.callback, service, *context.args, **context.params)
        if isinstance(result, Awaitable):
            return finish(result)
        context.close()
        return result

    return call


def _usage_error(error: Any, program: str, about: dict[str, Any]) -> PreloadError:
    """Return what click would have printed, as an error."""
    context = error.ctx
    usage = f"{context.get_usage()}\nTry '{program} --help' for its options.\n\n" if context is not None else f"Usage: {program}\n\n"
    return PreloadError(f"{usage}Error: {error.format_message()}", exit_code=2, **about)
