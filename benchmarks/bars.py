"""In which unit each value is told, and the bars that localdask's is held to.

A bar is a ratio to a peer that was measured in the same run, because absolute times
say more about the machine; bars in absolute figures are for processor time while idle,
which hardly depends on it, and for reloads, which are promised in milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Bar:
    """localdask's value over each peer's: at most this (for rates: at least). ``absolute`` bounds the value itself."""

    unit: str
    ratios: dict[str, float] = field(default_factory=dict)
    absolute: float | None = None

    @property
    def is_rate(self) -> bool:
        return self.unit in ("tasks/s", "of ideal")


#: The value's name → its unit and bars. Peers that offer no dependent tasks run a chain or tree as their user would.
#: Pool's round trip is shown and not judged: it varies fourfold from run to run with where the kernel puts its three helper threads.
BARS: dict[str, Bar] = {
    "import": Bar("ms", {"futures": 1.1}),
    "start2_cold": Bar("ms", {"futures": 10, "loky": 0.7, "distributed": 0.115, "ray": 0.02}),
    "start2_warm": Bar("ms", {"futures": 2.5}),
    "start8_cold": Bar("ms", {"futures": 5.3, "loky": 0.26, "distributed": 0.023, "ray": 0.018}),
    "start8_warm": Bar("ms", {"futures": 2.0}),
    "program": Bar("ms", {"futures": 3.6, "loky": 0.52, "distributed": 0.16, "ray": 0.03}),
    "close": Bar("ms", {"futures": 4.0, "loky": 0.95, "distributed": 0.105, "ray": 0.014}),
    "latency_p50": Bar("µs", {"futures": 0.6, "loky": 0.45, "distributed": 0.0085, "ray": 0.07}),
    "latency_p99": Bar("µs", {"futures": 0.72, "loky": 0.64, "distributed": 0.013, "ray": 0.065}),
    "socket_p50": Bar("µs"),
    "socket_p99": Bar("µs"),
    "socket_map": Bar("tasks/s"),
    "map": Bar("tasks/s", {"futures": 6.0, "pool": 1.3, "loky": 7.2, "distributed": 170, "ray": 49}),
    "submit": Bar("tasks/s", {"futures": 3.8, "pool": 1.7, "loky": 6.9, "distributed": 125, "ray": 35}),
    "chain": Bar("µs", {"futures": 0.2, "distributed": 0.005, "ray": 0.024}),
    "tree": Bar("s", {"futures": 0.48, "distributed": 0.015, "ray": 0.043}),
    "cpu": Bar("of ideal", {"futures": 1.07, "distributed": 1.31, "ray": 1.14}),
    "memory2": Bar("MB", {"futures": 2.65, "loky": 0.74, "distributed": 0.28, "ray": 0.07}),
    "memory8": Bar("MB", {"futures": 2.75, "loky": 0.59, "distributed": 0.185, "ray": 0.079}),
    "idle": Bar("s", absolute=0.005),
    "replace": Bar("ms", {"futures": 4.0, "distributed": 0.037, "ray": 0.02}),
    "reload1": Bar("ms", {"distributed": 0.06, "uvicorn": 0.1}),
    "reload4": Bar("ms", {"distributed": 0.02}),
    "reload8": Bar("ms", {"distributed": 0.01}, absolute=30),
    "reload32": Bar("ms", {"distributed": 0.01}),
    "data_argument": Bar("ms", {"futures": 0.11, "pool": 0.17, "loky": 0.15, "distributed": 0.23, "ray": 0.74}),
    "data_result": Bar("ms", {"futures": 0.085, "pool": 0.11, "loky": 0.115, "distributed": 0.37, "ray": 0.89}),
    "data_shared": Bar("ms", {"distributed": 0.33, "ray": 0.53}),
    "memory_argument": Bar("MB", {"futures": 0.35, "pool": 0.55, "loky": 0.48, "joblib": 0.95, "distributed": 0.52, "ray": 1.05}),
    "memory_result": Bar("MB", {"futures": 0.55, "pool": 0.55, "loky": 0.53, "joblib": 0.35, "distributed": 0.37, "ray": 1.05}),
    "memory_shared": Bar("MB", {"joblib": 1.05, "distributed": 0.52, "ray": 1.05}),
    "small_bytes_argument": Bar("tasks/s", {"futures": 2.0, "pool": 1.0, "loky": 2.5, "distributed": 25}),
    "small_bytes_result": Bar("tasks/s", {"futures": 2.0, "pool": 1.0, "loky": 2.5, "distributed": 25}),
    "small_array_argument": Bar("tasks/s", {"futures": 2.0, "pool": 1.0, "loky": 2.5, "distributed": 25}),
    "small_array_result": Bar("tasks/s", {"futures": 2.0, "pool": 1.0, "loky": 2.5, "distributed": 25}),
    "frame": Bar("ms", {"futures": 0.1, "pool": 0.135, "loky": 0.135, "distributed": 0.28, "ray": 0.8}),
    "executor_p50": Bar("µs", {"futures": 1.0}),
    "executor_map": Bar("tasks/s", {"futures": 3.0}),
    "dask_array": Bar("s", {"threads": 1.9, "distributed": 0.22}),
    "dask_frame": Bar("s", {"threads": 0.9, "distributed": 0.29}),
    "dask_delayed": Bar("s", {"sync": 1.1, "distributed": 0.22}),
}
