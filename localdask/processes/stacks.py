"""What the tasks of a worker are doing now, read from the frames of its threads.

Called in a worker, beside its tasks: by ``client.call_stack``, whose function runs in a thread of its
own while the main thread is in a task, and by the sampler of ``processes/sampling.py``. Nothing is noted while tasks
run: frames are those above ``Runner.run``. A worker whose interpreter C code
holds cannot be asked so; it shows its stacks on a signal (``worker_process.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from localdask.processes.runner import Runner, runners_in_threads

__all__ = ["show_tasks", "task_frames"]

_RUN = Runner.run.__code__


def task_frames(worker: Any) -> Iterator[tuple[str, list[FrameType]]]:
    """Return the key of each task that a worker runs now, and its frames, outermost first."""
    runners = runners_in_threads()
    for thread, innermost in sys._current_frames().items():
        runner = runners.get(thread)
        task = runner.task if runner is not None and runner.worker is worker else None
        if task is None:
            continue
        frames: list[FrameType] = []
        frame: FrameType | None = innermost
        while frame is not None and frame.f_code is not _RUN:
            frames.append(frame)
            frame = frame.f_back
        if frame is not None:
            yield task.key, frames[::-1]


def show_tasks(dask_worker: Any) -> dict[str, tuple[str, ...]]:
    """Return the stack of each task that a worker runs now, by its key: a text a call, outermost first."""
    return {key: tuple(map(_text, frames)) for key, frames in task_frames(dask_worker)}


def _text(frame: FrameType) -> str:
    import linecache  # noqa: PLC0415 - 1 ms, and only who asks needs it

    code = frame.f_code
    line = linecache.getline(code.co_filename, frame.f_lineno, frame.f_globals).strip()
    name = getattr(code, "co_qualname", code.co_name)
    return f'  File "{code.co_filename}", line {frame.f_lineno}, in {name}' + (f"\n    {line}" if line else "")
