"""What happened to a cluster, in one line for a person."""

from __future__ import annotations

import pytest

from localdask.cli.options import Plan
from localdask.cli.reports import banner, event_line
from localdask.preloads.sources import Source
from localdask.processes.reloading import PreloadStatus
from localdask.sizing import Machine

GIB = 2**30


@pytest.mark.parametrize(
    ("kind", "fields", "line"),
    [
        (
            "worker-down",
            {"worker": "w3", "life": 1, "word": "crashed", "exit": "SIGKILL", "peak_rss": 4 * GIB},
            "w3 died: SIGKILL, peak 4.0 GiB",
        ),
        (
            "worker-down",
            {"worker": "w3", "word": "out_of_memory", "exit": "SIGKILL", "peak_rss": 0},
            "w3 died: SIGKILL (out of memory)",
        ),
        ("worker-down", {"worker": "w3", "word": "asked", "exit": "exit code 0", "peak_rss": 0}, ""),
        ("worker-joined", {"worker": "w3", "life": 1, "pid": 7}, ""),
        ("worker-joined", {"worker": "w3", "life": 2, "pid": 7}, "w3 replaced, pid 7"),
        ("nanny-down", {"worker": "w1", "word": "crashed"}, "nanny of w1 died (crashed)"),
        ("nanny-down", {"worker": "w1", "word": "asked"}, ""),
        ("nanny-ready", {"worker": "w1", "pid": 3}, ""),
        ("nanny-ended", {"worker": "w1"}, ""),
        ("boot-failed", {"worker": "w0", "detail": "x.py failed\nTraceback"}, "w0 did not start: x.py failed"),
        ("degraded", {"worker": "w0", "reason": "5 deaths in 30 s"}, "w0 degraded: 5 deaths in 30 s"),
        ("new-kind", {"worker": "w0", "number": 3}, "w0 new kind number=3"),
        ("segments", {"detail": "no room\x1b[2J"}, "segments: no room\\x1b[2J"),
    ],
)
def test_an_event_is_one_escaped_line_or_nothing(kind: str, fields: dict[str, object], line: str) -> None:
    assert event_line(kind, fields, coloured=False) == line
    assert event_line(kind, fields, coloured=True).count("\x1b") == (2 if line else 0)


class Shown:
    """A cluster, as far as the banner looks at it."""

    name = "here"

    def __init__(self, address: str, preloads: list[PreloadStatus], watching: str) -> None:
        self.scheduler_address, self.preloads, self.watching = address, preloads, watching


def test_the_banner_tells_what_there_is_what_runs_in_it_and_how_to_stop_it() -> None:
    code = b"def dask_setup(worker):\n    pass\nasync def dask_teardown(worker): pass\n"
    worker = Source("x.py", "file", "/x.py", "x", code, hash="its hash")
    nanny = Source("import os; os.nice(1)", "text", "<text>", "text", b"import os; os.nice(1)")
    seen = PreloadStatus("worker", "x.py", "/x.py", 1, "", {}, ("/lib/util.py",))
    plan = Plan({}, {"worker": [worker], "nanny": [nanny], "scheduler": []}, 4, 1, int(3.9 * GIB), Machine(4, 16 * GIB, 8, "cgroup"))
    assert banner(plan, Shown("unix:///run/here", [seen], "inotify+polling"), 0.038, coloured=False) == [
        "localdask 0.1 · 4 workers × 1 thread · 3.9 GiB each (4 of 8 cores, cgroup 16.0 GiB)      ready in 38 ms",
        "  preload  x.py                     dask_setup dask_teardown · helpers: util.py  watching (inotify+polling)",
        "  nanny    'import os; os.nice(1)'  no hooks                                     not watched",
        '  connect  Client("here")           Ctrl-C stops',
    ]
    plan = Plan({}, {}, 1, 2, 0, Machine(2, 16 * GIB, 2))
    assert banner(plan, Shown("local://here", [], "off"), 1.24, coloured=False) == [
        "localdask 0.1 · 1 worker × 2 threads · no memory limit (2 cores)      ready in 1.2 s",
        "  cluster  here  Ctrl-C stops",
    ]
