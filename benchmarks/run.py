"""Takes the samples: every system in turn, A B C A B C, each sample in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks.systems import SYSTEMS

ROOT = Path(__file__).parents[1]
SAMPLE_S = 180.0

#: name of a value → system → its samples
Samples = dict[str, dict[str, list[float]]]


def take_sample(row: str, system: str) -> dict[str, float]:
    """Run one sample; raise ``RuntimeError`` with the last words of one that failed."""
    command = [sys.executable, "-m", "benchmarks.sample", row, system]
    # As an installed package would be: compiled before, and compiling what it makes.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        stdout, stderr = process.communicate(timeout=SAMPLE_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"no answer in {SAMPLE_S:.0f} s") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise RuntimeError((stderr.strip().splitlines() or [f"exit code {process.returncode}"])[-1])
    values: dict[str, float] = json.loads(stdout.splitlines()[-1])
    return values


def turns(systems: list[str], *, is_quick: bool) -> Iterator[str]:
    """Yield systems in the order of their samples; dear ones have fewer turns."""
    n_samples = {name: 1 + (SYSTEMS[name].n_samples > 3) * 2 if is_quick else SYSTEMS[name].n_samples for name in systems}
    for number in range(max(n_samples.values())):
        yield from (name for name in systems if number < n_samples[name])


def run_row(row: str, systems: list[str], *, is_quick: bool) -> Samples:
    """Return a row's samples. A system that failed is told on stderr and left out of the rest of the row."""
    samples: Samples = defaultdict(lambda: defaultdict(list))
    failed: set[str] = set()
    for system in turns(systems, is_quick=is_quick):
        if system in failed:
            continue
        try:
            values = take_sample(row, system)
        except RuntimeError as error:
            failed.add(system)
            print(f"  {row}: {system} failed: {error}", file=sys.stderr)
            continue
        if not values:
            failed.add(system)
        for name, value in values.items():
            samples[name][system].append(value)
    return samples
