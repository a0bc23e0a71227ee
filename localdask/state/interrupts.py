"""Stopping what runs: tasks with a time limit, and tasks that were cancelled by force.

An attempt is first told to stop. If its worker does not answer within the grace time (the
task swallows the interrupt, or sits in C code), it is given up and the worker is stuck: the
shell replaces its process. Decides only; called by ``state/scheduler.py`` and its rooms.
"""

from __future__ import annotations

from localdask.messages import InterruptTask
from localdask.state.tasks import Interrupt, SchedulerState, WorkerState

#: What an attempt that was told to stop is given, in seconds.
GRACE_S = 0.5


def limit(state: SchedulerState, worker: WorkerState, attempt: int, limit_s: float) -> None:
    """Give an attempt that is being sent so many seconds."""
    state.interrupts[attempt] = Interrupt(worker, state.now + limit_s, limit_s)
    _look_ahead(state)


def stop(state: SchedulerState, worker: WorkerState, attempt: int, limit_s: float = 0.0) -> None:
    """Tell a worker to stop an attempt."""
    state.say_to_worker(worker, InterruptTask(attempt, limit_s))
    state.interrupts[attempt] = Interrupt(worker, state.now + GRACE_S, limit_s, is_sent=True)
    _look_ahead(state)


def drop(state: SchedulerState, attempt: int) -> None:
    """Forget about an attempt that was answered, or whose worker is gone."""
    if state.interrupts.pop(attempt, None) is not None:
        _look_ahead(state)


def take_due(state: SchedulerState) -> list[tuple[int, Interrupt]]:
    """Stop what has passed its limit, and return what was told to stop and did not."""
    given_up = []
    for attempt, entry in [(attempt, entry) for attempt, entry in state.interrupts.items() if entry.at <= state.now]:
        if entry.is_sent:
            del state.interrupts[attempt]
            given_up.append((attempt, entry))
            if entry.worker not in state.stuck:
                state.stuck.append(entry.worker)
        else:
            stop(state, entry.worker, attempt, entry.limit_s)
    _look_ahead(state)
    return given_up


def _look_ahead(state: SchedulerState) -> None:
    state.interrupt_at = min((entry.at for entry in state.interrupts.values()), default=None)
