"""``python -m benchmarks``: takes samples of the rows that are named, or of all, and says which bars are met."""

from __future__ import annotations

import argparse
import compileall
import os
import platform
from pathlib import Path

from benchmarks import micro, report
from benchmarks.rows import ROWS
from benchmarks.run import ROOT, run_row
from benchmarks.systems import SYSTEMS


def parse() -> argparse.Namespace:
    peers = [name for name in SYSTEMS if name != report.OURS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"one of: {', '.join(ROWS)}, micro")
    parser.add_argument(
        "--peers", nargs="*", default=peers, choices=peers, help="systems to stand beside localdask (default: all installed)"
    )
    parser.add_argument("--quick", action="store_true", help="few samples: a hint, not a figure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the medians to this file too, a line each")
    parser.add_argument("--table", action="store_true", help="measure nothing; print the newest results as markdown")
    chosen = parser.parse_args()
    unknown = set(chosen.rows) - {*ROWS, "micro"}
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    return chosen


def main() -> None:
    chosen = parse()
    if chosen.table:
        print(report.table())
        return
    systems = [name for name in (report.OURS, *chosen.peers) if SYSTEMS[name].is_here()]
    compileall.compile_dir(ROOT / "localdask", quiet=1)
    run, version = report.new_run(), report.commit()
    print(f"localdask {version} · Python {platform.python_version()} · {os.cpu_count()} processors · {', '.join(systems)}")
    for row in chosen.rows or [*ROWS, "micro"]:
        samples = micro.run() if row == "micro" else run_row(row, systems, is_quick=chosen.quick)
        for bench, values in samples.items():
            print(*report.tell(bench, values), sep="\n", flush=True)
        lines = report.lines_of(samples, run, version)
        report.keep(lines, report.RESULTS)
        if chosen.json:
            report.keep(lines, chosen.json)


if __name__ == "__main__":
    main()
