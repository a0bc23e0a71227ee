"""Profiles of tasks: what the samplers in the workers saw, made into one tree.

``Client`` is made of this among others. The samplers are a worker plugin
(``processes/sampling.py``), so that workers to come have one, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from localdask.api.futures import parse_timeout
from localdask.parameters import FILE, read

__all__ = ["Profiling"]


class Profiling:
    """What ``Client`` tells of where tasks spend their time."""

    _ask: Callable[..., Any]
    run: Callable[..., Any]
    register_plugin: Callable[..., Any]
    _is_sampling = False

    def profile(
        self,
        key: str | None = None,
        start: float | str | None = None,
        stop: float | str | None = None,
        workers: Any = None,
        merge_workers: bool = True,
        plot: bool | str = False,
        filename: str | os.PathLike[str] | None = None,
        server: bool = False,
        scheduler: bool = False,
    ) -> dict[str, Any]:
        """Return where tasks spent their time: a tree of calls, with how often each was seen. As in Dask.

        The first call has the workers look from then on, a hundred times a second; call it before what is to be seen.

        Parameters
        ----------
        key : str, optional
            The name of the tasks' function.
        start, stop : float or str, optional
            Times as of ``time.time()``, to the second, or text like ``"10 s"`` for so long ago.
        workers : list of str, optional
            Which workers; all by default.
        merge_workers : bool, default True
            False gives a tree for each worker, by its address.
        plot : bool or "save", default False
            Whether to draw the tree into a file.
        filename : path, optional
            That file, ``dask-profile.html`` by default; naming it is enough.
        server, scheduler : bool
            Only False: cluster and scheduler are in your own process, where a profiler of your own sees them.

        Returns
        -------
        dict
            ``count``, ``identifier``, ``description`` (``filename``, ``name``, ``line_number``) and ``children`` by identifier.
        """
        if server or scheduler:
            raise NotImplementedError(
                "profile(server=True) and profile(scheduler=True): the scheduler is in the cluster's own process; profile that"
            )
        from localdask.processes.sampling import read_samples  # noqa: PLC0415 - 4 ms, and only who asks for a profile needs it

        path = filename and read("filename", filename, os.fspath, FILE)
        self._begin_sampling()
        now = self._ask("record_tasks") if isinstance(start, str) or isinstance(stop, str) else 0.0
        since, until = (now - (parse_timeout(at, "start or stop") or 0.0) if isinstance(at, str) else at for at in (start, stop))
        found = self.run(read_samples, since, until, key, workers=workers, on_error="ignore")
        merged = tree_of(row for rows in found.values() for row in rows)
        if plot or filename:
            from localdask.api.report import profile_page  # noqa: PLC0415 - only who draws needs it

            with open(path or "dask-profile.html", "w", encoding="utf-8") as file:
                file.write(profile_page(merged))
        return merged if merge_workers else {address: tree_of(rows) for address, rows in found.items()}

    def _profile_since(self, start: float) -> dict[str, Any]:
        """Return the tree of what all workers saw since a time."""
        from localdask.processes.sampling import read_samples  # noqa: PLC0415 - 4 ms, and only who asks for a profile needs it

        found = self.run(read_samples, start, None, None, on_error="ignore")
        return tree_of(row for rows in found.values() for row in rows)

    def _begin_sampling(self) -> None:
        """Have the workers look at their tasks, from now on."""
        if not self._is_sampling:
            from localdask.processes.sampling import Sampling  # noqa: PLC0415 - 4 ms, and only who asks for a profile needs it

            self.register_plugin(Sampling())
            self._is_sampling = True


def tree_of(rows: Iterable[tuple[Iterable[Any], int]]) -> dict[str, Any]:
    """Return the tree of stacks that were seen so often."""
    root = _node("root", "", "", 0)
    for stack, count in rows:
        node = root
        node["count"] += count
        for filename, name, line in stack:
            identifier = f"{name};{filename};{line}"
            if identifier not in node["children"]:
                node["children"][identifier] = _node(identifier, filename, name, line)
            node = node["children"][identifier]
            node["count"] += count
    return root


def _node(identifier: str, filename: str, name: str, line: int) -> dict[str, Any]:
    description = {"filename": filename, "name": name, "line_number": line}
    return {"count": 0, "identifier": identifier, "description": description, "children": {}}
