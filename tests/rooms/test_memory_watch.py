"""What a nanny says of the death of its worker, by the kernel's own counts."""

from __future__ import annotations

import mmap
import signal
from typing import Any

import pytest

from localdask.errors import ExitWord
from localdask.processes import memory_watch
from localdask.processes.memory_watch import MemoryWatch
from localdask.state.memory import Steps


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
