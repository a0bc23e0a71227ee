"""How many workers, how many threads each, and how much memory: Dask's arithmetic for one machine.

Called in the user's process by the command line and by ``LocalCluster``. All of it is
pure but ``read_machine``, which asks the operating system once what this process may
use: CPUs by affinity and cgroup, memory by cgroup and resource limit. It never
measures what is in use, and starts nothing.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from localdask.errors import UsageError
from localdask.parameters import check_count, read
from localdask.records import record

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = [
    "BYTES",
    "KEEP_FREED",
    "SECONDS",
    "SETUP_S",
    "TEARDOWN_S",
    "Machine",
    "WorkerPlan",
    "check_resources",
    "format_bytes",
    "parse_bytes",
    "parse_duration",
    "parse_resources",
    "parse_workers",
    "plan_workers",
    "read_cgroup_limits",
    "read_machine",
    "worker_memory",
]

#: How long one ``dask_setup`` and one ``dask_teardown`` may take unless somebody says otherwise, in seconds.
SETUP_S = 30.0
TEARDOWN_S = 5.0
#: What has glibc keep what a task frees for the next task, by variables: arrays of up to 32 MiB lie in its heap, and 64 MiB of free
#: memory at the heap's end stay. So it does by itself once so large an array was freed; before that, each task has its pages from the
#: kernel anew. It reads them at an exec, and they hold for what is forked after that.
KEEP_FREED = {"MALLOC_MMAP_THRESHOLD_": 32 << 20, "MALLOC_TRIM_THRESHOLD_": 64 << 20}

#: What such parameters are, as errors say it.
BYTES, SECONDS = "a number of bytes, or a text like '4GB'", "seconds, or a text like '30s'"

_NO_LIMIT = 1 << 60  # cgroup v1 writes "no limit" as a huge number of pages
_CGROUPS = "/sys/fs/cgroup"

_BYTES = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtp", 1):
    _BYTES |= {_letter: 1000**_power, f"{_letter}b": 1000**_power, f"{_letter}i": 1024**_power, f"{_letter}ib": 1024**_power}

_SECONDS = {
    1e-6: ("us", "µs", "microsecond", "microseconds"),
    1e-3: ("ms", "millisecond", "milliseconds"),
    1.0: ("s", "", "sec", "secs", "second", "seconds"),
    60.0: ("m", "min", "mins", "minute", "minutes"),
    3600.0: ("h", "hr", "hrs", "hour", "hours"),
    86400.0: ("d", "day", "days"),
}


@record(frozen=True)
class Machine:
    """What this process may use.

    ``n_cores`` counts all CPUs of the machine; ``limited_by`` names what makes the memory
    less than all of it: ``cgroup``, ``ulimit`` or nothing.
    """

    n_cpus: int
    memory_nbytes: int
    n_cores: int = 0
    limited_by: str = ""


@record(frozen=True)
class WorkerPlan:
    """How many workers, and how many threads each."""

    n_workers: int
    nthreads: int


def plan_workers(n_workers: int | None, threads_per_worker: int | None, n_cpus: int, *, processes: bool = True) -> WorkerPlan:
    """Return how the CPUs are dealt out; None means that the user did not say."""
    n_workers, threads_per_worker = check_count("n_workers", n_workers), check_count("threads_per_worker", threads_per_worker)
    if n_workers is not None and n_workers < 0:
        raise UsageError(f"n_workers is {n_workers}: it cannot be negative here; leave it out to have it chosen from {n_cpus} CPUs")
    if threads_per_worker is not None and threads_per_worker < 1:
        raise UsageError(f"threads_per_worker is {threads_per_worker}: a worker needs at least one thread; leave it out to have it chosen")
    if n_workers is None and threads_per_worker is None:
        if not processes:
            return WorkerPlan(1, n_cpus)
        if n_cpus <= 4:
            return WorkerPlan(n_cpus, 1)
        n_workers = next(n for n in range(1, n_cpus + 1) if n * n >= n_cpus and n_cpus % n == 0)
        return WorkerPlan(n_workers, n_cpus // n_workers)
    if n_workers is None:
        assert threads_per_worker is not None
        return WorkerPlan(max(1, n_cpus // threads_per_worker) if processes else 1, threads_per_worker)
    if threads_per_worker is None:
        return WorkerPlan(n_workers, max(1, math.ceil(n_cpus / n_workers)) if n_workers else 1)
    return WorkerPlan(n_workers, threads_per_worker)


def parse_workers(text: str, n_cpus: int) -> int | None:
    """Return the number of workers that the command line means: ``auto`` is None, a negative one counts from all CPUs."""
    if text.strip().lower() == "auto":
        return None
    try:
        number = int(text)
    except ValueError:
        raise UsageError(f"{text!r} is no number of workers: write a number like 4, or 'auto'") from None
    if number < 0:
        number += n_cpus + 1
        if number < 1:
            raise UsageError(f"{text} workers of {n_cpus} CPUs leaves none: -1 means all {n_cpus}, -2 one less")
    return number


def parse_bytes(value: str | float) -> int:
    """Return a size in bytes: a number, or text like ``4GB``, ``2 GiB``, ``500e6``."""
    if isinstance(value, (int, float)):
        number, unit = float(value), ""
    else:
        try:
            match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)?\s*([a-z]*)\s*", value.lower())
            number, unit = float(match[1] or 1 if match[2] else match[1]), match[2]  # type: ignore[index]
        except (AttributeError, TypeError, ValueError):
            raise UsageError(f"{value!r:.80} is no size: write a number of bytes, or one with a unit like 500MB or 4GiB") from None
    if unit not in _BYTES:
        raise UsageError(f"{value!r} is no size: {unit!r} is no unit of bytes; there are kB, MB, GB, TB and KiB, MiB, GiB, TiB")
    if not 0 <= number < math.inf:
        raise UsageError(f"{value!r} is no size: it must be a number from 0 up")
    return int(number * _BYTES[unit])


def parse_duration(value: str | float | timedelta | None) -> float | None:
    """Return seconds: a number, or text like ``300ms``, ``10s``, ``2 hours``; None stays None."""
    if value is None:
        return None
    if isinstance(value, (int, float)):
        number, unit = float(value), ""
    elif hasattr(value, "total_seconds"):
        number, unit = value.total_seconds(), ""
    elif not isinstance(value, str):
        raise UsageError(f"{value!r:.80} is no duration: give seconds, or a text like 300ms, 10s, 5m or 2h")
    else:
        match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)?\s*([a-zµ]*)\s*", value.lower())
        try:
            number, unit = float(match[1] or 1 if match[2] else match[1]), match[2]  # type: ignore[index]
        except (TypeError, ValueError):
            raise UsageError(f"{value!r} is no duration: write seconds, or a number with a unit like 300ms, 10s or 2h") from None
    for factor, names in _SECONDS.items():
        if unit in names and 0 <= number < math.inf:
            return number * factor
    raise UsageError(f"{value!r} is no duration: write seconds, or a number with a unit like 300ms, 10s, 5m or 2h")


def parse_resources(text: str) -> dict[str, float]:
    """Return what ``GPU=1 MEM=2e9`` or ``GPU=1,MEM=2e9`` names."""
    found: dict[str, float] = {}
    for part in text.replace(",", " ").split():
        name, equals, amount = part.partition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            equals = ""
        if not (name and equals) or not 0 <= found[name] < math.inf:
            raise UsageError(f"{part!r} is no resource: write a name and an amount, like GPU=1 or 'GPU=1 SLOTS=4'")
    return found


def check_resources(resources: Mapping[str, float] | None) -> tuple[tuple[str, float], ...]:
    """Return the amounts of abstract resources, in the order of their names; raise ``UsageError`` for what is none."""
    try:
        amounts = tuple(sorted((name, float(amount)) for name, amount in (resources or {}).items()))
    except (AttributeError, TypeError, ValueError):
        raise UsageError(f"resources={resources!r}; they are amounts by name, as {{'GPU': 1}}") from None
    for name, amount in amounts:
        if not 0 <= amount < math.inf:
            raise UsageError(f"resources={resources!r}; {name!r} is an amount from 0 up")
    return amounts


def format_bytes(nbytes: float) -> str:
    """Return a size as people read it: ``3.90 GiB``."""
    for power, unit in ((5, "PiB"), (4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "kiB")):
        if nbytes >= 1024**power * 0.9:
            return f"{nbytes / 1024**power:.2f} {unit}"
    return f"{int(nbytes)} B"


def worker_memory(limit: str | float | None, machine: Machine, *, n_workers: int, nthreads: int, given: bool = True) -> int:
    """Return a worker's memory limit in bytes, 0 for none.

    ``given=False`` means that nobody said anything: an equal part for each worker.
    ``"auto"`` is Dask's rule for a lone worker: the part that its threads have of the
    CPUs. None and 0 switch the limit off, a fraction up to 1 is of the memory, all
    else is bytes. More than there is, is cut with a warning.
    """
    memory = machine.memory_nbytes
    if not given:
        return memory // max(1, n_workers)
    if limit is None:
        return 0
    if isinstance(limit, str):
        if limit.strip().lower() == "auto":
            return int(memory * min(1.0, nthreads / machine.n_cpus))
        with contextlib.suppress(ValueError):
            limit = float(limit)
    is_fraction = isinstance(limit, (int, float)) and 0 < limit <= 1
    nbytes = int(float(limit) * memory) if is_fraction else read("memory_limit", limit, parse_bytes, BYTES)
    if nbytes > memory:
        warnings.warn(
            f"a memory limit of {format_bytes(nbytes)} is more than the {format_bytes(memory)} that there are: each worker gets the latter",
            stacklevel=3,
        )
        return memory
    return nbytes


def read_machine(cgroups: str = _CGROUPS, own_cgroups: str = "/proc/self/cgroup") -> Machine:
    """Return what this process may use. The paths are the kernel's; a test gives others."""
    n_cores = os.cpu_count() or 1
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else n_cores
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limited_by = ""
    quota, cap = read_cgroup_limits(cgroups, own_cgroups)
    if quota is not None:
        n_cpus = min(n_cpus, max(1, math.ceil(quota)))
    if cap is not None and cap < memory:
        memory, limited_by = cap, "cgroup"
    if sys.platform != "win32":
        import resource  # noqa: PLC0415 - Windows has none

        soft = resource.getrlimit(resource.RLIMIT_RSS)[0]
        if 0 < soft < memory:
            memory, limited_by = soft, "ulimit"
    return Machine(max(1, n_cpus), memory, n_cores, limited_by)


def read_cgroup_limits(cgroups: str = _CGROUPS, own_cgroups: str = "/proc/self/cgroup") -> tuple[float | None, int | None]:
    """Return (CPUs, bytes) that the control groups of this process allow; None where they set no limit.

    A group's limit binds all groups below it, so each folder from this process's own up
    to the root is asked. Inside a container the path that the kernel names may lie
    outside of what is mounted; then the mounted root is the container's own group.
    """
    quotas: list[float] = []
    caps: list[int] = []
    for controllers, group in _own_groups(own_cgroups):
        for folder in _folders(cgroups, controllers, group):
            quotas += _quotas(folder)
            caps += _caps(folder)
    return min(quotas, default=None), min(caps, default=None)


def read_oom_kills(cgroups: str = _CGROUPS, own_cgroups: str = "/proc/self/cgroup") -> int | None:
    """Return how many processes of this one's control group the kernel has killed for want of memory; None where it does not say."""
    for controllers, group in _own_groups(own_cgroups):
        for folder in _folders(cgroups, controllers, group):
            for file in ("memory.events", "memory.oom_control"):
                words = _words(os.path.join(folder, file))
                if "oom_kill" in words:
                    return int(words[words.index("oom_kill") + 1])
    return None


def _own_groups(own_cgroups: str) -> list[tuple[str, str]]:
    """Return (controllers, path) of each hierarchy; version 2 has no controllers in its line."""
    lines = _words(own_cgroups, split_lines=True) or ["0::/"]
    rows = [line.split(":", 2) for line in lines]
    return [(row[1], row[2]) for row in rows if len(row) == 3 and (row[1] == "" or {"cpu", "memory"} & {*row[1].split(",")})]


def _folders(cgroups: str, controllers: str, group: str) -> list[str]:
    """Return the folders of a group and of those above it. Version 1 mounts controllers that share one by all names, or by each."""
    roots = [os.path.join(cgroups, name) for name in dict.fromkeys((controllers, *controllers.split(",")))]
    parts = [part for part in group.split("/") if part and part != ".."]
    return [os.path.join(root, *parts[:depth]) for root in roots for depth in range(len(parts), -1, -1)]


def _words(path: str, *, split_lines: bool = False) -> list[str]:
    """Return the words (or lines) of a kernel's file; none when it is not there."""
    try:
        with open(path, "rb", buffering=0) as file:
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return text.splitlines() if split_lines else text.split()


def _numbers(path: str) -> list[int]:
    try:
        return [int(word) for word in _words(path)]
    except ValueError:
        return []  # "max"


def _quotas(folder: str) -> list[float]:
    pair = _numbers(os.path.join(folder, "cpu.max"))
    pair = pair or _numbers(os.path.join(folder, "cpu.cfs_quota_us")) + _numbers(os.path.join(folder, "cpu.cfs_period_us"))
    return [pair[0] / pair[1]] if len(pair) == 2 and pair[0] > 0 and pair[1] > 0 else []


def _caps(folder: str) -> list[int]:
    files = ("memory.max", "memory.high", "memory.limit_in_bytes")
    return [number for file in files for number in _numbers(os.path.join(folder, file)) if 0 < number < _NO_LIMIT]
