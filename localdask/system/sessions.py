"""Ending everything that a process started: its session, and the orphans that a subreaper inherits.

Each worker leads a session, and everything that it starts is in it, whatever process groups are
made, unless it makes a session of its own. Such a runaway comes to the nanny when its parent
dies, because the nanny is a subreaper (Linux only), and ``kill_orphans`` ends it.

Python's resource trackers are given a moment: they remove the shared memory and the semaphores of those that were
killed, and end by themselves; nobody else would remove these before the machine restarts.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Collection

from localdask.errors import UsageError
from localdask.records import record
from localdask.system.process import open_pidfd, send_signal

__all__ = ["children", "kill_orphans", "kill_session", "reap_orphans"]

_IS_LINUX = sys.platform == "linux"
#: How long killed processes may take to vanish before they are reported as left.
_KILL_S = 2.0
#: How long a resource tracker may take to remove what the killed processes shared, and then to end by itself.
_TRACKER_S = 0.5
#: Pauses between looks at processes that are on their way out.
_FIRST_PAUSE_S = 0.0005
_LONGEST_PAUSE_S = 0.02
#: So often nothing must be found, one look after the other, where others start processes all the time.
_EMPTY_LOOKS = 20


@record(frozen=True)
class _Sighting:
    """One process as it was a moment ago."""

    pid: int
    parent: int
    session: int
    is_zombie: bool


def _pids() -> list[int]:
    """Return the number of every process that can be seen."""
    if _IS_LINUX:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    import psutil  # noqa: PLC0415

    return psutil.pids()


def _look_at(pid: int) -> _Sighting | None:
    """Return what the kernel says about a process; None when there is none of that number."""
    if not _IS_LINUX:
        return _look_with_psutil(pid)
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            text = file.read(1024)
    except OSError:
        return None
    # The name in parentheses may itself hold spaces and parentheses.
    state, parent, _group, session = text.rpartition(b")")[2].split(None, 4)[:4]
    return _Sighting(pid, int(parent), int(session), state in (b"Z", b"X"))


def _look_with_psutil(pid: int) -> _Sighting | None:
    import psutil  # noqa: PLC0415

    try:
        process = psutil.Process(pid)
        return _Sighting(pid, process.ppid(), os.getsid(pid), process.status() == psutil.STATUS_ZOMBIE)
    except (OSError, psutil.Error):
        return None


def _members(sid: int) -> list[_Sighting]:
    """Return the processes of a session, zombies too. One system call for each process there is, and a closer look at members only."""
    sightings: list[_Sighting] = []
    for pid in _pids():
        try:
            is_member = os.getsid(pid) == sid
        except OSError:
            continue  # gone since
        if is_member and (sighting := _look_at(pid)) is not None:
            sightings.append(sighting)
    return sightings


def _children() -> list[_Sighting]:
    """Return the children of this process, zombies too."""
    own = os.getpid()
    pids: list[int] = []
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children", "rb") as file:
                pids += map(int, file.read().split())
    except OSError:
        pids = _pids()  # a kernel built without these lists, or another system
    return [sighting for pid in pids if (sighting := _look_at(pid)) is not None and sighting.parent == own]


def _kill_all(find: Callable[[], list[_Sighting]], is_still: Callable[[_Sighting], bool], timeout_s: float) -> list[int]:
    """Kill what ``find`` finds, again and again until it finds nothing or time is up; return the pids of what is left.

    Again, because what is killed may have forked after the look. And what forks and ends at once may be gone when it is looked at,
    while its child is not in the list yet: to find nothing is a proof only if no process was started meanwhile, by anybody.
    """
    started = time.monotonic()
    deadline = started + timeout_s
    pause_s = _FIRST_PAUSE_S
    n_empty = 0
    newest = _newest_pid()
    found = find()
    # Looked for once: while each is asked what it is, what forks all the time gets away.
    trackers = {sighting.pid for sighting in found if _is_tracker(sighting.pid)}
    while True:
        if not found:
            n_empty += 1
            before, newest = newest, _newest_pid()
            if n_empty >= (2 if newest == before else _EMPTY_LOOKS):
                return []
            found = find()
            continue
        n_empty = 0
        if time.monotonic() > deadline:
            return [sighting.pid for sighting in found]
        is_early = time.monotonic() < started + _TRACKER_S
        for sighting in found:
            if not (is_early and sighting.pid in trackers):
                _kill_if(sighting, is_still)
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        found = find()


def _is_tracker(pid: int) -> bool:
    """Whether it is a resource tracker, of ``multiprocessing`` or of loky: it ends when all that told it of something have ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
            return b"resource_tracker import main" in file.read(4096)
    except OSError:
        return False


def _newest_pid() -> bytes:
    """Return the number of the process or thread that was started last, where the system tells."""
    try:
        with open("/proc/loadavg", "rb", buffering=0) as file:
            return file.read(100).split()[-1]
    except OSError:
        return b""


def _kill_if(sighting: _Sighting, is_still: Callable[[_Sighting], bool]) -> None:
    """Kill a process, if it is the one that was meant and not a stranger that got its number since."""
    pidfd = open_pidfd(sighting.pid)
    try:
        now = _look_at(sighting.pid)
        if now is None or not is_still(now):
            return
        send_signal(sighting.pid, pidfd, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # gone, or it became another user's; the next look tells
    finally:
        if pidfd is not None:
            os.close(pidfd)


def kill_session(sid: int, timeout_s: float = _KILL_S) -> list[int]:
    """Kill every process of a session, in whatever group, until none runs; return the pids of what is left, normally none."""
    if sid <= 1 or sid == os.getsid(0):
        raise UsageError(f"session {sid} is this process's own, or the system's: only a worker's session can be ended")

    def is_member(sighting: _Sighting) -> bool:
        return sighting.session == sid and not sighting.is_zombie

    return _kill_all(lambda: [sighting for sighting in _members(sid) if is_member(sighting)], is_member, timeout_s)


def children(sid: int | None = None) -> frozenset[int]:
    """Return the pids of this process's children, ended ones too; with ``sid`` only of those in that session."""
    return frozenset(sighting.pid for sighting in _children() if sid is None or sighting.session == sid)


def reap_orphans(keep: Collection[int]) -> list[int]:
    """Collect ended children of this process but those in ``keep``, and return their pids; for a subreaper, at each SIGCHLD."""
    return [sighting.pid for sighting in _children() if sighting.is_zombie and sighting.pid not in keep and _reap(sighting.pid)]


def kill_orphans(keep: Collection[int], timeout_s: float = _KILL_S) -> list[int]:
    """Kill and collect all children of this process but those in ``keep``, and what a subreaper inherits from them.

    Returns the pids of what is left, normally none.
    """
    own = os.getpid()

    def is_orphan(sighting: _Sighting) -> bool:
        return sighting.parent == own and sighting.pid not in keep

    def find() -> list[_Sighting]:
        orphans = [sighting for sighting in _children() if is_orphan(sighting)]
        for sighting in orphans:
            if sighting.is_zombie:
                _reap(sighting.pid)
        return orphans  # the collected too: what they left behind is to be found at the next look

    return _kill_all(find, is_orphan, timeout_s)


def _reap(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False
