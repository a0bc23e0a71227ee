"""One sample: one row of one system, in this fresh process. ``python -m benchmarks.sample ROW SYSTEM`` prints its values.

The values are the last line of stdout; whatever a system prints goes to stderr. Few
imports, because what stands here is weighed with the system.
"""

from __future__ import annotations

import os
import sys


def main(row: str, system: str) -> None:
    from benchmarks.rows import ROWS
    from benchmarks.systems import SYSTEMS

    stdout = os.dup(1)
    os.dup2(2, 1)
    values: dict[str, float | None]
    try:
        values = dict(ROWS[row](SYSTEMS[system]()))
    except NotImplementedError:
        values = {}
    text = ", ".join(f'"{name}": {value}' for name, value in values.items())
    os.write(stdout, f"{{{text}}}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
