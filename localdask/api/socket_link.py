"""How a client reaches a scheduler in another process of the same user: by the cluster's Unix socket.

A room of its own, imported when such a client is made: sockets take some milliseconds, which
a program that makes its own cluster spends while the launcher starts.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakSet

from localdask.api.links import PYTHON, Sleeper
from localdask.errors import ClusterNotFoundError, ProtocolError
from localdask.messages import ClientGone, ClusterGone, Hello, Refused, Welcome
from localdask.system.loop import Loop
from localdask.system.segments import SegmentFolder
from localdask.system.shield import ShieldedLock
from localdask.system.sockets import close_in_children, connect
from localdask.system.transport import Channel
from localdask.version import __version__

__all__ = ["SocketLink"]

#: How long the last words of a closing client may take to leave, in seconds.
GOODBYE_S = 5.0
LOOK_S = 0.001


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
