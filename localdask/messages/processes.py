"""Words about processes: between the cluster, the launcher, nannies and workers.

``life`` numbers the incarnations of one worker's name.
"""

from __future__ import annotations

from typing import Any

from localdask.messages.wire import message
from localdask.records import field, record


def address_of(cluster: str, name: str) -> str:
    """Return the address of a worker or nanny: its name among all clusters, as Dask's address is."""
    return f"local://{cluster}/{name}"


# ── user's process ↔ launcher ────────────────────────────────────────────────


@message(80)
@record
class ForkNanny:
    """Start a nanny on the descriptor that travels with this word. ``method`` is "fork" or "spawn".

    ``with_worker`` lets it fork its worker at once: it will have nothing to do before.
    """

    method: str
    with_worker: bool = False


# ── cluster ↔ nanny ──────────────────────────────────────────────────────────


@message(100)
@record
class BeginNanny:
    """The first word to a nanny: who it is and how its worker runs.

    ``settings`` is what ``api/worker_settings.py`` made, with what the cluster and its ``NannyHandle`` add;
    ``preloads`` and ``nanny_preloads`` are lists of ``preloads.sources.Source`` as plain tuples;
    ``nanny_plugins`` are (name, pickle), sent to the nanny on purpose.
    """

    name: str
    worker_name: str
    cluster: str
    environ: dict[str, str]
    cwd: str
    sys_path: list[str]
    argv: list[str]
    settings: dict[str, Any]
    nanny_preloads: list[Any]
    worker_preloads: list[Any]
    nanny_plugins: list[Any] = field(default_factory=list)


@message(101)
@record
class NannyReady:
    """Nanny preloads are set up; the worker is being started."""

    pid: int


@message(102)
@record
class WorkerBorn:
    """A worker process exists; the scheduler's end of its data pipe travels with this word.

    ``versions`` are (index, version) of its preloads.
    """

    life: int
    pid: int
    versions: tuple[tuple[int, int], ...] = ()


@message(103)
@record
class WorkerDown:
    """A worker process ended. ``word`` is an ``ExitWord``, ``status`` as from ``waitpid``; ``detail`` says why its nanny ended it."""

    life: int
    word: str
    status: int
    executing: tuple[int, ...]
    peak_rss: int
    last_lines: tuple[str, ...]
    detail: str = ""


@message(104)
@record
class BootFailed:
    """A preload or the start itself failed, in the nanny (life 0) or its worker.

    ``error`` is a pickled exception of ``localdask.errors``.
    """

    life: int
    error: bytes


@message(105)
@record
class LogLines:
    """Lines that a worker or nanny wrote. ``stream`` is 1 or 2."""

    source: str
    stream: int
    lines: list[str]


@message(106)
@record
class RestartWorker:
    """Replace the worker: ask it to end, force it after ``grace_s`` seconds."""

    grace_s: float


@message(107)
@record
class StopNanny:
    """End the worker, then yourself. ``grace_s`` bounds the worker's running tasks and teardowns."""

    grace_s: float


@message(108)
@record
class Degraded:
    """The restart budget is spent: no worker until ``RestartWorker``."""

    reason: str


@message(109)
@record
class KeepPreloads:
    """Start workers from these preloads, from now on: rows of (index, generation, version, source)."""

    rows: list[Any]


@message(110)
@record
class ReplaceWorker:
    """Keep these preloads, and replace the worker, if it is of that life or gone; its tasks may take ``grace_s`` seconds."""

    life: int
    grace_s: float
    rows: list[Any]


@message(111)
@record
class WorkerPaused:
    """A worker has so many bytes to itself that it is to get no more tasks."""

    life: int
    nbytes: int


@message(112)
@record
class WorkerResumed:
    """A paused worker has few enough again."""

    life: int
    nbytes: int


# ── nanny ↔ worker (supervise pipe) ──────────────────────────────────────────


@message(120)
@record
class BeginWorker:
    """The first word to a worker on its supervise pipe.

    ``place`` is (environment, changes of it, working folder, search path, arguments) for one that was forked before its nanny had them.
    """

    name: str
    life: int
    cluster: str
    settings: dict[str, Any]
    preloads: list[Any]
    place: tuple[dict[str, str], dict[str, str | None], str, list[str], list[str]] | None = None


@message(113)
@record
class MemoryPressed:
    """To the worker: whether it is paused now, and so is to give back what it has freed, and whether it is to spill what it holds."""

    is_paused: bool
    must_spill: bool


@message(114)
@record
class WorkerStirred:
    """To the nanny: a worker that was not watched any more, because it had nothing to do, has been sent something."""


@message(115)
@record
class BootGoesOn:
    """From a nanny or worker whose start takes a while: it begins a body or hook that may take ``limit_s``."""

    limit_s: float


@message(121)
@record
class WorkerReady:
    """Preloads are set up and the worker has registered with the scheduler."""

    life: int
