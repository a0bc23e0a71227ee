"""When and where tasks ran, kept from when somebody first asks: the task stream.

Runs in the user's process; tasks are noted under the scheduler's lock as their workers' words are taken in, and clients
are answered on the I/O thread. Nothing is noted, and nothing of it costs anything, before
the first question. A word tells how long a task took; when it came is noted here, and ``api/task_stream.py``
makes times of both.
"""

from __future__ import annotations

import time
from collections import deque
from itertools import islice
from typing import Any

from localdask.messages import TaskDone, TaskErred
from localdask.processes.questions import Question
from localdask.processes.scheduler import Scheduler
from localdask.state.tasks import SchedulerState, TaskState, WorkerState

__all__ = ["Recorder"]

#: How many tasks are remembered.
ROWS_MAX = 100_000


class Recorder:
    """The task stream of one scheduler. It answers ``record_tasks`` and ``recorded_tasks``."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._rows: deque[tuple[Any, ...]] = deque(maxlen=ROWS_MAX)
        scheduler.answerers.update(record_tasks=self._begin, recorded_tasks=self._tell)

    def _begin(self, question: Question) -> None:
        """Note tasks from now on; the answer is the time."""

        def begin(state: SchedulerState) -> None:
            state.on_ran = self._note

        self._scheduler.decide(begin)
        question.answer(time.time())

    def _note(self, task: TaskState, worker: WorkerState, message: TaskDone | TaskErred) -> None:
        is_ok = type(message) is TaskDone
        self._rows.append((task.key, worker.address, worker.nthreads, time.time(), message.duration_s, is_ok, task.nbytes, task.type_name))

    def _tell(self, question: Question) -> None:
        """Answer with the tasks that ended since a time, or the last so many: a row each, in the order of their ends."""
        since, count = question.arguments
        with self._scheduler.lock:
            n_rows = len(self._rows)
            rows = list(self._rows if count is None else islice(self._rows, max(0, n_rows - count), None))
        question.answer([row for row in rows if since is None or row[3] >= since])
