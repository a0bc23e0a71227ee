"""``localdask completion``: the script that teaches a shell localdask's verbs and options. It starts nothing."""

from __future__ import annotations

import os
import sys

import click
from click.shell_completion import get_completion_class

from localdask.cli.verbs import Verb
from localdask.errors import UsageError

__all__ = ["command"]

SHELLS = ("bash", "zsh", "fish")


@click.command(
    "completion",
    cls=Verb,
    usage=("[SHELL]",),
    examples=(
        ("localdask completion fish | source", "in config.fish"),
        ('eval "$(localdask completion bash)"', "in ~/.bashrc"),
        ('eval "$(localdask completion zsh)"', "in ~/.zshrc"),
    ),
    help="Print the script that makes a shell complete verbs and options. [default: the shell of $SHELL]",
)
@click.argument("shell", required=False)
def command(shell: str | None) -> int:
    shell = shell or os.path.basename(os.environ.get("SHELL", ""))
    found = get_completion_class(shell) if shell in SHELLS else None
    if found is None:
        raise UsageError(f"there is no completion for {shell or 'an unknown shell'}; name one of {', '.join(SHELLS)}")
    # The script asks localdask itself, so it needs no more than the two names.
    sys.stdout.write(found(click.Command("localdask"), {}, "localdask", "_LOCALDASK_COMPLETE").source() + "\n")
    return 0
