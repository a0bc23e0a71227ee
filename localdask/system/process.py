"""Starting processes, seeing them end, and ending everything they started.

The launcher forks nannies, a nanny starts its worker, and the user's process execs the
launcher; all of them by the calls in this room, and nothing else in the package starts
or kills. What to do when (how long to wait between SIGTERM and SIGKILL, whether to
start again) is decided elsewhere; here is only the doing. Nothing here starts a thread.

Why a fork needs a process with one thread: a lock that another thread holds at that
moment stays locked in the child for ever. ``fork`` counts and refuses; ``spawn`` is
safe with threads.

Why the signals are blocked around a fork: between the fork and its first own line the
child still has its parent's handlers, and the parent's wake-up pipe. A signal then
would be told to the parent's loop, and be lost to the child.

Why sessions: each worker leads one, and everything that it starts is in it, whatever
process groups are made, unless it makes a session of its own. Such a runaway comes back
to the nanny when its parent dies, because the nanny is a subreaper (Linux only), and
``kill_orphans`` ends it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # its numbers are plain: an enum of each signal costs a fork more than the rest of this room
import errno
import functools
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from localdask.errors import StartError, UsageError
from localdask.records import record

__all__ = [
    "STACKS_SIGNAL",
    "Child",
    "ExitStatus",
    "children",
    "close_other_descriptors",
    "explain_status",
    "fork",
    "kill_orphans",
    "kill_session",
    "n_threads",
    "open_pidfd",
    "reap_orphans",
    "send_if_handled",
    "set_parent_death_signal",
    "set_subreaper",
    "spawn",
    "warm",
]

#: Has a worker show the stack of each of its threads on its stderr, whatever it is doing.
STACKS_SIGNAL = signal.SIGUSR2

_SIGNALS = tuple(map(int, _signal.valid_signals()))
_IS_LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
#: A thread that was joined is still counted by the kernel for a moment; so long a fork waits for it.
_THREAD_GONE_S = 0.1
#: How long killed processes may take to vanish before they are reported as left.
_KILL_S = 2.0
#: Pauses between looks at processes that are on their way out.
_FIRST_PAUSE_S = 0.0005
_LONGEST_PAUSE_S = 0.02
#: Exit code of a forked child whose function raised; BSD's word for an error inside the software.
_EXIT_RAISED = 70


def send_if_handled(pid: int, signum: signal.Signals) -> bool:
    """Send a signal to a process that handles it; return whether it does. Elsewhere than on Linux nobody can tell, and it is sent."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            caught = next((int(line.split()[1], 16) for line in file if line.startswith("SigCgt:")), 0)
        if not caught >> (signum - 1) & 1:
            return False
    except OSError:
        if _IS_LINUX:
            return False
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    return True


# ── starting ─────────────────────────────────────────────────────────────────


def n_threads() -> int:
    """Return how many threads the kernel sees in this process, those that Python does not know of included."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


def fork(child: Callable[[], object]) -> int:
    """Start a process that calls ``child`` and then ends, never returning here; return its pid.

    The new process has default signal handlers and no wake-up descriptor. It exits with 0 when ``child`` returns,
    as SystemExit says, or with 70 after any other exception, whose traceback goes to stderr. Raises StartError in a
    process with several threads.
    """
    _refuse_threads()
    for stream in (sys.stdout, sys.stderr):
        _flush(stream)  # what lies in the buffer now would be written twice
    mask = _signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            _live_as_child(child, mask)
    except OSError as error:
        raise StartError(f"no process could be forked ({error}): raise the process limit (`ulimit -u`), or start fewer workers") from error
    finally:
        _signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def _refuse_threads() -> None:
    deadline = time.monotonic() + _THREAD_GONE_S
    while (n := n_threads()) > 1:
        if time.monotonic() > deadline:
            raise StartError(
                f"process {os.getpid()} has {n} threads, and a fork would copy the locks they hold without them: "
                "start this process by spawn, or the threads after the fork"
            )
        time.sleep(_FIRST_PAUSE_S)


def _live_as_child(child: Callable[[], object], mask: Iterable[int]) -> None:
    """Be the child, up to its end. Nothing may climb out of here into code that belongs to the parent."""
    code = _EXIT_RAISED
    try:
        _forget_handlers()
        _signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        child()
        code = 0
    except SystemExit as error:
        code = _exit_code(error)
    except BaseException as error:
        sys.__excepthook__(type(error), error, error.__traceback__)
    finally:
        try:
            for stream in (sys.stdout, sys.stderr):
                _flush(stream)
        finally:
            os._exit(code)


def _forget_handlers() -> None:
    """Drop the parent's signal handlers, which would act for the parent."""
    signal.set_wakeup_fd(-1)
    for signum in _SIGNALS:
        if callable(_signal.getsignal(signum)):
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def _flush(stream: Any) -> None:
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        return  # closed or broken: what it held has no reader


def spawn(
    arguments: Sequence[str],
    *,
    pass_fds: Collection[int] = (),
    environ: Mapping[str, str] | None = None,
    cwd: str | None = None,
    new_session: bool = False,
) -> int:
    """Start a program, whatever threads run here, and return its pid.

    ``pass_fds`` are open in it under the same numbers; other descriptors only if they were made inheritable.
    ``environ`` and ``cwd`` are this process's own unless given. With ``new_session`` it leads a session.
    """
    arguments = [os.fspath(part) for part in arguments]
    try:
        if cwd is None and hasattr(os, "posix_spawn"):
            try:
                return _posix_spawn(arguments, pass_fds, dict(os.environ if environ is None else environ), new_session)
            except NotImplementedError:
                pass  # an old C library that knows no sessions there
        return _popen(arguments, pass_fds, environ, cwd, new_session)
    except OSError as error:
        raise StartError(
            f"{arguments[0]!r} did not start ({error}): check that it exists, may be executed, and that limits allow it"
        ) from error


def _posix_spawn(arguments: list[str], pass_fds: Collection[int], environ: dict[str, str], new_session: bool) -> int:
    # Each descriptor is put to its place from a copy: on itself, older C libraries leave it to be closed by the exec.
    copies: list[int] = []
    actions: list[tuple[int, int, int]] = []
    try:
        for fd in pass_fds:
            copies.append(os.dup(fd))
            actions.append((os.POSIX_SPAWN_DUP2, copies[-1], fd))
        return os.posix_spawnp(
            arguments[0],
            arguments,
            environ,
            file_actions=actions,
            setsid=new_session,
            setsigmask=(),
            setsigdef=_ignored_by_python(),
        )
    finally:
        for copy in copies:
            os.close(copy)


def _ignored_by_python() -> list[int]:
    """Return the signals that Python ignores in its own process; an exec would pass that on to any program."""
    return [getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ", "SIGXFZ") if hasattr(signal, name)]


def _popen(arguments: list[str], pass_fds: Collection[int], environ: Mapping[str, str] | None, cwd: str | None, new_session: bool) -> int:
    import subprocess  # noqa: PLC0415

    process = subprocess.Popen(arguments, pass_fds=tuple(pass_fds), env=environ, cwd=cwd, start_new_session=new_session)
    # The child is ours to wait for: without a return code, subprocess would collect it when the object goes.
    process.returncode = 0
    return process.pid


def close_other_descriptors(keep: Collection[int]) -> None:
    """Close every descriptor but 0, 1, 2 and those in ``keep``; for the beginning of a process's life."""
    try:
        fds = [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        fds = list(range(3, min(os.sysconf("SC_OPEN_MAX"), 65536)))
    for fd in fds:
        if fd > 2 and fd not in keep:
            try:
                os.close(fd)
            except OSError as error:
                if error.errno != errno.EBADF:  # the listing's own descriptor is gone
                    raise


# ── the kernel's word about a process ────────────────────────────────────────


@functools.cache
def _prctl() -> Callable[..., int] | None:
    """Return the C function, or None where there is none."""
    if not _IS_LINUX:
        return None
    import ctypes  # noqa: PLC0415

    prctl: Callable[..., int] = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]  # type: ignore[attr-defined]
    return prctl


def warm() -> None:
    """Import now what later calls need, so that forked children find it done."""
    import faulthandler  # noqa: F401, PLC0415

    _prctl()


def set_parent_death_signal(parent_pid: int | None = None) -> bool:
    """Have the kernel kill this process when the thread that forked it ends; False where that does not exist.

    With ``parent_pid`` it also dies if that parent is gone already. Forks of this process do not inherit it.
    """
    prctl = _prctl()
    is_set = prctl is not None and prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) == 0
    if parent_pid is not None and os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)
    return is_set


def set_subreaper() -> bool:
    """Become the parent of all descendants whose own parent dies; False where that does not exist."""
    prctl = _prctl()
    return prctl is not None and prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def open_pidfd(pid: int) -> int | None:
    """Return a descriptor that can be read once the process ended; None where there is none, or no such process."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return None


def _send_signal(pid: int, pidfd: int | None, signum: int) -> None:
    """Send a signal, by the pidfd where there is one: it never means a stranger that got the number since."""
    if sys.platform == "linux" and pidfd is not None:
        signal.pidfd_send_signal(pidfd, signum)
    else:
        os.kill(pid, signum)


def explain_status(status: int | None) -> str:
    """Return a wait status in words: ``SIGKILL``, ``exit code 3``."""
    if status is None:
        return "an end that nobody saw"
    if not os.WIFSIGNALED(status):
        return f"exit code {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@record(frozen=True)
class ExitStatus:
    """How a process ended.

    Attributes
    ----------
    status : int or None
        As from ``waitpid``; None of a process that was not our child.
    peak_rss : int
        The largest resident memory in bytes, of it or one of its own children; 0 when unknown.
    """

    status: int | None
    peak_rss: int = 0

    @property
    def text(self) -> str:
        """The end in words."""
        return explain_status(self.status)

    @property
    def signal(self) -> int | None:
        """The signal that ended it, if one did."""
        return os.WTERMSIG(self.status) if self.status is not None and os.WIFSIGNALED(self.status) else None

    @property
    def code(self) -> int | None:
        """The exit code, if it exited."""
        return os.WEXITSTATUS(self.status) if self.status is not None and os.WIFEXITED(self.status) else None


class Child:
    """A process of ours: a child, or a descendant that a process between us forked.

    ``fileno`` can be read once it ended. Then call ``kill_session`` if it led one, and ``poll`` after that: as long as
    nobody polled, no stranger gets its number.

    Parameters
    ----------
    pid : int
        Its number. For a descendant that is no child of ours, only numbers that cannot have been given away since.
    pidfd : int, optional
        A pidfd of it, owned by this object from now on; opened if not given.
    """

    def __init__(self, pid: int, pidfd: int | None = None) -> None:
        self.pid = pid
        self._pidfd = open_pidfd(pid) if pidfd is None else pidfd
        self._exit: ExitStatus | None = None

    def __repr__(self) -> str:
        return f"<Child {self.pid} {'runs' if self._exit is None else self._exit.text}>"

    def fileno(self) -> int:
        """Return the pidfd, or -1 where there is none (then poll at each SIGCHLD)."""
        return -1 if self._pidfd is None else self._pidfd

    def poll(self) -> ExitStatus | None:
        """Return how it ended, or None while it runs. The first answer collects it."""
        if self._exit is None:
            try:
                pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            except ChildProcessError:
                if self._is_gone():
                    self._exit = ExitStatus(None)
            else:
                if pid:
                    self._exit = ExitStatus(status, usage.ru_maxrss * (1024 if _IS_LINUX else 1))
        return self._exit

    def _is_gone(self) -> bool:
        """Whether a process that is not our child has ended."""
        if self._pidfd is not None:
            ended = select.poll()
            ended.register(self._pidfd, select.POLLIN)
            return bool(ended.poll(0))
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def terminate(self) -> None:
        """Ask it to end (SIGTERM); harmless when it has."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it (SIGKILL), stopped or not; harmless when it has ended."""
        self._send(signal.SIGKILL)

    def _send(self, signum: int) -> None:
        if self._exit is not None:
            return
        try:
            _send_signal(self.pid, self._pidfd, signum)
        except ProcessLookupError:
            return  # it ended by itself

    def kill_session(self) -> list[int]:
        """End it and everything in the session it leads; return the pids of what is left, normally none."""
        self.kill()
        return kill_session(self.pid)

    def close(self) -> None:
        """Let go of the pidfd; the process stays as it is."""
        pidfd, self._pidfd = self._pidfd, None
        if pidfd is not None:
            os.close(pidfd)


# ── many processes ───────────────────────────────────────────────────────────


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

    Again, because what is killed may have forked after the look; and nothing must be found twice in a row, because what
    forks and ends at once may hop from the part of the list that is still to be read to the part that is done.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    n_empty = 0
    while n_empty < 2:
        found = find()
        if not found:
            n_empty += 1
            continue
        n_empty = 0
        if time.monotonic() > deadline:
            return [sighting.pid for sighting in found]
        for sighting in found:
            _kill_if(sighting, is_still)
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
    return []


def _kill_if(sighting: _Sighting, is_still: Callable[[_Sighting], bool]) -> None:
    """Kill a process, if it is the one that was meant and not a stranger that got its number since."""
    pidfd = open_pidfd(sighting.pid)
    try:
        now = _look_at(sighting.pid)
        if now is None or not is_still(now):
            return
        _send_signal(sighting.pid, pidfd, signal.SIGKILL)
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
