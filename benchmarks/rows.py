"""The rows of the table: what is measured, in which unit, and the bars.

A row is one small function. It gets a system that nobody has touched, in a process
of its own, and returns its values by name. A bar is a ratio to a peer that was
measured in the same run, because absolute times say more about the machine; bars
in absolute figures are for processor time while idle, which hardly depends on it, and for
reloads, which are promised in milliseconds.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

from benchmarks import collections, processes
from benchmarks.systems import System, running, start_warm
from benchmarks.tasks import array_of, inc, spin

Values = dict[str, float]


@dataclass(frozen=True)
class Bar:
    """localdask's value over each peer's: at most this (for rates: at least). ``absolute`` bounds the value itself."""

    unit: str
    ratios: dict[str, float] = field(default_factory=dict)
    absolute: float | None = None

    @property
    def is_rate(self) -> bool:
        return self.unit in ("tasks/s", "of ideal")


def timed(call: Callable[[], object]) -> float:
    """Return how long a call takes, in seconds."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


# ── the rows ─────────────────────────────────────────────────────────────────


def imports(system: System) -> Values:
    """Import, over a bare interpreter's start."""
    pairs = [(timed(lambda: python(system.imports)), timed(lambda: python("pass"))) for _ in range(5)]
    return {"import": 1e3 * median(full - bare for full, bare in pairs)}


def start(system: System, n_workers: int) -> Values:
    """From the constructor to the first result; then, in the same process, once more."""
    exec(system.imports, {})

    def to_first_result() -> None:
        system.start(n_workers)
        system.call(1)

    values = {}
    for name in ("cold", "warm"):
        values[f"start{n_workers}_{name}"] = 1e3 * timed(to_first_result)
        system.close()
    return values


def start2(system: System) -> Values:
    return start(system, 2)


def start8(system: System) -> Values:
    return start(system, 8)


def program(system: System) -> Values:
    """A whole program: exec, two workers, one task, exit."""
    return {"program": 1e3 * timed(lambda: python(system.script))}


def close(system: System) -> Values:
    """From ``close`` until every process that it must end is gone."""
    start_warm(system)
    pids = system.pids()

    def until_gone() -> None:
        system.close()
        processes.wait_until_gone(pids)

    return {"close": 1e3 * timed(until_gone)}


def latency(system: System) -> Values:
    """Round trips, one at a time, for up to 2,000 or three seconds."""
    with running(system):
        times: list[float] = []
        end = time.perf_counter() + 3
        while len(times) < 2_000 and time.perf_counter() < end:
            times.append(timed(lambda: system.call(1_000 + len(times))))
        times.sort()
        return {"latency_p50": 1e6 * times[len(times) // 2], "latency_p99": 1e6 * times[len(times) * 99 // 100]}


def socket(system: System) -> Values:
    """Round trips and no-ops by map from another process than the cluster's."""
    with running(system, elsewhere=True):
        times = sorted(timed(partial(system.call, number)) for number in range(1_000, 2_000))
        return {
            "socket_p50": 1e6 * times[len(times) // 2],
            "socket_p99": 1e6 * times[len(times) * 99 // 100],
            "socket_map": system.n_tasks / timed(lambda: system.map(inc, system.n_tasks)),
        }


def map_noop(system: System) -> Values:
    """No-ops by map, a future each."""
    with running(system):
        return {"map": system.n_tasks / timed(lambda: system.map(inc, system.n_tasks))}


def submit_noop(system: System) -> Values:
    """No-ops by submit."""
    with running(system):
        return {"submit": system.n_tasks / timed(lambda: system.submit_all(system.n_tasks))}


def chain(system: System) -> Values:
    """A thousand tasks, each on the result of the one before; per task."""
    with running(system):
        return {"chain": 1e6 * timed(lambda: system.chain(1_000)) / 1_000}


def tree(system: System) -> Values:
    """A sum over 4,096 leaves: 8,191 tasks."""
    with running(system):
        return {"tree": timed(lambda: system.tree(4_096))}


def cpu(system: System) -> Values:
    """200 tasks of 20 ms of processor time on two workers, beside two processors that do nothing else."""
    with running(system):
        return {"cpu": 200 * 0.02 / 2 / timed(lambda: system.map(spin, 200))}


def memory(system: System, n_workers: int) -> Values:
    """What the whole tree of processes holds when idle, this one included; shared pages once."""
    with running(system, n_workers):
        return {f"memory{n_workers}": processes.pss_mb({os.getpid(), *processes.descendants()})}


def memory2(system: System) -> Values:
    return memory(system, 2)


def memory8(system: System) -> Values:
    return memory(system, 8)


def idle(system: System) -> Values:
    """Processor time of the whole tree in ten seconds without work, its first two left out."""
    with running(system):
        time.sleep(2)
        pids = {os.getpid(), *processes.descendants()}
        before = processes.cpu_s(pids)
        time.sleep(10)
        return {"idle": processes.cpu_s(pids) - before}


def replace(system: System) -> Values:
    """From kill -9 of a worker until as many as before answer."""
    with running(system):
        victim = min(system.workers())
        return {"replace": 1e3 * timed(lambda: system.heal(victim))}


def _round_trip(pool: Any, number: int) -> None:
    pool.submit(inc, number).result()


def executor(system: System) -> Values:
    """Through an executor of ``concurrent.futures``: round trips one at a time, and no-ops by its map."""
    with running(system):
        pool = system.executor()
        times = sorted(timed(partial(_round_trip, pool, number)) for number in range(1_000))
        return {
            "executor_p50": 1e6 * times[len(times) // 2],
            "executor_map": system.n_tasks / timed(lambda: list(pool.map(inc, range(system.n_tasks)))),
        }


def dask(system: System) -> Values:
    """Collections of Dask's, the first two warm."""
    with running(system):
        system.serve_dask()
        values = {}
        for name, compute in {"dask_array": collections.array, "dask_frame": collections.frame()}.items():
            compute()
            values[name] = median(timed(compute) for _ in range(3))
        return {**values, "dask_delayed": timed(collections.calls)}


def data(system: System) -> Values:
    """100 MB as an argument, as a result, and given once for 20 tasks: another array each time, the first one left out."""
    with running(system):
        arrays = [array_of(number) for number in range(4)]
        values = {
            "data_argument": 1e3 * median([timed(partial(system.give, array)) for array in arrays][1:]),
            "data_result": 1e3 * median([timed(partial(system.take, number)) for number in range(4)][1:]),
        }
        arrays = [array_of(number) for number in range(4, 8)]
        with contextlib.suppress(NotImplementedError):
            values["data_shared"] = 1e3 * median([timed(partial(system.share, array, 20)) for array in arrays][1:])
        return values


def reload(system: System) -> Values:
    """From a saved file of initialisation code until every worker runs it, with 1, 4, 8 and 32 workers."""
    values: Values = {}
    for n_workers in (1, 4, 8, 32):
        try:
            system.begin_edits(n_workers)
        except NotImplementedError:
            break
        system.edit()
        values[f"reload{n_workers}"] = 1e3 * median(_apart(system.edit) for _ in range(system.n_edits))
        system.close()
    return values


def _apart(edit: Callable[[], None]) -> float:
    time.sleep(0.02)  # nobody saves faster
    return timed(edit)


ROWS: dict[str, Callable[[System], Values]] = {
    "import": imports,
    "start2": start2,
    "start8": start8,
    "program": program,
    "close": close,
    "latency": latency,
    "socket": socket,
    "map": map_noop,
    "submit": submit_noop,
    "chain": chain,
    "tree": tree,
    "cpu": cpu,
    "memory2": memory2,
    "memory8": memory8,
    "idle": idle,
    "replace": replace,
    "executor": executor,
    "dask": dask,
    "data": data,
    "reload": reload,
}

#: The value's name → its unit and bars. Peers that offer no dependent tasks run a chain or tree as their user would.
#: Pool's round trip is shown and not judged: it varies fourfold from run to run with where the kernel puts its three helper threads.
BARS: dict[str, Bar] = {
    "import": Bar("ms", {"futures": 1.1}),
    "start2_cold": Bar("ms", {"futures": 10, "loky": 0.7, "distributed": 0.115, "ray": 0.02}),
    "start2_warm": Bar("ms", {"futures": 2.5}),
    "start8_cold": Bar("ms", {"futures": 5.3, "loky": 0.26, "distributed": 0.023, "ray": 0.018}),
    "start8_warm": Bar("ms", {"futures": 2.0}),
    "program": Bar("ms", {"futures": 3.6, "loky": 0.52, "distributed": 0.16, "ray": 0.03}),
    "close": Bar("ms", {"futures": 4.0, "loky": 0.95, "distributed": 0.105, "ray": 0.014}),
    "latency_p50": Bar("µs", {"futures": 0.6, "loky": 0.45, "distributed": 0.0085, "ray": 0.07}),
    "latency_p99": Bar("µs", {"futures": 0.72, "loky": 0.64, "distributed": 0.013, "ray": 0.065}),
    "socket_p50": Bar("µs"),
    "socket_p99": Bar("µs"),
    "socket_map": Bar("tasks/s"),
    "map": Bar("tasks/s", {"futures": 6.0, "pool": 1.3, "loky": 7.2, "distributed": 170, "ray": 49}),
    "submit": Bar("tasks/s", {"futures": 3.8, "pool": 1.7, "loky": 6.9, "distributed": 125, "ray": 35}),
    "chain": Bar("µs", {"futures": 0.2, "distributed": 0.005, "ray": 0.024}),
    "tree": Bar("s", {"futures": 0.48, "distributed": 0.015, "ray": 0.043}),
    "cpu": Bar("of ideal", {"futures": 1.07, "distributed": 1.31, "ray": 1.14}),
    "memory2": Bar("MB", {"futures": 2.65, "loky": 0.74, "distributed": 0.28, "ray": 0.07}),
    "memory8": Bar("MB", {"futures": 2.75, "loky": 0.59, "distributed": 0.185, "ray": 0.079}),
    "idle": Bar("s", absolute=0.005),
    "replace": Bar("ms", {"futures": 4.0, "distributed": 0.037, "ray": 0.02}),
    "reload1": Bar("ms", {"distributed": 0.06, "uvicorn": 0.1}),
    "reload4": Bar("ms", {"distributed": 0.02}),
    "reload8": Bar("ms", {"distributed": 0.01}, absolute=30),
    "reload32": Bar("ms", {"distributed": 0.01}),
    "data_argument": Bar("ms", {"futures": 0.11, "pool": 0.17, "loky": 0.15, "distributed": 0.23, "ray": 0.74}),
    "data_result": Bar("ms", {"futures": 0.085, "pool": 0.11, "loky": 0.115, "distributed": 0.37, "ray": 0.89}),
    "data_shared": Bar("ms", {"distributed": 0.33, "ray": 0.53}),
    "executor_p50": Bar("µs", {"futures": 1.0}),
    "executor_map": Bar("tasks/s", {"futures": 3.0}),
    "dask_array": Bar("s", {"distributed": 0.22}),
    "dask_frame": Bar("s", {"distributed": 0.29}),
    "dask_delayed": Bar("s", {"distributed": 0.22}),
}
