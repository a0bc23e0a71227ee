"""Which large results of a worker go from memory to disk, and when: Dask's ``target``, ``spill`` and ``max-spill``.

Pure. The shell is ``processes/spiller.py``, in the worker. Results are counted by the size of their pickles; small ones,
which have travelled to the scheduler, are not here. The one that was used longest ago goes first, and none that a
running task reads, because its memory would stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

#: A published result of so many bytes is read from there by its own worker too.
LET_GO_MIN = 16 << 20


def is_let_go(header_nbytes: int, lengths: Iterable[int]) -> bool:
    """Whether a worker keeps only the place of a result that it published, given its pickle's length and those of its buffers.

    It does when that halves the memory and costs little: reading it maps the buffers, and makes all else anew.
    """
    nbytes = sum(lengths)
    return nbytes >= LET_GO_MIN and 0 < 16 * header_nbytes <= nbytes


class Spilling:
    """What a worker's large results take, in bytes.

    Parameters
    ----------
    target : int or None
        How much they may take in memory; None for as much as they like, until the process is too large.
    disk_max : int or None
        How much they may take on disk; None for as much as there is.

    Attributes
    ----------
    live, on_disk : dict of str to int
        The results in memory, the one used longest ago first, and on disk.
    published : dict of str to payload
        Where others read those in memory that were published already.
    borrowed : dict of int to list
        What running tasks read of those in memory, by attempt.
    live_nbytes, disk_nbytes : int
        The sums.
    is_pressed : bool
        Whether the process is too large, so that all should go.
    is_full : bool
        Whether nothing more fits on disk, for now.
    """

    def __init__(self, target: int | None, disk_max: int | None) -> None:
        self.live: dict[str, int] = {}
        self.on_disk: dict[str, int] = {}
        self.published: dict[str, Any] = {}
        self.live_nbytes = 0
        self.disk_nbytes = 0
        self.is_pressed = False
        self.is_full = False
        self._target = target
        self._disk_max = disk_max
        self._stuck: set[str] = set()
        self.borrowed: dict[int, list[str]] = {}
        self._n_borrowers: dict[str, int] = {}

    def hold(self, key: str, nbytes: int) -> None:
        """A result came to be."""
        self.forget(key)
        self.live[key] = nbytes
        self.live_nbytes += nbytes

    def forget(self, key: str) -> None:
        """A result is gone, wherever it was; a place on disk is somebody else's to clear."""
        self.live_nbytes -= self.live.pop(key, 0)
        if key in self.on_disk:
            self.disk_nbytes -= self.on_disk.pop(key)
            self.is_full = False
        self.published.pop(key, None)
        self._stuck.discard(key)

    def borrow(self, attempt: int, keys: Iterable[str]) -> None:
        """A task starts that reads these, large or not."""
        live = self.live
        read = [key for key in keys if key in live]
        for key in read:
            live[key] = live.pop(key)  # at the end: used last
            self._n_borrowers[key] = self._n_borrowers.get(key, 0) + 1
        if read:
            self.borrowed[attempt] = read

    def give_back(self, attempt: int) -> bool:
        """A task ended; return whether it had read any."""
        read = self.borrowed.pop(attempt, None)
        for key in read or ():
            self._n_borrowers[key] -= 1
            if not self._n_borrowers[key]:
                del self._n_borrowers[key]
        return read is not None

    def next(self) -> str | None:
        """Return which result should go to disk now, if any should and one may."""
        if self.is_full or not (self.is_pressed or (self._target is not None and self.live_nbytes > self._target)):
            return None
        for key in self.live:
            if key not in self._n_borrowers and key not in self._stuck:
                return key
        return None

    @property
    def is_behind(self) -> bool:
        """Whether results take more than they may and one can go: nothing new is to be made meanwhile."""
        return self._target is not None and self.live_nbytes > self._target and self.next() is not None

    def may_write(self, key: str, nbytes: int) -> bool:
        """Whether a result, whose size is known exactly now, fits on disk; if not, nothing goes there until there is room."""
        if self._disk_max is not None and self.disk_nbytes + nbytes > self._disk_max:
            self.is_full = True
        return not self.is_full

    def moved(self, key: str, nbytes: int) -> None:
        """A result went, and takes so much on disk: nothing when it had been published already."""
        self.live_nbytes -= self.live.pop(key, 0)
        self.published.pop(key, None)
        self.on_disk[key] = nbytes
        self.disk_nbytes += nbytes

    def stick(self, key: str) -> None:
        """A result cannot go."""
        if key in self.live:
            self._stuck.add(key)
