"""What parameters a user's function has, as far as it tells.

Asked wherever an argument is given only to functions that take it, as Dask does with ``dask_worker``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["parameters_of"]


def parameters_of(function: Callable[..., Any]) -> Mapping[str, Any] | None:
    """Return a function's parameters by name, as ``inspect`` has them; None for one written in C that does not tell."""
    import inspect  # noqa: PLC0415 - 9 ms, and few functions are asked for them

    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
