"""Doors: where they lie, who may use them, and that a dead owner's is told from a living one's by the kernel alone."""

from __future__ import annotations

import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from localdask.errors import ClusterNotFoundError, UsageError
from localdask.system import sockets
from localdask.system.sockets import Door, connect, find_doors, peer_of, runtime_folder, sweep_doors
from tests.conftest import wait_until


@pytest.fixture(autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime folder of this test's own, with a short path."""
    place = Path(os.environ["TMPDIR"]) / f"r{os.urandom(3).hex()}"
    place.mkdir(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    return place


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door.open("here", version="1", is_named=True)
    yield door
    door.close()


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_a_door_is_private_and_says_who_owns_it(door: Door, place: Path) -> None:
    assert door.path == str(place / "localdask" / "here.sock")
    assert (mode_of(door.path), mode_of(os.path.dirname(door.path)), mode_of(door.path[:-4] + "lock")) == (0o600, 0o700, 0o600)
    (entry,) = find_doors()
    assert (entry.name, entry.pid, entry.version, entry.is_named, entry.is_alive) == ("here", os.getpid(), "1", True, True)
    assert entry.address == f"unix://{door.path}" and abs(entry.started_at - time.time()) < 60


def test_both_ends_know_each_other_by_the_kernels_word(door: Door) -> None:
    with connect(door.path, 1.0) as there:
        here = door.accept()
        assert here is not None
        with here:
            assert peer_of(here) == peer_of(there) == (os.getpid(), os.getuid())
        assert door.accept() is None


def test_another_users_connection_is_closed_unread(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect(door.path, 1.0) as there:
        monkeypatch.setattr(sockets, "peer_of", lambda sock: (1, os.getuid() + 1))
        assert door.accept() is None
        assert there.recv(1) == b""
        with pytest.raises(PermissionError, match="another user"):
            connect(door.path, 1.0)


def test_a_name_has_one_living_cluster(door: Door) -> None:
    with pytest.raises(UsageError, match=f"'here' runs already \\(pid {os.getpid()}\\).*localdask down here"):
        Door.open("here", version="1", is_named=True)
    Door.open("there", version="1", is_named=True).close()


def test_a_closed_door_leaves_nothing(place: Path) -> None:
    door = Door.open("here", version="1", is_named=True)
    door.close()
    door.close()
    assert os.listdir(place / "localdask") == [] == find_doors()
    with pytest.raises(ClusterNotFoundError, match="there is no cluster at"):
        connect(door.path, 1.0)
    with pytest.raises(ClusterNotFoundError, match="there is no cluster at /nothing"):  # in a folder of somebody else's
        connect("/nothing", 1.0)


def leave_stale(name: str) -> str:
    """Have a process open a door and die of SIGKILL; return the socket's path."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, Door.open(name, version="1", is_named=True).path.encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    path = os.read(reader, 4096).decode()
    os.close(reader)
    os.close(writer)
    return path


def test_a_killed_owners_door_is_stale_whoever_has_its_pid_now() -> None:
    path = leave_stale("dead")
    lock = path[: -len("sock")] + "lock"
    text = Path(lock).read_text().split("\n", 1)[1]
    Path(lock).write_text(f"{os.getpid()}\n{text}")  # the number was given to a living process
    (entry,) = find_doors()
    assert (entry.pid, entry.is_alive) == (os.getpid(), False)
    with pytest.raises(ClusterNotFoundError, match="is gone"):
        connect(path, 1.0)
    assert [entry.name for entry in sweep_doors()] == ["dead"]
    assert not os.path.exists(path) and not os.path.exists(lock) and sweep_doors() == []


def test_a_dead_clusters_name_can_be_used_at_once() -> None:
    path = leave_stale("again")
    door = Door.open("again", version="1", is_named=True)
    assert door.path == path and [entry.is_alive for entry in find_doors()] == [True]
    assert sweep_doors() == []
    door.close()


def test_a_forked_child_that_outlives_the_owner_does_not_keep_the_door_open() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        door = Door.open("parent", version="1", is_named=True)
        child = os.fork()
        if child == 0:
            os.close(writer)
            os.read(reader, 1)  # as long as the test wants
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
        door.close()
    os.waitpid(pid, 0)
    wait_until(lambda: [entry.is_alive for entry in find_doors()] == [False])
    assert len(sweep_doors()) == 1
    os.close(writer)
    os.close(reader)


def test_a_half_written_lock_is_no_cluster(place: Path) -> None:
    Door.open("x", version="1", is_named=True).close()
    lock = place / "localdask" / "half.lock"
    lock.write_text("12")
    assert [(entry.name, entry.pid, entry.is_alive) for entry in find_doors()] == [("half", 0, False)]
    assert len(sweep_doors()) == 1 and not lock.exists()


def test_a_folder_that_others_can_enter_is_not_used(place: Path) -> None:
    folder = place / "localdask"
    folder.mkdir(0o755)
    door = Door.open("here", version="1", is_named=True)
    try:
        assert os.path.dirname(door.path) == os.path.join(os.environ["TMPDIR"], f"localdask-{os.getuid()}")
    finally:
        door.close()
        os.rmdir(os.path.dirname(door.path))


def test_a_link_to_a_folder_is_not_used(place: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(0o700)
    (place / "localdask").symlink_to(elsewhere)
    folder = runtime_folder(make=True)
    assert folder == os.path.join(os.environ["TMPDIR"], f"localdask-{os.getuid()}")
    os.rmdir(folder)
    (elsewhere / "x.sock").touch()
    with pytest.raises(PermissionError, match="not a private folder"):
        connect(str(place / "localdask" / "x.sock"), 1.0)


def test_what_is_no_socket_is_not_connected_to(place: Path) -> None:
    runtime_folder(make=True)
    path = place / "localdask" / "x.sock"
    path.touch()
    with pytest.raises(ClusterNotFoundError, match="is no socket of a cluster"):
        connect(str(path), 1.0)


def test_a_path_that_is_too_long_for_a_socket_finds_a_shorter_place() -> None:
    door = Door.open("n" * 120, version="1", is_named=True)
    try:
        assert len(door.path) < 108
        (entry,) = find_doors()
        assert (entry.name, entry.path) == ("n" * 120, door.path)
        connect(door.path, 1.0).close()
    finally:
        door.close()
    with pytest.raises(UsageError, match="too long"):
        Door.open("n" * 300, version="1", is_named=True)


def test_a_runtime_folder_that_is_too_long_for_a_socket_leaves_the_lock_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = place / ("d" * 60) / ("e" * 60)
    deep.mkdir(0o700, parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    door = Door.open("here", version="1", is_named=True)
    try:
        assert (deep / "localdask" / "here.lock").exists() and not door.path.startswith(str(deep))
        connect(door.path, 1.0).close()
    finally:
        door.close()
        os.rmdir(os.path.dirname(door.path))


def test_an_owner_that_takes_no_connections_is_a_timeout(door: Door) -> None:
    filled: list[socket.socket] = []
    try:
        with pytest.raises(TimeoutError):
            for _ in range(2000):
                filled.append(connect(door.path, 0.05))
    finally:
        for sock in filled:
            sock.close()
