"""Plugins that bring what workers print and log to a client, wherever it is.

They run in workers and hand plain data to ``worker.log_event``; the client's side is
``api/topics.py``. The cluster's own process sees what workers print without them.
"""

from __future__ import annotations

import sys
from typing import Any

from localdask.preloads.plugins import WorkerPlugin
from localdask.system.streams import Tee

__all__ = ["LOG_TOPIC", "OUTPUT_TOPIC", "ForwardLogging", "ForwardOutput"]

#: The topics of log records and of what is printed.
LOG_TOPIC = "forwarded-log-record"
OUTPUT_TOPIC = "print"


class ForwardOutput(WorkerPlugin):
    """Show what workers print to the client that registers this, too, when it is not in the cluster's process."""

    name = "forward-output"

    def setup(self, worker: Any) -> None:
        """Put a writer before each of the two streams."""
        self._streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
        for number, (name, stream) in enumerate(self._streams.items(), 1):
            setattr(sys, name, _ForwardedStream(stream, name, worker, number))

    def teardown(self, worker: Any) -> None:
        """Take them away."""
        for name, stream in self._streams.items():
            if isinstance(getattr(sys, name), _ForwardedStream):
                setattr(sys, name, stream)


class _ForwardedStream(Tee):
    """Writes to a stream, and has the worker tell of it."""

    def __init__(self, stream: Any, name: str, worker: Any, number: int) -> None:
        def tell(text: str) -> None:
            worker.log_event(OUTPUT_TOPIC, {"stream": number, "text": text, "worker": worker.name})

        super().__init__(stream, name, tell)


class ForwardLogging(WorkerPlugin):
    """Send the records of one logger to the clients that listen; what ``client.forward_logging`` registers.

    Parameters
    ----------
    logger_name : str or None
        The logger; the root by default.
    level : int
        Records below it stay behind.
    """

    def __init__(self, logger_name: str | None, level: int) -> None:
        self.logger_name = logger_name
        self.level = level
        self.name = f"forward-logging-{logger_name or '<root>'}"

    def setup(self, worker: Any) -> None:
        """Add a handler to the logger."""
        import logging  # noqa: PLC0415 - 6 ms, and only who logs needs it

        class Forwards(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                worker.log_event(LOG_TOPIC, _as_plain(record, worker.name))

        self._handler = Forwards(self.level)
        logging.getLogger(self.logger_name).addHandler(self._handler)

    def teardown(self, worker: Any) -> None:
        """Take the handler away."""
        import logging  # noqa: PLC0415 - as above

        logging.getLogger(self.logger_name).removeHandler(self._handler)


def _as_plain(record: Any, worker: str) -> dict[str, Any]:
    """Return a log record's fields as plain data, its message made and its exception as text."""
    import logging  # noqa: PLC0415 - it is loaded: a record exists

    fields = {name: value for name, value in vars(record).items() if type(value) in (str, int, float, bool, type(None))}
    fields.update(msg=record.getMessage(), args=None, exc_info=None, worker=worker)
    if record.exc_info and not record.exc_text:
        fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
    return fields
