"""What a worker has been told to do and what it holds, decided without doing.

The worker's threads ask it which task to run next and tell it what came of it. It knows
no pipe, thread, clock or pickle, and its caller holds one lock around every call. What
the scheduler must be told is appended to ``words``, in order, and sent by the caller.

A task goes *ready → running → finished or failed*. One whose input is still being made
by another task of this worker is *parked* under that input's key on the way, and becomes
ready again, before anything that came later, as soon as the input exists. When nobody
here will make the input any more, the task ends with ``TaskMissing``, and so do those
that are parked for its own value. What is ready is looked at only when its turn comes,
so that a task without inputs costs nothing here.

Values that leave are put into ``dropped`` and let go by the caller: a value's
``__del__`` may do anything, so it must not run under the lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, TypeAlias

from localdask.messages import DefineFunction, RunTask, TakenBack, TaskMissing
from localdask.records import record
from localdask.state.spilling import Spilling

__all__ = ["Intake", "Job", "KnownFunction", "Spilled"]


@record
class Spilled:
    """What is left here of a result that went to disk, or of a large one that was published: its place, a ``segments.SegmentPayload``."""

    payload: Any


class KnownFunction:
    """A function that tasks name: its pickle (a large one until it is first called), and how long it usually takes.

    Attributes
    ----------
    call : callable or None
        The function itself, once loaded.
    usual_s : float
        How long it is expected to take: as long as its last run did, infinite while that is unknown.
    is_untidy : bool
        Whether a run of it left the process changed (``surroundings``), so that each is followed by a look.
    """

    __slots__ = ("call", "function_id", "is_untidy", "pickled", "usual_s")

    def __init__(self, function_id: str, pickled: bytes) -> None:
        self.function_id = function_id
        self.pickled = pickled
        self.call: Callable[..., Any] | None = None
        self.usual_s = inf
        self.is_untidy = False


#: A task, its function (None when it was never defined), and its inputs that this worker holds (None when it has none).
Job: TypeAlias = "tuple[RunTask, KnownFunction | None, dict[str, Any] | None]"


class Intake:
    """The tasks and values of one worker.

    Attributes
    ----------
    data : dict of str to object
        The values that this worker holds, by key.
    words : list of message
        What the scheduler is to be told, oldest first.
    dropped : list of object
        Values that left, for the caller to let go outside its lock.
    is_closed : bool
        Whether no further task starts.
    """

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.words: list[Any] = []
        self.dropped: list[Any] = []
        self.is_closed = False
        #: Is given each task that ends here without a value.
        self.on_fail: Callable[[RunTask], Any] | None = None
        #: What large results take, where they may be spilled; and who is called when there is more of them, or less in use.
        self.spilling: Spilling | None = None
        self.on_held: Callable[[], None] = lambda: None
        self._functions: dict[str, KnownFunction] = {}
        self._ready: deque[Job] = deque()
        self._parked: dict[str, list[Job]] = {}
        #: Who will make a key: the last attempt at it that has not ended.
        self._makers: dict[str, int] = {}

    # ── coming in ────────────────────────────────────────────────────────────

    def define(self, word: DefineFunction) -> None:
        """Make a function known."""
        self._functions[word.function_id] = KnownFunction(word.function_id, word.pickled)

    def forget_functions(self, function_ids: Iterable[str]) -> None:
        """Drop functions; tasks that came earlier keep theirs."""
        for function_id in function_ids:
            self._functions.pop(function_id, None)

    def reload_functions(self) -> None:
        """Forget what functions were loaded; those whose pickle was too large to be kept stay."""
        for function in self._functions.values():
            if function.pickled:
                function.call = None

    def add(self, task: RunTask) -> None:
        """Take a task in."""
        self._makers[task.key] = task.attempt
        self._ready.append((task, self._functions.get(task.function_id), None))

    def take_back(self, attempts: Iterable[int]) -> None:
        """Give back those attempts that have not started, and say which they were."""
        asked = set(attempts)
        taken = [task for task, *_ in self._ready if task.attempt in asked]
        if taken:
            self._ready = deque(job for job in self._ready if job[0].attempt not in asked)
        for key, jobs in list(self._parked.items()):
            kept = [job for job in jobs if job[0].attempt not in asked]
            if len(kept) < len(jobs):
                taken += [task for task, *_ in jobs if task.attempt in asked]
                self._parked[key] = kept
                if not kept:
                    del self._parked[key]
        self.words.append(TakenBack(tuple(task.attempt for task in taken)))
        for task in taken:
            self.fail(task)

    def forget(self, keys: Sequence[str]) -> None:
        """Drop values."""
        if self.spilling is not None:
            for key in keys:
                self.spilling.forget(key)
        self.dropped += [self.data.pop(key) for key in keys if key in self.data]

    def let_go(self, key: str, value: Any, payload: Any, disk_nbytes: int = 0) -> bool:
        """Keep only the place of a value that lies in a file now; return False if the key is not that value any more."""
        if self.data.get(key) is not value:
            return False
        self.data[key] = Spilled(payload)
        if self.spilling is not None:
            self.spilling.moved(key, disk_nbytes)
        return True

    def take_dropped(self) -> list[Any]:
        """Return what was dropped since the last call."""
        dropped, self.dropped = self.dropped, []
        return dropped

    def take_words(self) -> list[Any]:
        """Return the words since the last call."""
        words, self.words = self.words, []
        return words

    # ── going through ────────────────────────────────────────────────────────

    @property
    def n_ready(self) -> int:
        """How many tasks may be tried now."""
        return 0 if self.is_closed or self.is_behind else len(self._ready)

    @property
    def is_behind(self) -> bool:
        """Whether results are to be moved to disk before another task makes more."""
        return self.spilling is not None and self.spilling.is_behind

    @property
    def n_parked(self) -> int:
        """How many tasks wait for another task of this worker."""
        return sum(map(len, self._parked.values()))

    def start_next(self) -> Job | None:
        """Return the next task that has its inputs, or None."""
        if self.spilling is not None and self.spilling.is_behind:
            return None
        while self._ready and not self.is_closed:
            job = self._ready.popleft()
            if not job[0].inputs:
                return job
            whole = self._with_inputs(job)
            if whole is not None:
                return whole
        return None

    def finish(self, task: RunTask, value: Any, large_nbytes: int = 0) -> None:
        """Keep what a task returned; ``large_nbytes`` is its size when it is here alone."""
        key = task.key
        if key in self.data:
            self.dropped.append(self.data[key])
        self.data[key] = value
        if self._makers.get(key) == task.attempt:
            del self._makers[key]
        spilling = self.spilling
        if spilling is not None and (large_nbytes or spilling.borrowed):
            if large_nbytes:
                spilling.hold(key, large_nbytes)
            if spilling.give_back(task.attempt) or large_nbytes:
                self.on_held()
        if self._parked and key in self._parked:
            self._ready.extendleft(reversed(self._parked.pop(key)))

    def fail(self, task: RunTask) -> None:
        """Note that an attempt ended without a value; what is parked for it, and for that in turn, is missing an input."""
        if self.spilling is not None and self.spilling.give_back(task.attempt):
            self.on_held()
        ended = [task]
        while ended:
            task = ended.pop()
            if self.on_fail is not None:
                self.on_fail(task)
            if self._makers.get(task.key) == task.attempt:
                del self._makers[task.key]
            if task.key in self._makers or task.key not in self._parked:
                continue
            for job in self._parked.pop(task.key):
                ended.append(job[0])
                self._tell_missing(job[0], self.absent(job[0]))

    def _with_inputs(self, job: Job) -> Job | None:
        """Return a task with those inputs that are held here; else park it or give it up."""
        task, function, _ = job
        absent = self.absent(task)
        if not absent:
            data = self.data
            if self.spilling is not None and self.spilling.live:
                self.spilling.borrow(task.attempt, [key for key, payload in task.inputs if payload is None])
            return task, function, {key: data[key] for key, payload in task.inputs if payload is None}
        makers = self._makers
        if any(key not in makers or makers[key] == task.attempt for key in absent):
            self._tell_missing(task, absent)
            self.fail(task)
            return None
        # Under the input that was begun last: a task with many inputs is then looked at again only a few times.
        self._parked.setdefault(max(absent, key=makers.__getitem__), []).append(job)
        return None

    def absent(self, task: RunTask) -> list[str]:
        """Return the inputs of a task that should be here, and are not yet."""
        return [key for key, payload in task.inputs if payload is None and key not in self.data]

    def _tell_missing(self, task: RunTask, absent: list[str]) -> None:
        self.words.append(TaskMissing(task.attempt, tuple(key for key in absent if key not in self._makers) or tuple(absent)))

    # ── looking ──────────────────────────────────────────────────────────────

    def statistics(self) -> dict[str, int]:
        """Return counts of what is held and waited for."""
        return {
            "n_ready": len(self._ready),
            "n_parked": self.n_parked,
            "n_held": len(self.data),
            "n_functions": len(self._functions),
        }

    def validate(self) -> None:
        """Assert what holds between any two calls."""
        for key, jobs in self._parked.items():
            assert jobs, f"nobody is parked for {key}"
            assert key in self._makers, f"{len(jobs)} tasks are parked for {key}, and nobody makes it"
            for task, *_ in jobs:
                assert any(name == key and payload is None for name, payload in task.inputs), f"{task.key} is parked for a stranger"
        unstarted = [task.attempt for task, *_ in self._ready] + [task.attempt for jobs in self._parked.values() for task, *_ in jobs]
        assert len(unstarted) == len(set(unstarted)), "a task waits in two places"
