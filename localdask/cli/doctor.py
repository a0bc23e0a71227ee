"""``localdask doctor``: whether this machine is good to a cluster, one line a point, each with its mend.

Runs in the user's process and starts nothing. Each check is a function that returns rows;
a check that cannot look says so instead of failing.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import click

from localdask import config, sizing
from localdask.api.addresses import list_clusters
from localdask.cli.listing import format_option, print_rows
from localdask.cli.verbs import Verb
from localdask.cli.visits import ANSWER_S, visit
from localdask.errors import LocaldaskError
from localdask.preloads.sources import read_sources
from localdask.system.news import make_messenger
from localdask.system.segments import SHARED_MEMORY, temporary_places
from localdask.system.sockets import find_doors, runtime_folder

__all__ = ["command"]

FILES_MIN = 1024
WATCHES_MIN = 8192
SHARED_MIN = 256 * 2**20
#: File systems that tell nobody of a change made elsewhere.
_REMOTE = ("nfs", "cifs", "smb", "9p", "fuse", "sshfs", "afs", "vboxsf", "virtiofs")
_BLAS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Point(NamedTuple):
    """One point: ``verdict`` is "ok", "note" (worth knowing) or "bad" (something will not work)."""

    what: str
    verdict: str
    found: str
    mend: str = ""


_COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "": lambda row: {"ok": "✓", "note": "·", "bad": "✗"}[row["verdict"]],
    "what": lambda row: row["what"],
    "found": lambda row: row["found"],
    "mend": lambda row: row["mend"],
}


@click.command(
    "doctor",
    cls=Verb,
    usage=("[PRELOAD]...",),
    examples=(
        ("localdask doctor", "the machine's limits, and what to do about each"),
        ("localdask doctor setup.py", "and whether saves of setup.py are seen"),
    ),
    help="Look whether this machine is good to a cluster. Exit code 1 if something will not work.",
)
@click.argument("preloads", nargs=-1)
@format_option()
def command(preloads: tuple[str, ...], format: str) -> int:
    points = [point for check in (_python, _machine, _limits, _memory, _watching, _watcher, _folders, _blas) for point in check()]
    points += _preloads(preloads)
    print_rows([point._asdict() for point in points], format, _COLUMNS)
    return int(any(point.verdict == "bad" for point in points))


def _python() -> Iterator[Point]:
    yield Point("python", "ok", f"{platform.python_version()} on {platform.system()}")
    if os.name != "posix":
        yield Point("start method", "bad", "no fork here", "run localdask in WSL")
    else:
        yield Point("start method", "ok", "fork, from a clean process of one thread")


def _machine() -> Iterator[Point]:
    machine = sizing.read_machine()
    by = f", limited by {machine.limited_by}" if machine.limited_by else ""
    yield Point("cpus", "ok", f"{machine.n_cpus} of {machine.n_cores}")
    yield Point("memory", "ok", f"{sizing.format_bytes(machine.memory_nbytes)}{by}")


def _limits() -> Iterator[Point]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    if soft != resource.RLIM_INFINITY and soft < FILES_MIN:
        most = FILES_MIN if hard == resource.RLIM_INFINITY else min(FILES_MIN, hard)
        mend = f"ulimit -n {most}" if most > soft else "the system allows no more (its hard limit)"
        yield Point("open files", "note", shown, f"{mend}; a cluster needs about 8 a worker")
    else:
        yield Point("open files", "ok", shown)
    n_processes = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    few = n_processes != resource.RLIM_INFINITY and n_processes < 256
    yield Point(
        "processes",
        "note" if few else "ok",
        "unlimited" if n_processes == resource.RLIM_INFINITY else str(n_processes),
        "ulimit -u 4096" if few else "",
    )


def _memory() -> Iterator[Point]:
    try:
        free, total = shutil.disk_usage(SHARED_MEMORY).free, shutil.disk_usage(SHARED_MEMORY).total
    except OSError:
        yield Point("shared memory", "note", f"no {SHARED_MEMORY}; large results go through files", "")
        return
    if total < SHARED_MIN:
        mend = "in a container: --shm-size=2g; until then large results go to disk when it is full"
        yield Point("shared memory", "note", f"{sizing.format_bytes(total)} in {SHARED_MEMORY}", mend)
    else:
        yield Point("shared memory", "ok", f"{sizing.format_bytes(free)} free in {SHARED_MEMORY}")


def _watching() -> Iterator[Point]:
    for name, least in (("max_user_watches", WATCHES_MIN), ("max_user_instances", 64)):
        try:
            with open(f"/proc/sys/fs/inotify/{name}", encoding="ascii") as file:
                number = int(file.read())
        except (OSError, ValueError):
            continue  # not Linux
        verdict = "ok" if number >= least else "note"
        mend = (
            "" if number >= least else f"sysctl fs.inotify.{name}={least}; without it saved preloads are found by looking, a little later"
        )
        yield Point(f"inotify {name.removeprefix('max_user_')}", verdict, str(number), mend)


def _watcher() -> Iterator[Point]:
    """Say whether the kernel tells of saves here, by asking it, and how running clusters see those of their preloads."""
    mend = "preloads are looked at every quarter of a second instead; raise fs.inotify.max_user_instances or ulimit -n"
    mode = os.environ.get("LOCALDASK_WATCHER") or "auto"
    try:
        messenger = make_messenger(mode)
    except (OSError, ImportError, AttributeError) as error:
        yield Point("watcher", "note", f"{mode}: {error}", mend)
    else:
        messenger.close()
        yield Point("watcher", "ok", messenger.word)
    for entry in list_clusters():
        try:
            with visit(entry) as client:
                (row, *_) = client._ask("processes", timeout=ANSWER_S)
        except (LocaldaskError, TimeoutError) as error:
            yield Point(f"cluster {entry.name}", "note", str(error).partition("\n")[0], "it is of another version, or does not answer")
            continue
        polls = "polling" in row["watching"]
        told = "it watches no preload" if row["watching"] == "off" else f"it watches its preloads by {row['watching']}"
        yield Point(f"cluster {entry.name}", "note" if polls else "ok", told, "localdask events says why" if polls else "")


def _folders() -> Iterator[Point]:
    try:
        folder = runtime_folder(make=True)
        yield Point("runtime folder", "ok", folder)
    except OSError as error:
        yield Point("runtime folder", "bad", str(error), "set XDG_RUNTIME_DIR to a folder of yours, mode 0700")
    stale = [entry.name for entry in find_doors() if not entry.is_alive]
    if stale:
        yield Point("dead clusters", "note", ", ".join(stale), "localdask ls --clean")
    writable = [place for place in temporary_places() if os.path.isdir(place) and os.access(place, os.W_OK)]
    if writable:
        yield Point("temporary folder", "ok", f"{sizing.format_bytes(shutil.disk_usage(writable[0]).free)} free in {writable[0]}")
    else:
        yield Point("temporary folder", "bad", "none can be written", "set TMPDIR to a folder of yours")


def _blas() -> Iterator[Point]:
    given = [name for name in _BLAS if name in os.environ]
    if given:
        yield Point("BLAS threads", "ok", f"{', '.join(given)} set here, which workers keep")
    else:
        n_threads = config.get("nanny.pre-spawn-environ", {}).get(_BLAS[0], "as many as there are CPUs")
        yield Point("BLAS threads", "ok", f"{n_threads} in each worker (nanny.pre-spawn-environ)")


def _preloads(named: tuple[str, ...]) -> Iterator[Point]:
    wanted: list[tuple[str, list[Any], list[Any]]] = [("named", list(named), [])] if named else []
    for role in ("scheduler", "nanny", "worker"):
        configured = config.preloads(role)
        if configured.specs:
            wanted.append((role, list(configured.specs), list(configured.argv)))
    for role, specs, argv in wanted:
        for number, spec in enumerate(specs):
            try:
                (source,) = read_sources([spec], [argv[number]] if number < len(argv) else [], role="worker" if role == "named" else role)
            except LocaldaskError as error:
                yield Point(f"preload {spec:.40}", "bad", str(error).partition("\n")[0], "mend it, or take it out")
                continue
            if not source.is_watched:
                yield Point(f"preload {source.label}", "ok", "not a file of yours: it is not watched")
                continue
            kind = _file_system(source.path)
            remote = kind.startswith(_REMOTE)
            mend = "set LOCALDASK_WATCHER=poll, or keep it on a local disk" if remote else ""
            yield Point(f"preload {source.label}", "note" if remote else "ok", f"on {kind or 'an unknown file system'}", mend)


def _file_system(path: str) -> str:
    """Return the kind of file system that a path lies on; "" where that cannot be told."""
    found, longest = "", -1
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split() for line in file]
    except OSError:
        return ""
    real = os.path.realpath(path)
    for fields in mounts:
        place = fields[1].encode("utf-8", "surrogateescape").decode("unicode_escape", "replace")
        if (real == place or real.startswith(place.rstrip("/") + "/")) and len(place) > longest:
            found, longest = fields[2], len(place)
    return found
