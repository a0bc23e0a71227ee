"""The way of an actor's calls through the scheduler: from the client that asks to the worker where the actor lives, and back.

Runs on the scheduler's I/O thread. What is asked and answered passes unopened.
"""

from __future__ import annotations

from functools import partial

from localdask.errors import ActorLostError
from localdask.processes.questions import Question
from localdask.processes.scheduler import Scheduler
from localdask.state.actors import home_of

__all__ = ["CALL_ACTOR", "answer_for_actors"]

#: Call a method of an actor, or read an attribute; the answer is the outcome's bytes.
CALL_ACTOR = "call-actor"


def answer_for_actors(scheduler: Scheduler) -> None:
    """Have a scheduler answer these questions."""
    scheduler.answerers[CALL_ACTOR] = partial(_call, scheduler)


def _call(scheduler: Scheduler, question: Question) -> None:
    key, call = question.arguments
    worker = scheduler.decide(lambda state: home_of(state, key))

    def take(name: str, outcome: bytes | None) -> None:
        if outcome is None:
            # Not from here: the scheduler's lock may be held.
            lost = ActorLostError(key, name, "the worker died before it answered")
            scheduler.loop.call_soon_threadsafe(partial(question.fail, lost))
        else:
            scheduler.loop.call_soon_threadsafe(partial(question.answer, outcome))

    scheduler.run_function(call, [worker.name], take, actor=key)
