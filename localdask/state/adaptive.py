"""How many workers the work that is there deserves: up at once, down only after repeated advice.

Pure: a look at the load goes in, a number of workers or None comes out. The shell is
``api/adapting.py``, which looks at intervals and asks the cluster to scale.
"""

from __future__ import annotations

from itertools import islice
from math import ceil, inf

from localdask.records import record
from localdask.state.placement import UNKNOWN_S
from localdask.state.tasks import SchedulerState

#: Queued tasks whose functions are looked at; the rest is taken to be like them.
SAMPLE_MAX = 500


@record(frozen=True)
class Load:
    """What there is to do.

    Attributes
    ----------
    n_tasks : int
        Tasks that run or could run now.
    work_s : float
        How long they would keep one thread busy, as far as is known.
    n_busy : int
        Workers that have something to do.
    nthreads : int
        Threads of one worker.
    """

    n_tasks: int
    work_s: float
    n_busy: int
    nthreads: int = 1


@record
class AdaptiveState:
    """The bounds, and how often in a row fewer workers would have done.

    Attributes
    ----------
    minimum, maximum : float
        Bounds of the number of workers.
    target_s : float
        In how many seconds the present work should be done.
    wait_count : int
        How many looks in a row must advise fewer workers before there are fewer.
    """

    minimum: float = 0
    maximum: float = inf
    target_s: float = 5.0
    wait_count: int = 3
    n_low: int = 0
    highest_low: int = 0


def weigh(state: SchedulerState, nthreads: int) -> Load:
    """Return the load that a scheduler knows of."""
    n_tasks, work_s, n_busy = 0, 0.0, 0
    for worker in state.workers.values():
        if worker.in_flight:
            n_busy += 1
            n_tasks += len(worker.in_flight)
            work_s += max(0.0, worker.occupancy_s)
    for restriction in (state.unrestricted, *state.restrictions.values()):
        n_waiting = len(restriction.queue) + len(restriction.parked)
        sample = [*islice(restriction.queue, SAMPLE_MAX), *islice(restriction.parked.values(), SAMPLE_MAX)]
        expected = [max(0.0, task.function.duration_s) if task.function.is_measured else UNKNOWN_S for task in sample if task.function]
        if expected:
            n_tasks += n_waiting
            work_s += sum(expected) / len(expected) * n_waiting
    return Load(n_tasks, work_s, n_busy, nthreads)


def desired(state: AdaptiveState, load: Load) -> int:
    """Return how many workers would get through the load in time; never more than have something to do."""
    useful = ceil(load.n_tasks / load.nthreads)
    in_time = ceil(load.work_s / state.target_s / load.nthreads)
    wanted = max(min(in_time, useful), load.n_busy if load.n_tasks else 0, 1 if load.n_tasks else 0)
    return int(max(state.minimum, min(state.maximum, wanted)))


def recommend(state: AdaptiveState, load: Load, n_workers: int) -> int | None:
    """Return how many workers there should be from now on, or None for as many as now."""
    wanted = desired(state, load)
    if wanted >= n_workers or n_workers > state.maximum:
        state.n_low = state.highest_low = 0
        return None if wanted == n_workers else wanted
    state.n_low += 1
    state.highest_low = max(state.highest_low, wanted)
    if state.n_low < state.wait_count:
        return None
    # The most that any of these looks asked for: a load that swings does not make the workers swing.
    chosen, state.n_low, state.highest_low = state.highest_low, 0, 0
    return chosen
