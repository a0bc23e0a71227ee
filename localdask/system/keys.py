"""What may be the name of a task, and what it says of the task's function.

Used by clients before a name goes out, and by whoever shows tasks in groups: progress, the task stream, profiles.
"""

from __future__ import annotations

import re

__all__ = ["check_key", "group_of", "is_key"]

#: What is no part of a function's name: digests and numbers. Compiled when first asked for: most processes never are.
_DIGESTS = r"(-([0-9a-f]{8,}|\d+))+$"
_TUPLE = r"""\(['"](.*?)['"],"""


def is_key(key: object) -> bool:
    """Whether it may name a task: frames carry plain data only, and what is none would end the worker that is sent it."""
    return type(key) in (str, int, float, bytes) or (type(key) is tuple and all(map(is_key, key)))


def check_key(key: object) -> None:
    """Raise ``TypeError`` for what is no name of a task."""
    if not is_key(key):
        kind = type(key)
        raise TypeError(
            f"key: {key!r:.80} is a {kind.__module__}.{kind.__qualname__}; a key is a text, a number or bytes, or a tuple of them"
        )


def group_of(key: object) -> str:
    """Return the part of a key that names its function."""
    text = key if isinstance(key, str) else str(key)
    found = re.match(_TUPLE, text)
    text = found[1] if found else text
    return re.sub(_DIGESTS, "", text) or text
