"""The first and last words between a cluster and a client in another process.

Of all words these must never change their shape, because the two ends may be of
different versions, and have to understand each other well enough to say so.
"""

from __future__ import annotations

from typing import Any

from localdask.messages.wire import message
from localdask.records import record


@message(160)
@record
class Hello:
    """A client's first word: its version of localdask, its name, and plain facts about it."""

    version: str
    client: str
    facts: dict[str, Any]


@message(161)
@record
class Welcome:
    """The cluster takes the client; plain facts that it needs."""

    version: str
    facts: dict[str, Any]


@message(162)
@record
class Refused:
    """The cluster does not take the client, and says what to do about it."""

    reason: str


@message(163)
@record
class ClusterGone:
    """The cluster's last word. A client's link says it too when the cluster ended without one."""

    reason: str
