"""``Semaphore`` and ``Lock``: no more than so many at once, across all tasks and clients of a cluster.

A lease belongs to the client that acquired it and, in a task, to the attempt that runs it: when
either ends the lease is free again at once, where Dask waits for it to time out.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, TypeVar

from localdask.api.asking import Answer
from localdask.api.asynchronous import Done, in_loop
from localdask.api.client import Client
from localdask.api.coordination import Coordinated, value_of
from localdask.api.futures import parse_timeout
from localdask.api.handing import tell
from localdask.parameters import check_count
from localdask.processes.runner import current_runner

__all__ = ["Leased", "Lock", "Semaphore"]

L = TypeVar("L", bound="Leased")


class Leased(Coordinated):
    """A handle that holds leases."""

    #: The question that gives a lease back.
    _release_word = ""

    def __init__(self, name: str | None, client: Client | None) -> None:
        super().__init__(name, client)
        self._leases: list[tuple[Client, int, int]] = []

    def _acquire_words(self, timeout: float | str | None) -> tuple[Any, ...]:
        """Return what is asked to acquire one lease."""
        raise NotImplementedError

    def _acquired(self, client: Client, answer: Answer) -> bool:
        if answer.value():
            self._leases.append((client, answer.request, own_attempt()))
            return True
        return False

    def _give_back(self, client: Client, request: int) -> None:
        self._leases = [lease for lease in self._leases if lease[:2] != (client, request)]
        tell(client, self._release_word, request)

    def release(self) -> Any:
        """Give one lease back.

        Raises
        ------
        RuntimeError
            This object holds none.
        """
        if not self._leases:
            raise RuntimeError(f"Released too often: this {type(self).__name__} {self.name!r} holds no lease")
        attempt = own_attempt()
        own = [lease for lease in self._leases if lease[2] == attempt] or self._leases
        client, request, _ = own[-1]
        self._give_back(client, request)
        return Done(True) if client.asynchronous and in_loop() else True

    def __enter__(self: L) -> L:
        if in_loop() and self.client.asynchronous:
            raise TypeError(f"write `async with` before this {type(self).__name__}: its client is asynchronous")
        self._do(*self._acquire_words(None), then=self._acquired, undo=self._give_back)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    async def __aenter__(self: L) -> L:
        await self._do_soon(*self._acquire_words(None), then=self._acquired, undo=self._give_back)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def own_attempt() -> int:
    """Return the number of the attempt at a task that runs in this thread; 0 when there is none."""
    runner = current_runner()
    return 0 if runner is None or runner.task is None else runner.task.attempt


def time_to_wait(blocking: bool, timeout: float | str | None) -> float | str | None:
    """Return what a lock's ``acquire`` waits for: the words of ``threading.Lock``, as one time."""
    if not blocking and timeout is not None:
        raise ValueError("can't specify a timeout for a non-blocking call")
    return timeout if blocking else 0


class Semaphore(Leased):
    """Let no more than ``max_leases`` tasks and clients hold a lease at once. Meanings as in Dask.

    Who asks first is served first. A lease ends with ``release``, and with the task or the client that
    acquired it. Waiting in a task gives its slot to other tasks.

    Parameters
    ----------
    max_leases : int, default 1
        How many may hold one.
    name : str, optional
        What all who share it call it; made up by default, and then it is shared by being sent along.
    client : Client, optional
        Whom it asks; the current client by default.
    register, scheduler_rpc, loop : optional
        Accepted for Dask's sake.

    Raises
    ------
    ValueError
        ``max_leases`` is less than 1, or, when it is first used, not that of the semaphore of this name.

    Examples
    --------
    >>> semaphore = Semaphore(max_leases=2, name="database")  # doctest: +SKIP
    >>> def query(i):
    ...     with semaphore:  # at most two at once
    ...         return i
    """

    _release_word = "semaphore_release"

    def __init__(
        self,
        max_leases: int = 1,
        name: str | None = None,
        client: Client | None = None,
        *,
        register: Any = True,
        scheduler_rpc: Any = None,
        loop: Any = None,
    ) -> None:
        if (check_count("max_leases", max_leases, " of those that may hold it at once") or 0) < 1:
            raise ValueError(f"Semaphore(max_leases={max_leases}): at least one must be able to hold it")
        super().__init__(name, client)
        self.max_leases = max_leases
        self._is_new = True

    def __reduce__(self) -> Any:
        return _semaphore_again, (type(self), self.name, self.max_leases, self._is_new)

    def _known_words(self) -> tuple[Any, ...]:
        return self.name, self.max_leases, self._is_new

    def _acquire_words(self, timeout: float | str | None) -> tuple[Any, ...]:
        return "semaphore_acquire", *self._known_words(), parse_timeout(timeout), own_attempt()

    def _acquired(self, client: Client, answer: Answer) -> bool:
        is_acquired = super()._acquired(client, answer)
        self._is_new = False
        return is_acquired

    def acquire(self, timeout: float | str | None = None) -> Any:
        """Wait for a lease; return whether there was one in time.

        Parameters
        ----------
        timeout : float or str, optional
            Seconds, or text as ``"500 ms"``. Waits without end by default; with 0 not at all.

        Raises
        ------
        RuntimeError
            The semaphore is closed.
        """
        return self._do(*self._acquire_words(timeout), then=self._acquired, undo=self._give_back)

    def get_value(self) -> Any:
        """Return how many leases are held now, by whomever."""
        return self._do("semaphore_value", *self._known_words(), then=value_of)

    def close(self) -> Any:
        """Forget the semaphore everywhere: its leases end, and who waits for one, or asks later, is told by ``RuntimeError``."""
        self._is_new = False
        self._leases.clear()
        return self._do("semaphore_close", self.name, then=value_of)


def _semaphore_again(kind: type[Semaphore], name: str, max_leases: int, is_new: bool) -> Semaphore:
    """Return a handle of a semaphore that was pickled."""
    semaphore = kind.__new__(kind)
    Semaphore.__init__(semaphore, max_leases, name)
    semaphore._is_new = is_new
    return semaphore


class Lock(Semaphore):
    """Let one task or client at a time hold it: a ``Semaphore`` of one lease. Meanings as in Dask.

    Parameters
    ----------
    name : str, optional
        What all who share it call it; made up by default, and then it is shared by being sent along.
    client : Client, optional
        Whom it asks; the current client by default.
    scheduler_rpc, loop : optional
        Accepted for Dask's sake.

    Examples
    --------
    >>> def append(line):
    ...     with Lock("results.txt"), open("results.txt", "a") as file:
    ...         file.write(line)
    """

    def __init__(self, name: str | None = None, client: Client | None = None, *, scheduler_rpc: Any = None, loop: Any = None) -> None:
        super().__init__(1, name, client)

    def acquire(self, blocking: bool = True, timeout: float | str | None = None) -> Any:  # type: ignore[override]
        """Wait for the lock; return whether it was acquired in time.

        Parameters
        ----------
        blocking : bool, default True
            Whether to wait at all.
        timeout : float or str, optional
            Seconds, or text as ``"500 ms"``. Waits without end by default.

        Raises
        ------
        ValueError
            A timeout is given, and it is not to wait.
        """
        return super().acquire(time_to_wait(blocking, timeout))

    def locked(self) -> Any:
        """Return whether anybody holds it."""
        return self._do("semaphore_value", *self._known_words(), then=_is_held)


def _is_held(client: Client, answer: Answer) -> bool:
    return bool(answer.value())
