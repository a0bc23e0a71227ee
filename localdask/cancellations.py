"""The errors of cancelled futures, which Dask derives from that of ``concurrent.futures``.

They belong to ``localdask.errors``, and are found there. They have a room of their own because
their base class brings ``logging`` and more with it, which costs every program as much as
six rooms of localdask's, and hardly any ever cancels a future.
"""

from __future__ import annotations

from concurrent.futures import CancelledError

__all__ = ["FutureCancelledError", "FuturesCancelledError"]


class FutureCancelledError(CancelledError):
    """The future's task was cancelled.

    Attributes
    ----------
    key : str
        The task's key.
    reason : str
        ``"unknown"``, ``"scheduler-restart"``, ``"client-closed"`` or the reason given to ``cancel``.
    msg : str
        The message given to ``cancel``, if any.
    """

    __module__ = "localdask.errors"

    def __init__(self, key: str, reason: str = "unknown", msg: str = "") -> None:
        super().__init__(key, reason, msg)
        self.key = key
        self.reason = reason
        self.msg = msg

    def __str__(self) -> str:
        return f"{self.key} cancelled for reason: {self.reason}." + (f"\n{self.msg}" if self.msg else "")


class FuturesCancelledError(CancelledError):
    """Some of the futures that were waited for were cancelled."""

    __module__ = "localdask.errors"

    def __init__(self, errors: list[FutureCancelledError]) -> None:
        super().__init__(errors)
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(map(str, self.errors))
