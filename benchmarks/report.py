"""What the samples come to: medians, ratios, bars met or missed, lines kept for later, and the table made from them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.bars import BARS, Bar
from benchmarks.run import ROOT, Samples
from benchmarks.systems import SYSTEMS

RESULTS = ROOT / "benchmarks" / "results" / "results.jsonl"
OURS = "localdask"


@dataclass(frozen=True)
class Line:
    """One median, as it is kept. Lines of the same ``run`` may be compared."""

    run: str
    commit: str
    bench: str
    system: str
    value: float
    unit: str


@dataclass(frozen=True)
class Verdict:
    """One bar: localdask's ratio to a peer (or its value), the bar, and whether it is met."""

    peer: str
    ratio: float
    bar: float
    is_met: bool


def commit() -> str:
    """Return the commit that was measured; a star says that files were changed since."""
    command = ["git", "describe", "--always", "--dirty=*", "--exclude=*"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def lines_of(samples: Samples, run: str, version: str) -> list[Line]:
    return [
        Line(run, version, bench, system, median(values), BARS[bench].unit if bench in BARS else "µs")
        for bench, systems in samples.items()
        for system, values in systems.items()
    ]


def new_run() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S")


def keep(lines: Iterable[Line], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(asdict(line)) + "\n" for line in lines)


def verdicts(values: dict[str, float], bar: Bar) -> Iterator[Verdict]:
    """Yield a verdict for each bar that this run can judge."""
    ours = values.get(OURS)
    if ours is None:
        return
    for peer, limit in bar.ratios.items():
        if values.get(peer):
            ratio = ours / values[peer]
            yield Verdict(peer, ratio, limit, ratio >= limit if bar.is_rate else ratio <= limit)
    if bar.absolute is not None:
        yield Verdict("", ours, bar.absolute, ours <= bar.absolute)


def shown(value: float | None) -> str:
    """Return three significant digits, or a dash."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def told(verdict: Verdict, bar: Bar) -> str:
    sign = "≥" if bar.is_rate else "≤"
    subject = f"{shown(verdict.ratio)} × {verdict.peer}" if verdict.peer else f"{shown(verdict.ratio)} {bar.unit}"
    return f"{subject} ({'met' if verdict.is_met else 'MISSED'}, bar {sign} {shown(verdict.bar)})"


def tell(bench: str, systems: dict[str, list[float]]) -> list[str]:
    """Return what a terminal shows of one value: the medians, then each bar."""
    bar = BARS.get(bench, Bar("µs"))
    values = {name: median(samples) for name, samples in systems.items()}
    medians = "   ".join(f"{name} {shown(value)}" for name, value in values.items())
    return [f"{bench:<21} {bar.unit:<8} {medians}", *(f"{'':<30} {told(verdict, bar)}" for verdict in verdicts(values, bar))]


def newest(path: Path) -> dict[str, dict[str, float]]:
    """Return the values of each bench in the newest run that has localdask and it."""
    runs: dict[str, tuple[str, dict[str, float]]] = {}
    for text in path.read_text().splitlines():
        line = Line(**json.loads(text))
        if line.bench not in runs or runs[line.bench][0] != line.run:
            runs[line.bench] = (line.run, {})
        runs[line.bench][1][line.system] = line.value
    return {bench: values for bench, (_, values) in runs.items()}


def table(path: Path = RESULTS) -> str:
    """Return the newest results as markdown."""
    results = newest(path)
    names = [name for name in SYSTEMS if any(name in values for values in results.values())]
    rows = [["", "unit", *names, "bars"], ["---"] * (len(names) + 3)]
    for bench, bar in BARS.items():
        values = results.get(bench)
        if values:
            judged = "; ".join(told(verdict, bar) for verdict in verdicts(values, bar))
            rows.append([bench, bar.unit, *(shown(values.get(name)) for name in names), judged])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
