"""Words of clients beside their tasks: questions to the scheduler, their answers, and news.

What is asked and answered is plain data; objects of a user's are the bytes of their pickle.
"""

from __future__ import annotations

from typing import Any

from localdask.messages.wire import message
from localdask.records import record


@message(10)
@record
class Ask:
    """A client asks for something beside its tasks; answered by ``Answered``. ``arguments`` are plain data."""

    client: str
    request: int
    what: str
    arguments: tuple[Any, ...] = ()


@message(11)
@record
class Withdraw:
    """A client waits no longer for the answer to what it asked."""

    client: str
    request: int


@message(25)
@record
class Answered:
    """The answer to ``Ask``: plain data, or in ``error`` a pickled exception."""

    request: int
    value: Any
    error: bytes | None = None


@message(26)
@record
class Told:
    """News of a topic that a client listens to, as plain data."""

    topic: str
    data: Any
