"""What every system that is compared can do, and how one is started for a sample."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks import processes


class System:
    """One way to run Python functions in other processes of this machine."""

    name: str
    module: str
    #: What a user's program imports.
    imports = ""
    #: A whole program: start two workers, run a task, stop.
    script = ""
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

    def map(self, function: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
        """Give a task for each value, all at once, and return their results."""
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

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function gives in a task, also when it was called like that before."""
        raise NotImplementedError

    def share(self, function: Callable[[Any, Any], Any], data: Any, values: Sequence[Any]) -> list[Any]:
        """Give data once for a task with each value, and return their results."""
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
