"""When the bytes of a file may be believed: after two equal looks, and not while somebody is saving.

Pure decisions for ``system/watcher.py``, which looks at files, keeps the time and tells the
cluster; nothing here opens a file or knows a clock. A path is *noticed* (an event, or its
stamp differs), then looked at when it is *due*, until two looks 8 ms apart are equal. While
its size still changes the pause grows; after 300 ms the newest whole look is believed
anyway, for a file that is saved without end must not be ignored without end. A file that
is empty or gone is not believed for 250 ms, because editors truncate before they write and
move away before they move in.

What decides is the content: a look with the bytes that are known already changes nothing.
What settles in one burst is handed out together.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from localdask.records import field, record

STEP_S = 0.008
PAUSE_MAX_S = 0.064
PATIENCE_S = 0.3
EMPTY_S = 0.25

Name = TypeVar("Name", bound=Hashable)


@record(frozen=True)
class Look:
    """What was seen of a file at one moment.

    ``stamp`` is anything that differs when the file may have changed; None when there is no
    file. ``content`` is None when it could not be read, and ``trouble`` then says why, for the
    user. A look is whole when nobody wrote between its beginning and its end.
    """

    stamp: Hashable
    content: bytes | None
    trouble: str = ""
    is_whole: bool = True

    @property
    def is_fleeting(self) -> bool:
        """Whether this is what a save looks like halfway."""
        return not self.content and (self.stamp is None or self.content is not None)


@record
class _Pending:
    """A path that was noticed. ``fleeting_since`` is when it was first seen empty or gone, ``due`` when to look again."""

    began: float
    due: float
    pause_s: float = STEP_S
    last: Look | None = None
    fleeting_since: float | None = None


@record
class Settling(Generic[Name]):
    """The paths that are watched, and how far each is believed.

    ``known`` holds the bytes last believed, ``stamps`` those of the last look that was
    believed, ``told`` the trouble that the user was told of.
    """

    known: dict[Name, bytes | None] = field(default_factory=dict)
    stamps: dict[Name, Hashable] = field(default_factory=dict)
    told: dict[Name, str] = field(default_factory=dict)
    pending: dict[Name, _Pending] = field(default_factory=dict)
    settled: dict[Name, bytes] = field(default_factory=dict)
    settled_since: float = 0.0
    troubles: list[str] = field(default_factory=list)

    def watch(self, name: Name, content: bytes | None, stamp: Hashable) -> None:
        """Know a path from now on, by what is believed of it at first."""
        self.known[name] = content
        self.stamps[name] = stamp

    def forget(self, name: Name) -> None:
        """Know nothing of a path any more."""
        for table in (self.known, self.stamps, self.told, self.pending, self.settled):
            table.pop(name, None)

    def notice(self, name: Name, now: float) -> None:
        """Something happened to a path: look at it now."""
        if name not in self.known:
            return
        pending = self.pending.get(name)
        if pending is None:
            self.pending[name] = _Pending(now, now)
        elif pending.fleeting_since is not None:
            pending.due = now
        else:
            pending.due = min(pending.due, now + STEP_S)

    def compare(self, name: Name, stamp: Hashable, now: float) -> None:
        """Notice a path if its stamp is another than when it was last believed, or if there was trouble with it."""
        if name in self.known and name not in self.pending and (stamp != self.stamps[name] or self._is_worth_another_try(name)):
            self.notice(name, now)

    def _is_worth_another_try(self, name: Name) -> bool:
        return name in self.told and self.stamps[name] is not None

    def due(self, now: float) -> list[Name]:
        """Return the paths to look at now."""
        return [name for name, pending in self.pending.items() if pending.due <= now]

    def next_due(self) -> float | None:
        """Return when something is to be done next."""
        times = [pending.due for pending in self.pending.values()]
        if self.settled:
            times.append(self.settled_since + PATIENCE_S)
        return min(times, default=None)

    def take(self, name: Name, look: Look, now: float) -> None:
        """Take in a look, and say when the next one is due or believe it."""
        pending = self.pending.get(name)
        if pending is None:
            return
        last, pending.last = pending.last, look
        if not look.is_fleeting:
            pending.fleeting_since = None
        elif pending.fleeting_since is None or last is None or look.stamp != last.stamp:
            # Empty again after somebody wrote is not empty still.
            pending.fleeting_since = now
        is_settled = look.is_whole and (look == last or now - pending.began >= PATIENCE_S)
        if pending.fleeting_since is not None and look.is_whole:
            is_settled = is_settled and now - pending.fleeting_since >= EMPTY_S
            pending.due = max(pending.fleeting_since + EMPTY_S, now + STEP_S)
        else:
            pending.pause_s = self._next_pause(pending.pause_s, last, look)
            pending.due = now + pending.pause_s
        if is_settled:
            self._believe(name, look, now)

    def _next_pause(self, pause_s: float, last: Look | None, look: Look) -> float:
        if last is None or last.is_fleeting or len(last.content or b"") == len(look.content or b""):
            return STEP_S
        return min(2 * pause_s, PAUSE_MAX_S)

    def _believe(self, name: Name, look: Look, now: float) -> None:
        del self.pending[name]
        self.stamps[name] = look.stamp
        if look.content is None:
            if look.trouble != self.told.get(name):
                self.told[name] = look.trouble
                self.troubles.append(look.trouble)
            return
        self.told.pop(name, None)
        if look.content != self.known[name]:
            self.known[name] = look.content
            if not self.settled:
                self.settled_since = now
            self.settled[name] = look.content

    def collect(self, now: float) -> dict[Name, bytes]:
        """Return what settled, once nothing else of the burst is still settling; at the latest after 300 ms."""
        if not self.settled or (self._holds_back() and now - self.settled_since < PATIENCE_S):
            return {}
        settled, self.settled = self.settled, {}
        return settled

    def _holds_back(self) -> bool:
        # A file that is gone brings no bytes, so nobody waits for it.
        return any(pending.last is None or pending.last.stamp is not None for pending in self.pending.values())

    def collect_troubles(self) -> list[str]:
        """Return what is to be told, each once."""
        troubles, self.troubles = self.troubles, []
        return troubles

    def names(self) -> Iterable[Name]:
        """Return every path that is watched."""
        return self.known.keys()
