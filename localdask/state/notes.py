"""What clients note at the scheduler: plain data at paths of nested dicts.

Driven by ``processes/exchange.py``; nobody waits for anything here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Notes"]


class Notes:
    """The metadata of one cluster."""

    def __init__(self) -> None:
        self._noted: dict[Any, Any] = {}

    def set(self, path: Sequence[Any], value: Any) -> None:
        """Note a value at a path; what is on its way and no dict is replaced by one."""
        place = self._noted
        for name in path[:-1]:
            if not isinstance(place.get(name), dict):
                place[name] = {}
            place = place[name]
        place[path[-1]] = value

    def get(self, path: Sequence[Any]) -> list[Any]:
        """Return what is noted at a path as the only item of a list, which is empty when there is nothing."""
        place: Any = self._noted
        for name in path:
            if not isinstance(place, dict) or name not in place:
                return []
            place = place[name]
        return [place]
