"""``make soak``: random work, random deaths and random saves for a long time; every result right, and nothing grows.

``python -m tests.soak --minutes 60 --seed 1``. It ends with what it did, the seed, and the
counts of descriptors, threads and segments, which must be what they were when it was warm.

``python -m tests.soak --reloads 1000`` does one thing only: a map runs without end, while a
preload is saved that often. Every task must have run once, on one generation, and neither
this process nor a worker or nanny may have grown.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from localdask import Client, LocalCluster, get_client, get_worker
from localdask.errors import KilledWorker

BODY = "VALUE = {value}\ndef dask_setup(worker): worker.value = VALUE\ndef dask_teardown(worker): del worker.value\n"
BROKEN = ("def dask_setup(worker: pass\n", "1 / 0\n", "def dask_setup(worker): raise ConnectionError('db')\n")


def square(x: int) -> int:
    return x * x


class Soak:
    """One cluster, a seed, and what is done to it."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.path = folder / "soak_preload.py"
        self.path.write_text(BODY.format(value=0))
        self.done: Counter[str] = Counter()
        self.n_saved = 0
        quiet: dict[str, Any] = {"on_event": lambda kind, **fields: None, "on_log": lambda source, stream, line: None}
        self.cluster = LocalCluster(n_workers=3, threads_per_worker=1, preload=self.path, allowed_failures=1000, **quiet)
        self.client = Client(self.cluster)

    def work(self) -> None:
        start = self.random.randrange(10**9)
        n = self.random.choice([1, 50, 2000])
        assert self.client.gather(self.client.map(square, range(start, start + n))) == [x * x for x in range(start, start + n)]

    def chain(self) -> None:
        future = self.client.submit(square, self.random.randrange(10**6), pure=False)
        for _ in range(200):
            future = self.client.submit(abs, future, pure=False)
        future.result()

    def large(self) -> None:
        assert len(self.client.submit(bytes, self.random.randrange(10**5, 10**7)).result()) >= 10**5

    def save(self) -> None:
        self.n_saved += 1
        self.path.write_text(BODY.format(value=self.n_saved))

    def save_broken(self) -> None:
        self.path.write_text(self.random.choice(BROKEN))

    def kill(self) -> None:
        handles = [handle for handle in self.cluster.workers.values() if handle.worker_pid]
        if handles:
            os.kill(self.random.choice(handles).worker_pid or 0, signal.SIGKILL)
            time.sleep(self.random.random())  # a budget of restarts is not what is soaked

    def scale(self) -> None:
        self.cluster.scale(self.random.randint(1, 4))

    def counts(self) -> dict[str, int]:
        """Return what must not grow, once everything has settled."""
        self.save()
        self.cluster.reload()
        self.cluster.scale(3)
        self.client.wait_for_workers(3)
        time.sleep(1)
        folder = self.cluster.segments.path if self.cluster.segments is not None else "/nonexistent"
        me, n_segments = psutil.Process(), len(os.listdir(folder))
        rss_mb = me.memory_info().rss >> 20
        return {"descriptors": me.num_fds(), "threads": me.num_threads(), "segments": n_segments, "rss_mb": rss_mb}

    def run(self, seconds: float) -> None:
        rates = {self.work: 10, self.chain: 3, self.large: 3, self.save: 3, self.save_broken: 1, self.kill: 0.3, self.scale: 0.3}
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            action = self.random.choices(list(rates), list(rates.values()))[0]
            try:
                action()
            except KilledWorker as error:
                raise AssertionError(f"a task was given up, though a thousand deaths are forgiven: {error}") from error
            self.done[action.__name__] += 1


# ── nothing but reloads ──────────────────────────────────────────────────────

#: How many reloads and tasks come before the first look: until then caches fill.
N_WARM = 100
#: What a process may have grown by in a thousand reloads, in bytes.
GROWTH_MAX = 5_000_000


def note_and_square(number: int, place: str) -> tuple[int, int]:
    """Return a square and the preload's value, which stays the same meanwhile; and leave a note that it ran."""
    worker = get_worker()
    before = worker.value
    time.sleep(0.001)
    fd = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{number}\n".encode())
    os.close(fd)
    assert worker.value == before, "the generation changed under a running task"
    return number * number, before


def wait_for_another() -> int:
    """Leave the slot to a task on the same worker, which begins the thread that also comes when tasks wait for a swap."""
    return get_client().submit(int, workers=get_worker().name, pure=False).result()


class ReloadSoak:
    """A cluster whose preload is saved again and again under a running map.

    Attributes
    ----------
    n_tasks : int
        How many tasks were run and found right.
    latencies : list of float
        Seconds from each save until every worker ran the new code.
    """

    def __init__(self, folder: Path, n_workers: int) -> None:
        self.path, self._place = folder / "soak_preload.py", str(folder / "ran.log")
        self.path.write_text(BODY.format(value=1))
        self.n_tasks = 0
        self.latencies: list[float] = []
        quiet: dict[str, Any] = {"on_event": lambda kind, **fields: None, "on_log": lambda source, stream, line: None}
        self.cluster = LocalCluster(n_workers=n_workers, threads_per_worker=1, preload=self.path, **quiet)
        self.client = Client(self.cluster, set_as_default=False)
        self.client.gather([self.client.submit(wait_for_another, workers=name, pure=False) for name in self.cluster.workers])
        self._generation = 1
        self._futures: list[Any] = []

    def save(self, n: int) -> None:
        """Save so often, each time when all workers run the former version, while tasks run."""
        for _ in range(n):
            self._keep_busy()
            self._generation += 1
            began = time.perf_counter()
            self.path.write_text(BODY.format(value=self._generation))
            self.cluster.wait_for_generation(self._generation, timeout=60)
            self.latencies.append(time.perf_counter() - began)
        self._collect()

    def _keep_busy(self) -> None:
        if not self._futures or sum(future.done() for future in self._futures) > len(self._futures) - 20:
            self._collect()
            numbers = range(self.n_tasks, self.n_tasks + 500)
            self._futures = self.client.map(note_and_square, numbers, place=self._place, pure=False)

    def _collect(self) -> None:
        """Wait for the tasks that run, and check each."""
        results = self.client.gather(self._futures)
        first, self.n_tasks = self.n_tasks, self.n_tasks + len(results)
        assert [square for square, _ in results] == [number * number for number in range(first, self.n_tasks)]
        told = {row[0]: row[5] for row in self.client.story(*self._futures) if row[2] == "memory"}
        values = {future.key: (value,) for future, (_, value) in zip(self._futures, results, strict=True)}
        assert told == values, "a task's record tells of another generation than it ran on"
        if results:
            ran = Path(self._place).read_text().split()
            assert Counter(ran) == dict.fromkeys(map(str, range(first, self.n_tasks)), 1), "a task did not run once"
            os.unlink(self._place)
        self._futures = []

    def counts(self) -> dict[str, dict[str, int]]:
        """Return what must not grow, by process: ``me``, a nanny, a worker; the largest of each kind."""
        gc.collect()
        kinds = {"me": [os.getpid()], "nanny": [], "worker": []}
        for handle in self.cluster.workers.values():
            kinds["nanny"] += [handle.pid] if handle.pid else []
            kinds["worker"] += [handle.worker_pid] if handle.worker_pid else []
        found = {}
        for kind, pids in kinds.items():
            processes = [psutil.Process(pid) for pid in pids]
            found[kind] = {
                "descriptors": max(process.num_fds() for process in processes),
                "threads": max(process.num_threads() for process in processes),
                "rss": max(process.memory_info().rss for process in processes),
            }
        found["me"]["segments"] = len(os.listdir(self.cluster.segments.path)) if self.cluster.segments is not None else 0
        return found

    def close(self) -> None:
        """End the cluster."""
        self.client.close()
        self.cluster.close()


def grown(before: dict[str, dict[str, int]], after: dict[str, dict[str, int]], n_reloads: int) -> list[str]:
    """Return what is more than it was; of memory, more than its share of what a thousand reloads may cost.

    The memory of this process is shown and not judged: it remembers the last 1,000 reloads and 100,000 moves of tasks.
    """
    found = []
    for kind, counts in after.items():
        for name, value in counts.items():
            # A tenth of the bound is what an allocator keeps in any case.
            room = GROWTH_MAX * max(n_reloads, 100) / 1000 if name == "rss" else 0
            if value - before[kind][name] > room and (kind, name) != ("me", "rss"):
                found.append(f"{name} of {kind}: {before[kind][name]} → {value}")
    return found


def soak_reloads(n: int, folder: Path, n_workers: int = 2) -> int:
    """Reload n times under a running map, tell the figures, and return the exit code."""
    soak = ReloadSoak(folder, n_workers)
    try:
        soak.save(N_WARM)
        before = soak.counts()
        soak.save(n)
        after = soak.counts()
        outcomes = Counter(record.outcome for record in soak.cluster.reloads)
    finally:
        soak.close()
    times = sorted(soak.latencies)
    quantiles = f"median {1e3 * times[len(times) // 2]:.1f} ms, p95 {1e3 * times[len(times) * 95 // 100]:.1f} ms"
    print(f"{n} reloads under {soak.n_tasks} tasks: {quantiles} from save to all workers, outcomes {dict(outcomes)}")
    print(f"  warm  {before}\n  after {after}")
    more = grown(before, after, n)
    print("\n".join(f"grew: {line}" for line in more) or "nothing was lost, nothing ran twice, nothing grew")
    return 1 if more else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reloads", type=int, help="only so many reloads, under a running map")
    parser.add_argument("--workers", type=int, default=2, help="how many run it, with --reloads")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.reloads:
            return soak_reloads(options.reloads, Path(folder), options.workers)
        soak = Soak(options.seed, Path(folder))
        try:
            soak.run(min(20.0, 6 * options.minutes))
            before = soak.counts()
            soak.run(60 * options.minutes)
            after = soak.counts()
        finally:
            soak.client.close()
            soak.cluster.close()
    outcomes = Counter(record.outcome for record in soak.cluster.reloads)
    print(f"seed {options.seed}: {dict(soak.done)}, last reloads {dict(outcomes)}\n  warm  {before}\n  after {after}")
    grown = [name for name in ("descriptors", "threads", "segments") if after[name] > before[name] + 2]
    return 1 if grown else 0


if __name__ == "__main__":
    raise SystemExit(main())
