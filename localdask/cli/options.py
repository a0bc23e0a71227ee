"""The options of every verb that starts a cluster, and what they come to: the arguments of ``LocalCluster``.

Runs in the user's process, before anything is started. Each option that makes no
sense ends here, with exit code 2. Dask's option names are kept. Preloads are read
here once to see that they can be; that runs nothing of them.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import click

from localdask import config, sizing
from localdask.api.arguments import check_name
from localdask.errors import UsageError
from localdask.layers import interpret
from localdask.preloads.sources import Source, may_be_click, read_sources
from localdask.spelling import mend_of

__all__ = ["Plan", "cluster_options", "find_modules_here", "give_extra", "hooks_in", "named_preloads", "plan_cluster"]

#: Role → the name of its keyword in ``LocalCluster``.
ROLES = {"worker": "preload", "nanny": "preload_nanny", "scheduler": "preload_scheduler"}


class _PreloadType(click.ParamType):  # type: ignore[type-arg]
    """A preload. In an environment variable it is one, or a Python list of several: its text may have blanks."""

    name = "preload"

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        value = interpret(rv)
        return [str(item) for item in value] if isinstance(value, (list, tuple)) else [rv]


_PRELOAD = _PreloadType()

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "-n", "--workers", "--nworkers", "workers", metavar="N", help="Workers: a number, 'auto', or -1 for one a CPU. [default: auto]"
    ),
    click.option("--nthreads", type=click.IntRange(min=0), metavar="N", help="Threads of each worker. [default: as many as CPUs are left]"),
    click.option(
        "--memory-limit",
        metavar="SIZE",
        help="Memory of each worker: 4GB, 0.5 (of all), auto (its threads' part), 0 (no limit). [default: an equal part]",
    ),
    click.option(
        "--preload", type=_PRELOAD, multiple=True, metavar="CODE", help="Run in each worker before it takes tasks: file, module or text."
    ),
    click.option("--preload-nanny", type=_PRELOAD, multiple=True, metavar="CODE", help="Run in each nanny before its worker starts."),
    click.option("--preload-scheduler", type=_PRELOAD, multiple=True, metavar="CODE", help="Run in the scheduler's process."),
    click.option("--name", metavar="NAME", help="What the cluster is called."),
    click.option("--local-directory", metavar="FOLDER", help="Where temporary files go."),
    click.option("--resources", metavar="LIST", help="What each worker has for tasks that ask for it: 'GPU=1 SLOTS=4'."),
    click.option("--lifetime", metavar="TIME", help="How long a worker lives: 90s, 2h."),
    click.option("--lifetime-stagger", metavar="TIME", help="A random part of this is added to or taken from each lifetime."),
    click.option("--lifetime-restart/--no-lifetime-restart", default=None, help="Whether a worker is replaced at the end of its lifetime."),
    click.option("--lifetime-tasks", type=click.IntRange(min=1), metavar="N", help="Replace a worker once it has run so many tasks."),
    click.option("--lifetime-memory", metavar="SIZE", help="Replace a worker that has so much memory of its own after a task: 2GB."),
    click.option("--death-timeout", metavar="TIME", help="Give up, with exit code 4, when not ready after this time."),
    click.option(
        "--start-method", type=click.Choice(["fork", "spawn"]), help="How processes are made. [default: fork, from a clean process]"
    ),
    click.option(
        "--reload/--no-reload",
        "reload",
        default=True,
        help="Whether a saved preload is swapped in while the cluster runs. [default: reload]",
    ),
    click.option(
        "--reload-policy",
        type=click.Choice(["atomic", "rolling", "restart", "off"]),
        help="How: in all workers or none, one by one, by new processes, or not at all. [default: atomic]",
    ),
    click.option(
        "--reload-grace", metavar="TIME", help="How long a reload waits for running tasks before it warns, or does more. [default: 10s]"
    ),
    click.option(
        "--reload-overrun",
        type=click.Choice(["wait", "interrupt", "restart-worker"]),
        help="What more: wait on, interrupt the tasks, which run again, or replace the worker. [default: wait]",
    ),
    click.option("--setup-timeout", metavar="TIME", help="Limit of one dask_setup. [default: 30s]"),
    click.option("--teardown-timeout", metavar="TIME", help="Limit of one dask_teardown. [default: 5s]"),
    click.option("--preload-optional", is_flag=True, help="Serve also where a dask_setup fails, as Dask does; it is told."),
    click.option("--allow-url-preload", is_flag=True, help="Let a preload be an address: https, or http on this machine."),
    click.option("--trust-preload", is_flag=True, help="Let a preload be a file that other users can change."),
    click.option("--wait-for-fix", is_flag=True, help="Wait for a preload that fails to be mended and saved, then start."),
    click.option("--pid-file", metavar="FILE", help="Write the process's number there while the cluster runs."),
    click.option("-f", "--config-file", multiple=True, metavar="FILE", help="A yaml file of settings, over all other files."),
)


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the options of a cluster. Each has an environment variable, which its help shows."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def find_modules_here() -> None:
    """Let a preload that is named as a module lie in the present folder; last on the path, so that it hides nothing."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


class Plan(NamedTuple):
    """What the options came to. ``arguments`` are those of ``LocalCluster``; the rest is for the banner."""

    arguments: dict[str, Any]
    sources: dict[str, list[Source]]
    n_workers: int
    nthreads: int
    memory_nbytes: int
    machine: sizing.Machine


def plan_cluster(options: Mapping[str, Any], extra: Sequence[str], known_options: Mapping[str, bool]) -> Plan:
    """Turn options and configuration into a cluster's arguments, or raise ``UsageError`` or ``PreloadError``."""
    if options["config_file"]:
        config.refresh(options["config_file"])
    machine = sizing.read_machine()
    n_workers = sizing.parse_workers(options["workers"], machine.n_cpus) if options["workers"] is not None else None
    dealt = sizing.plan_workers(n_workers, options["nthreads"] or None, machine.n_cpus)
    n_workers, nthreads = dealt.n_workers, dealt.nthreads
    limit = options["memory_limit"]
    memory = sizing.worker_memory(limit, machine, n_workers=n_workers, nthreads=nthreads, given=limit is not None)
    arguments: dict[str, Any] = {"n_workers": n_workers, "threads_per_worker": nthreads, "memory_limit": memory}
    for name in ("preload_optional", "allow_url_preload", "trust_preload"):
        if options[name]:
            arguments[name] = True
    sources = _plan_preloads(options, extra, known_options, arguments)
    if options["resources"]:
        arguments["resources"] = sizing.parse_resources(options["resources"])
    for name in ("lifetime", "lifetime_stagger", "death_timeout", "reload_grace", "setup_timeout", "teardown_timeout"):
        if options[name] is not None:
            arguments[name] = sizing.parse_duration(options[name])
    if options["lifetime_memory"] is not None:
        arguments["lifetime_memory"] = sizing.parse_bytes(options["lifetime_memory"])
    if not options["reload"]:
        arguments["reload_policy"] = "off"
    for name in (
        "name",
        "lifetime_restart",
        "lifetime_tasks",
        "start_method",
        "reload_overrun",
        *(("reload_policy",) if options["reload"] else ()),
    ):
        if options[name] is not None:
            arguments[name] = options[name]
    if options["name"]:
        check_name(options["name"], f"--name {options['name']}")
    if options["local_directory"] is not None:
        arguments["local_directory"] = _checked_folder(options["local_directory"])
    return Plan(arguments, sources, n_workers, nthreads, memory, machine)


def _plan_preloads(
    options: Mapping[str, Any], extra: Sequence[str], known_options: Mapping[str, bool], arguments: dict[str, Any]
) -> dict[str, list[Source]]:
    """Put every role's preloads and their arguments into ``arguments``: the command line's replace the configuration's."""
    sources: dict[str, list[Source]] = {}
    for role, keyword in ROLES.items():
        given = list(options[keyword])
        named = config.ConfiguredPreloads(given, [], "command line") if given else config.preloads(role)
        sources[role] = read_sources(named.specs, named.argv, role, allow_url=options["allow_url_preload"], trust=options["trust_preload"])
        arguments[keyword] = named.specs
        arguments[f"{keyword}_argv"] = [list(source.argv) for source in sources[role]]
    takers = []
    if extra:
        for role in ("worker", "scheduler"):
            takers += [(role, source.label, number) for number, source in enumerate(sources[role]) if may_be_click(source)]
    taker = give_extra(extra, takers, known_options)
    if taker is not None:
        role, number = taker
        arguments[f"{ROLES[role]}_argv"][number] = list(extra)
    return sources


def named_preloads(options: Mapping[str, Any]) -> list[Any]:
    """Return the preloads that the command line, or else the configuration, names."""
    return [spec for role, keyword in ROLES.items() for spec in options[keyword] or config.preloads(role).specs]


def give_extra(
    extra: Sequence[str],
    takers: Sequence[tuple[str, str, int]],
    options: Mapping[str, bool],
) -> tuple[str, int] | None:
    """Return (role, number) of the preload that the extra words belong to, or None when there are no extra words.

    ``takers`` are (role, name, number) of the worker's and the scheduler's preloads
    whose ``dask_setup`` is a click command. None of them, or several, is a usage error.
    """
    if not extra:
        return None
    if len(takers) == 1:
        role, _, number = takers[0]
        return role, number
    if takers:
        names = " and ".join(f"{name} ({role})" for role, name, _ in takers)
        raise UsageError(
            f"{extra[0]!r} could be for any of these preloads, which all take options: {names}; configure the others' with preload-argv"
        )
    word = next((word for word in extra if word.startswith("-")), extra[0])
    name = word.partition("=")[0]
    mend = mend_of(
        name,
        options if name.startswith("-") else (),
        "only a preload whose dask_setup is a click command takes arguments of its own",
    )
    kind = "option" if word.startswith("-") else "argument"
    raise UsageError(f"there is no {kind} {name}; {mend}")


def _checked_folder(path: str) -> str:
    folder = os.path.abspath(os.path.expanduser(path))
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UsageError(f"--local-directory {path} is not a folder: name one, or a place where one can be made")
    return folder


def hooks_in(source: Source) -> str:
    """Return the names of the hooks that a preload defines, as its text tells."""
    found = [
        hook for hook in ("dask_setup", "dask_teardown") if re.search(rf"^(async\s+)?(def\s+)?{hook}\b".encode(), source.code, re.MULTILINE)
    ]
    return " ".join(found) or "no hooks"
