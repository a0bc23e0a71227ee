"""What the benchmarks run: functions that every system can import in its workers."""

from __future__ import annotations

import os
import time
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
