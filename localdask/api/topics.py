"""Listening to topics: events of workers and clients, forwarded log records, forwarded output.

``Client`` is made of this and other rooms. Messages come under the link's lock and are
handed at once to a thread of the client's own, which calls the handlers one after another:
they may take their time.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

from localdask.api.control import run_coroutine
from localdask.messages.wire import check_plain
from localdask.parameters import check_function, read

__all__ = ["Listening"]


class Listening:
    """What ``Client`` does about topics."""

    asynchronous: bool
    cluster: Any
    _ask: Callable[..., Any]
    _on_told: dict[str, Callable[[Any], None]]
    _news: SimpleQueue[Callable[[], Any] | None] | None = None

    def subscribe_topic(self, topic: str, handler: Callable[[Any], Any]) -> None:
        """Have a handler called with ``(time, message)`` for each event of a topic, in a thread of the client's.

        Parameters
        ----------
        topic : str
            The topic; another handler of it is replaced.
        handler : callable
            Takes the event. A coroutine function runs on the event loop of an asynchronous client, else on one of its own.
        """
        read("topic", topic, hash, "a text")
        check_function("handler", handler, "f((time, message))")
        if self._news is None:
            news = self._news = SimpleQueue()
            threading.Thread(target=_live, args=(news,), name="localdask-topics", daemon=True).start()
        news = self._news
        loop = _running_loop() if self.asynchronous else None  # that of a notebook stands still while a cell runs
        self._on_told[topic] = lambda event: news.put(partial(_handle, handler, event, loop))
        self._ask("listen", topic)

    def unsubscribe_topic(self, topic: str) -> None:
        """Listen to a topic no more; ``ValueError`` when nobody did."""
        if self._on_told.pop(topic, None) is None:
            raise ValueError(f"No event handler known for topic {topic}.")
        self._ask("unlisten", topic)

    def log_event(self, topic: str | list[str], msg: Any) -> None:
        """Tell all who listen to a topic, or to several, of a message of plain data; scheduler plugins, too."""
        topics = [topic] if isinstance(topic, str) else read("topic", topic, list, "a text, or a list of texts")
        check_plain("the message of an event", msg)
        self._ask("log_event", topics, msg)

    def get_events(self, topic: str | None = None) -> Any:
        """Return the last events of a topic: ``(time, message)``, oldest first; without a topic, those of all, by topic.

        Of each topic the last ``admin.low-level-log-length`` (1,000) are kept.
        """
        read("topic", topic, hash, "a text")
        found = self._ask("topic_events", topic)
        if topic is None:
            return {name: tuple(map(tuple, events)) for name, events in found.items()}
        return tuple(map(tuple, found))

    def forward_logging(self, logger_name: str | None = None, level: int = 0) -> None:
        """Handle what workers log as if it were logged here, from now on and on future workers.

        Parameters
        ----------
        logger_name : str, optional
            The logger; the root, with all that reaches it, by default.
        level : int
            Records below it stay in the workers.
        """
        from localdask.preloads.forwarding import LOG_TOPIC, ForwardLogging  # noqa: PLC0415 - few clients forward

        self.subscribe_topic(LOG_TOPIC, _handle_record)
        self.register_plugin(ForwardLogging(logger_name, level))

    def unforward_logging(self, logger_name: str | None = None) -> None:
        """Leave what workers log to them again."""
        from localdask.preloads.forwarding import ForwardLogging  # noqa: PLC0415 - few clients forward

        self.unregister_worker_plugin(ForwardLogging(logger_name, 0).name)

    register_plugin: Callable[..., Any]
    unregister_worker_plugin: Callable[..., Any]

    def _listen_to_output(self) -> None:
        """Show what workers print, unless the cluster, in this process, does so already."""
        if self.cluster is None:
            from localdask.preloads.forwarding import OUTPUT_TOPIC  # noqa: PLC0415 - few clients forward

            self.subscribe_topic(OUTPUT_TOPIC, _print_output)

    def _end_listening(self) -> None:
        if self._news is not None:
            self._news.put(None)
            self._news = None


def _live(news: SimpleQueue[Callable[[], Any] | None]) -> None:
    while (call := news.get()) is not None:
        try:
            call()
        except Exception as error:
            from localdask.preloads.failures import first_line  # noqa: PLC0415 - only an error needs it

            print(f"localdask: the handler of a topic raised {first_line(error)}", file=sys.stderr)


def _running_loop() -> Any:
    import asyncio  # noqa: PLC0415 - only asynchronous users pay for it

    return asyncio._get_running_loop()


def _handle(handler: Callable[[Any], Any], event: Any, loop: Any) -> None:
    told = handler(event)
    if not hasattr(told, "__await__"):
        return
    if loop is None:
        run_coroutine(lambda: told)
    else:
        import asyncio  # noqa: PLC0415 - only who has coroutines pays for it

        asyncio.run_coroutine_threadsafe(told, loop).result()


def _handle_record(event: Any) -> None:
    import logging  # noqa: PLC0415 - 6 ms, and only who forwards needs it

    _, fields = event
    if fields["process"] != os.getpid():  # else the worker is a thread, and it was handled here already
        record = logging.makeLogRecord(fields)
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)


def _print_output(event: Any) -> None:
    _, message = event
    stream = sys.stdout if message["stream"] == 1 else sys.stderr
    stream.write(message["text"])
    stream.flush()
