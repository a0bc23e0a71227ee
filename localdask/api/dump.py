"""Writing all that is known of a cluster to a file: ``client.dump_cluster_state``, for who looks into it later or elsewhere.

``Client`` is made of this among others. Nothing here waits for a worker's tasks, so it also works on a cluster that
stands still.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from typing import Any

from localdask.errors import UsageError
from localdask.parameters import FILE, read
from localdask.system.versions import read_versions

__all__ = ["Dumping"]

_SUFFIX = ".yaml"


class Dumping:
    """What ``Client`` writes of its cluster."""

    _ask: Callable[..., Any]
    _pages: Callable[[str], Iterator[tuple[Any, ...]]]
    call_stack: Callable[..., dict[str, dict[str, tuple[str, ...]]]]
    get_scheduler_logs: Callable[..., tuple[tuple[str, str], ...]]
    get_worker_logs: Callable[..., dict[str, tuple[tuple[str, str], ...]]]
    run_on_scheduler: Callable[..., Any]

    def dump_cluster_state(
        self,
        filename: str | os.PathLike[str] = "dask-cluster-dump",
        write_from_scheduler: bool | None = None,
        exclude: Collection[str] = (),
        format: str = "yaml",
    ) -> None:
        """Write all that is known of the cluster to a file, for debugging: tasks, workers, what happened, where tasks are now.

        It holds no functions, arguments or results, but what workers wrote.

        Parameters
        ----------
        filename : path, default "dask-cluster-dump"
            Where to write it; ``.yaml`` is added when it is missing.
        write_from_scheduler : bool, optional
            Accepted for Dask's sake.
        exclude : list of str
            Names of what to leave out, wherever it stands: ``"logs"``, ``"transition_log"``, …
        format : {"yaml"}
            Dask's other format, msgpack, is not there.

        Examples
        --------
        >>> client.dump_cluster_state("stuck", exclude=["logs"])  # doctest: +SKIP
        >>> yaml.safe_load(open("stuck.yaml"))["scheduler"]["tasks"]  # doctest: +SKIP
        """
        path = os.fsdecode(read("filename", filename, os.fspath, FILE))
        if format != "yaml":
            raise UsageError(f"format={format!r}; it is 'yaml', which yaml.safe_load reads")
        if "://" in path:
            raise UsageError(f"filename={path!r}; it is a path on this machine")
        left_out = frozenset(read("exclude", [exclude] if isinstance(exclude, str) else exclude, list, "a list of names"))
        import yaml  # noqa: PLC0415 - 18 ms, and few write one

        dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        with open(path if path.endswith(_SUFFIX) else path + _SUFFIX, "w", encoding="utf-8") as file:
            yaml.dump(_without(self._known(), left_out), file, Dumper=dumper, sort_keys=False, allow_unicode=True)

    def _known(self) -> dict[str, Any]:
        info = self._ask("scheduler_info")
        state = self._ask("state")
        stacks, logs = self.call_stack(), self.get_worker_logs()
        metrics = {address: there["metrics"] for address, there in info.pop("workers").items()}
        workers = {
            address: {**there, "metrics": metrics.get(address), "call_stack": stacks.get(address, {}), "logs": logs.get(address, ())}
            for address, there in state.pop("workers").items()
        }
        return {
            "scheduler": {**info, **state, "logs": self.get_scheduler_logs()},
            "workers": workers,
            "versions": {"scheduler": self.run_on_scheduler(read_versions, []), "client": read_versions([])},
        }


def _without(told: Any, left_out: frozenset[str]) -> Any:
    """Return plain data without the entries of these names. Keys become texts and tuples lists, which any reader of yaml takes."""
    if isinstance(told, dict):
        return {str(name): _without(value, left_out) for name, value in told.items() if name not in left_out}
    if isinstance(told, (list, tuple)):
        return [_without(value, left_out) for value in told]
    return told
