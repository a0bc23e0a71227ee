"""The rows of the table: what is measured.

A row is one small function. It gets a system that nobody has touched, in a process
of its own, and returns its values by name.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from statistics import median
from typing import Any

from benchmarks import collections, processes
from benchmarks.parcels import parcel_of, peak_mb
from benchmarks.system import System, running, start_warm
from benchmarks.tasks import (
    array_of,
    frame_of,
    inc,
    negated,
    size,
    small_array_of,
    small_bytes_of,
    spin,
    total,
    total_again,
)

Values = dict[str, float]


def timed(call: Callable[[], object]) -> float:
    """Return how long a call takes, in seconds."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def python(code: str) -> None:
    if not code:
        raise NotImplementedError
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
            "socket_map": system.n_tasks / timed(lambda: system.map(inc, range(system.n_tasks))),
        }


def map_noop(system: System) -> Values:
    """No-ops by map, a future each."""
    with running(system):
        return {"map": system.n_tasks / timed(lambda: system.map(inc, range(system.n_tasks)))}


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
        return {"cpu": 200 * 0.02 / 2 / timed(lambda: system.map(spin, range(200)))}


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
    system.start(2)
    with contextlib.closing(system):
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
            "data_argument": 1e3 * _later(partial(system.run, total, array) for array in arrays),
            "data_result": 1e3 * _later(partial(system.run, array_of, number) for number in range(4)),
        }
        arrays = [array_of(number) for number in range(4, 8)]
        with contextlib.suppress(NotImplementedError):
            values["data_shared"] = 1e3 * _later(partial(system.share, total_again, array, range(20)) for array in arrays)
        return values


def _later(calls: Iterable[Callable[[], object]]) -> float:
    """Return the median time of some calls, in seconds; the first one only warms."""
    return median([timed(call) for call in calls][1:])


def data_memory(system: System) -> Values:
    """How much more all processes hold at most when 100 MB arrive in a task, when they arrive here, and in 20 tasks."""
    here = os.getpid()
    parcels = {n_bytes: parcel_of(n_bytes, here) for n_bytes in (8, 100_000_000)}

    def more(peak: Callable[[int], float]) -> float:
        with running(system):
            peak(8)
            before = processes.memory_mb(here)
            return peak(100_000_000) - before

    values = {
        "memory_argument": more(lambda n_bytes: float(system.run(peak_mb, parcels[n_bytes]))),
        "memory_result": more(lambda n_bytes: peak_mb(system.run(parcel_of, n_bytes, here))),
    }
    with contextlib.suppress(NotImplementedError):
        values["memory_shared"] = more(lambda n_bytes: max(system.share(peak_mb, parcels[n_bytes], range(20))))
    return values


def data_small(system: System) -> Values:
    """10,000 bytes objects and arrays of 10 KB each, as arguments and as results of as many tasks."""
    n = min(10_000, system.n_tasks)
    values = {}
    with running(system):
        for kind, make, measure in (("bytes", small_bytes_of, size), ("array", small_array_of, total)):
            system.map(make, range(n, n + 100))
            ones = [make(number) for number in range(n)]
            values[f"small_{kind}_argument"] = n / timed(partial(system.map, measure, ones))
            values[f"small_{kind}_result"] = n / timed(partial(system.map, make, range(n)))
    return values


def data_frame(system: System) -> Values:
    """A data frame of 100 MB to a task that changes one of its columns, and back: another one each time, the first one left out."""
    with running(system):
        frames = [frame_of(number) for number in range(4)]
        return {"frame": 1e3 * _later(partial(system.run, negated, frame) for frame in frames)}


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
    "data_memory": data_memory,
    "data_small": data_small,
    "data_frame": data_frame,
    "reload": reload,
}
