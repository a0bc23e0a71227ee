"""What a client sees of its cluster's processes: call stacks, versions, what they wrote; and the replacing of workers by name.

``Client`` is made of this among others. All of it is asked of the scheduler, or called in
the workers beside their tasks, so that it works from any client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from localdask.api.asking import Answer
from localdask.api.control import worker_names
from localdask.api.dump import Dumping
from localdask.api.futures import parse_timeout
from localdask.api.looking import keys_of
from localdask.api.profiling import Profiling
from localdask.api.stacks import shown_stacks
from localdask.api.task_stream import Streaming
from localdask.errors import WorkerNotFoundError
from localdask.parameters import check_count, read
from localdask.system import codec, outcomes
from localdask.system.versions import read_versions

#: How long a worker may take to tell its stacks before it is had to show them by a signal, in seconds.
ANSWER_S = 2.0
#: What running tasks and teardowns are given when workers are restarted by name, in seconds.
RESTART_GRACE_S = 5.0
_LEVELS = {1: "INFO", 2: "ERROR"}
#: Events that are no good news.
_BAD_EVENTS = frozenset(
    {"worker-down", "nanny-down", "boot-failed", "degraded", "unreachable", "protocol-error", "reload-trouble", "segments"}
)


class Seeing(Streaming, Profiling, Dumping):
    """What ``Client`` sees of its cluster's processes."""

    _ask: Callable[..., Any]
    _ask_nowait: Callable[..., Answer]
    _withdraw: Callable[[Answer], None]
    run: Callable[..., Any]
    run_on_scheduler: Callable[..., Any]

    def _repr_html_(self) -> str:
        from localdask.api import portraits  # noqa: PLC0415 - only notebooks show one

        return portraits.client_html(self)

    def call_stack(self, futures: Any = None, keys: Any = None) -> dict[str, dict[str, tuple[str, ...]]]:
        """Return where running tasks are now: by worker address and key, a text for each call, outermost first.

        A worker whose interpreter C code holds cannot answer: it is had to show the stacks of all its threads
        (as ``localdask stacks``, innermost first), which are given under the keys that it may be at.

        Parameters
        ----------
        futures : Future or collection of them, optional
            Which tasks; all that run by default.
        keys : list of str, optional
            The same by key.
        """
        wanted = None if futures is None and keys is None else {*keys_of(futures or ()), *keys_of(keys or ())}
        info = self._ask("scheduler_info")["workers"]
        held = {address: there for address, there in self._ask("processing", ()).items() if there}
        if wanted is not None:
            held = {address: there for address, there in held.items() if wanted.intersection(there)}
        from localdask.processes.stacks import show_tasks  # noqa: PLC0415 - few ask, and it brings what runs in workers

        call = codec.dumps((show_tasks, (), {}), "call_stack")
        asked = {address: self._ask_nowait("run", call, worker_names(address), True, False) for address in held}
        found: dict[str, dict[str, tuple[str, ...]]] = {}
        deadline = time.monotonic() + ANSWER_S
        for address, answer in asked.items():
            if answer.wait(max(0.0, deadline - time.monotonic())):
                found[address] = _stacks_in(answer)
            else:
                self._withdraw(answer)
        silent = {address: worker_names(address)[0] for address in held if address not in found}
        shown = shown_stacks(self, list(silent.values())) if silent else {}
        for address, name in silent.items():
            lines = tuple(shown.get(name, ()))
            found[address] = dict.fromkeys(held[address][: info[address]["nthreads"]], lines) if lines and address in info else {}
        if wanted is not None:
            found = {address: {key: stack for key, stack in there.items() if key in wanted} for address, there in found.items()}
        return {address: there for address, there in found.items() if there}

    def get_versions(self, check: bool = False, packages: Iterable[str] | None = None) -> dict[str, Any]:
        """Return the versions of Python and of packages in the scheduler, the workers and this process.

        Parameters
        ----------
        check : bool, default False
            Whether to raise ``ValueError`` when they are not the same everywhere.
        packages : list of str, optional
            More packages to tell of.

        Returns
        -------
        dict
            ``scheduler`` and ``client``, and ``workers`` by address; each has ``host`` and ``packages``, by name.
        """
        names = read("packages", packages or (), list, "a list of names")
        found = {
            "scheduler": self.run_on_scheduler(read_versions, names),
            "workers": self.run(read_versions, names),
            "client": read_versions(names),
        }
        if check:
            _check_versions(found)
        return found

    def get_worker_logs(self, n: int | None = None, workers: Any = None, nanny: bool = False) -> dict[str, tuple[tuple[str, str], ...]]:
        """Return what workers wrote, by address: ``(level, line)``, newest first.

        The level is INFO for standard output and ERROR for standard error. A cluster keeps its last 10,000 lines; workers that
        are threads write to your own streams, and have none.

        Parameters
        ----------
        n : int, optional
            How many lines of each; all by default.
        workers : list of str, optional
            Names or addresses; all by default.
        nanny : bool, default False
            Whether the lines are those of the workers' nannies.
        """
        there = self._ask("scheduler_info")["workers"]
        names = worker_names(workers)
        known = {worker["name"]: address for address, worker in there.items() if not names or worker["name"] in names}
        sources = {f"n{name[1:]}" if nanny else name: address for name, address in known.items()}
        lines: dict[str, list[tuple[str, str]]] = {address: [] for address in sources.values()}
        for _, source, stream, line in self._pages("logs"):
            if source in sources:
                lines[sources[source]].append((_LEVELS.get(stream, "INFO"), line))
        n = check_count("n", n, " of lines")
        return {address: tuple(written[::-1][:n]) for address, written in lines.items()}

    def get_scheduler_logs(self, n: int | None = None) -> tuple[tuple[str, str], ...]:
        """Return what happened to the cluster: ``(level, text)``, newest first, of its last 2,000 events.

        Parameters
        ----------
        n : int, optional
            How many; all by default.
        """
        rows = []
        for at, kind, fields, _ in self._pages("events"):
            facts = " ".join(f"{name}={value}" for name, value in fields.items() if value not in ("", None))
            clock = time.strftime("%H:%M:%S", time.localtime(at))
            rows.append(("WARNING" if kind in _BAD_EVENTS else "INFO", f"{clock} {kind} {facts}".rstrip()))
        return tuple(rows[::-1][: check_count("n", n, " of lines")])

    def _pages(self, what: str) -> Iterator[tuple[Any, ...]]:
        """Return what the cluster remembers, oldest first."""
        after, entries = 0, [()]
        while entries:
            after, _, entries = self._ask(what, after, False)
            yield from entries

    def restart_workers(self, workers: Any, timeout: float | str | None = None, raise_for_error: bool = True) -> dict[str, str]:
        """Replace the processes of some workers, all at once, and wait until they are back. As in Dask.

        Their running tasks run again elsewhere, and what only they hold is computed again.

        Parameters
        ----------
        workers : list of str
            Names or addresses.
        timeout : float or str, optional
            Seconds to wait; without end by default.
        raise_for_error : bool, default True
            Whether ``TimeoutError`` is raised when one is not back in time.

        Returns
        -------
        dict
            ``"OK"``, or ``"timed out"``, by what the worker was called here.

        Raises
        ------
        WorkerNotFoundError
            There is no such worker.
        ValueError
            The workers are threads of a process, which have no nanny.
        """
        given: list[Any] = [workers] if isinstance(workers, (str, int)) else read("workers", workers, list, "a list of names or addresses")
        names: dict[Any, str] = {asked: worker_names(asked)[0] for asked in given}
        rows = self._ask("processes")
        known = {row["name"] for row in rows if row["role"] == "worker"}
        if unknown := [name for name in names.values() if name not in known]:
            raise WorkerNotFoundError(f"no worker is called {', '.join(unknown)}; there are {', '.join(sorted(known)) or 'none'}")
        if names and not any(row["role"] == "nanny" for row in rows):
            raise ValueError("Restarting workers requires a nanny to be used. These workers are threads (processes=False).")
        left = self._ask("restart_workers", list(names.values()), False, RESTART_GRACE_S, parse_timeout(timeout))
        if left and raise_for_error:
            raise TimeoutError(f"{', '.join(left)} not back after {timeout}; get_worker_logs() may say why")
        return {asked: "timed out" if name in left else "OK" for asked, name in names.items()}


def _stacks_in(answer: Answer) -> dict[str, tuple[str, ...]]:
    """Return what a worker told of its tasks; nothing when it died instead."""
    (outcome,) = answer.value().values()
    ended = None if outcome is None else outcomes.loads_outcome(outcome)
    return ended.value if isinstance(ended, outcomes.Ok) else {}


def _check_versions(found: dict[str, Any]) -> None:
    """Raise ``ValueError`` when a package is not the same everywhere."""
    places = {"client": found["client"], "scheduler": found["scheduler"], **found["workers"]}
    differing = []
    for name in found["client"]["packages"]:
        versions = {place: there["packages"].get(name) for place, there in places.items()}
        if len(set(versions.values())) > 1:
            differing.append(f"{name} ({', '.join(f'{place}: {version}' for place, version in versions.items())})")
    if differing:
        raise ValueError(f"Mismatched versions found: {'; '.join(differing)}; start the cluster in the environment of the client")
