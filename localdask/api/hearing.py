"""What a client does with the scheduler's words: the states of its futures change here, and nowhere else while it runs.

``Client`` is made of this among others. Called under the link's lock, on whichever thread
brings the words; nothing here waits, or runs a user's code.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from localdask.api.asking import ANSWER_WORDS
from localdask.api.futures import CANCELLED, ERROR, FINISHED, LOST, PENDING, FutureState
from localdask.messages import ClusterGone, KeyCancelled, KeyErred, KeyFetched, KeyInMemory, KeyPending


class Hearing:
    """What ``Client`` does when its scheduler speaks."""

    status: str
    _states: dict[str, weakref.ref[FutureState]]
    _hear_answer: Callable[[Any], None]
    _end_asking: Callable[[str], None]
    _end_listening: Callable[[], None]
    _stop_being_default: Callable[[], None]

    def _deliver(self, messages: list[Any]) -> None:
        """Take in the scheduler's words. Under the link's lock."""
        known = self._states
        for message in messages:
            kind = type(message)
            if kind in ANSWER_WORDS:
                self._hear_answer(message)
                continue
            if kind is ClusterGone:
                self._lose_cluster(message.reason)
                continue
            ref = known.get(message.key)
            state = ref() if ref is not None else None
            if state is None:
                continue
            if kind is KeyInMemory:
                state.payload = message.payload
                state.nbytes = message.nbytes
                state.type_name = message.type_name
                state.status = FINISHED
            elif kind is KeyErred:
                state.error = message.error
                state.status = ERROR
                state.fetching = False  # no value comes; after a retry it is asked for anew
            elif kind is KeyFetched:
                state.payload = message.payload
                state.fetching = False
            elif kind is KeyCancelled:
                state.reason, state.message = message.reason, message.msg
                state.status = LOST if message.reason == "lost-data" else CANCELLED
            elif kind is KeyPending:
                state.status = PENDING
                state.payload = None
                continue
            if state.watchers is not None:
                state.tell_watchers()

    def _lose_cluster(self, why: str) -> None:
        """The cluster is gone, and all that it had. Under the link's lock."""
        if self.status != "running":
            return
        self.status = "closed"
        self._stop_being_default()
        self._cancel_all("scheduler-connection-lost", why, f"The scheduler did not answer: {why}")

    def _cancel_all(self, reason: str, message: str, unanswered: str) -> None:
        self._end_asking(unanswered)
        self._end_listening()
        for ref in list(self._states.values()):
            state = ref()
            if state is not None:
                state.status, state.reason, state.message, state.payload = CANCELLED, reason, message, None
                state.tell_watchers()
