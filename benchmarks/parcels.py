"""An array that weighs the processes around it: what the rows of memory send about."""

from __future__ import annotations

from typing import Any

from benchmarks.processes import memory_mb
from benchmarks.tasks import array_of, total


class Parcel:
    """An array that has all memory weighed while it is unpickled, which is when some systems hold it most often."""

    def __init__(self, array: Any, root: int) -> None:
        total(array)
        self.array = array
        self.root = root
        self.memory_mb = memory_mb(root)

    def __reduce__(self) -> tuple[Any, ...]:
        return Parcel, (self.array, self.root)


def parcel_of(n_bytes: int, root: int) -> Parcel:
    return Parcel(array_of(1, n_bytes), root)


def peak_mb(parcel: Parcel, _: int = 0) -> float:
    """Return the memory of a process and all below it, now or when the array was unpickled, whichever is more."""
    return max(parcel.memory_mb, memory_mb(parcel.root))
