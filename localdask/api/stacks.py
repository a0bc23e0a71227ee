"""The stacks that workers show on a signal, picked out of what they write.

Used by ``client.call_stack`` for workers that cannot answer, and by ``localdask stacks``. A worker shows its stacks on
its standard error also while C code holds its interpreter; the cluster keeps them among its lines.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

__all__ = ["shown_stacks"]

#: How long a stack may take to arrive, and how long a silence after it says that it is whole.
STACK_S = 3.0
SILENCE_S = 0.15
#: How often a silence is looked for.
LOOK_S = 0.03
#: How long a scheduler may take to answer.
ANSWER_S = 10.0
_STACK_LINE = r"(Current thread|Thread) 0x|  (File|<)|  \.\.\.$"


def shown_stacks(client: Any, names: Sequence[str]) -> dict[str, list[str]]:
    """Have these workers show their stacks, and return the lines of each; those that cannot have none."""
    after = client._ask("logs", 2**62, False, timeout=ANSWER_S)[0]
    unable = client._ask("stacks", list(names), timeout=ANSWER_S)
    return _collect(client, after, [name for name in names if name not in unable])


def _collect(client: Any, after: int, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the lines of stacks that these workers write, until each has shown its own and falls silent."""
    found: dict[str, list[str]] = {name: [] for name in names}
    deadline = time.monotonic() + STACK_S
    heard_at = time.monotonic()
    while time.monotonic() < deadline and not (all(found.values()) and time.monotonic() - heard_at > SILENCE_S):
        after, _, entries = client._ask("logs", after, False, timeout=ANSWER_S)
        for _, source, stream, line in entries:
            if source in found and stream == 2 and re.match(_STACK_LINE, line):
                found[source].append(line)
                heard_at = time.monotonic()
        if not entries:
            time.sleep(LOOK_S)
    return found
