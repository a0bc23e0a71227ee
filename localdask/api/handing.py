"""Handing values over by way of the scheduler: as plain data, with the futures in them, and with a word when they have arrived.

Used by what shares values between clients; who keeps them is ``processes/exchange.py``.
"""

from __future__ import annotations

import contextlib
from typing import Any

from localdask.api.asking import Answer
from localdask.errors import ClosedClientError, ClosedClusterError
from localdask.system import codec

__all__ = ["kept", "pack", "taken", "tell"]


def pack(value: Any, what: str) -> tuple[Any, list[str]]:
    """Return a value as plain data, and the keys of the futures in it."""
    header, buffers, futures = codec.dumps_watching(value, what)
    return (header, [bytes(buffer) for buffer in buffers]), list(dict.fromkeys(future.key for future in futures))


def taken(word: str, client: Any, answer: Answer) -> list[Any]:
    """Return the values that were answered. By ``word`` the scheduler is told that their futures here have come to be."""
    payloads = answer.value()
    with client.as_current():
        try:
            values = [codec.loads_buffers(header, buffers, "a shared value") for header, buffers in payloads]
        except Exception:
            tell(client, word, answer.request)  # it would fail for the next one, too
            raise
    tell(client, word, answer.request)
    return values


def tell(client: Any, word: str, request: int) -> None:
    """Say something about an earlier question, and do not wait; to a cluster that is closed there is nothing to say."""
    with contextlib.suppress(ClosedClientError, ClosedClusterError):
        client._ask_nowait(word, request)


def kept(value: Any, client: Any, answer: Answer) -> None:
    """Return nothing, and have kept the futures in a value until it was answered."""
    answer.value()
