"""When a nanny looks at its worker's memory, and what it says of its death, by the kernel's own counts."""

from __future__ import annotations

import mmap
import os
import signal
import time
from typing import Any

import pytest

from localdask.errors import ExitWord
from localdask.processes import memory_watch
from localdask.processes.memory_watch import MemoryWatch
from localdask.state.memory import BUSY_LOOK_S, IDLE_LOOK_S, Steps
from localdask.system.board import SLOTS, map_board, open_board
from localdask.system.child import Child


@pytest.mark.parametrize(
    ("kills", "status", "word"),
    [
        ([3, 4], signal.SIGKILL, ExitWord.OUT_OF_MEMORY),
        ([3, 3], signal.SIGKILL, ExitWord.CRASHED),
        ([3, 4], signal.SIGSEGV, ExitWord.CRASHED),
        ([3, 4], 1 << 8, ExitWord.CRASHED),
        ([3, 4], None, ExitWord.CRASHED),
        ([None, 1], signal.SIGKILL, ExitWord.CRASHED),
        ([None, None], signal.SIGKILL, ExitWord.CRASHED),
    ],
)
def test_only_a_kill_that_the_kernel_counted_is_out_of_memory(
    monkeypatch: pytest.MonkeyPatch, kills: list[int | None], status: int | None, word: ExitWord
) -> None:
    counts = iter(kills)
    monkeypatch.setattr(memory_watch, "read_oom_kills", lambda: next(counts))
    nothing: Any = None
    watch = MemoryWatch(nothing, Steps(), nothing)
    watch.begin(1, nothing, mmap.mmap(-1, 1), 0, nothing)
    assert watch.exit_word(status) is word
    assert watch.verdict == ("killed by the kernel: out of memory" if word is ExitWord.OUT_OF_MEMORY else "")


class FakeLoop:
    """A loop whose time is what was waited for last."""

    def __init__(self) -> None:
        self.planned: list[tuple[float, Any]] = []

    def call_at(self, at: float, call: Any) -> FakeLoop:
        self.planned.append((at - time.monotonic(), call))
        return self

    def cancel(self) -> None:
        self.planned.pop()

    def look(self) -> float:
        """Let the planned look happen, and return in which time the next one is."""
        _, call = self.planned.pop()
        call()
        return self.planned[-1][0]


def test_a_worker_that_does_nothing_is_left_alone_until_it_tells_of_work() -> None:
    loop: Any = FakeLoop()
    watch = MemoryWatch(loop, Steps(terminate=0.95), lambda *words: None)
    board = map_board(open_board())
    child = Child(os.getpid())
    watch.begin(1, child, board, 1 << 60, lambda word: None)
    unwatched = memoryview(board).cast("Q")[SLOTS:]
    pauses = [(loop.look() > IDLE_LOOK_S, bool(unwatched[0])) for _ in range(4)]
    assert pauses == [(False, False), (False, True), (True, True), (True, True)]
    watch.stirred()
    assert len(loop.planned) == 1 and loop.planned[0][0] <= BUSY_LOOK_S
    memoryview(board).cast("Q")[0] = 7
    assert loop.look() <= BUSY_LOOK_S and not unwatched[0]
    watch.end()
    watch.stirred()
    assert not loop.planned
    child.close()
