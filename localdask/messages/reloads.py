"""Words about reloads of preloads: from the cluster to the processes that hold them, and their votes.

A member is a process that holds preloads: a worker, a nanny or the scheduler. Whoever passes
a word on drops it when the member's life is not the one that the word names.
"""

from __future__ import annotations

from typing import Any

from localdask.messages.wire import message
from localdask.records import record

# ── a reload: cluster → member, by way of its nanny ──────────────────────────


@record
class _ReloadWord:
    """What each of these carries: to or from which life of which member, in which attempt to reload."""

    member: str
    life: int
    attempt: int


@message(140)
@record
class LoadGeneration(_ReloadWord):
    """Execute these bodies as fresh modules, and no hook. Answered by ``Begun``, then ``Loaded`` or ``LoadFailed``.

    Each source is ``(index of the preload, generation, version, source)``.
    """

    sources: tuple[tuple[int, int, int, Any], ...]


@message(141)
@record
class SwapGeneration(_ReloadWord):
    """At the next task boundary, tear down the old and set up the loaded. Answered by ``Begun``, then ``Swapped`` or ``SwapFailed``."""


@message(142)
@record
class RollBack(_ReloadWord):
    """Be as before this attempt, however far you came, at once if no hook ran. Answered by ``RolledBack`` or ``RollBackFailed``."""


@message(143)
@record
class Discard(_ReloadWord):
    """Forget what you loaded. Not answered."""


@message(144)
@record
class Commit(_ReloadWord):
    """Every process swapped: the old modules may go. Not answered. Each pair is ``(index of the preload, generation)``."""

    generations: tuple[tuple[int, int], ...]


@message(145)
@record
class InterruptTasks(_ReloadWord):
    """Your swap waits too long for a task: interrupt what runs. Not answered."""


# ── a reload: member → cluster ───────────────────────────────────────────────


@message(150)
@record
class Begun(_ReloadWord):
    """The new code begins to run here, now: its body after ``LoadGeneration``, the hooks after ``SwapGeneration``."""


@message(151)
@record
class Loaded(_ReloadWord):
    """The bodies ran."""

    seconds: float


@message(152)
@record
class LoadFailed(_ReloadWord):
    """A body raised; ``detail`` is one line that says where and what."""

    seconds: float
    detail: str
    traceback_text: str = ""


@message(153)
@record
class Swapped(_ReloadWord):
    """The new generation is set up. ``detail`` tells of an old ``dask_teardown`` that raised."""

    seconds: float
    detail: str = ""


@message(154)
@record
class SwapFailed(_ReloadWord):
    """A new ``dask_setup`` raised or took too long; ``RollBack`` follows."""

    seconds: float
    detail: str
    traceback_text: str = ""


@message(155)
@record
class RolledBack(_ReloadWord):
    """This process is as it was before the attempt."""

    seconds: float


@message(156)
@record
class RollBackFailed(_ReloadWord):
    """The old ``dask_setup`` raised too: this process cannot be trusted any more."""

    seconds: float
    detail: str
    traceback_text: str = ""


@message(157)
@record
class HelpersFound(_ReloadWord):
    """The user's own modules that preloads import, or tried to: rows of (index of the preload, module, path, hash of what was imported)."""

    helpers: tuple[tuple[int, str, str, str], ...]


# ── a reload: worker → scheduler, on the pipe of its tasks ───────────────────


@message(158)
@record
class GenerationsRun:
    """What this worker says of tasks from here on, it says of tasks that ran on these generations of its preloads, in their order."""

    generations: tuple[int, ...]
