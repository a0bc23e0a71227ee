"""Which of some tasks were not sent to a worker yet, and the cancelling of only those.

This is what ``concurrent.futures`` asks and Dask does not: a call that waits can be cancelled, one that runs
cannot. Registered with the scheduler by the cluster, and answered on the scheduler's I/O thread.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from localdask.processes.questions import Question
from localdask.state import clients

if TYPE_CHECKING:
    from localdask.processes.scheduler import Scheduler

__all__ = ["ARE_UNSENT", "CANCEL_UNSENT", "answer_about_unsent"]

#: Which of these keys no worker has been sent.
ARE_UNSENT = "are-unsent"
#: Cancel those of these keys that no worker has been sent; the answer is which they were.
CANCEL_UNSENT = "cancel-unsent"


def answer_about_unsent(scheduler: Scheduler) -> None:
    """Have a scheduler answer these questions."""
    scheduler.answerers[ARE_UNSENT] = partial(_are_unsent, scheduler)
    scheduler.answerers[CANCEL_UNSENT] = partial(_cancel_unsent, scheduler)


def _are_unsent(scheduler: Scheduler, question: Question) -> None:
    (keys,) = question.arguments
    question.answer(scheduler.decide(lambda state: clients.unsent(state, keys)))


def _cancel_unsent(scheduler: Scheduler, question: Question) -> None:
    (keys,) = question.arguments
    question.answer(scheduler.decide(lambda state: clients.cancel_unsent(state, question.client, keys)))
