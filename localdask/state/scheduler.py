"""The scheduler's decisions: a word comes in, and what must be said lies in the outboxes.

Pure: the same words in the same order give the same answers, whatever the clock, the
process or the hash seed. The shell that owns the pipes is ``processes/scheduler.py``;
the same functions run under hypothesis and in the simulator. Each function changes the
state in place and leaves commands for ``SchedulerState.drain``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from localdask.messages import TakeBack, TaskDone
from localdask.state import interrupts, lineage, placement
from localdask.state.answers import WORKER_WORDS, task_done
from localdask.state.clients import CLIENT_WORDS
from localdask.state.tasks import (
    FIRE_AND_FORGET,
    NO_WORKER,
    PROCESSING,
    QUEUED,
    WAITING,
    ClientState,
    SchedulerState,
    WorkerState,
)

#: How long small values may wait to be forgotten, in seconds.
FORGET_S = 0.05
# ── clients ──────────────────────────────────────────────────────────────────


def client_said(state: SchedulerState, messages: Iterable[Any], now: float) -> None:
    """Take in what one client said."""
    state.now = now
    for message in messages:
        CLIENT_WORDS[type(message)](state, message)
    if state.idle and state.rebalance_at is None:
        placement.rebalance(state, now)
    _plan_forgets(state, now)


def _plan_forgets(state: SchedulerState, now: float) -> None:
    if state.has_forgets and state.forget_at is None:
        state.forget_at = now + FORGET_S


def connect_client(state: SchedulerState, client: str) -> None:
    """Make a client known; words to unknown clients are dropped."""
    state.clients.setdefault(client, ClientState(client))


def forget_everything(state: SchedulerState, reason: str) -> None:
    """Cancel every task of every client, as a restart of the cluster does."""
    for task in list(state.tasks.values()):
        lineage.drop_client(state, task, FIRE_AND_FORGET)
    lineage.cancel(state, list(state.tasks.values()), reason, "", None)


# ── workers ──────────────────────────────────────────────────────────────────


def worker_joined(state: SchedulerState, worker: WorkerState, now: float) -> None:
    """A worker registered. Tasks that waited for one like it are placed."""
    state.now = now
    worker.progress_at = now
    worker.is_running = not (worker.is_paused or worker.is_leaving)
    state.workers[worker.name] = worker
    placement.note_room(state, worker)
    for restriction in (state.unrestricted, *state.restrictions.values()):
        if restriction.parked and placement.admits(worker, restriction):
            parked = list(restriction.parked.values())
            restriction.parked.clear()
            for task in parked:
                state.move(task, WAITING)
                placement.place(state, task)
                if task.state == PROCESSING and task.dependents:
                    placement.stage_dependents(state, task)
    placement.feed(state, worker)
    placement.rebalance(state, now)


def worker_said(state: SchedulerState, worker: WorkerState, messages: Iterable[Any], now: float) -> None:
    """Take in a batch of a worker's words, then give it new work."""
    if state.workers.get(worker.name) is not worker:
        return  # words of an earlier life
    state.now = now
    worker.progress_at = now
    for message in messages:
        if type(message) is TaskDone:
            task_done(state, worker, message)
        else:
            WORKER_WORDS[type(message)](state, worker, message)
    placement.feed(state, worker)
    if state.idle:
        placement.rebalance(state, now)
    _plan_forgets(state, now)


def worker_left(
    state: SchedulerState,
    worker: WorkerState,
    now: float,
    *,
    is_expected: bool,
    executing: tuple[int, ...] = (),
    exit_text: str = "",
    peak_rss: int = 0,
    last_lines: tuple[str, ...] = (),
) -> None:
    """A worker is gone: what it was doing is done elsewhere, what only it held is made again.

    Only the attempts that it was executing are charged with an unexpected death.
    """
    if state.workers.get(worker.name) is not worker:
        return
    state.now = now
    del state.workers[worker.name]
    for attempt in [attempt for attempt, entry in state.interrupts.items() if entry.worker is worker]:
        interrupts.drop(state, attempt)
    worker.is_running = False
    state.idle.pop(worker.name, None)
    state.open.pop(worker.name, None)
    state.dirty_workers.pop(worker.name, None)
    unfinished = list(worker.in_flight.items())
    worker.in_flight = {}
    worker.leaving = {}
    for _, task in unfinished:
        state.move(task, WAITING)
        task.worker = None
        task.n_missing = 1  # not runnable while the losses are looked at
    held = [state.tasks[key] for key in worker.has if key in state.tasks]
    worker.has = {}
    lineage.lose_values(state, [task for task in held if worker in task.holders], worker)
    for attempt, task in unfinished:
        if attempt in executing and not is_expected:
            task.n_deaths += 1
        if task.state != WAITING:
            continue
        if task.n_deaths > state.allowed_failures:
            lineage.fail(state, task, ("killed", task.key, worker.name, state.allowed_failures, exit_text, peak_rss, last_lines))
        else:
            lineage.wait_again(state, task)
    _park_the_impossible(state)
    placement.rebalance(state, now)


def _park_the_impossible(state: SchedulerState) -> None:
    """Move queued tasks that no present worker admits to the state no-worker."""
    for restriction in (state.unrestricted, *state.restrictions.values()):
        if restriction.queue and not any(placement.admits(known, restriction) for known in state.workers.values()):
            for task in restriction.queue.drain():
                if task.state == QUEUED:
                    state.move(task, NO_WORKER)
                    restriction.parked[task.key] = task


def set_leaving(state: SchedulerState, worker: WorkerState, now: float) -> None:
    """Send a worker nothing more, for good: it retires, or its pipe has ended."""
    state.now = now
    worker.is_leaving = True
    _stop_sending(state, worker)


def set_paused(state: SchedulerState, worker: WorkerState, is_paused: bool, now: float) -> None:
    """Send a worker nothing more and take back what it has not started, because it uses too much memory; or let it go on."""
    if worker.is_paused == is_paused or state.workers.get(worker.name) is not worker:
        return
    state.now = now
    worker.is_paused = is_paused
    if is_paused:
        _stop_sending(state, worker)
        take_back_all(state, worker)
    elif not worker.is_leaving:
        worker_joined(state, worker, now)


def _stop_sending(state: SchedulerState, worker: WorkerState) -> None:
    worker.is_running = False
    placement.note_room(state, worker)
    _park_the_impossible(state)


def take_back_all(state: SchedulerState, worker: WorkerState) -> None:
    """Ask back what a worker has not started; those that run already are not given back."""
    queued = [attempt for attempt in worker.in_flight if attempt not in worker.taking_back]
    if queued:
        worker.taking_back.update(queued)
        state.say_to_worker(worker, TakeBack(tuple(queued)))


def tick(state: SchedulerState, now: float) -> None:
    """Look again at what depends on time, once ``next_deadline`` has come."""
    state.now = now
    if state.interrupt_at is not None and now >= state.interrupt_at:
        _interrupt(state)
    if state.forget_at is not None and now >= state.forget_at:
        state.wake_forgets()
    if state.rebalance_at is not None and now >= state.rebalance_at:
        placement.rebalance(state, now)


def _interrupt(state: SchedulerState) -> None:
    """Stop what took too long; what does not stop is done again elsewhere, or fails."""
    for attempt, entry in interrupts.take_due(state):
        task = entry.worker.in_flight.get(attempt)
        if task is None:
            continue  # cancelled: nobody waits for it
        if task.retries_left > 0:
            task.retries_left -= 1
            lineage.take_from_worker(state, task)
            lineage.unstage_dependents(state, task)
            lineage.wait_again(state, task)
        else:
            lineage.fail(state, task, ("timeout", task.key, entry.limit_s))
