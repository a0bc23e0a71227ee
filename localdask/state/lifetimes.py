"""How long a worker lives: Dask's ``lifetime``, its stagger, whether another one follows, how many tasks it runs
and how much memory it takes at most.

Pure. The shell is ``processes/lifetimes.py``, which holds the timers; tasks are counted, and memory is
measured, in the worker (``processes/crew.py``); how a worker leaves is ``state/retirement.py``'s.
"""

from __future__ import annotations

from localdask.errors import UsageError
from localdask.records import record


@record(frozen=True)
class Lifetime:
    """What was asked for; ``duration_s`` None is for ever, ``n_tasks`` None as many as come, ``nbytes`` None without end."""

    duration_s: float | None = None
    stagger_s: float = 0.0
    is_followed: bool = False
    n_tasks: int | None = None
    nbytes: int | None = None


class Endings:
    """Which lives are ending already: one may be over by its time and by its tasks or memory, and ends once."""

    def __init__(self) -> None:
        self._lives: dict[str, int] = {}

    def began(self, name: str) -> None:
        """A worker of that name begins a life; after one that nobody followed its number may be the same again."""
        self._lives.pop(name, None)

    def is_first(self, name: str, life: int) -> bool:
        """Return whether this life of a worker was not ending yet, and note that it is."""
        is_first = self._lives.get(name) != life
        self._lives[name] = life
        return is_first


def check_lifetime(
    duration_s: float | None, stagger_s: float, is_followed: bool, n_tasks: int | None = None, nbytes: int | None = None
) -> Lifetime:
    """Return a lifetime that makes sense; raise ``UsageError`` for any other."""
    if n_tasks is not None and n_tasks < 1:
        raise UsageError(f"lifetime_tasks={n_tasks}; it is 1 or more, and None (the default) is as many as come")
    if nbytes is not None and nbytes < 1:
        raise UsageError(f"lifetime_memory={nbytes}; it is some memory, as '2 GB', and None (the default) is without end")
    if duration_s is None:
        if stagger_s or (is_followed and n_tasks is None and nbytes is None):
            raise UsageError("lifetime_stagger and lifetime_restart say how a lifetime ends: give lifetime too")
        return Lifetime(n_tasks=n_tasks, nbytes=nbytes)
    if not 0 < duration_s < float("inf"):
        raise UsageError(f"lifetime={duration_s:g} s; it is longer than nothing, and None (the default) is for ever")
    if not 0 <= stagger_s <= duration_s:
        raise UsageError(f"lifetime_stagger={stagger_s:g} s with a lifetime of {duration_s:g} s; it is from 0 to the lifetime")
    return Lifetime(duration_s, stagger_s, is_followed, n_tasks, nbytes)


def length_s(lifetime: Lifetime, draw: float) -> float | None:
    """Return how long one worker lives, by a number drawn from 0 to 1; None for ever."""
    if lifetime.duration_s is None:
        return None
    return lifetime.duration_s + (2 * draw - 1) * lifetime.stagger_s
