"""Starting processes, and telling the kernel what is to become of them.

The launcher forks nannies, a nanny starts its worker, and the user's process execs the
launcher, all by ``fork`` and ``spawn``. How one of them ends is seen by ``system/child.py``, and
``system/sessions.py`` ends all that it started. When to start, ask and force is decided in
``state/supervision.py``. Nothing here starts a thread.

Why a fork needs a process with one thread: a lock that another thread holds at that
moment stays locked in the child for ever. ``fork`` counts and refuses; ``spawn`` is
safe with threads.

Why the signals are blocked around a fork: between the fork and its first own line the
child still has its parent's handlers, and the parent's wake-up pipe. A signal then
would be told to the parent's loop, and be lost to the child.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # its numbers are plain: an enum of each signal costs a fork more than the rest of this room
import errno
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NoReturn

from localdask.errors import StartError
from localdask.system.exits import forget_exit_handlers, run_exit_handlers

__all__ = [
    "STACKS_SIGNAL",
    "close_other_descriptors",
    "end_as_raised",
    "end_in_order",
    "end_process",
    "fork",
    "n_threads",
    "open_pidfd",
    "send_if_handled",
    "send_signal",
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
_PAUSE_S = 0.0005
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

    The new process has default signal handlers, no exit handlers and no wake-up descriptor. It exits with 0 when ``child`` returns,
    as SystemExit says, or with 70 after any other exception, whose traceback goes to stderr. Raises StartError in a
    process with several threads.
    """
    _refuse_threads()
    _flush_output()  # what lies in the buffer now would be written twice
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
        time.sleep(_PAUSE_S)


def _live_as_child(child: Callable[[], object], mask: Iterable[int]) -> None:
    """Be the child, up to its end. Nothing may climb out of here into code that belongs to the parent."""
    code = _EXIT_RAISED
    try:
        _forget_handlers()
        forget_exit_handlers()
        _signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        child()
        code = 0
    except SystemExit as error:
        code = _exit_code(error)
    except BaseException as error:
        sys.__excepthook__(type(error), error, error.__traceback__)
    finally:
        end_process(code)


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


def end_process(code: int) -> NoReturn:
    """End at once, whatever threads still run, with what was printed written out."""
    try:
        _flush_output()
    finally:
        os._exit(code)


def end_as_raised(error: BaseException) -> NoReturn:
    """End as Python does when a program raises: by the code of SystemExit, else with a traceback on stderr and 1."""
    code = 1
    try:
        if isinstance(error, SystemExit):
            code = _exit_code(error)
        else:
            sys.excepthook(type(error), error, error.__traceback__)
    finally:
        end_process(code)


def end_in_order(code: int, who: str, limit_s: float) -> NoReturn:
    """End once what was registered with ``atexit`` has run, for which there are ``limit_s`` seconds."""
    run_exit_handlers(who, limit_s, functools.partial(end_process, code))
    end_process(code)


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            continue  # there is none, or it is closed or broken: what it held has no reader


def spawn(
    arguments: Sequence[str],
    *,
    pass_fds: Collection[int] = (),
    environ: Mapping[str, str] | None = None,
    new_session: bool = False,
) -> int:
    """Start a program, whatever threads run here, and return its pid.

    ``pass_fds`` are open in it under the same numbers; other descriptors only if they were made inheritable.
    ``environ`` is this process's own unless given. With ``new_session`` it leads a session.
    """
    arguments = [os.fspath(part) for part in arguments]
    try:
        try:
            return _posix_spawn(arguments, pass_fds, dict(os.environ if environ is None else environ), new_session)
        except NotImplementedError:  # an old C library that knows no sessions there
            return _popen(arguments, pass_fds, environ, new_session)
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


def _popen(arguments: list[str], pass_fds: Collection[int], environ: Mapping[str, str] | None, new_session: bool) -> int:
    import subprocess  # noqa: PLC0415

    process = subprocess.Popen(arguments, pass_fds=tuple(pass_fds), env=environ, start_new_session=new_session)
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


def send_signal(pid: int, pidfd: int | None, signum: int) -> None:
    """Send a signal, by the pidfd where there is one: it never means a stranger that got the number since."""
    if sys.platform == "linux" and pidfd is not None:
        signal.pidfd_send_signal(pidfd, signum)
    else:
        os.kill(pid, signum)
