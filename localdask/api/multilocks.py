"""``MultiLock``: several locks at once, or some of several, without two holders that wait for each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from localdask.api.client import Client
from localdask.api.futures import parse_timeout
from localdask.api.semaphores import Leased, own_attempt, time_to_wait
from localdask.parameters import check_count, read
from localdask.system.keys import is_key

__all__ = ["MultiLock"]


class MultiLock(Leased):
    """Hold all of these locks, or ``num_locks`` of them, at once. Meanings as in Dask.

    Its names are apart from those of ``Lock``. Nobody overtakes another who waits for the same name,
    and nobody holds some while it waits for the rest, so they cannot block each other for ever.

    Parameters
    ----------
    names : list of str
        The locks' names.
    client : Client, optional
        Whom it asks; the current client by default.

    Raises
    ------
    ValueError
        There is no name, or one comes twice.

    Examples
    --------
    >>> def move(source, target):
    ...     with MultiLock([source, target]):
    ...         return f"{source} to {target}"
    """

    _release_word = "multilock_release"

    def __init__(self, names: Iterable[str], client: Client | None = None) -> None:
        self.names = read("names", names, list, "a list of different names")
        if isinstance(names, str) or not self.names or not all(map(is_key, self.names)) or len(set(self.names)) < len(self.names):
            raise ValueError(f"MultiLock({names!r}): give a list of different names")
        super().__init__("-".join(map(str, self.names)), client)

    def __reduce__(self) -> Any:
        return type(self), (self.names,)

    def _acquire_words(self, timeout: float | str | None, num_locks: int | None = None) -> tuple[Any, ...]:
        n = check_count("num_locks", num_locks, " of locks")
        n = len(self.names) if n is None else n
        if not 1 <= n <= len(self.names):
            raise ValueError(f"num_locks={n}: there are {len(self.names)} names")
        return "multilock_acquire", self.names, n, parse_timeout(timeout), own_attempt()

    def acquire(self, blocking: bool = True, timeout: float | str | None = None, num_locks: int | None = None) -> Any:
        """Wait for the locks; return whether they were acquired in time.

        Parameters
        ----------
        blocking : bool, default True
            Whether to wait at all.
        timeout : float or str, optional
            Seconds, or text as ``"500 ms"``. Waits without end by default.
        num_locks : int, optional
            How many of them are enough; all by default.

        Raises
        ------
        ValueError
            A timeout is given, and it is not to wait; or ``num_locks`` is not between 1 and the number of names.
        """
        return self._do(*self._acquire_words(time_to_wait(blocking, timeout), num_locks), then=self._acquired, undo=self._give_back)

    def release(self) -> Any:
        """Give the locks back; ``ValueError`` when this object holds none."""
        if not self._leases:
            raise ValueError("Lock is not acquired")
        return super().release()

    def locked(self) -> bool:
        """Return whether this object holds locks."""
        return bool(self._leases)
