"""A cluster that grows and shrinks with its work: looks at intervals, and asks the cluster to scale.

Made by ``LocalCluster.adapt``. Looks happen on the scheduler's I/O thread; what follows from
one is decided by ``state/adaptive.py``.
"""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

from localdask.errors import UsageError
from localdask.parameters import read
from localdask.sizing import BYTES, SECONDS, parse_bytes, parse_duration
from localdask.state.adaptive import AdaptiveState, recommend, weigh
from localdask.system.loop import Timer

OPTIONS = (
    "minimum",
    "maximum",
    "minimum_cores",
    "maximum_cores",
    "minimum_memory",
    "maximum_memory",
    "interval",
    "target_duration",
    "wait_count",
)
#: How many changes ``log`` remembers.
LOG_LENGTH_MAX = 1000


class Adaptive:
    """What ``LocalCluster.adapt`` returns. Meanings as in Dask.

    Attributes
    ----------
    minimum, maximum : float
        The bounds in force, in workers.
    log : deque of (float, int, int)
        Each change: when (``time.time()``), from how many workers, to how many.
    """

    def __init__(self, cluster: Any, options: dict[str, Any], before: Adaptive | None = None, *, nthreads: int, n_cpus: int) -> None:
        unknown = [name for name in options if name not in OPTIONS]
        if unknown:
            raise UsageError(f"adapt({unknown[0]}=…): there is no such option; there are {', '.join(OPTIONS)}")
        if before is not None:
            options = {**before.options, **options}
        self.cluster = cluster
        self.options: dict[str, Any] = options
        self.log: deque[tuple[float, int, int]] = deque(maxlen=LOG_LENGTH_MAX)
        self._interval_s = _seconds("interval", options.get("interval", 1.0))
        self._state = AdaptiveState(
            *_bounds(options, nthreads, cluster.memory_limit, n_cpus),
            target_s=_seconds("target_duration", options.get("target_duration", 5.0)),
            wait_count=read("wait_count", options.get("wait_count", 3), int, "a whole number of looks"),
        )
        self._nthreads = nthreads
        self._timer: Timer | None = None
        self._is_stopped = False
        if before is not None:
            before.stop()
        cluster.scheduler.loop.call_soon_threadsafe(self._look)

    def __repr__(self) -> str:
        state = "stopped" if self._is_stopped else "adapting"
        return f"<Adaptive {self.cluster.name}: {state}, {self.minimum:g} to {self.maximum:g} workers>"

    @property
    def minimum(self) -> float:
        return self._state.minimum

    @property
    def maximum(self) -> float:
        return self._state.maximum

    def stop(self) -> None:
        """Leave the number of workers as it is from now on. Idempotent."""
        self._is_stopped = True
        self.cluster.scheduler.loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        if self._is_stopped:
            return
        scheduler = self.cluster.scheduler
        load = scheduler.decide(lambda state: weigh(state, self._nthreads))
        n_workers = self.cluster.n_asked
        wanted = recommend(self._state, load, n_workers)
        if wanted is not None:
            self.log.append((time.time(), n_workers, wanted))
            self.cluster.scale(wanted)
        self._timer = scheduler.loop.call_at(time.monotonic() + self._interval_s, self._look)


def _seconds(name: str, value: Any) -> float:
    seconds = read(name, value, parse_duration, SECONDS)
    if seconds is None or seconds <= 0:
        raise UsageError(f"adapt({name}={value!r}): give a time above 0, like '1s'")
    return seconds


def _bounds(options: dict[str, Any], nthreads: int, memory_limit: int, n_cpus: int) -> tuple[float, float]:
    """Return the least and the most workers that the options mean."""
    for name in ("minimum_memory", "maximum_memory"):
        if options.get(name) is not None and not memory_limit:
            raise UsageError(f"adapt({name}=…) counts workers by their memory limit, and these have none; give memory_limit to the cluster")
    lower = [read("minimum", options.get("minimum") or 0, float, "a number of workers")]
    upper = [] if options.get("maximum") is None else [read("maximum", options["maximum"], float, "a number of workers")]
    for suffix, make, wanted, size in (("cores", float, "a number of threads", nthreads), ("memory", parse_bytes, BYTES, memory_limit)):
        least, most = options.get(f"minimum_{suffix}"), options.get(f"maximum_{suffix}")
        lower += [] if least is None else [math.ceil(read(f"minimum_{suffix}", least, make, wanted) / size)]
        upper += [] if most is None else [read(f"maximum_{suffix}", most, make, wanted) // size]
    minimum = max(lower)
    maximum = min(upper, default=max(minimum, n_cpus // nthreads, 1))
    if not 0 <= minimum <= maximum:
        raise UsageError(f"adapt(): {minimum:g} to {maximum:g} workers is no range; minimum is 0 or more, and at most maximum")
    return minimum, maximum
