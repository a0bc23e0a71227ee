"""What localdask itself runs as the function of a task.

These functions travel by reference, so they live in a room that every worker has loaded.
They are called by a worker's runner, with arguments that a client made: ``api/executor.py``
has a function called on many elements by one task, ``api/graphs.py`` nodes of Dask's graphs,
``integrations/joblib.py`` batches. They know neither worker nor client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["call", "call_node", "call_on_rows"]


def call_on_rows(function: Callable[..., Any], rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Call a function with each row of arguments; the first that raises ends it."""
    return [function(*row) for row in rows]


def call_node(node: Any, keys: tuple[Any, ...], *values: Any) -> Any:
    """Call a node of a Dask graph, given the results it refers to."""
    return node(dict(zip(keys, values, strict=True)))


def call(function: Callable[[], Any]) -> Any:
    """Call a function that is different each time, under a name that is not."""
    return function()
