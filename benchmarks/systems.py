"""The systems that are compared, each behind the same few methods.

A method that a system has no way to do is not defined, and its place in the table is
a dash. Nothing of a system is imported before its ``start``.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.tasks import add, array_of, inc, pid_after, spin, total, total_again

SETUP = """
def dask_setup(worker):
    worker.loaded_version = {version}
def dask_teardown(worker):
    pass
"""
APPLICATION = """
async def application(scope, receive, send):
    if scope["type"] == "http":
        await send({{"type": "http.response.start", "status": 200, "headers": []}})
        await send({{"type": "http.response.body", "body": b"{version}"}})
"""


class EditedFile:
    """A file of initialisation code in a folder of its own, which goes with this object; ``version`` is what it holds."""

    def __init__(self, name: str, text: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._text = text
        self.path = Path(self._folder.name, name)
        self.version = 0
        self.save()

    def save(self) -> None:
        """Write the next version."""
        self.version += 1
        self.path.write_text(self._text.format(version=self.version))


class System:
    """One way to run Python functions in other processes of this machine."""

    name: str
    module: str
    #: What a user's program imports.
    imports: str
    #: A whole program: start two workers, run a task, stop.
    script: str
    #: What a sample is scaled down to, where 20,000 tasks would take all day.
    n_tasks = 20_000
    n_samples = 7
    #: How many edits make one median.
    n_edits = 20

    @classmethod
    def is_here(cls) -> bool:
        return importlib.util.find_spec(cls.module.split(".")[0]) is not None

    def start(self, n_workers: int) -> None:
        """Start, and return when nothing has to be waited for before the first task is given."""
        raise NotImplementedError

    def start_elsewhere(self, n_workers: int) -> None:
        """Start in another process, and be a client of it here."""
        raise NotImplementedError

    def call(self, number: int) -> int:
        """One round trip of ``inc``."""
        raise NotImplementedError

    def map(self, function: Callable[[int], Any], n: int) -> list[Any]:
        """Give n tasks at once, and return their results."""
        raise NotImplementedError

    def submit_all(self, n: int) -> None:
        """Give n tasks of ``inc`` one by one, then wait for all of them."""
        raise NotImplementedError

    def chain(self, n: int) -> int:
        """Run n tasks, each on the result of the one before; where there are no dependent tasks, as a user would."""
        raise NotImplementedError

    def tree(self, n_leaves: int) -> int:
        """Add up n leaves two by two."""
        raise NotImplementedError

    def give(self, array: Any) -> float:
        """Sum up an array in a task."""
        raise NotImplementedError

    def take(self, number: int) -> Any:
        """Return an array that a task made."""
        raise NotImplementedError

    def share(self, array: Any, n: int) -> None:
        """Sum up an array in n tasks, given once."""
        raise NotImplementedError

    def executor(self) -> Any:
        """Return an executor of ``concurrent.futures``."""
        raise NotImplementedError

    def serve_dask(self) -> None:
        """Be what Dask computes its collections on."""
        raise NotImplementedError

    def workers(self) -> set[int]:
        """Return the pids of all workers, found by asking them."""
        raise NotImplementedError

    def heal(self, victim: int) -> None:
        """Kill a worker with SIGKILL, and return when all workers answer again."""
        raise NotImplementedError

    def begin_edits(self, n_workers: int) -> None:
        """Start with initialisation code in a file."""
        raise NotImplementedError

    def edit(self) -> None:
        """Save another version of it, and return when every worker runs that."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def pids(self) -> set[int]:
        """Every process that ``close`` must end: multiprocessing's tracker stays until the program ends."""
        return {pid for pid in processes.descendants() if "resource_tracker" not in processes.command_of(pid)}


class Futures(System):
    """concurrent.futures.ProcessPoolExecutor."""

    name = "futures"
    module = "concurrent.futures"
    imports = "from concurrent.futures import ProcessPoolExecutor"
    script = """
from concurrent.futures import ProcessPoolExecutor
if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        assert pool.submit(abs, -1).result() == 1
"""

    def start(self, n_workers: int) -> None:
        from concurrent.futures import ProcessPoolExecutor

        self.n_workers = n_workers
        self.pool: Any = ProcessPoolExecutor(n_workers)

    def call(self, number: int) -> int:
        return int(self.pool.submit(inc, number).result())

    def map(self, function: Callable[[int], Any], n: int) -> list[Any]:
        return list(self.pool.map(function, range(n)))

    def submit_all(self, n: int) -> None:
        for future in [self.pool.submit(inc, i) for i in range(n)]:
            future.result()

    def chain(self, n: int) -> int:
        value = 0
        for _ in range(n):
            value = self.pool.submit(inc, value).result()
        return value

    def tree(self, n_leaves: int) -> int:
        values = list(self.pool.map(inc, range(n_leaves)))
        while len(values) > 1:
            values = list(self.pool.map(add, values[::2], values[1::2]))
        return int(values[0])

    def give(self, array: Any) -> float:
        return float(self.pool.submit(total, array).result())

    def take(self, number: int) -> Any:
        return self.pool.submit(array_of, number).result()

    def executor(self) -> Any:
        return self.pool

    def heal(self, victim: int) -> None:
        """The pool is broken when a worker dies; its user makes a new one."""
        os.kill(victim, signal.SIGKILL)
        with contextlib.suppress(Exception):
            self.pool.submit(inc, 1).result()
        self.pool.shutdown()
        self.start(self.n_workers)
        self.workers()

    def workers(self) -> set[int]:
        """Return the workers' pids, found by keeping all of them busy at once."""
        found: set[int] = set()
        while len(found) < self.n_workers:
            found = {future.result() for future in [self.pool.submit(pid_after, 0.005) for _ in range(self.n_workers)]}
        return found

    def close(self) -> None:
        self.pool.shutdown()


class Loky(Futures):
    name = "loky"
    module = "loky"
    imports = "from loky import ProcessPoolExecutor"
    script = """
import loky
with loky.ProcessPoolExecutor(2) as pool:
    assert pool.submit(abs, -1).result() == 1
"""

    def start(self, n_workers: int) -> None:
        self.n_workers = n_workers
        self.pool = importlib.import_module("loky").ProcessPoolExecutor(n_workers)


class Pool(System):
    """multiprocessing.Pool; a killed worker takes its queue's lock with it, so it has no ``heal``."""

    name = "pool"
    module = "multiprocessing"
    imports = "from multiprocessing import Pool; import multiprocessing.pool"
    script = """
from multiprocessing import Pool
if __name__ == "__main__":
    with Pool(2) as pool:
        assert pool.apply(abs, (-1,)) == 1
"""

    def start(self, n_workers: int) -> None:
        from multiprocessing import Pool as make

        self.pool = make(n_workers)

    def call(self, number: int) -> int:
        return int(self.pool.apply_async(inc, (number,)).get())

    def map(self, function: Callable[[int], Any], n: int) -> list[Any]:
        return self.pool.map(function, range(n), chunksize=1)

    def submit_all(self, n: int) -> None:
        for result in [self.pool.apply_async(inc, (i,)) for i in range(n)]:
            result.get()

    def give(self, array: Any) -> float:
        return float(self.pool.apply(total, (array,)))

    def take(self, number: int) -> Any:
        return self.pool.apply(array_of, (number,))

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()


class _Elsewhere:
    """A program that tells an address and lives until its input ends."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate("\n", timeout=30)


class Localdask(System):
    name = "localdask"
    module = "localdask"
    imports = "from localdask import Client, LocalCluster"
    script = """
from localdask import Client, LocalCluster
with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
    assert client.submit(abs, -1).result() == 1
"""
    options: dict[str, Any] = {}  # noqa: RUF012

    def start(self, n_workers: int) -> None:
        package = importlib.import_module(self.module)
        self.n_workers = n_workers
        self.cluster = package.LocalCluster(n_workers=n_workers, threads_per_worker=1, **self.options)
        self.client = package.Client(self.cluster)

    def start_elsewhere(self, n_workers: int) -> None:
        self.n_workers = n_workers
        code = f"from {self.module} import LocalCluster\n"
        code += f"with LocalCluster(n_workers={n_workers}, threads_per_worker=1, **{self.options}) as cluster:\n"
        code += "    print(cluster.scheduler_address, flush=True)\n    input()"
        self.cluster = _Elsewhere([sys.executable, "-c", code])
        self.client = importlib.import_module(self.module).Client(self.cluster.address)

    def call(self, number: int) -> int:
        return int(self.client.submit(inc, number).result())

    def map(self, function: Callable[[int], Any], n: int) -> list[Any]:
        return list(self.client.gather(self.client.map(function, range(n))))

    def submit_all(self, n: int) -> None:
        self.client.gather([self.client.submit(inc, i) for i in range(n)])

    def chain(self, n: int) -> int:
        future = self.client.submit(inc, 0)
        for _ in range(n - 1):
            future = self.client.submit(inc, future)
        return int(future.result())

    def tree(self, n_leaves: int) -> int:
        futures = self.client.map(inc, range(n_leaves))
        while len(futures) > 1:
            futures = [self.client.submit(add, left, right) for left, right in list(pairwise(futures))[::2]]
        return int(futures[0].result())

    def give(self, array: Any) -> float:
        return float(self.client.submit(total, array, pure=False).result())

    def take(self, number: int) -> Any:
        return self.client.submit(array_of, number, pure=False).result()

    def share(self, array: Any, n: int) -> None:
        shared = self.client.scatter(array)
        self.client.gather(self.client.map(total_again, [shared] * n, range(n), pure=False))

    def executor(self) -> Any:
        return self.client.get_executor()

    def serve_dask(self) -> None:
        """A client is that by itself."""

    def heal(self, victim: int) -> None:
        os.kill(victim, signal.SIGKILL)
        while len(workers := self.workers()) < self.n_workers or victim in workers:
            time.sleep(0.0005)

    def begin_edits(self, n_workers: int) -> None:
        self.file = EditedFile("preload.py", SETUP)
        self.options = {**self.options, "preload": str(self.file.path)}
        self.start(n_workers)

    def edit(self) -> None:
        self.file.save()
        self.cluster.wait_for_generation(self.file.version, timeout=60)

    def workers(self) -> set[int]:
        return set(self.client.run(os.getpid, on_error="ignore").values())

    def pids(self) -> set[int]:
        """All but the launcher, this process's only child, which stays for the next cluster."""
        return processes.descendants() - processes.children()

    def close(self) -> None:
        self.client.close()
        self.cluster.close()


class Distributed(Localdask):
    name = "distributed"
    module = "distributed"
    imports = "from distributed import Client, LocalCluster"
    script = """
from distributed import Client, LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        assert client.submit(abs, -1).result() == 1
"""
    options = {"dashboard_address": None}  # noqa: RUF012
    n_tasks = 1_000
    n_samples = 3
    n_edits = 1

    def begin_edits(self, n_workers: int) -> None:
        if n_workers > 8:
            raise NotImplementedError  # 32 take minutes on two processors, and run into Dask's own limits
        super().begin_edits(n_workers)

    def edit(self) -> None:
        """There is no reload: what one does instead is to replace all workers."""
        self.file.save()
        self.client.restart()

    def pids(self) -> set[int]:
        return System.pids(self)


class Uvicorn(System):
    """A web server of one process, which its supervisor replaces when a file is saved."""

    name = "uvicorn"
    module = "uvicorn"
    imports = "import uvicorn"
    n_samples = 3
    n_edits = 5

    def begin_edits(self, n_workers: int) -> None:
        if n_workers > 1:
            raise NotImplementedError  # its --reload is for one
        self.file = EditedFile("served.py", APPLICATION)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        command = [sys.executable, "-m", "uvicorn", "--reload", "--port", str(self.port), "--log-level", "error", "served:application"]
        self.server = subprocess.Popen(command, cwd=self.file.path.parent)
        self._wait()

    def edit(self) -> None:
        self.file.save()
        self._wait()

    def _wait(self) -> None:
        wanted = str(self.file.version).encode()
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=10) as answer:
                if answer.read() == wanted:
                    return
            time.sleep(0.0005)

    def close(self) -> None:
        self.server.send_signal(signal.SIGINT)
        self.server.wait()


class Ray(System):
    name = "ray"
    module = "ray"
    imports = "import ray"
    script = """
import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
assert ray.get(ray.remote(lambda x: abs(x)).remote(-1)) == 1
ray.shutdown()
"""
    n_tasks = 5_000
    n_samples = 3

    def start(self, n_workers: int) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self.ray: Any = importlib.import_module("ray")
        self.n_workers = n_workers
        self.ray.init(num_cpus=n_workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        self.functions: dict[Any, Any] = {
            function: self.ray.remote(function) for function in (inc, add, spin, pid_after, array_of, total, total_again)
        }

    def call(self, number: int) -> int:
        return int(self.ray.get(self.functions[inc].remote(number)))

    def map(self, function: Callable[[int], Any], n: int) -> list[Any]:
        return list(self.ray.get([self.functions[function].remote(i) for i in range(n)]))

    def submit_all(self, n: int) -> None:
        for reference in [self.functions[inc].remote(i) for i in range(n)]:
            self.ray.get(reference)

    def chain(self, n: int) -> int:
        reference: Any = 0
        for _ in range(n):
            reference = self.functions[inc].remote(reference)
        return int(self.ray.get(reference))

    def tree(self, n_leaves: int) -> int:
        references = [self.functions[inc].remote(i) for i in range(n_leaves)]
        while len(references) > 1:
            references = [self.functions[add].remote(left, right) for left, right in list(pairwise(references))[::2]]
        return int(self.ray.get(references[0]))

    def give(self, array: Any) -> float:
        return float(self.ray.get(self.functions[total].remote(array)))

    def take(self, number: int) -> Any:
        return self.ray.get(self.functions[array_of].remote(number))

    def share(self, array: Any, n: int) -> None:
        shared = self.ray.put(array)
        self.ray.get([self.functions[total_again].remote(shared, number) for number in range(n)])

    def workers(self) -> set[int]:
        found: set[int] = set()
        while len(found) < self.n_workers:
            found = set(self.ray.get([self.functions[pid_after].remote(0.005) for _ in range(self.n_workers)]))
        return found

    def heal(self, victim: int) -> None:
        os.kill(victim, signal.SIGKILL)
        while victim in self.workers():
            pass

    def close(self) -> None:
        self.ray.shutdown()


SYSTEMS: dict[str, type[System]] = {system.name: system for system in (Localdask, Futures, Pool, Loky, Distributed, Ray, Uvicorn)}


def start_warm(system: System, n_workers: int = 2, *, elsewhere: bool = False) -> None:
    """Start a system and give it enough that nothing is done for the first time later."""
    (system.start_elsewhere if elsewhere else system.start)(n_workers)
    for number in range(50 * n_workers):
        system.call(number)


@contextlib.contextmanager
def running(system: System, n_workers: int = 2, *, elsewhere: bool = False) -> Iterator[None]:
    """A system, up and warm inside the block."""
    start_warm(system, n_workers, elsewhere=elsewhere)
    try:
        yield
    finally:
        system.close()
