"""Unix sockets by which this user's other processes reach a cluster: where they lie, who may use them, whether their owner lives.

Used by the cluster's process (``Door``), and by clients elsewhere and the command line
(``find_doors``, ``connect``). It never reads or writes a byte on a connection.

A door is two files in a folder that only its user can enter: a lock with what the owner
says of itself, and the socket. The owner holds the lock for as long as it lives, and the
kernel lets go of it however the owner dies: that, and not a process id, which the next
process may have, is the proof of life by which a door is listed or swept. Both ends ask
the kernel who the other one is before a byte is read.

A socket's path has little room (107 bytes on Linux, 103 on macOS). Where the folder's is too
long for it, the socket lies in the temporary folder, and the lock says where.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
import sys
import time
from weakref import WeakSet

from localdask.errors import ClusterNotFoundError, UsageError
from localdask.records import record
from localdask.system.segments import check_private, temporary_places

__all__ = ["Door", "DoorEntry", "close_in_children", "connect", "find_doors", "peer_of", "runtime_folder", "sweep_doors"]

_PATH_MAX = 103 if sys.platform == "darwin" else 107
_BACKLOG = 128
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
#: How long a starting cluster waits for somebody who only looks whether the lock is held.
_LOOKERS_S = 0.2
_PAUSE_S = 0.005
#: macOS's names for the same facts; Python does not have them.
_SOL_LOCAL, _LOCAL_PEERCRED, _LOCAL_PEERPID = 0, 1, 2


@record(frozen=True)
class DoorEntry:
    """What a door's owner said of itself. ``is_alive`` is the kernel's word, not the owner's."""

    name: str
    path: str
    pid: int
    started_at: float
    version: str
    is_named: bool
    is_alive: bool

    @property
    def address(self) -> str:
        return f"unix://{self.path}"


# ── where ────────────────────────────────────────────────────────────────────


def runtime_folder(*, make: bool = False) -> str:
    """Return this user's folder of doors; raise ``OSError`` when there is none, or, with ``make``, when none can be made."""
    parents = [os.environ.get("XDG_RUNTIME_DIR", "")]
    places = [os.path.join(parent, "localdask") for parent in parents if os.path.isabs(parent)]
    places += [os.path.join(place, f"localdask-{os.getuid()}") for place in temporary_places()]
    error: OSError = FileNotFoundError(errno.ENOENT, "no cluster was started yet")
    for place in dict.fromkeys(places):
        try:
            if make:
                _make_private(place)
            check_private(place)
            if not make or os.access(place, os.W_OK | os.X_OK):
                return place
        except FileNotFoundError as failure:
            error = failure
        except OSError as failure:
            error = failure
    raise error


def _make_private(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return
    os.chmod(path, 0o700)  # whatever the umask left


def _socket_path(folder: str, name: str) -> str:
    """Return where a door's socket lies: beside its lock if the path is short enough."""
    places = [os.path.join(folder, f"{name}.sock")]
    short = f"{os.urandom(6).hex()}.sock"
    for place in (folder, *(os.path.join(place, f"localdask-{os.getuid()}") for place in temporary_places())):
        places.append(os.path.join(place, short))
    for path in places:
        if len(os.fsencode(path)) > _PATH_MAX:
            continue
        try:
            _make_private(os.path.dirname(path))
            check_private(os.path.dirname(path))
        except OSError:
            continue
        return path
    raise OSError(errno.ENAMETOOLONG, f"{places[0]} is too long for a Unix socket; set XDG_RUNTIME_DIR to a shorter folder of yours")


# ── the owner's side ─────────────────────────────────────────────────────────


class Door:
    """A cluster's listening socket, and the lock that says its owner lives. ``open`` makes one.

    Attributes
    ----------
    path : str
        The socket's.
    """

    def __init__(self, lock_path: str, lock_fd: int, path: str, sock: socket.socket) -> None:
        self.path = path
        self._sock = sock
        self._lock_path = lock_path
        self._lock_fd = lock_fd
        self._pid = os.getpid()
        _doors.add(self)

    @classmethod
    def open(cls, name: str, *, version: str, is_named: bool) -> Door:
        """Open a cluster's door, over what a dead cluster of that name left.

        Raises ``UsageError`` when a cluster of that name lives, and ``OSError`` when there is no place for a door.
        """
        folder = runtime_folder(make=True)
        lock_path = os.path.join(folder, f"{name}.lock")
        lock_fd = _take_lock(lock_path, name)
        sock = None
        path = ""
        try:
            path = _socket_path(folder, name)
            _unlink(path)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.bind(path)
            os.chmod(path, 0o600)
            sock.listen(_BACKLOG)
            sock.setblocking(False)
            facts = f"{os.getpid()}\n{time.time()}\n{version}\n{int(is_named)}\n".encode() + os.fsencode(path) + b"\n"
            os.ftruncate(lock_fd, 0)
            os.pwrite(lock_fd, facts, 0)
        except BaseException:
            if sock is not None:
                sock.close()
                _unlink(path)
            _unlink(lock_path)
            os.close(lock_fd)
            raise
        return cls(lock_path, lock_fd, path, sock)

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> socket.socket | None:
        """Return the next connection of this user, None when there is none now; another user's is closed unread."""
        while True:
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return None
            if peer_of(sock)[1] == os.getuid():
                return sock
            sock.close()

    def close(self) -> None:
        """Close and remove the door. In a forked child it only lets go of its copies. Idempotent."""
        if self._lock_fd < 0:
            return
        self._sock.close()
        if os.getpid() == self._pid:
            _unlink(self.path)
            _unlink(self._lock_path)
        lock_fd, self._lock_fd = self._lock_fd, -1
        os.close(lock_fd)


def _take_lock(path: str, name: str) -> int:
    """Make and hold a lock, or raise ``UsageError`` when another owner has it."""
    deadline = time.monotonic() + _LOOKERS_S
    while True:
        try:
            fd = os.open(path, _OPEN | os.O_CREAT, 0o600)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise UsageError(f"the name {name!r:.40}… is too long for a file's name: choose a shorter one") from error
            raise
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(fd, path):
                return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                pid = _read_facts(fd)[0]
                os.close(fd)
                mend = f"use that one, end it with 'localdask down {name}', or choose another name"
                raise UsageError(f"a cluster called {name!r} runs already (pid {pid}): {mend}") from None
            time.sleep(_PAUSE_S)
        os.close(fd)  # held by who only looks, or swept away between the two calls: begin again


def _is_at(fd: int, path: str) -> bool:
    """Whether an open file is still the one at that path."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


# ── finding and sweeping ─────────────────────────────────────────────────────


def find_doors() -> list[DoorEntry]:
    """Return this user's doors, oldest first, also those whose owners are dead."""
    try:
        folder = runtime_folder()
        names = os.listdir(folder)
    except OSError:
        return []
    found = [_look(folder, name[: -len(".lock")]) for name in names if name.endswith(".lock")]
    return sorted((entry for entry in found if entry is not None), key=lambda entry: (entry.started_at, entry.name))


def _look(folder: str, name: str) -> DoorEntry | None:
    try:
        fd = os.open(os.path.join(folder, f"{name}.lock"), _OPEN)
    except OSError:
        return None
    try:
        pid, started_at, version, is_named, path = _read_facts(fd)
        is_alive = False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            is_alive = True
        if is_alive and not path:
            return None  # it is just being opened
        return DoorEntry(name, path, pid, started_at, version, is_named, is_alive)
    finally:
        os.close(fd)


def _read_facts(fd: int) -> tuple[int, float, str, bool, str]:
    lines = os.pread(fd, 4096, 0).split(b"\n")
    try:
        return int(lines[0]), float(lines[1]), lines[2].decode(), lines[3] == b"1", os.fsdecode(lines[4])
    except (IndexError, ValueError):  # its owner died before it had written it all
        return 0, 0.0, "", False, ""


def sweep_doors() -> list[DoorEntry]:
    """Remove the doors whose owners are dead, and return them."""
    return [entry for entry in find_doors() if not entry.is_alive and _sweep(entry)]


def _sweep(entry: DoorEntry) -> bool:
    path = os.path.join(runtime_folder(), f"{entry.name}.lock")
    try:
        fd = os.open(path, _OPEN)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(fd, path):
            return False
        if entry.path.endswith(".sock"):
            check_private(os.path.dirname(entry.path))
            _unlink(entry.path)
        _unlink(path)
    except OSError:  # it lives after all, or is not ours to remove
        return False
    finally:
        os.close(fd)
    return True


# ── the visitor's side ───────────────────────────────────────────────────────


def connect(path: str, timeout_s: float | None) -> socket.socket:
    """Return a connection to the door at that path.

    Raises ``ClusterNotFoundError`` when nobody listens there, ``PermissionError`` when the socket is not this
    user's own, and ``TimeoutError`` when the owner takes no more connections in time.
    """
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)  # first: where nothing is, the folder is not to blame
        check_private(os.path.dirname(path) or ".")
        if not is_socket:
            raise ClusterNotFoundError(f"{path} is no socket of a cluster; 'localdask ls' lists those that run")
    except FileNotFoundError:
        raise ClusterNotFoundError(f"there is no cluster at {path}; it was closed, or 'localdask ls' lists another one") from None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _knock(sock, path, timeout_s)
        if peer_of(sock)[1] != os.getuid():
            raise PermissionError(f"the socket {path} belongs to another user: it is not used")
    except (ConnectionRefusedError, FileNotFoundError):
        sock.close()
        raise ClusterNotFoundError(f"the cluster at {path} is gone; 'localdask ls' lists those that run") from None
    except BaseException:
        sock.close()
        raise
    return sock


def _knock(sock: socket.socket, path: str, timeout_s: float | None) -> None:
    """Connect. A queue that is full says so at once instead of waiting, so it is tried again."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    sock.setblocking(False)
    while True:
        try:
            sock.connect(path)
        except BlockingIOError:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"the cluster at {path} takes no more clients; its process may be stopped") from None
            time.sleep(_PAUSE_S)
        else:
            return


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Return the process id and user id of the process at the other end, by the kernel's word."""
    if sys.platform == "darwin":
        _, uid = struct.unpack_from("=II", sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, 76))
        (pid,) = struct.unpack("=i", sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID, 4))
        return pid, uid
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


# ── forks ────────────────────────────────────────────────────────────────────

_doors: WeakSet[Door] = WeakSet()
_sockets: WeakSet[socket.socket] = WeakSet()


def close_in_children(sock: socket.socket) -> None:
    """Have a forked child close its copy: otherwise a child that outlives this process would keep the connection open."""
    _sockets.add(sock)


def _forget_in_child() -> None:
    for door in list(_doors):
        door.close()
    for sock in list(_sockets):
        sock.close()


os.register_at_fork(after_in_child=_forget_in_child)
