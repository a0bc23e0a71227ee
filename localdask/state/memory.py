"""What is done about a worker that uses much memory: Dask's steps, and how often to look.

Pure. The shell is ``processes/memory_watch.py``, in the nanny.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any

from localdask.errors import UsageError
from localdask.records import record

#: How long between two looks at a worker that runs tasks or is paused; at one that has just run some, or that is to spill; and at
#: one that has nothing to do and tells when it has, in seconds.
BUSY_LOOK_S = 0.1
IDLE_LOOK_S = 2.0
UNWATCHED_LOOK_S = 60.0
#: After how many looks at an idle worker it is to tell of work; after one more it is left alone.
IDLE_LOOKS = 2
#: At which looks in a row above ``spill`` a worker is told to, and at which of a paused one what it has freed is given back: the first,
#: and each so many later.
SPILL_LOOKS = 10
_KEY = "worker.memory"


@record(frozen=True)
class Steps:
    """The fractions of ``memory_limit`` above which something is done, None for a step that is off; and bytes on disk, None for all."""

    target: float | None = None
    spill: float | None = None
    pause: float | None = None
    terminate: float | None = None
    max_spill: int | None = None


class Act(Enum):
    """What is to be done about a worker now."""

    END = "end"
    PAUSE = "pause"
    RESUME = "resume"
    SPILL = "spill"


@record
class Pressure:
    """One life of a worker with a limit, in bytes."""

    limit: int
    steps: Steps
    is_paused: bool = False
    n_above_spill: int = 0
    n_paused: int = 0
    n_idle: int = 0

    @property
    def is_watched(self) -> bool:
        """Whether there is anything to look for."""
        steps = self.steps
        return self.limit > 0 and any(fraction is not None for fraction in (steps.spill, steps.pause, steps.terminate))

    def look_s(self, is_busy: bool) -> float:
        """Return how long it is to the next look."""
        if is_busy or self.is_paused:
            return BUSY_LOOK_S
        return UNWATCHED_LOOK_S if self.n_idle > IDLE_LOOKS and not self.n_above_spill else IDLE_LOOK_S

    @property
    def must_tell(self) -> bool:
        """Whether the worker is to tell of work from now on: one look before it is left alone, so that nothing begins in between."""
        return self.n_idle >= IDLE_LOOKS

    @property
    def must_trim(self) -> bool:
        """Whether what the worker has freed is to be given back now: its C library keeps it, and alone it may be enough for a pause."""
        return self.n_paused % SPILL_LOOKS == 1

    def look(self, nbytes: int, is_busy: bool) -> list[Act]:
        """Return what is to be done about a worker that has so many bytes to itself; ``is_busy`` when it runs tasks.

        One that runs nothing is not ended: it takes no more, and what it holds would have to be made again.
        """
        self.n_idle = 0 if is_busy else self.n_idle + 1
        if is_busy and self._is_above(nbytes, self.steps.terminate):
            return [Act.END]
        acts = []
        must_pause = self._is_above(nbytes, self.steps.pause)
        if must_pause != self.is_paused:
            self.is_paused = must_pause
            acts.append(Act.PAUSE if must_pause else Act.RESUME)
        self.n_paused = self.n_paused + 1 if must_pause else 0
        if not self._is_above(nbytes, self.steps.spill):
            self.n_above_spill = 0
            return acts
        if self.n_above_spill % SPILL_LOOKS == 0:
            acts.append(Act.SPILL)
        self.n_above_spill += 1
        return acts

    def _is_above(self, nbytes: int, fraction: float | None) -> bool:
        return fraction is not None and nbytes > fraction * self.limit


def is_kernels_kill(kills_before: int | None, kills_after: int | None) -> bool:
    """Whether the kernel killed for want of memory meanwhile, by its own counts; where it keeps none, nothing is proven."""
    return kills_before is not None and kills_after is not None and kills_after > kills_before


def read_steps(get: Callable[..., Any], parse_nbytes: Callable[[Any], int]) -> dict[str, float | None]:
    """Return what configuration says of the steps, checked, as plain data for ``Steps``."""
    names = ("target", "spill", "pause", "terminate")
    read: dict[str, float | None] = {name: check_fraction(f"{_KEY}.{name}", get(f"{_KEY}.{name}", None)) for name in names}
    most = get(f"{_KEY}.max-spill", None)
    return {**read, "max_spill": None if most is None or most is False else parse_nbytes(most)}


def steps_of(settings: Mapping[str, Any]) -> Steps:
    """Return the steps that a nanny or worker was told."""
    return Steps(**(settings.get("memory_steps") or {}))


def check_fraction(key: str, value: Any) -> float | None:
    """Return a step's fraction of the memory limit, None when it is switched off by False; ``key`` is what it was configured by."""
    if value is False or value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise UsageError(f"{key} is {value!r}; it is a fraction of memory_limit from 0 to 1, or False to switch it off")
    return float(value)
