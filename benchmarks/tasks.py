"""What the benchmarks run: functions that every system can import in its workers.

This imports next to nothing, because the first task of each worker does it within a start that is timed.
"""

from __future__ import annotations

import os
import time
from importlib import import_module
from typing import Any


def inc(number: int) -> int:
    return number + 1


def add(left: int, right: int) -> int:
    return left + right


def spin(_: int, cpu_s: float = 0.02) -> None:
    """Burn processor time, however long that takes on a busy machine."""
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


def pid_after(delay_s: float) -> int:
    """Stay long enough for the other workers to get a task too."""
    time.sleep(delay_s)
    return os.getpid()


def array_of(number: int, n_bytes: int = 100_000_000) -> Any:
    """Make an array whose elements are all this number."""
    import numpy as np

    return np.full(n_bytes // 8, float(number))


def total(array: Any) -> float:
    return float(array.sum())


def total_again(array: Any, _: int) -> float:
    return total(array)


def size(data: bytes) -> int:
    return len(data)


def small_bytes_of(number: int) -> bytes:
    """Make 10 KB that no other number has."""
    return number.to_bytes(8, "little") * 1_250


def small_array_of(number: int) -> Any:
    """Make an array of 10 KB."""
    return array_of(number, 10_000)


def frame_of(number: int, n_rows: int = 1_000_000) -> Any:
    """Make a data frame of 100 MB, half of it numbers and half of it strings."""
    import numpy as np

    numbers = {f"number{column}": np.full(n_rows, float(number + column)) for column in range(6)}
    strings = {f"string{column}": [f"column {column} row {row:07}" for row in range(n_rows)] for column in range(2)}
    return import_module("pandas").DataFrame({**numbers, **strings})


def negated(frame: Any) -> Any:
    """Return a data frame with another first column, and all others as they were."""
    return frame.assign(number0=-frame.number0)
