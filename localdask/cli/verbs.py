"""The format that all verbs share: help that starts with examples, and arguments that are not localdask's own.

Runs in the user's process, for each call of the command line. ``main`` lists the
verbs, and each verb is a ``Verb``. This room imports nothing of localdask but pure
rooms, because it stands in the way of ``--help``.
"""

from __future__ import annotations

from typing import Any

import click

from localdask.cli.arguments import split_words

__all__ = ["SETTINGS", "ClusterVerb", "Verb"]

SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 80, "auto_envvar_prefix": "LOCALDASK"}


def write_examples(formatter: click.HelpFormatter, examples: tuple[tuple[str, str], ...]) -> None:
    """Write example lines as they are: a line that is wrapped cannot be copied."""
    with formatter.section("Examples"):
        for line, meaning in examples:
            formatter.write(f"{'':{formatter.current_indent}}{line}\n")
            formatter.write(f"{'':{formatter.current_indent + 4}}{meaning}\n")


class Verb(click.Command):
    """A verb. ``examples`` are (line, meaning) and open its help."""

    def __init__(self, *args: Any, examples: tuple[tuple[str, str], ...] = (), usage: tuple[str, ...] = (), **kwargs: Any) -> None:
        kwargs["context_settings"] = {**SETTINGS, **kwargs.get("context_settings", {})}
        del kwargs["context_settings"]["auto_envvar_prefix"]  # the group gives it, with the verb's name
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.usage = usage
        for parameter in self.params:
            if isinstance(parameter, click.Option):
                parameter.show_envvar = True

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS]", *self.usage]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(formatter, self.examples)
        formatter.write_paragraph()
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_options(ctx, formatter)
        self.format_epilog(ctx, formatter)


class ClusterVerb(Verb):
    """A verb that starts a cluster: words that it does not know are a preload's, and ``run`` ends with a script's.

    The callback gets them as ``extra`` and ``script``, and the options it knows as ``known_options``; the words that are
    not the script's stand in the context's ``meta["words"]``.
    """

    def __init__(self, *args: Any, with_script: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.with_script = with_script

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options: dict[str, bool] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option):
                takes_value = not parameter.is_flag and not parameter.count
                options |= {name: takes_value for name in (*parameter.opts, *parameter.secondary_opts)}
        words = split_words(args, options, with_script=self.with_script)
        ctx.meta["words"] = [*words.known, *(["--", *words.extra] if words.extra else [])]
        left = super().parse_args(ctx, words.known)
        ctx.params["extra"] = words.extra
        ctx.params["known_options"] = options
        if self.with_script:
            ctx.params["script"] = words.script
        return left
