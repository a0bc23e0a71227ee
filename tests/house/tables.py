"""Tables in the documents that are made from tables in the code.

A document asks for one by two lines of comment around the place where it belongs:
``<!-- table: localdask.state.tasks.MOVES -->`` and ``<!-- end of table -->``.
``python -m tests.house.tables FILES`` renews what stands between; ``test_docs.py``
fails when a document was not renewed.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

PLACE = re.compile(r"(<!-- table: ([\w.]+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)


def shown(value: Any) -> str:
    """Return a cell: words for states and events, commas between several, a dash for none."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, (frozenset, set)):
        return ", ".join(sorted(map(shown, value))) or "–"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(shown, value)) or "–"
    return str(getattr(value, "__name__", value))


def render(table: Mapping[Any, Any]) -> str:
    """Return a mapping as markdown: a matrix when its keys are pairs, else two columns."""
    if all(isinstance(key, tuple) and len(key) == 2 for key in table):
        columns = list(dict.fromkeys(column for _, column in table))
        rows = list(dict.fromkeys(row for row, _ in table))
        lines = [["", *map(shown, columns)]] + [[shown(row), *(shown(table.get((row, column), "")) for column in columns)] for row in rows]
    else:
        lines = [["from", "to"]] + [[shown(key), shown(value)] for key, value in table.items()]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def renew(text: str) -> str:
    """Return a document with its tables as the code has them now."""

    def made(match: re.Match[str]) -> str:
        module, name = match[2].rsplit(".", 1)
        return match[1] + "\n" + render(getattr(importlib.import_module(module), name)) + "\n" + match[4]

    return PLACE.sub(made, text)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        path = Path(argument)
        path.write_text(renew(path.read_text()))
