"""Looks at how much memory a worker has to itself, and has it spill, pauses it or ends it when that is too much.

Runs in the nanny, so that a worker is seen also while a task holds its interpreter, and an idle one is never
woken. One that has nothing to do is left alone, and tells of the next work (``WorkerStirred``). What is too much is
decided by ``state/memory.py``; what follows from a pause, by the scheduler; from a death, by the nanny.
"""

from __future__ import annotations

import mmap
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from localdask.errors import ExitWord
from localdask.messages import MemoryPressed, WorkerPaused, WorkerResumed
from localdask.sizing import format_bytes, read_oom_kills
from localdask.state.memory import BUSY_LOOK_S, Act, Pressure, Steps, is_kernels_kill
from localdask.system.board import note_unwatched, read_board
from localdask.system.child import Child
from localdask.system.loop import Loop, Timer
from localdask.system.memory import private_nbytes

__all__ = ["MemoryWatch"]


class MemoryWatch:
    """Watches one life of a worker at a time. ``say`` sends words to the cluster.

    Attributes
    ----------
    verdict : str
        Why the worker was ended, by us or by the kernel, for want of memory; empty when it was not.
    """

    def __init__(self, loop: Loop, steps: Steps, say: Callable[..., None]) -> None:
        self.verdict = ""
        self._kills: int | None = None
        self._steps = steps
        self._say = say
        self._loop = loop
        self._timer: Timer | None = None
        self._next: Callable[[], Any] | None = None

    def exit_word(self, status: int | None) -> ExitWord:
        """Return what the worker's unexpected end was; ``status`` is as from ``waitpid``."""
        is_kill = status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if not self.verdict and is_kill and is_kernels_kill(self._kills, read_oom_kills()):
            self.verdict = "killed by the kernel: out of memory"
        return ExitWord.OUT_OF_MEMORY if self.verdict else ExitWord.CRASHED

    def begin(self, life: int, child: Child, board: mmap.mmap, limit: int, tell: Callable[[Any], None]) -> None:
        """Watch this process from now on, if it has a limit. ``tell`` sends it words."""
        self.end()
        self.verdict = ""
        self._kills = read_oom_kills()
        pressure = Pressure(limit, self._steps)
        if pressure.is_watched:
            self._plan(partial(self._look, life, child, board, pressure, tell), pressure.look_s(bool(read_board(board))))

    def end(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._next = None

    def stirred(self) -> None:
        """Look soon again: the worker has something to do."""
        if self._timer is not None and self._next is not None:
            self._timer.cancel()
            self._plan(self._next, BUSY_LOOK_S)

    def _plan(self, look: Callable[[], Any], pause_s: float) -> None:
        self._next = look
        self._timer = self._loop.call_at(time.monotonic() + pause_s, look)

    def _look(self, life: int, child: Child, board: mmap.mmap, pressure: Pressure, tell: Callable[[Any], None]) -> None:
        self._timer = None
        nbytes, is_busy = private_nbytes(child.pid), bool(read_board(board))
        acts = pressure.look(nbytes, is_busy)
        note_unwatched(board, pressure.must_tell)
        if Act.END in acts:
            self._end_worker(child, nbytes, pressure)
            return
        if Act.PAUSE in acts:
            self._say(WorkerPaused(life, nbytes))
        elif Act.RESUME in acts:
            self._say(WorkerResumed(life, nbytes))
        if acts or pressure.must_trim:
            tell(MemoryPressed(pressure.is_paused, Act.SPILL in acts))
        self._plan(partial(self._look, life, child, board, pressure, tell), pressure.look_s(is_busy))

    def _end_worker(self, child: Child, nbytes: int, pressure: Pressure) -> None:
        """End the worker at once, as Dask does: what takes memory that fast takes the machine's next."""
        used, allowed, percent = format_bytes(nbytes), format_bytes(pressure.limit), 100 * (pressure.steps.terminate or 0)
        self.verdict = f"out of memory: it used {used}, more than {percent:g}% of its memory_limit of {allowed} (worker.memory.terminate)"
        child.kill_session()
