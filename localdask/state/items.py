"""Values that are kept for whoever takes them, with the futures that are in them.

A value is opaque here: its pickle, as plain data, and the keys of its futures. A key is wanted for
as long as any value that names it is kept, or is on its way to a client that has not said yet that it
has a future of its own.

Used by the machines of queues and variables, which are driven by ``processes/exchange.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from localdask.records import record

__all__ = ["Item", "KeptKeys"]


@record
class Item:
    """One value."""

    payload: Any
    keys: tuple[str, ...] = ()


class KeptKeys:
    """How often each key is kept. What begins and ends is noted for who tells the scheduler's state."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._before: dict[str, bool] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def keep(self, item: Item) -> None:
        """Keep the keys of an item once more."""
        for key in item.keys:
            self._note(key)
            self._counts[key] = self._counts.get(key, 0) + 1

    def drop(self, items: Iterable[Item]) -> None:
        """Keep the keys of these items once less."""
        for key in [key for item in items for key in item.keys]:
            self._note(key)
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]

    def take_changes(self) -> tuple[list[str], list[str]]:
        """Return which keys are kept that were not at the last call, and which are no more."""
        before, self._before = self._before, {}
        begun = [key for key, was_kept in before.items() if not was_kept and key in self._counts]
        return begun, [key for key, was_kept in before.items() if was_kept and key not in self._counts]

    def _note(self, key: str) -> None:
        self._before.setdefault(key, key in self._counts)
