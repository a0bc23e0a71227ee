"""``Event``: a flag that tasks and clients of a cluster set, and wait for."""

from __future__ import annotations

from typing import Any

from localdask.api.coordination import Coordinated, value_of
from localdask.api.futures import parse_timeout

__all__ = ["Event"]


class Event(Coordinated):
    """A flag that tasks and clients set, clear and wait for, as ``threading.Event``. Meanings as in Dask.

    Waiting in a task gives its slot to other tasks.

    Parameters
    ----------
    name : str, optional
        What all who share it call it; made up by default, and then it is shared by being sent along.
    client : Client, optional
        Whom it asks; the current client by default.

    Examples
    --------
    >>> def follow():
    ...     return Event("go").wait(timeout=60)
    >>> future = client.submit(follow)  # doctest: +SKIP
    >>> Event("go").set()  # doctest: +SKIP
    """

    def set(self) -> Any:
        """Set it: all who wait go on, and who waits later does not wait."""
        return self._do("event_set", self.name, then=value_of)

    def clear(self) -> Any:
        """Take it back, so that who waits from now on waits for the next ``set``."""
        return self._do("event_clear", self.name, then=value_of)

    def is_set(self) -> Any:
        """Return whether it is set."""
        return self._do("event_is_set", self.name, then=value_of)

    def wait(self, timeout: float | str | None = None) -> Any:
        """Wait until it is set; return whether it was in time.

        Parameters
        ----------
        timeout : float or str, optional
            Seconds, or text as ``"500 ms"``. Waits without end by default.
        """
        return self._do("event_wait", self.name, parse_timeout(timeout), then=value_of)
