"""How a client reaches its scheduler: by a call in the same process, from within a task, or from another process.

A link has one lock, under which the client's words are delivered and its future states
change. Clients hold one and do not care which.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakSet

from localdask.errors import ClusterNotFoundError, ProtocolError
from localdask.messages import ClientGone, ClusterGone, Hello, Refused, Welcome
from localdask.system.loop import Loop
from localdask.system.segments import SegmentFolder
from localdask.system.shield import Deferral, ShieldedLock
from localdask.system.sockets import close_in_children, connect
from localdask.system.transport import Channel
from localdask.version import __version__

if TYPE_CHECKING:
    from localdask.processes.scheduler import Scheduler

#: How long the last words of a closing client may take to leave, in seconds.
GOODBYE_S = 5.0
LOOK_S = 0.001
#: What both ends must share for functions to travel: the same bytecode.
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"

#: How long what has no hurry may wait for company, in seconds.
SOON_S = 0.02


class Sleeper(Protocol):
    """What one thread waits at."""

    #: Wakes the thread where it waits for something else as well.
    ring: Callable[[], None] | None

    @property
    def is_done(self) -> bool:
        """Whether ``wait`` would return at once."""

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is done; return whether it was in time."""


class Link(Protocol):
    """What a client needs of the way to its scheduler."""

    lock: Any
    #: Where large values are published; None where they travel in the words.
    segments: SegmentFolder | None
    #: How the cluster is reached, for people to read.
    address: str

    def connect(self, client: str, deliver: Callable[[list[Any]], None]) -> None:
        """Begin: ``deliver`` is called under ``lock`` with each batch of words."""

    def post(self, messages: list[Any]) -> None:
        """Say these words; returns at once."""

    def call_soon(self, call: Callable[[], None]) -> None:
        """Run ``call`` on another thread within ``SOON_S``, from wherever this is."""

    def blocking(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which a wait happens."""

    def wait(self, waiter: Sleeper, timeout_s: float | None) -> bool:
        """Wait as the waiter does."""

    def close(self) -> None:
        """End: all that the client wanted is released."""


class SchedulerLink:
    """A client in the scheduler's own process: the submitting thread runs the transition itself."""

    def __init__(self, scheduler: Scheduler, segments: SegmentFolder | None) -> None:
        self.scheduler = scheduler
        self.segments = segments
        self.address = scheduler.address
        self.lock = scheduler.lock
        self._client = ""

    def connect(self, client: str, deliver: Callable[[list[Any]], None]) -> None:
        self._client = client
        self.scheduler.connect(client, deliver)

    def post(self, messages: list[Any]) -> None:
        self.scheduler.post(self._client, messages)

    def call_soon(self, call: Callable[[], None]) -> None:
        loop = self.scheduler.loop
        loop.call_soon_threadsafe(lambda: loop.call_at(time.monotonic() + SOON_S, call))

    def blocking(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def wait(self, waiter: Sleeper, timeout_s: float | None) -> bool:
        """Wait, and read what workers say meanwhile, if no other thread does: one thread less to wake for an answer."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        pipes = self.scheduler.pipes
        waiter.ring = pipes.ring
        deferral = Deferral(pipes.ring_anyway)
        if deferral.begin():
            try:
                pipes.lead(lambda: waiter.is_done or deferral.is_noted, timeout_s, self._is_quiet)
            finally:
                deferral.end()
        return waiter.wait(None if deadline is None else deadline - time.monotonic())

    def _is_quiet(self) -> bool:
        """Whether no worker owes an answer."""
        return not any(worker.in_flight for worker in list(self.scheduler.workers.values()))

    def close(self) -> None:
        self.scheduler.disconnect(self._client)


class TaskLink:
    """A client within a worker's tasks: its words travel on the worker's data pipe."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self.lock = ShieldedLock()
        self.segments: SegmentFolder | None = worker.segments
        self.address = f"the cluster of task's worker {worker.name}"
        self._post: Callable[[list[Any]], None] = lambda words: None

    def connect(self, client: str, deliver: Callable[[list[Any]], None]) -> None:
        def deliver_locked(words: list[Any]) -> None:
            with self.lock:
                deliver(words)

        self._client = client
        self._post = self._worker.connect_client(client, deliver_locked)

    def post(self, messages: list[Any]) -> None:
        self._post(messages)

    def call_soon(self, call: Callable[[], None]) -> None:
        timer = threading.Timer(SOON_S, call)
        timer.name, timer.daemon = "localdask-release", True
        timer.start()

    def blocking(self) -> contextlib.AbstractContextManager[Any]:
        from localdask.processes import runner  # noqa: PLC0415 - what only a worker has

        return runner.blocking()

    def wait(self, waiter: Sleeper, timeout_s: float | None) -> bool:
        return waiter.wait(timeout_s)

    def close(self) -> None:
        self._post([ClientGone(self._client)])


class SocketLink:
    """A client in another process of the same user: its words travel on the cluster's Unix socket.

    Words leave in the thread that says them; an I/O thread of its own brings what comes, and
    what a full socket did not take at once. When the cluster ends, however it ends, the
    client is told ``ClusterGone``, once and last.

    Parameters
    ----------
    path : str
        The socket's.
    timeout_s : float or None
        How long the cluster may take to answer.

    Raises
    ------
    ClusterNotFoundError
        Nobody listens there, or it refuses this client, and says why.
    TimeoutError
        It did not answer in time.
    """

    def __init__(self, path: str, timeout_s: float | None) -> None:
        self.path = path
        self.address = f"unix://{path}"
        self.lock = ShieldedLock()
        self.cluster_name = ""
        self.segments: SegmentFolder | None = None
        self._timeout_s = timeout_s
        self._is_writing = False
        self._client = ""
        self._deliver: Callable[[list[Any]], None] = lambda words: None
        sock = connect(path, timeout_s)
        close_in_children(sock)
        self._channel = Channel(sock)
        self._loop = Loop()
        self._thread = threading.Thread(target=self._run, name="localdask-client", daemon=True)
        _socket_links.add(self)

    def connect(self, client: str, deliver: Callable[[list[Any]], None]) -> None:
        self._client = client
        self._deliver = deliver
        try:
            words = self._say_hello()
        except BaseException:
            self._channel.close()
            self._loop.close()
            raise
        if words:
            self._hear(words)
        self._loop.add_reader(self._channel.fileno(), self._read)
        self._thread.start()

    def _say_hello(self) -> list[Any]:
        """Introduce the client; return what the cluster said after its welcome."""
        self._channel.send([Hello(__version__, self._client, {"pid": os.getpid(), "python": PYTHON})])
        try:
            words = self._channel.wait_for_message(self._timeout_s)
        except (EOFError, ProtocolError) as error:
            raise ClusterNotFoundError(f"the cluster at {self.path} ended the connection: {error}") from error
        if not words:
            raise TimeoutError(f"the cluster at {self.path} did not answer within {self._timeout_s:g} s; its process may be stopped")
        first = words.pop(0)
        if isinstance(first, Refused):
            raise ClusterNotFoundError(first.reason)
        if not isinstance(first, Welcome):
            raise ClusterNotFoundError(f"what listens at {self.path} is no cluster of localdask {__version__}: it said {first!r:.80}")
        facts = first.facts
        if facts["python"] != PYTHON:
            raise ClusterNotFoundError(
                f"cluster {facts['cluster']!r} runs Python {facts['python']} and this client {PYTHON}: functions cannot travel between them"
            )
        self.cluster_name = facts["cluster"]
        self.segments = SegmentFolder(facts["segment_folder"], tell=lambda text: print(f"localdask: {text}", file=sys.stderr))
        return words

    def post(self, messages: list[Any]) -> None:
        if self.lock.is_mine:  # from a callback, or a __del__, while words are taken in
            self._loop.call_soon_threadsafe(partial(self.post, messages))
            return
        with self.lock:
            self._channel.send(messages)
            self._write_later()

    def _write_later(self) -> None:
        if self._channel.has_unsent and not self._is_writing:
            self._is_writing = True
            self._loop.call_soon_threadsafe(lambda: self._loop.add_writer(self._channel.fileno(), self._write))

    def call_soon(self, call: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(call)

    def blocking(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def wait(self, waiter: Sleeper, timeout_s: float | None) -> bool:
        return waiter.wait(timeout_s)

    def close(self) -> None:
        if self._thread.ident is None or not self._thread.is_alive():
            return
        with self.lock:
            self._channel.send([ClientGone(self._client)])
        deadline = time.monotonic() + GOODBYE_S
        while not self._is_flushed() and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        self._loop.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _is_flushed(self) -> bool:
        with self.lock:
            return self._channel.fileno() < 0 or self._channel.flush()

    # ── on its I/O thread ────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            self._loop.run()
        finally:
            with self.lock:
                self._channel.close()
            self._loop.close()

    def _read(self) -> None:
        try:
            words = self._channel.receive()
        except (EOFError, ProtocolError) as error:
            self._loop.stop()
            self._hear([ClusterGone(f"the connection to cluster {self.cluster_name!r} ended: {error}")])
            return
        if words:
            self._hear(words)

    def _hear(self, words: list[Any]) -> None:
        with self.lock:
            self._deliver(words)

    def _write(self) -> None:
        with self.lock:
            is_done = self._channel.flush()
            if is_done:
                self._is_writing = False
        if is_done:
            self._loop.remove_writer(self._channel.fileno())

    def _forget_in_child(self) -> None:
        self._channel.close()
        self._loop.close()


_socket_links: WeakSet[SocketLink] = WeakSet()


def _forget_in_child() -> None:
    for link in list(_socket_links):
        link._forget_in_child()


os.register_at_fork(after_in_child=_forget_in_child)


def check_same_cluster(mine: Link, other: Link, key: str) -> None:
    """Refuse a future that a client of another cluster made, as far as their addresses tell: a task's client has none."""
    if type(mine) is type(other) and not isinstance(mine, TaskLink) and mine.address != other.address:
        raise ValueError(
            f"future {key!r} is of the cluster at {other.address}, and this client's is at {mine.address}: give its result() instead"
        )
