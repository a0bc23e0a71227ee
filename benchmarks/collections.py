"""What the rows about Dask compute: an array, a data frame and many small calls, each built anew at every call."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from benchmarks.tasks import inc


def array() -> float:
    """Add a random array of 4,000² in chunks of 500² to its transpose, and sum."""
    x = import_module("dask.array").random.random((4_000, 4_000), chunks=500)
    return float((x + x.T).sum().compute())


def frame() -> Callable[[], Any]:
    """Return what groups a million rows in 20 parts, and takes means."""
    random = import_module("numpy").random.default_rng(0)
    rows = import_module("pandas").DataFrame({"a": random.integers(0, 100, 1_000_000), "b": random.random(1_000_000)})
    parts = import_module("dask.dataframe").from_pandas(rows, npartitions=20)
    return lambda: parts.groupby("a").b.mean().compute()


def calls() -> int:
    """Sum 5,000 delayed calls of ``inc``."""
    delayed = import_module("dask").delayed
    return int(delayed(sum)([delayed(inc)(i) for i in range(5_000)]).compute())
