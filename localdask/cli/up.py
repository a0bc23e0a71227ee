"""``localdask up``: a cluster in the foreground, from the banner to Ctrl-C.

Runs in the user's process. Its main thread only waits for signals; the cluster's I/O
thread schedules, and a talker's thread writes. Nothing of the API is imported before
the options are known to make sense.
"""

from __future__ import annotations

import os
import re
from typing import Any

import click

from localdask.cli.options import cluster_options, find_modules_here, named_preloads, plan_cluster
from localdask.cli.verbs import ClusterVerb

__all__ = ["command"]

EXAMPLES = (
    ("localdask up -n 4 --preload setup.py", "4 workers, each of which runs setup.py before it takes tasks"),
    ("localdask up -n 4 --preload setup.py --database my.db", "--database is setup.py's own: its dask_setup is a click command"),
    ("localdask up -d --wait", "apart from this terminal, and return when it is ready"),
    ("localdask up --preload-nanny pin.py --memory-limit 4GB", "one worker a CPU; pin.py sets the environment in which each starts"),
)


@click.command(
    "up",
    cls=ClusterVerb,
    examples=EXAMPLES,
    usage=("[PRELOAD'S OPTIONS]...",),
    help="Start a cluster and keep it in the foreground. Ctrl-C stops it gracefully, a second one by force.",
)
@cluster_options
@click.option("-d", "--detach", is_flag=True, help="Return once it can be reached; it goes on until localdask down.")
@click.option("--wait", is_flag=True, help="With -d: return once all workers are ready.")
@click.pass_context
def command(context: click.Context, /, extra: list[str], known_options: dict[str, bool], detach: bool, wait: bool, **options: Any) -> int:
    find_modules_here()
    if options["name"] is None:
        options["name"] = re.sub(r"[^\w.-]+", "-", os.path.basename(os.getcwd())).strip("-") or None

    def start() -> int:
        plan = plan_cluster(options, extra, known_options)
        if detach:
            from localdask.cli.detached import begin_detached  # noqa: PLC0415 — only -d needs it

            words = [word for word in context.meta["words"] if word not in ("-d", "--detach", "--wait")]
            return begin_detached(words, plan.arguments["name"], wait)
        from localdask.cli.foreground import serve  # noqa: PLC0415 — the API is dear, and a usage error does not need it

        return serve(plan, options["pid_file"])

    if not options["wait_for_fix"]:
        return start()
    from localdask.cli.mending import until_mended  # noqa: PLC0415 — few ask for it

    return until_mended(start, named_preloads(options))
