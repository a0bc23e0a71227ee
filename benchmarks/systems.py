"""The systems that are compared, each behind the methods of ``System``: the clusters, what reloads, Dask's own schedulers.

A method that a system has no way to do is not defined, and its place in the table is
a dash. Nothing of a system is imported before its ``start``.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import processes
from benchmarks.pools import Futures, Joblib, Loky, Pool
from benchmarks.system import System
from benchmarks.tasks import add, inc, pid_after

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

    def map(self, function: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
        return list(self.client.gather(self.client.map(function, values)))

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

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.client.submit(function, *arguments, pure=False).result()

    def share(self, function: Callable[[Any, Any], Any], data: Any, values: Sequence[Any]) -> list[Any]:
        shared = self.client.scatter(data)
        return list(self.client.gather(self.client.map(function, [shared] * len(values), values, pure=False)))

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
        self._remotes: dict[Callable[..., Any], Any] = {}

    def _remote(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if function not in self._remotes:
            self._remotes[function] = self.ray.remote(function)
        return self._remotes[function].remote(*arguments)

    def call(self, number: int) -> int:
        return int(self.ray.get(self._remote(inc, number)))

    def map(self, function: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
        return list(self.ray.get([self._remote(function, value) for value in values]))

    def submit_all(self, n: int) -> None:
        for reference in [self._remote(inc, i) for i in range(n)]:
            self.ray.get(reference)

    def chain(self, n: int) -> int:
        reference: Any = 0
        for _ in range(n):
            reference = self._remote(inc, reference)
        return int(self.ray.get(reference))

    def tree(self, n_leaves: int) -> int:
        references = [self._remote(inc, i) for i in range(n_leaves)]
        while len(references) > 1:
            references = [self._remote(add, left, right) for left, right in list(pairwise(references))[::2]]
        return int(self.ray.get(references[0]))

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.ray.get(self._remote(function, *arguments))

    def share(self, function: Callable[[Any, Any], Any], data: Any, values: Sequence[Any]) -> list[Any]:
        shared = self.ray.put(data)
        return list(self.ray.get([self._remote(function, shared, value) for value in values]))

    def workers(self) -> set[int]:
        found: set[int] = set()
        while len(found) < self.n_workers:
            found = set(self.ray.get([self._remote(pid_after, 0.005) for _ in range(self.n_workers)]))
        return found

    def heal(self, victim: int) -> None:
        os.kill(victim, signal.SIGKILL)
        while victim in self.workers():
            pass

    def close(self) -> None:
        self.ray.shutdown()


class Threads(System):
    """What Dask computes its collections on by itself: threads of this process, which nothing has to leave."""

    name = "threads"
    module = "dask"

    def start(self, n_workers: int) -> None:
        self.n_workers = n_workers

    def serve_dask(self) -> None:
        importlib.import_module("dask").config.set(scheduler=self.name, num_workers=self.n_workers)

    def close(self) -> None:
        """Nothing was started."""


class Sync(Threads):
    """Dask's scheduler of one thread: what its own work on a graph costs."""

    name = "sync"


SYSTEMS: dict[str, type[System]] = {
    system.name: system for system in (Localdask, Futures, Pool, Loky, Joblib, Distributed, Ray, Uvicorn, Threads, Sync)
}
