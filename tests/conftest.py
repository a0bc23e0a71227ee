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
#: What keeps numpy and pyarrow from starting threads as they are imported.
WITHOUT_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
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
    # A process with threads cannot be forked: each worker of the tests of workers would be a Python that starts anew, for half a second.
    os.environ |= WITHOUT_THREADS


def pytest_collection_finish(session: pytest.Session) -> None:
    for name in WITHOUT_THREADS:  # by now they are imported here, and what the tests start should have a plain environment
        del os.environ[name]


def _doors() -> str:
    """Return the folder where this run's clusters have their sockets; it stays."""
    return os.path.join(_own_place, "run", "localdask")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(_own_place, ignore_errors=True)


def wait_until(condition: Callable[[], object], timeout_s: float = WAIT_S, what: str = "") -> None:
    """Return when the condition holds; fail the test when it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s} s in vain for {what or condition}")
        time.sleep(0.005)


def write(path: Path, text: str = "") -> Path:
    """Write a file that nobody else can change, with the folders above it; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return path


def own_files() -> set[str]:
    """Return what localdask left in this run's temporary folder, and in shared memory for it, but for folders of free segments."""
    found = {str(path) for path in Path(_own_place).glob("*localdask*")}
    found |= {str(path) for folder in Path(_own_place).glob("*localdask*") if folder.is_dir() for path in folder.iterdir()}
    found |= {str(path) for path in Path(_doors()).iterdir()}
    if SHARED_MEMORY.is_dir():
        for folder in SHARED_MEMORY.glob("*localdask*"):
            try:
                is_ours = os.readlink(folder / "spare").startswith(_own_place)
                found |= {str(path) for path in (folder, *folder.iterdir()) if path.name != "free"} if is_ours else set()
            except OSError:
                continue  # another run's, or just gone
    return found


def _children(pid: int) -> list[int]:
    """Return a process's children from the kernel's own lists; psutil reads the whole machine's table, twice a test."""
    try:
        lists = [Path(f"/proc/{pid}/task/{thread}/children").read_text() for thread in os.listdir(f"/proc/{pid}/task")]
    except OSError:  # no Linux, or just gone
        return [child.pid for child in psutil.Process(pid).children()]
    return [int(child) for children in lists for child in children.split()]


def _processes(parent: int | None = None) -> set[tuple[int, float, str]]:
    found: set[tuple[int, float, str]] = set()
    for pid in _children(parent or os.getpid()):
        try:
            process = psutil.Process(pid)
            command = " ".join(process.cmdline())
            below = _processes(pid)
            if "localdask.processes.launcher" in command and not below:
                continue  # the idle launcher stays for the next cluster of this process
            found |= {(pid, process.create_time(), command[:200] or process.status()), *below}
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


class _Guard:
    """What is here now, and the judge of what is here later."""

    def __init__(self) -> None:
        self.before = _processes(), _threads(), own_files(), _descriptors()

    def left(self) -> dict[str, object]:
        """Return what is here now and was not before, by its kind."""
        left = {
            "processes": _processes() - self.before[0],
            "threads": _threads() - self.before[1],
            "files": own_files() - self.before[2],
            "descriptors": dict(_descriptors() - self.before[3]),
        }
        return {kind: what for kind, what in left.items() if what}

    def check(self) -> None:
        """Fail when something is left for longer than an end takes."""
        deadline = time.monotonic() + 5
        gc.collect()
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(0.01)
            gc.collect()
        assert not left, f"left behind: {left}"


@pytest.fixture(autouse=True, scope="module")
def nothing_left_behind_by_a_file() -> Iterator[None]:
    """The judge of what tests share, such as a cluster that outlives them."""
    gc.collect()
    gc.freeze()  # what is here stays, and looking at it again after each test took a sixth of the suite's time
    guard = _Guard()
    yield
    guard.check()


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

    A test marked ``shared`` uses a cluster that outlives it; its file is then judged as a whole.
    """
    if request.node.get_closest_marker("shared"):
        yield
        return
    guard = _Guard()
    yield
    guard.check()
