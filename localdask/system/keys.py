"""What the name of a task says of its function.

Used by whoever shows tasks in groups: progress, the task stream, profiles; in clients and in workers.
"""

from __future__ import annotations

import re

__all__ = ["group_of"]

#: What is no part of a function's name: digests and numbers.
_DIGESTS = re.compile(r"(-([0-9a-f]{8,}|\d+))+$")
_TUPLE = re.compile(r"""^\(['"](.*?)['"],""")


def group_of(key: str) -> str:
    """Return the part of a key that names its function."""
    found = _TUPLE.match(key)
    text = found[1] if found else key
    return _DIGESTS.sub("", text) or text
