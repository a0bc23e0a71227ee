"""What a process that holds preloads does about a reload: words in, generations moved, votes out.

Used by nannies and workers. ``GenerationWords`` carries out one word after the other on
the ``Preloads`` of its process and says how it went; ``NannyWords`` knows besides that a
worker inherits its nanny's environment. ``Turns`` keeps a worker's words in order until
its main thread may take them: what runs hooks waits until no task runs. Nothing here
decides about a generation; that is ``state/reload.py``'s, in the cluster's process.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from localdask.errors import PreloadError
from localdask.messages import (
    Begun,
    Commit,
    Discard,
    GenerationsRun,
    HelpersFound,
    InterruptTasks,
    Loaded,
    LoadFailed,
    LoadGeneration,
    RollBack,
    RollBackFailed,
    RolledBack,
    SwapFailed,
    SwapGeneration,
    Swapped,
)
from localdask.preloads.generations import Preloads, ReloadPhase
from localdask.preloads.sources import Source
from localdask.records import replace

__all__ = ["RELOAD_WORDS", "VOTE_WORDS", "GenerationWords", "NannyWords", "Turns", "WorkerWords", "source_of", "versions_of"]

#: What a cluster says to those that hold preloads, and what they answer.
RELOAD_WORDS = (LoadGeneration, SwapGeneration, RollBack, Discard, Commit, InterruptTasks)
VOTE_WORDS = (HelpersFound, Begun, Loaded, LoadFailed, Swapped, SwapFailed, RolledBack, RollBackFailed)
#: A traceback's last characters are enough of it.
TRACEBACK_MAX = 20_000


def source_of(row: Any) -> Source:
    """Return the source in a row (index, generation, version, source), of that generation."""
    _, generation, _, wire = row
    return replace(Source.from_wire(wire), generation=generation)


class GenerationWords:
    """One member's part in reloads.

    Parameters
    ----------
    preloads : Preloads
        Its preloads.
    member, life : str, int
        Who it is in the words.
    say : callable
        Sends a vote on its way.
    """

    def __init__(self, preloads: Preloads, member: str, life: int, say: Callable[[Any], None]) -> None:
        self._preloads = preloads
        self._member = member
        self._life = life
        self._say = say
        self._told_helpers: tuple[Any, ...] | None = None

    def moved(self) -> None:
        """A hook of the user's ran, and may have changed the process."""

    def hear(self, word: Any) -> None:
        """Carry out a word, and answer it."""
        began = time.monotonic()
        if isinstance(word, LoadGeneration):
            self._load(word, began)
        elif isinstance(word, SwapGeneration):
            self._swap(word, began)
        elif isinstance(word, RollBack):
            self._roll_back(word, began)
        elif isinstance(word, Discard):
            self._preloads.discard()
        elif isinstance(word, Commit):
            self._preloads.commit()

    def refuse(self, word: LoadGeneration) -> None:
        """Answer a load that was taken back before it began."""
        self._say(LoadFailed(self._member, self._life, word.attempt, 0.0, "was taken back before it began"))

    def tell_helpers(self) -> None:
        """Say which of the user's own modules the preloads import, if that is news, also that there are none: they are watched as well."""
        rows = tuple(
            (index, helper.module_name, helper.path, helper.hash)
            for index, generation in enumerate(self._preloads)
            for helper in self._preloads.helpers_of(generation.source)
            if helper.path
        )
        if self._preloads and rows != self._told_helpers:
            self._told_helpers = rows
            self._say(HelpersFound(self._member, self._life, 0, rows))

    @property
    def has_swapped(self) -> bool:
        """Whether hooks of the new generation ran."""
        return self._preloads.phase in (ReloadPhase.SWAPPED, ReloadPhase.FAILED)

    def _load(self, word: LoadGeneration, began: float) -> None:
        me = (self._member, self._life, word.attempt)
        self._say(Begun(*me))
        try:
            self._preloads.prepare({row[0]: source_of(row) for row in word.sources})
        except BaseException as error:  # whatever the user's body raises is a vote, also an exit
            self._say(LoadFailed(*me, time.monotonic() - began, *_explain(error)))
        else:
            self._say(Loaded(*me, time.monotonic() - began))
        self.tell_helpers()

    def _swap(self, word: SwapGeneration, began: float) -> None:
        me = (self._member, self._life, word.attempt)
        self._say(Begun(*me))
        try:
            told = self._preloads.swap()
        except BaseException as error:  # as above
            self._say(SwapFailed(*me, time.monotonic() - began, *_explain(error)))
            return
        finally:
            self.moved()
            self.tell_helpers()
        self._say(Swapped(*me, time.monotonic() - began, "; ".join(_explain(error)[0] for error in told)))

    def _roll_back(self, word: RollBack, began: float) -> None:
        me = (self._member, self._life, word.attempt)
        if self.has_swapped:
            self._say(Begun(*me))
        try:
            self._preloads.roll_back()
        except BaseException as error:  # as above
            self._say(RollBackFailed(*me, time.monotonic() - began, *_explain(error)))
            return
        finally:
            self.moved()
        self._say(RolledBack(*me, time.monotonic() - began))


def _explain(error: BaseException) -> tuple[str, str]:
    """Return an error as one line and a traceback. The process is in the word already, and the preload mostly in the line."""
    if isinstance(error, PreloadError):
        text = str(error.args[0])
        if error.usage:  # click's: its last line says what is wrong, and those before it who would know better
            usage, _, wrong = text.rstrip().rpartition("\n")
            return f"{error.preload}: {wrong.removeprefix('Error: ')}", usage.rstrip()
        said = text.removeprefix(f"the preload {error.preload} failed in {error.process}: ")
        named = said if said == text or error.preload in said else f"{error.preload}: {said}"
        return named, error.detail[-TRACEBACK_MAX:]
    return f"{type(error).__name__}: {error}", ""


# ── a nanny ──────────────────────────────────────────────────────────────────


class NannyWords(GenerationWords):
    """A nanny's part: what its preloads did to its environment is undone with them, or given to a new worker.

    Parameters
    ----------
    nanny : object
        The nanny: its ``env``, ``nthreads`` and ``memory_limit`` are what a worker gets besides the environment.
    on_changed : callable
        Has the worker replaced.
    """

    def __init__(self, nanny: Any, preloads: Preloads, life: int, say: Callable[[Any], None], on_changed: Callable[[], Any]) -> None:
        super().__init__(preloads, nanny.name, life, say)
        self._nanny = nanny
        self._on_changed = on_changed
        #: How it was before the generation that was loaded last.
        self._before: tuple[dict[str, str], dict[str, str | None], int, int] | None = None

    def _look(self) -> tuple[dict[str, str], dict[str, str | None], int, int]:
        nanny = self._nanny
        return dict(os.environ), dict(nanny.env), nanny.nthreads, nanny.memory_limit

    def _restore(self) -> None:
        if self._before is None:
            return
        environ, env, self._nanny.nthreads, self._nanny.memory_limit = self._before
        for name in os.environ.keys() - environ.keys():
            del os.environ[name]
        os.environ.update(environ)
        self._nanny.env = dict(env)

    def hear(self, word: Any) -> None:
        """Carry out a word, and answer it."""
        if isinstance(word, LoadGeneration):
            self._before = self._look()
        super().hear(word)
        if isinstance(word, (RollBack, Discard)):
            self._restore()
        elif isinstance(word, Commit) and self._before not in (None, self._look()):
            self._on_changed()


# ── a worker ─────────────────────────────────────────────────────────────────


class WorkerWords(GenerationWords):
    """A worker's part: what tasks find is remembered, and the scheduler is told on which generations they run.

    Parameters
    ----------
    tell : callable
        Has a word sent on the pipe of the tasks, after what was said of those that ran before and before the next.
    remember : callable
        Is called when the hooks of a swap or of the way back ran.
    """

    def __init__(
        self,
        preloads: Preloads,
        member: str,
        life: int,
        say: Callable[[Any], None],
        tell: Callable[[Any], None],
        remember: Callable[[], Any],
    ) -> None:
        super().__init__(preloads, member, life, say)
        self._tell = tell
        self._remember = remember

    def moved(self) -> None:
        """A hook of the user's ran, and may have changed the process."""
        self._remember()
        self._tell(GenerationsRun(self._preloads.numbers))


class Tasks(Protocol):
    """What runs a worker's tasks. Everything is asked under the worker's lock."""

    n_executing: int
    is_held: bool


class Turns:
    """A worker's words about reloads, until its main thread takes them. Everything is done under the worker's lock.

    Parameters
    ----------
    words : GenerationWords
        Who carries them out.
    tasks : Tasks
        Starts no further task while ``is_held`` is set, unless one that gave up its slot waits for others.
    """

    def __init__(self, words: GenerationWords, tasks: Tasks) -> None:
        self._words = words
        self._tasks = tasks
        self._waiting: deque[Any] = deque()
        self._present: Any = None
        self._holds = False

    @property
    def are_waiting(self) -> bool:
        return bool(self._waiting)

    def add(self, word: Any) -> None:
        """Take a word in, and take back with it what it undoes and has not begun."""
        if isinstance(word, (Discard, RollBack)):
            undone = [known for known in self._waiting if known.attempt == word.attempt]
            self._waiting = deque(known for known in self._waiting if known.attempt != word.attempt)
            for known in undone:
                if isinstance(known, LoadGeneration):
                    self._waiting.append(known)
                    self._refused = (*self._refused, known)
        self._waiting.append(word)
        self._look()

    _refused: tuple[Any, ...] = ()

    def hold(self) -> None:
        """Have no task start until the reload that is under way is through here: what was interrupted for it shall run after it."""
        self._holds = True
        self._look()

    def take(self) -> Any:
        """Return the word that the main thread is to carry out now, or None."""
        if self._waiting and not (self._needs_quiet(self._waiting[0]) and self._tasks.n_executing):
            self._present = self._waiting.popleft()
            return self._present
        return None

    def carry_out(self, word: Any) -> None:
        """Carry out a word that was taken. Without the lock."""
        if any(word is refused for refused in self._refused):
            self._refused = ()
            self._words.refuse(word)
        else:
            self._words.hear(word)

    def end(self) -> None:
        """The word that was taken is done."""
        if isinstance(self._present, (SwapGeneration, RollBack, Discard)):
            self._holds = False
        self._present = None
        self._look()

    def _look(self) -> None:
        awaited = self._present or (self._waiting[0] if self._waiting else None)
        self._tasks.is_held = self._holds or (awaited is not None and self._needs_quiet(awaited))

    def _needs_quiet(self, word: Any) -> bool:
        return isinstance(word, SwapGeneration) or (isinstance(word, RollBack) and self._words.has_swapped)


def versions_of(rows: Iterable[Any]) -> tuple[tuple[int, int], ...]:
    """Return (index, version) of each row."""
    return tuple((row[0], row[2]) for row in rows)
