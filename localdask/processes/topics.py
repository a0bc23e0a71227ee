"""News of topics: from workers and clients to the clients that listen, and to the scheduler's plugins.

Runs in the user's process, on the scheduler's I/O thread. A message is plain data; it is
passed on, and the last ones of each topic are kept for who asks later.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from localdask import config
from localdask.messages import WorkerTold
from localdask.processes.questions import Question
from localdask.processes.scheduler import Scheduler

__all__ = ["Topics"]

#: How many topics are kept; the one that was silent for longest is forgotten for one more.
TOPICS_MAX = 1000


class Topics:
    """Who listens to what. Registers itself with the scheduler."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._listeners: dict[str, dict[str, None]] = {}
        self._n_kept = int(config.get("admin.low-level-log-length", 1000))
        #: (time, message) of each topic, the topic that spoke last at the end.
        self._kept: dict[str, deque[tuple[float, Any]]] = {}
        scheduler.on_worker_word[WorkerTold] = lambda name, life, word: self.tell(word.topic, word.data)
        scheduler.answerers.update(listen=self._listen, unlisten=self._unlisten, log_event=self._log_event)
        scheduler.answerers["topic_events"] = self._tell_kept

    def tell(self, topic: str, message: Any) -> None:
        """Bring a message to all who listen."""
        event = time.time(), message
        self._keep(topic, event)
        listeners = self._listeners.get(topic, {})
        for client in list(listeners):
            if client in self._scheduler.state.clients:
                self._scheduler.tell_client(client, topic, event)
            else:
                del listeners[client]
        self._scheduler.plugins.tell("log_event", topic, message)

    def _keep(self, topic: str, event: tuple[float, Any]) -> None:
        kept = self._kept.pop(topic, None)
        self._kept[topic] = kept = deque(maxlen=self._n_kept) if kept is None else kept
        kept.append(event)
        if len(self._kept) > TOPICS_MAX:
            del self._kept[next(iter(self._kept))]

    def _tell_kept(self, question: Question) -> None:
        """Answer with the events of a topic, oldest first, or of all topics by their names."""
        (topic,) = question.arguments
        question.answer({name: tuple(kept) for name, kept in self._kept.items()} if topic is None else tuple(self._kept.get(topic, ())))

    def _listen(self, question: Question) -> None:
        self._listeners.setdefault(question.arguments[0], {})[question.client] = None
        question.answer()

    def _unlisten(self, question: Question) -> None:
        self._listeners.get(question.arguments[0], {}).pop(question.client, None)
        question.answer()

    def _log_event(self, question: Question) -> None:
        topics, message = question.arguments
        for topic in topics:
            self.tell(topic, message)
        question.answer()
