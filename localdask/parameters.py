"""What a user gave for a parameter, refused by its name, its value and what it is, before anything is done with it.

Called in the user's process by whatever takes arguments. Each says how a value is read; a refusal reads the same everywhere.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, TypeVar

from localdask.errors import UsageError

__all__ = ["FILE", "check_count", "check_function", "check_priority", "check_text", "read"]

R = TypeVar("R")

#: What a file's name is: a number would be taken for a descriptor, and what has it open be written over.
FILE = "a file's path"


def read(name: str, value: Any, make: Callable[[Any], R], wanted: str) -> R:
    """Return what ``make`` makes of a value; raise ``UsageError`` when it can make nothing, which tells what is ``wanted``."""
    try:
        return make(value)
    except UsageError as error:  # it says more
        raise UsageError(f"{name}: {error}") from None
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise UsageError(f"{name}={value!r:.80}; it is {wanted}") from None


def check_count(name: str, value: int | None, of: str = "") -> int | None:
    """Return a whole number, or None; raise ``UsageError`` for anything else, which tells what it is the number ``of``."""
    return None if value is None else read(name, value, operator.index, f"a whole number{of}")


def check_text(name: str, value: Any, wanted: str = "a text") -> str:
    """Return a text; raise ``UsageError`` for anything else."""
    if not isinstance(value, str):
        raise UsageError(f"{name}={value!r:.80}; it is {wanted}")
    return value


def check_function(name: str, value: Any, example: str) -> Any:
    """Return what can be called, or None; raise ``UsageError`` for anything else, with an ``example`` of how it is called."""
    if value is not None and not callable(value):
        raise UsageError(f"{name}={value!r:.80}; it is a function, called as {example}")
    return value


def check_priority(value: float) -> float:
    """Return a number that messages can carry; raise ``UsageError`` for what is none."""
    if not hasattr(value, "__float__") or math.isnan(value):
        raise UsageError(f"priority={value!r:.80}; it is a number, and what has a larger one runs first")
    return value if type(value) is int else float(value)
