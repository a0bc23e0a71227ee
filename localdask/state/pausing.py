"""When a paused worker cannot go on by itself, and what is to be known of it then.

Pure. A worker is paused by its nanny's word, because it uses too much memory (``state/memory.py``). What it runs goes
on, and may bring the memory down. Once it runs nothing, only somebody from outside can. The shell is ``processes/pausing.py``.
"""

from __future__ import annotations

from localdask.records import record
from localdask.state.tasks import SchedulerState, WorkerState

#: How long between two looks at a paused worker, in seconds, and at how many in a row it must run nothing.
LOOK_S = 2.0
LOOKS = 2


@record
class Pause:
    """One pause of one life of a worker, and at how many looks in a row it ran nothing."""

    worker: WorkerState
    n_looks: int = 0


@record(frozen=True)
class Hoard:
    """What a worker holds in memory: how many results, their bytes, and the largest."""

    n_results: int
    nbytes: int
    largest: str
    largest_nbytes: int


def look(state: SchedulerState, pause: Pause) -> Hoard | None:
    """Return what a worker holds that is paused for good; None while it may still go on."""
    worker = pause.worker
    runs_nothing = worker.n_occupied <= 0  # a task that waits for others has given up its slot
    pause.n_looks = pause.n_looks + 1 if runs_nothing else 0
    if pause.n_looks < LOOKS:
        return None
    held = [task for key in worker.has if (task := state.tasks.get(key)) is not None and not task.is_spilled]
    largest = max(held, key=lambda task: task.nbytes, default=None)
    return Hoard(
        len(held),
        sum(task.nbytes for task in held),
        "" if largest is None else largest.key,
        0 if largest is None else largest.nbytes,
    )


def is_over(state: SchedulerState, pause: Pause) -> bool:
    """Whether the worker went on, or goes away."""
    worker = pause.worker
    return state.workers.get(worker.name) is not worker or worker.status != "paused"
