"""Processes start only where it is safe, their end is seen and worded, and what they started ends with them.

Programs that fork run in an interpreter of their own: the one that runs the tests may have threads.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localdask.errors import StartError, UsageError
from localdask.system import process, sessions
from localdask.system.child import Child, ExitStatus, explain_status
from localdask.system.process import open_pidfd, spawn
from localdask.system.sessions import kill_session
from tests.conftest import wait_until

ROOT = str(Path(__file__).parents[2])
LIMIT_S = 30.0
PRELUDE = """
import json, os, select, signal, sys, threading, time
sys.path.insert(0, {root!r})
from localdask.errors import StartError, UsageError
from localdask.system import process, sessions
from localdask.system.child import Child
from localdask.system.process import fork, set_parent_death_signal, set_subreaper
from localdask.system.sessions import children, kill_orphans, kill_session, reap_orphans

def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("waited in vain")
        time.sleep(0.002)

def wait_for(pid):
    child = Child(pid)
    wait_until(child.poll)
    child.close()
    return child.poll().text

def say(thing):
    os.write(1, json.dumps(thing).encode() + b"\\n")  # at once, and never twice

def is_alive(pid):
    try:
        return open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False

def sleep_on():
    while True:
        time.sleep(1000)
"""
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel has no such word there")


def text_of(program: str) -> str:
    return PRELUDE.format(root=ROOT) + textwrap.dedent(program)


def run(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, and what it left behind with it."""
    return subprocess.run([sys.executable, "-c", text_of(program)], capture_output=True, text=True, timeout=LIMIT_S)


def said_by(program: str) -> list[Any]:
    """Return what a program said, a JSON value a line; it must have ended well."""
    done = run(program)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def quick(program: str) -> list[str]:
    """Return the command of a bare interpreter, which starts in a few milliseconds."""
    return [sys.executable, "-I", "-S", "-c", program]


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """Children that are killed, collected and closed after the test."""
    made: list[Child] = []
    yield made
    for child in made:
        child.kill()
        wait_until(child.poll)
        child.close()


def ended(child: Child) -> ExitStatus:
    wait_until(child.poll)
    status = child.poll()
    assert status is not None
    return status


# ── fork ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "body, text, error",
    [
        ("None", "exit code 0", ""),
        ("sys.exit()", "exit code 0", ""),
        ("sys.exit(3)", "exit code 3", ""),
        ("sys.exit('no luck')", "exit code 1", "no luck"),
        ("1 / 0", "exit code 70", "ZeroDivisionError"),
        ("os.abort()", "SIGABRT", ""),
    ],
)
def test_a_forked_child_ends_as_its_function_does_and_never_climbs_out(body, text, error):
    done = run(f"""
        try:
            pid = fork(lambda: {body})
            say(wait_for(pid))
        finally:
            say("end of the parent")
    """)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [text, "end of the parent"]
    assert error in done.stderr


def test_buffered_output_is_written_once_by_each():
    done = run("""
        print("parent", end=" ")
        pid = fork(lambda: print("child", end=" "))
        wait_for(pid)
        print("end")
    """)
    assert done.stdout == "parent child end\n"


def test_a_fork_is_refused_in_a_process_with_two_threads_and_the_error_tells_the_mend():
    (error, n_threads) = said_by("""
        release = threading.Event()
        thread = threading.Thread(target=release.wait)
        thread.start()
        n_threads = process.n_threads()
        try:
            fork(lambda: None)
        except StartError as error:
            say(str(error))
        say(n_threads)
        release.set()
    """)
    assert "has 2 threads" in error
    assert "spawn" in error
    assert n_threads == 2


def test_a_thread_that_was_joined_a_moment_ago_refuses_no_fork():
    assert said_by("""
        for _ in range(30):
            thread = threading.Thread(target=int)
            thread.start()
            thread.join()
            os.waitpid(fork(lambda: None), 0)
        say("done")
    """) == ["done"]


def test_a_signal_right_after_the_fork_meets_the_child_and_never_its_parents_handler():
    assert said_by("""
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        handled = []
        signal.signal(signal.SIGTERM, lambda *_: (handled.append(1), say("handled")))
        signal.set_wakeup_fd(write)
        words = set()
        for _ in range(50):
            pid = fork(sleep_on)
            os.kill(pid, signal.SIGTERM)
            words.add(wait_for(pid))
        try:
            words.add(str(os.read(read, 10)))
        except BlockingIOError:
            pass
        say(sorted(words))
        os.kill(os.getpid(), signal.SIGTERM)
        say(len(handled))
    """) == [["SIGTERM"], "handled", 1]


def test_a_child_has_pythons_own_interrupt_and_its_parents_mask():
    assert said_by("""
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        def child():
            say(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
            say(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
        wait_for(fork(child))
        say(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
    """) == [True, [signal.SIGUSR1], [signal.SIGUSR1]]


# ── spawn ────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["posix_spawn", "fork and exec"])
def way(request, monkeypatch):
    """How a program is started: some C libraries cannot do it at once with a new session."""

    def know_no_sessions(*args, **kwargs):
        raise NotImplementedError

    if request.param != "posix_spawn":
        monkeypatch.setattr(os, "posix_spawnp", know_no_sessions)


def test_a_spawn_works_while_threads_run_and_passes_what_it_should(children, way):
    is_over = threading.Event()
    threads = [threading.Thread(target=is_over.wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    read, write = os.pipe()
    other_read, other_write = os.pipe()
    program = f"""
import os
try:
    os.fstat({other_write})
    others = 1
except OSError:
    others = 0
line = repr((os.environ.get('WORD'), os.getcwd(), os.getsid(0) == os.getpid(), others))
os.write({write}, line.encode())
os._exit(7)
"""
    try:
        environ = {"WORD": "spoken", "PATH": os.environ["PATH"]}
        child = Child(spawn(quick(program), pass_fds=[write], environ=environ, new_session=True))
        children.append(child)
        os.close(write)
        assert os.read(read, 1000).decode() == repr(("spoken", os.getcwd(), True, 0))
        assert os.read(read, 1) == b""
        assert ended(child).text == "exit code 7"
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
        for fd in (read, other_read, other_write):
            os.close(fd)


def test_a_spawned_program_has_the_signals_that_python_ignores_for_itself(children, way):
    child = Child(spawn(["/bin/sh", "-c", "kill -PIPE $$; exit 3"]))
    children.append(child)
    assert ended(child).text == "SIGPIPE"


def test_a_program_that_cannot_start_is_named(way):
    with pytest.raises(StartError, match=r"'/no/such/program' did not start"):
        spawn(["/no/such/program"])


def test_only_what_is_to_be_kept_stays_open():
    assert said_by("""
        kept = os.open("/", os.O_RDONLY)
        others = [os.dup(kept) for _ in range(20)]
        process.close_other_descriptors({kept})
        def is_open(fd):
            try:
                os.fstat(fd)
            except OSError:
                return False
            return True
        say([fd for fd in range(64) if is_open(fd)] == [0, 1, 2, kept])
    """) == [True]


# ── one process ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "program, text, code, signum",
    [
        ("pass", "exit code 0", 0, None),
        ("import os; os._exit(3)", "exit code 3", 3, None),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL", None, 9),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV", None, 11),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV", None, 11),
        ("import os; os.abort()", "SIGABRT", None, 6),
    ],
)
def test_an_end_has_the_right_word(children, program, text, code, signum):
    child = Child(spawn(quick(program)))
    children.append(child)
    status = ended(child)
    assert (status.text, status.code, status.signal) == (text, code, signum)
    assert child.poll() is status
    assert text in repr(child)


@pytest.mark.parametrize(
    "status, text",
    [
        (0, "exit code 0"),
        (255 << 8, "exit code 255"),
        (15, "SIGTERM"),
        (9 | 128, "SIGKILL"),
        (60, "signal 60"),
        (None, "an end that nobody saw"),
    ],
)
def test_a_wait_status_is_explained(status, text):
    assert explain_status(status) == text


def test_the_largest_memory_of_a_child_is_told(children):
    child = Child(spawn(quick("x = b'x' * 80_000_000")))
    children.append(child)
    assert 80_000_000 < ended(child).peak_rss < 800_000_000


@only_linux
def test_a_child_is_readable_once_it_ended_and_not_before(children):
    read, write = os.pipe()
    child = Child(spawn(quick(f"import os; os.read({read}, 1)"), pass_fds=[read]))
    children.append(child)
    os.close(read)
    assert select.select([child], [], [], 0)[0] == []
    assert child.poll() is None
    os.close(write)
    assert select.select([child], [], [], LIMIT_S)[0] == [child]
    assert child.poll() == ExitStatus(0, child.poll().peak_rss)


def test_asked_to_end_and_made_to_end(children):
    for action, text in ((Child.terminate, "SIGTERM"), (Child.kill, "SIGKILL")):
        child = Child(spawn(quick("import time; time.sleep(1000)")))
        children.append(child)
        action(child)
        assert ended(child).text == text
        action(child)


def test_a_stopped_process_can_be_killed(children):
    child = Child(spawn(quick("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)")))
    children.append(child)
    os.waitpid(child.pid, os.WUNTRACED)
    assert child.poll() is None
    child.kill()
    assert ended(child).text == "SIGKILL"


def test_nobody_is_signalled_by_the_number_of_a_collected_child(children, monkeypatch):
    child = Child(spawn(quick("pass")))
    children.append(child)
    ended(child)
    monkeypatch.setattr(sessions, "send_signal", lambda *_: pytest.fail("the number may be a stranger's"))
    child.kill()
    child.terminate()


@pytest.mark.parametrize("with_pidfd", [True, False])
def test_the_end_of_a_process_that_is_no_child_of_ours_is_seen_without_its_status(monkeypatch, with_pidfd):
    if not with_pidfd:
        monkeypatch.setattr(process, "open_pidfd", lambda pid: None)
    program = text_of("""
        pid = fork(lambda: sleep_on())
        say(pid)
        wait_for(pid)
        sys.stdin.read()
    """)
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    seen = Child(json.loads(parent.stdout.readline()))
    assert seen.poll() is None
    seen.kill()
    assert ended(seen) == ExitStatus(None)
    seen.close()
    seen.close()
    parent.communicate(timeout=LIMIT_S)


def test_there_is_no_pidfd_of_a_process_that_is_gone(children):
    child = Child(spawn(quick("pass")))
    children.append(child)
    ended(child)
    assert open_pidfd(child.pid) is None


# ── the parent's death ───────────────────────────────────────────────────────


@only_linux
@pytest.mark.parametrize("spin", ["sum(iter(int, 1))", "[0 for _ in iter(int, 1)]", "sleep_on()"])
def test_a_child_dies_with_its_killed_parent_even_when_it_spins_in_c(spin):
    program = text_of(f"""
        me = os.getpid()
        def child():
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            assert set_parent_death_signal(me)
            say(os.getpid())
            {spin}
        fork(child)
        sleep_on()
    """)
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    child = Child(json.loads(parent.stdout.readline()))
    assert child.poll() is None
    parent.kill()
    parent.communicate(timeout=LIMIT_S)
    assert ended(child) == ExitStatus(None)
    child.close()


def test_a_child_whose_parent_is_gone_already_dies_at_once():
    assert said_by("""
        say(wait_for(fork(lambda: set_parent_death_signal(os.getpid()))))
    """) == ["SIGKILL"]


# ── everything in a session ──────────────────────────────────────────────────


def test_a_session_ends_with_all_that_left_its_group_or_is_stopped():
    (left, alive, word) = said_by("""
        read, write = os.pipe()
        def tell():
            os.write(write, str(os.getpid()).encode() + b" ")
        def leave_group():
            os.setpgid(0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            fork(lambda: (tell(), sleep_on()))
            tell()
            sleep_on()
        def stop():
            tell()
            os.kill(os.getpid(), signal.SIGSTOP)
        def lead():
            os.setsid()
            fork(leave_group)
            fork(stop)
            fork(lambda: (fork(lambda: (tell(), sleep_on())), tell()))
            sleep_on()
        child = Child(fork(lead))
        pids = b""
        while pids.count(b" ") < 5:
            pids += os.read(read, 1000)
        say(child.kill_session())
        say([pid for pid in map(int, pids.split()) if is_alive(pid)])
        wait_until(child.poll)
        say(child.poll().text)
    """)
    assert (left, alive, word) == ([], [], "SIGKILL")


def test_a_session_that_forks_all_the_time_ends():
    assert said_by("""
        read, write = os.pipe()
        def breed():
            while True:
                os.write(write, b"x")
                if os.fork():
                    os._exit(0)
        def lead():
            os.setsid()
            os.set_blocking(write, False)
            for _ in range(2):
                if os.fork() == 0:
                    try:
                        breed()
                    except BlockingIOError:
                        os._exit(0)
            sleep_on()
        child = Child(fork(lead))
        os.read(read, 1)
        say(child.kill_session())
        say([sighting.pid for sighting in sessions._members(child.pid) if not sighting.is_zombie])
        wait_until(child.poll)
    """) == [[], []]


def test_other_sessions_are_left_alone(children):
    for _ in range(2):
        children.append(Child(spawn(quick("import time; time.sleep(1000)"), new_session=True)))
    first, second = children
    wait_until(lambda: os.getsid(first.pid) == first.pid and os.getsid(second.pid) == second.pid)
    assert first.kill_session() == []
    assert ended(first).text == "SIGKILL"
    assert second.poll() is None


def test_the_end_of_an_empty_session_is_no_error():
    assert kill_session(2**22 + 1) == []


@pytest.mark.parametrize("sid", [os.getsid(0), 0, 1, -1])
def test_nobody_ends_its_own_session_or_the_systems(sid):
    with pytest.raises(UsageError, match="own, or the system's"):
        kill_session(sid)


def test_what_cannot_be_killed_is_named_when_time_is_up(children, monkeypatch):
    child = Child(spawn(quick("import time; time.sleep(1000)"), new_session=True))
    children.append(child)
    wait_until(lambda: os.getsid(child.pid) == child.pid)
    with monkeypatch.context() as patched:
        patched.setattr(sessions, "send_signal", lambda *_: None)
        assert kill_session(child.pid, timeout_s=0.01) == [child.pid]


def test_a_stranger_that_got_the_number_of_a_member_is_not_killed(monkeypatch):
    member = sessions._Sighting(os.getpid(), 1, 12345, False)
    sightings = iter([[member], [], []])
    monkeypatch.setattr(sessions, "_members", lambda sid: next(sightings))
    monkeypatch.setattr(sessions, "send_signal", lambda *_: pytest.fail("this process is in another session"))
    assert kill_session(12345) == []


# ── a subreaper ──────────────────────────────────────────────────────────────


@only_linux
def test_orphans_come_to_a_subreaper_which_collects_them_and_not_what_is_kept():
    assert said_by("""
        assert set_subreaper()
        read, write = os.pipe()
        def make_orphan():
            fork(lambda: os.write(write, str(os.getpid()).encode()))
        kept = fork(sleep_on)
        parent = fork(make_orphan)
        say(wait_for(parent))
        orphan = int(os.read(read, 10))
        reaped = []
        wait_until(lambda: reaped.extend(reap_orphans({kept})) or reaped)
        say(reaped == [orphan])
        say(is_alive(kept))
        os.kill(kept, signal.SIGKILL)
        wait_until(lambda: not is_alive(kept))
        say(reap_orphans({kept}))
        say(wait_for(kept))
        say(reap_orphans(()))
    """) == ["exit code 0", True, True, [], "SIGKILL", []]


@only_linux
def test_orphans_that_fled_into_sessions_of_their_own_are_ended_to_the_last_generation():
    assert said_by("""
        assert set_subreaper()
        read, write = os.pipe()
        def flee(depth):
            os.setsid()
            os.write(write, str(os.getpid()).encode() + b" ")
            if depth:
                fork(lambda: flee(depth - 1))
            sleep_on()
        kept = fork(sleep_on)
        worker = fork(lambda: flee(6))
        pids = b""
        while pids.count(b" ") < 7:
            pids += os.read(read, 1000)
        child = Child(worker)
        say(child.kill_session())
        wait_until(child.poll)
        say([is_alive(pid) for pid in map(int, pids.split())].count(True))
        say(kill_orphans({kept}))
        say([is_alive(pid) for pid in map(int, pids.split())].count(True))
        say(is_alive(kept))
        say(kill_orphans(()))
        say(is_alive(kept))
        try:
            os.wait()
        except ChildProcessError:
            say("all collected")
    """) == [[], 6, [], 0, True, [], False, "all collected"]


@only_linux
def test_the_ended_of_a_session_are_collected_but_not_its_leader():
    assert said_by("""
        assert set_subreaper()
        read, write = os.pipe()
        def lead():
            os.setsid()
            for _ in range(3):
                fork(lambda: (os.close(write), os.read(read, 1)))
        leader = fork(lead)
        wait_until(lambda: not is_alive(leader))
        other = fork(lambda: None)
        wait_until(lambda: not is_alive(other))
        say(len(children(leader)))
        say(children() - children(leader) == {other})
        say(reap_orphans({leader, other}))
        os.close(write)
        reaped = []
        wait_until(lambda: reaped.extend(reap_orphans({leader, other})) or len(reaped) == 3)
        say(leader in reaped or other in reaped)
        say(wait_for(leader))
        say(wait_for(other))
    """) == [4, True, [], False, "exit code 0", "exit code 0"]
