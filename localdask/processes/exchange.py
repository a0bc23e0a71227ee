"""Values that tasks and clients hand to each other by way of the scheduler: queues, variables, published datasets, metadata.

Runs in the user's process, on the scheduler's I/O thread. What is decided is decided in
``state/``. The futures in these values are kept by a client that is nobody's, and let go only
when who took a value has futures of its own. Nothing is unpickled here.
"""

from __future__ import annotations

import time
from functools import partial

from localdask.messages import KeyCancelled, ReleaseKeys, WantKeys
from localdask.processes.questions import Question
from localdask.processes.scheduler import Scheduler
from localdask.processes.waits import Waits, ticket_of
from localdask.state import scheduler as decisions
from localdask.state.items import Item, KeptKeys
from localdask.state.notes import Notes
from localdask.state.pipelines import Pipelines
from localdask.state.tasks import SchedulerState
from localdask.state.variables import Variables

__all__ = ["Exchange"]

#: The client that wants what is kept.
KEEPER = "Keeper-of-what-is-shared"


class Exchange:
    """The queues, variables, datasets and metadata of one cluster. Registers itself with the scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._kept = KeptKeys()
        self._waits = Waits(scheduler.loop, self._keep)
        self._variables = Variables(self._kept)
        self._queues = Pipelines(self._kept)
        self._datasets = Variables(self._kept)
        self._notes = Notes()
        scheduler.client_observers.append(self._client_gone)
        scheduler.answerers.update(
            variable_set=self._set,
            variable_get=self._get,
            variable_got=partial(self._arrived, self._variables),
            variable_delete=self._delete,
            queue_put=self._put,
            queue_take=self._take,
            queue_taken=partial(self._arrived, self._queues),
            queue_take_back=self._take_back,
            queue_size=self._size,
            queue_close=self._close,
            dataset_publish=self._publish,
            dataset_get=self._get_dataset,
            dataset_got=partial(self._arrived, self._datasets),
            dataset_list=lambda question: question.answer(self._datasets.names),
            dataset_unpublish=self._unpublish,
            metadata_set=self._set_note,
            metadata_get=lambda question: question.answer(self._notes.get(question.arguments[0])),
        )

    # ── variables ────────────────────────────────────────────────────────────

    def _set(self, question: Question) -> None:
        name, payload, keys = question.arguments
        self._variables.set(name, Item(payload, tuple(keys)))
        self._waits.settle(self._variables)
        question.answer()

    def _get(self, question: Question) -> None:
        name, timeout_s = question.arguments
        late = partial(_fail_late, f"Variable {name!r} was not set within {timeout_s} s")
        self._waits.begin(self._variables, question, timeout_s, late, partial(self._variables.get, ticket_of(question), name))

    def _delete(self, question: Question) -> None:
        self._variables.delete(question.arguments[0])
        self._keep()
        question.answer()

    # ── queues ───────────────────────────────────────────────────────────────

    def _put(self, question: Question) -> None:
        name, maxsize, payload, keys, timeout_s = question.arguments
        self._queues.use(name, question.client, maxsize)
        late = partial(_fail_late, f"Queue {name!r} had no room within {timeout_s} s")
        ask = partial(self._queues.put, ticket_of(question), name, Item(payload, tuple(keys)))
        self._waits.begin(self._queues, question, timeout_s, late, ask)

    def _take(self, question: Question) -> None:
        name, maxsize, n, timeout_s = question.arguments
        self._queues.use(name, question.client, maxsize)
        late = partial(_fail_late, f"Queue {name!r} had not {n} to take within {timeout_s} s")
        self._waits.begin(self._queues, question, timeout_s, late, partial(self._queues.take, ticket_of(question), name, n))

    def _take_back(self, question: Question) -> None:
        self._queues.take_back((question.client, question.arguments[0]))
        self._waits.settle(self._queues)
        question.answer()

    def _size(self, question: Question) -> None:
        name, maxsize = question.arguments
        self._queues.use(name, question.client, maxsize)
        question.answer(self._queues.size(name))

    def _close(self, question: Question) -> None:
        (name,) = question.arguments
        for ticket in self._queues.close(name, question.client):
            waiting = self._waits.end(ticket)
            if waiting is not None:
                waiting.fail(RuntimeError(f"Queue {name!r} was closed while it was waited for"))
        self._keep()
        question.answer()

    # ── datasets and metadata ────────────────────────────────────────────────

    def _publish(self, question: Question) -> None:
        rows, is_override = question.arguments
        for name, _, _ in rows:
            if name in self._datasets.names and not is_override:
                raise KeyError(f"Dataset {name} already exists")
        for name, payload, keys in rows:
            self._datasets.set(name, Item(payload, tuple(keys)))
        self._keep()
        question.answer()

    def _get_dataset(self, question: Question) -> None:
        """Answer with the payload, as the only item of a list, which is empty when there is none."""
        (name,) = question.arguments
        if name not in self._datasets.names:
            question.answer([])
            return
        self._waits.begin(self._datasets, question, None, _never_late, partial(self._datasets.get, ticket_of(question), name))

    def _unpublish(self, question: Question) -> None:
        (name,) = question.arguments
        if name not in self._datasets.names:
            raise KeyError(f"Dataset {name!r} not found")
        self._datasets.delete(name)
        self._keep()
        question.answer()

    def _set_note(self, question: Question) -> None:
        self._notes.set(*question.arguments)
        question.answer()

    # ── what is kept ─────────────────────────────────────────────────────────

    def _arrived(self, machine: Variables | Pipelines, question: Question) -> None:
        """A client has futures of its own for what it took; those of keys that went meanwhile are cancelled."""
        keys = machine.arrived((question.client, question.arguments[0]))

        def tell(state: SchedulerState) -> None:
            for key in keys:
                if key not in state.tasks:
                    why = "it was cancelled while a queue or variable kept it"
                    state.say_to_client(question.client, KeyCancelled(key, "unknown", why))

        if keys:
            self._scheduler.decide(tell)
        self._keep()
        question.answer()

    def _keep(self) -> None:
        """Want what is kept since the last call, and release what is not any more."""
        begun, ended = self._kept.take_changes()
        if not begun and not ended:
            return

        def change(state: SchedulerState) -> None:
            decisions.connect_client(state, KEEPER)
            decisions.client_said(state, [WantKeys(KEEPER, begun), ReleaseKeys(KEEPER, ended)], time.monotonic())

        self._scheduler.decide(change)

    def _client_gone(self, client: str) -> None:
        for machine in (self._variables, self._queues, self._datasets):
            machine.lose_client(client)
            self._waits.settle(machine)


def _never_late(question: Question) -> None:
    return None


def _fail_late(why: str, question: Question) -> None:
    question.fail(TimeoutError(why))
