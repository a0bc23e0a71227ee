"""Which plugins every worker, or every nanny, has: one change at a time, everywhere or nowhere.

Pure: events go in (a change is asked for, a holder comes, answers, goes), commands come
out. A *holder* is one life of a worker or of a nanny; the cluster keeps a book for each of
the two kinds (``processes/plugin_keeping.py`` is the shell of both).

A holder that comes begins with all that is registered, in order. A change is asked of all
holders that are there, and of those that come while it goes on. It holds when each of
them did it. When one could not set a plugin up, or died over it, all go back to what they had, so that the
book, the present and the future holders agree; one that cannot go back is given up.
Removing cannot fail: a plugin whose end raises has ended.
"""

from __future__ import annotations

from collections import deque
from typing import Any, TypeAlias

from localdask.records import field, record

__all__ = [
    "AnswerChange",
    "BeginHolder",
    "ChangeAsked",
    "ChangeHolder",
    "GiveUpHolder",
    "HolderAnswered",
    "HolderCame",
    "HolderLeft",
    "PluginBook",
    "step",
]

# ── events ───────────────────────────────────────────────────────────────────


@record
class ChangeAsked:
    """Register a plugin (its pickle), or remove the one of that name (None).

    ``keeps_old`` is whether a name that is registered already stays as it is.
    """

    request: int
    name: str
    pickled: bytes | None
    keeps_old: bool = False


@record
class HolderCame:
    """A worker or nanny begins, and takes words from now on."""

    holder: str
    life: int


@record
class HolderAnswered:
    """A holder did what the change asked, or raised ``error`` (opaque)."""

    holder: str
    life: int
    change: int
    error: Any = None


@record
class HolderLeft:
    """A holder is gone. ``was_asked`` is whether somebody wanted it to go."""

    holder: str
    life: int
    was_asked: bool = False


PluginEvent: TypeAlias = "ChangeAsked | HolderCame | HolderAnswered | HolderLeft"


# ── commands ─────────────────────────────────────────────────────────────────


@record
class BeginHolder:
    """Tell a holder that came what it begins with: (name, pickle), in order."""

    holder: str
    life: int
    rows: list[tuple[str, bytes]]


@record
class ChangeHolder:
    """Have a holder set a plugin up (its pickle), or end it (None)."""

    holder: str
    life: int
    change: int
    name: str
    pickled: bytes | None


@record
class GiveUpHolder:
    """End a holder that is not as the others are; what follows it begins with what is registered."""

    holder: str
    life: int


@record
class AnswerChange:
    """Tell who asked how it went.

    ``outcome`` is ``"done"``, ``"kept"`` (the name was registered), ``"unknown"`` (there was nothing to remove),
    ``"failed"`` (everything is as before), or ``"died"`` (the same, and those without an error in ``failed`` died over it).
    """

    request: int
    outcome: str
    done: tuple[str, ...] = ()
    #: Who raised what, in the order of the answers.
    failed: tuple[tuple[str, Any], ...] = ()


# ── state ────────────────────────────────────────────────────────────────────


@record
class _Change:
    """The change that is going on. ``is_undoing`` when it failed and all go back."""

    number: int
    request: int
    name: str
    pickled: bytes | None
    is_undoing: bool = False
    waiting: dict[str, None] = field(default_factory=dict)
    done: dict[str, None] = field(default_factory=dict)
    failed: list[tuple[str, Any]] = field(default_factory=list)
    has_killed: bool = False


@record
class PluginBook:
    """What is registered, who holds it, and what is being changed."""

    rows: dict[str, bytes] = field(default_factory=dict)
    holders: dict[str, int] = field(default_factory=dict)
    asked: deque[ChangeAsked] = field(default_factory=deque)
    change: _Change | None = None
    n_changes: int = 0

    def validate(self) -> None:
        """Assert what holds between any two events."""
        change = self.change
        if change is None:
            assert not self.asked, "a change waits for nothing"
            return
        assert change.waiting, f"the change of {change.name} waits for nobody, and goes on"
        assert change.waiting.keys() <= self.holders.keys(), "somebody who is gone is waited for"
        assert not change.waiting.keys() & change.done.keys(), "somebody answered, and is waited for"
        if change.pickled is not None and not change.is_undoing:
            assert change.waiting.keys() | change.done.keys() | {name for name, _ in change.failed} >= self.holders.keys()


# ── steps ────────────────────────────────────────────────────────────────────


def step(book: PluginBook, event: PluginEvent) -> list[Any]:
    """Take an event in, and return what is to be done."""
    commands: list[Any] = []
    if isinstance(event, ChangeAsked):
        book.asked.append(event)
    elif isinstance(event, HolderCame):
        _come(book, event, commands)
    elif isinstance(event, HolderAnswered):
        _answer(book, event, commands)
    elif book.holders.get(event.holder) == event.life:
        _leave(book, event)
    while _go_on(book, commands):
        pass
    return commands


def _come(book: PluginBook, event: HolderCame, commands: list[Any]) -> None:
    if event.holder in book.holders:
        _leave(book, HolderLeft(event.holder, book.holders[event.holder], True))
    book.holders[event.holder] = event.life
    change = book.change
    going = change.name if change is not None and change.pickled is None else None
    commands.append(BeginHolder(event.holder, event.life, [row for row in book.rows.items() if row[0] != going]))
    if change is not None and change.pickled is not None and not change.is_undoing:
        _ask(change, event.holder, event.life, change.pickled, commands)


def _ask(change: _Change, holder: str, life: int, pickled: bytes | None, commands: list[Any]) -> None:
    change.waiting[holder] = None
    commands.append(ChangeHolder(holder, life, change.number, change.name, pickled))


def _answer(book: PluginBook, event: HolderAnswered, commands: list[Any]) -> None:
    change = book.change
    is_current = change is not None and change.number == event.change and book.holders.get(event.holder) == event.life
    if change is None or not is_current or event.holder not in change.waiting:
        return
    del change.waiting[event.holder]
    if change.is_undoing:
        if event.error is not None and change.name in book.rows:
            commands.append(GiveUpHolder(event.holder, event.life))
    elif event.error is not None:
        change.failed.append((event.holder, event.error))
    else:
        change.done[event.holder] = None


def _leave(book: PluginBook, event: HolderLeft) -> None:
    del book.holders[event.holder]
    change = book.change
    if change is None:
        return
    was_busy = event.holder in change.waiting
    change.waiting.pop(event.holder, None)
    change.done.pop(event.holder, None)
    if was_busy and not event.was_asked and not change.is_undoing and change.pickled is not None:
        # It may have been another's doing; but if not, whoever follows it dies of the same, again and again.
        change.has_killed = True
        change.failed.append((event.holder, None))


def _go_on(book: PluginBook, commands: list[Any]) -> bool:
    """End the change that everybody answered, or begin the next; return whether there may be more to do."""
    change = book.change
    if change is None:
        return _begin(book, commands)
    if change.waiting and not change.has_killed:
        return False
    if change.failed and change.pickled is not None and not change.is_undoing:
        _undo(book, change, commands)
        return True
    if change.waiting:
        return False
    if not change.is_undoing:
        _move_to_end(book.rows, change.name, change.pickled)
    outcome = "died" if change.has_killed else "failed" if change.failed else "done"
    done = tuple(holder for holder in book.holders if holder in change.done)
    commands.append(AnswerChange(change.request, outcome, done, tuple(change.failed)))
    book.change = None
    return True


def _begin(book: PluginBook, commands: list[Any]) -> bool:
    if not book.asked:
        return False
    asked = book.asked.popleft()
    is_known = asked.name in book.rows
    if asked.pickled is None and not is_known:
        commands.append(AnswerChange(asked.request, "unknown"))
    elif asked.pickled is not None and is_known and asked.keeps_old:
        commands.append(AnswerChange(asked.request, "kept"))
    else:
        book.n_changes += 1
        book.change = change = _Change(book.n_changes, asked.request, asked.name, asked.pickled)
        for holder, life in book.holders.items():
            _ask(change, holder, life, asked.pickled, commands)
    return True


def _undo(book: PluginBook, change: _Change, commands: list[Any]) -> None:
    """Have everybody who has the new plugin, or lost the old one to it, go back."""
    old = book.rows.get(change.name)
    undecided, change.waiting = change.waiting, {}
    change.is_undoing = True
    book.n_changes += 1
    change.number = book.n_changes  # what is answered to the old number is stale
    for holder, life in book.holders.items():
        if old is not None or holder in change.done or holder in undecided:
            _ask(change, holder, life, old, commands)
    change.done = {}
    _move_to_end(book.rows, change.name, old)


def _move_to_end(rows: dict[str, bytes], name: str, pickled: bytes | None) -> None:
    """Have a row stand where it was set up last: after all others."""
    rows.pop(name, None)
    if pickled is not None:
        rows[name] = pickled
