"""Words about plugins: from the cluster to the workers and nannies that hold them, and their answers.

A plugin travels as the bytes of its pickle. Workers, and the nannies to which it was sent
on purpose, load it; who passes it on does not.
"""

from __future__ import annotations

from typing import Any

from localdask.messages.wire import message
from localdask.records import record


@message(180)
@record
class BeginPlugins:
    """The first word on a data pipe: what the worker sets up, in this order, before it registers. Rows are (name, pickle)."""

    rows: list[tuple[str, bytes]]


@message(181)
@record
class AddPlugin:
    """End the plugin of that name if there is one, and set this one up. Answered by ``PluginAnswered``."""

    change: int
    name: str
    pickled: bytes


@message(182)
@record
class RemovePlugin:
    """End the plugin of that name. Answered by ``PluginAnswered``."""

    change: int
    name: str


@message(183)
@record
class PluginAnswered:
    """It is done, or ``error``, the pickle of what was raised: a plugin to be added is then not there, one to be removed is gone."""

    change: int
    error: bytes | None = None


@message(184)
@record
class WorkerTold:
    """News of a topic for the clients that listen to it, as plain data."""

    topic: str
    data: Any
