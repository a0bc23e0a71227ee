"""Which processes of a cluster a word on the command line means. Pure.

``w0``, ``w0-w3`` (a range), ``'w*'`` (a pattern), ``n0`` (a nanny), a process id, ``all`` (every worker).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from localdask.errors import UsageError, WorkerNotFoundError
from localdask.spelling import mend_of

__all__ = ["choose"]

_RANGE = re.compile(r"([a-z]+)(\d+)-(?:([a-z]+))?(\d+)")


def choose(words: Sequence[str], rows: Sequence[Mapping[str, Any]], roles: Sequence[str] = ("worker", "nanny")) -> list[Mapping[str, Any]]:
    """Return the rows of ``localdask ps`` that these words mean, each once, in the order of the rows; without words, every worker.

    Raises ``WorkerNotFoundError`` for a word that means none, with the nearest name, and ``UsageError`` for one that means what
    the verb cannot be used on.
    """
    chosen: set[str] = set()
    for word in words or ("all",):
        names = _meant(word, rows)
        if not names and not (word == "all" and not any(row["role"] == "worker" for row in rows)):
            raise WorkerNotFoundError(_not_found(word, rows))
        chosen |= names
    wrong = [row["name"] for row in rows if row["name"] in chosen and row["role"] not in roles]
    if wrong:
        raise UsageError(f"{', '.join(wrong)} is no {' or '.join(roles)}; this verb is for those")
    return [row for row in rows if row["name"] in chosen]


def _meant(word: str, rows: Sequence[Mapping[str, Any]]) -> set[str]:
    if word == "all":
        return {row["name"] for row in rows if row["role"] == "worker"}
    if word.isdigit():
        return {row["name"] for row in rows if row["pid"] == int(word)}
    found = _RANGE.fullmatch(word)
    if found is not None:
        kind, first, second, last = found.groups()
        if second not in (None, kind) or int(first) > int(last):
            raise UsageError(
                f"{word!r} is no range; write for example {kind}{min(int(first), int(last))}-{kind}{max(int(first), int(last))}"
            )
        wanted = {f"{kind}{number}" for number in range(int(first), min(int(last), int(first) + 100_000) + 1)}
        return {row["name"] for row in rows if row["name"] in wanted}
    return {row["name"] for row in rows if fnmatchcase(row["name"], word)}


def _not_found(word: str, rows: Sequence[Mapping[str, Any]]) -> str:
    names = [row["name"] for row in rows if row["role"] != "scheduler"]
    mend = mend_of(word.lower(), names, f"there are: {', '.join(names) or 'none'}")
    what = "process has the number" if word.isdigit() else "worker or nanny is called"
    return f"no {what} {word!r}; {mend}"
