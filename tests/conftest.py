"""What every test stands on: a guard that nothing is left behind, and a patient wait.

Several runs may share a machine, so the guard counts only what is this run's own: its
processes, what lies in a temporary folder that it made for itself, and those folders in
shared memory whose other half is in there.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest

WAIT_S = 30.0
SHARED_MEMORY = Path("/dev/shm")
_own_place = ""


def pytest_configure(config: pytest.Config) -> None:
    """Give this run, and every process that it starts, a temporary folder of its own."""
    global _own_place
    hypothesis.settings.register_profile("steady", derandomize=True, deadline=None)
    if not config.getoption("--hypothesis-profile"):  # `--hypothesis-profile=default` draws new examples, as does `make sim`
        hypothesis.settings.load_profile("steady")
    # A shell's background job, or nohup, ignores these, and so would every process that is tested here.
    for signum, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, handler)
    _own_place = tempfile.mkdtemp(prefix="ld-tests-")
    os.environ["TMPDIR"] = tempfile.tempdir = _own_place
    os.environ["XDG_RUNTIME_DIR"] = os.path.join(_own_place, "run")
    os.makedirs(_doors(), mode=0o700)


def _doors() -> str:
    """Return the folder where this run's clusters have their sockets; it stays."""
    return os.path.join(_own_place, "run", "localdask")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare the collections after each test what was imported by now: they took a tenth of the suite's time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_own_place, ignore_errors=True)


def wait_until(condition: Callable[[], object], timeout_s: float = WAIT_S, what: str = "") -> None:
    """Return when the condition holds; fail the test when it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s} s in vain for {what or condition}")
        time.sleep(0.005)


def own_files() -> set[str]:
    """Return what localdask left in this run's temporary folder, and in shared memory on behalf of it."""
    found = {str(path) for path in Path(_own_place).glob("*localdask*")}
    found |= {str(path) for folder in Path(_own_place).glob("*localdask*") if folder.is_dir() for path in folder.iterdir()}
    found |= {str(path) for path in Path(_doors()).iterdir()}
    if SHARED_MEMORY.is_dir():
        for folder in SHARED_MEMORY.glob("*localdask*"):
            try:
                is_ours = os.readlink(folder / "spare").startswith(_own_place)
                found |= {str(path) for path in (folder, *folder.iterdir())} if is_ours else set()
            except OSError:
                continue  # another run's, or just gone
    return found


def _processes() -> set[tuple[int, float, str]]:
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
            if "localdask.processes.launcher" in command and not process.children():
                continue  # the idle launcher stays for the next cluster of this process
            found.add((process.pid, process.create_time(), command[:200] or process.status()))
        except psutil.NoSuchProcess:
            continue
    return found


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.is_alive()}


def _descriptors() -> Counter[str]:
    """Count the open descriptors by what they are, without the pipe to the launcher, which stays as the launcher does."""
    launching = sys.modules.get("localdask.processes.launching")
    channel = None if launching is None else launching._channel
    if not os.path.isdir("/proc/self/fd"):
        return Counter({"descriptors": psutil.Process().num_fds() - (channel is not None)})
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the listing's own
        if channel is None or channel.fileno() != int(name):
            found[target.split(":")[0] if target.startswith(("socket:", "pipe:")) else target] += 1
    return found


def _left(before: tuple[set[tuple[int, float, str]], set[threading.Thread], set[str], Counter[str]]) -> dict[str, object]:
    """Return what is here now and was not before, by its kind."""
    left = {
        "processes": _processes() - before[0],
        "threads": _threads() - before[1],
        "files": own_files() - before[2],
        "descriptors": dict(_descriptors() - before[3]),
    }
    return {kind: what for kind, what in left.items() if what}


@pytest.fixture(autouse=True)
def no_loop_errs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A loop goes on after an error of ours, and tells it on stderr, where no test looks."""
    errors: list[BaseException] = []
    tell = sys.__excepthook__

    def note(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            errors.append(error)
        tell(kind, error, trace)

    monkeypatch.setattr(sys, "__excepthook__", note)
    yield
    assert not errors, f"a loop met {errors}"


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Processes, threads, descriptors, segments and folders are the same after a test as before it.

    A test marked ``shared`` uses a cluster that outlives it; the module's last fixture is then the judge.
    """
    if request.node.get_closest_marker("shared"):
        yield
        return
    before = _processes(), _threads(), own_files(), _descriptors()
    yield
    deadline = time.monotonic() + 5
    gc.collect()
    while (left := _left(before)) and time.monotonic() < deadline:
        time.sleep(0.01)
        gc.collect()
    assert not left, f"left behind: {left}"
