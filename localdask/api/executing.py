"""What a client does to be an executor of ``concurrent.futures``: it makes one when it is asked for one.

``Client`` is made of this among others. The executor itself is in ``api/executor.py``, which
a program that wants none does not load.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localdask.api.executor import ClientExecutor


class Executing:
    """What ``Client`` does to be an executor."""

    def get_executor(self, pure: bool = False, **options: Any) -> ClientExecutor:
        """Return a ``concurrent.futures.Executor`` that runs calls on the cluster, for any library that takes one.

        Parameters
        ----------
        pure : bool, default False
            Whether equal calls are the same task, which runs once.
        workers, resources, allow_other_workers, retries, priority
            As for ``submit``; they hold for all its calls.

        Returns
        -------
        ClientExecutor
            An executor; ending it ends nothing of the cluster.

        Raises
        ------
        TypeError
            There is no such option.

        Examples
        --------
        >>> with client.get_executor(retries=2) as executor:  # doctest: +SKIP
        ...     print(sum(executor.map(abs, range(-3, 3), chunksize=2)))
        """
        unknown = sorted(set(options) - {"workers", "resources", "allow_other_workers", "retries", "priority"})
        if unknown:
            raise TypeError(f"unsupported arguments to ClientExecutor: {unknown}")
        from localdask.api.executor import ClientExecutor  # noqa: PLC0415 - 6 ms, and few clients are executors

        return ClientExecutor(self, pure=pure, options=options)
