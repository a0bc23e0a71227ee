"""The systems that are pools of processes: no tasks that depend on others, and no data that lies ready for many."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.system import System
from benchmarks.tasks import add, inc, pid_after


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

    def map(self, function: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
        return list(self.pool.map(function, values))

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

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.pool.submit(function, *arguments).result()

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

    def map(self, function: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
        return self.pool.map(function, values, chunksize=1)

    def submit_all(self, n: int) -> None:
        for result in [self.pool.apply_async(inc, (i,)) for i in range(n)]:
            result.get()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.pool.apply(function, arguments)

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()


class Joblib(System):
    """joblib with its own processes; it has no futures."""

    name = "joblib"
    module = "joblib"
    imports = "from joblib import Parallel, delayed"
    script = """
from joblib import Parallel, delayed
assert Parallel(2)([delayed(abs)(-1)]) == [1]
"""

    def start(self, n_workers: int) -> None:
        self.joblib: Any = importlib.import_module("joblib")
        self.parallel: Any = self.joblib.Parallel(n_workers).__enter__()

    def call(self, number: int) -> int:
        return int(self.run(inc, number))

    def map(self, function: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
        return list(self.parallel(self.joblib.delayed(function)(value) for value in values))

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.parallel([self.joblib.delayed(function)(*arguments)])[0]

    def share(self, function: Callable[[Any, Any], Any], data: Any, values: Sequence[Any]) -> list[Any]:
        """A large array is written to shared memory once, because joblib recognises it."""
        return list(self.parallel(self.joblib.delayed(function)(data, value) for value in values))

    def close(self) -> None:
        self.parallel.__exit__(None, None, None)
        importlib.import_module("joblib.externals.loky").get_reusable_executor().shutdown()
