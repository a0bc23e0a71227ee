"""``localdask run``: a script on a cluster of its own, whose exit code is passed on.

Runs in the user's process; the script is its ``__main__`` and has the main thread.
``Client()`` in the script is a client of that cluster. What the script prints stays
alone on standard output; what workers print comes to standard error with their names.
"""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from localdask.cli.options import cluster_options, find_modules_here, named_preloads, plan_cluster
from localdask.cli.script import print_syntax_error, read_script
from localdask.cli.verbs import ClusterVerb
from localdask.errors import UsageError

__all__ = ["command"]

EXAMPLES = (
    ("localdask run -n 4 script.py --fast", "script.py gets --fast, and Client() in it has 4 workers"),
    ("localdask run --preload setup.py --database my.db -- script.py", "-- ends the options of a preload that is a click command"),
    ("localdask run --cluster etl script.py", "on a cluster that 'localdask up --name etl' started"),
    ("localdask run -m package.module", "a module, as python -m runs it; -c 'code' works too"),
)


@click.command(
    "run",
    cls=ClusterVerb,
    with_script=True,
    examples=EXAMPLES,
    usage=("[PRELOAD'S OPTIONS]...", "(SCRIPT | -m MODULE | -c CODE)", "[ARGS]..."),
    help="Start a cluster, run a script with a client of it as the default, end the cluster, and exit with the script's code.",
)
@cluster_options
@click.option("--cluster", metavar="NAME", help="Use this running cluster instead; then no option of a new one makes sense.")
@click.pass_context
def command(
    context: click.Context, /, extra: list[str], known_options: dict[str, bool], script: list[str], cluster: str | None, **options: Any
) -> int:
    try:
        found = read_script(script)
    except SyntaxError as error:
        print_syntax_error(error)
        return 1
    if cluster is not None:
        given = [name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        if given or extra:
            raise UsageError(
                f"--cluster uses a cluster that runs already, so {extra[0] if extra else '--' + given[0].replace('_', '-')} makes no sense"
            )
    found.place_path()
    if cluster is not None:
        from localdask.cli.foreground import run_elsewhere  # noqa: PLC0415 — as below

        return run_elsewhere(cluster, found.run)
    find_modules_here()

    def start() -> int:
        plan = plan_cluster(options, extra, known_options)
        from localdask.cli.foreground import run_on_cluster  # noqa: PLC0415 — the API is dear, and a usage error does not need it

        return run_on_cluster(plan, options["pid_file"], found.run)

    if not options["wait_for_fix"]:
        return start()
    from localdask.cli.mending import until_mended  # noqa: PLC0415 — few ask for it

    return until_mended(start, named_preloads(options))
