"""A cluster's door for clients in other processes of the same user.

It lets visitors in, greets them, passes their words to the scheduler like those of any client, and sends
them the scheduler's words. When a visitor dies, what it wanted is released and nothing else happens; one that sends
garbage loses its own connection and nobody else's. Nothing of a user's is unpickled here. Runs on the
scheduler's I/O thread.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import groupby
from typing import Any

from localdask.errors import ClosedClusterError, ProtocolError
from localdask.messages import (
    AddData,
    Ask,
    CancelKeys,
    ClientGone,
    FetchKeys,
    FireAndForget,
    Function,
    Hello,
    Refused,
    ReleaseKeys,
    RetryKeys,
    SubmitTasks,
    TaskSpec,
    WantKeys,
    Welcome,
    Withdraw,
)
from localdask.processes.questions import QUESTION_WORDS
from localdask.processes.scheduler import Scheduler
from localdask.system.keys import is_key
from localdask.system.loop import Timer
from localdask.system.sockets import Door, close_in_children
from localdask.system.transport import Channel
from localdask.version import __version__

__all__ = ["Server"]

#: A connection that has not said hello after so long is closed.
HELLO_S = 10.0
#: How long the door stays shut when no descriptor is left for another visitor.
PAUSE_S = 0.5
#: How long visitors are given to take the last words, in seconds.
GOODBYE_S = 0.2
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class _Visitor:
    """One connection. ``client`` is empty until it has said hello."""

    __slots__ = ("channel", "client", "is_writing", "patience")

    def __init__(self, channel: Channel, patience: Timer) -> None:
        self.channel = channel
        self.client = ""
        self.is_writing = False
        self.patience = patience


class Server:
    """The visitors of one cluster.

    Parameters
    ----------
    scheduler : Scheduler
        Whose clients they become; not started yet.
    door : Door
        Where they come in; closed with the server.
    facts : mapping
        What a visitor is told at its welcome; plain data.
    """

    def __init__(self, scheduler: Scheduler, door: Door, facts: Mapping[str, Any]) -> None:
        self._scheduler = scheduler
        self._door = door
        self._facts = dict(facts)
        self._visitors: dict[int, _Visitor] = {}
        scheduler.loop.add_reader(door.fileno(), self._let_in)

    def close(self) -> None:
        """Let visitors take the scheduler's last words, and close all. After the scheduler has ended."""
        self._door.close()
        visitors = list(self._visitors.values())
        deadline = time.monotonic() + GOODBYE_S
        while time.monotonic() < deadline and any([not visitor.channel.flush() for visitor in visitors]):
            time.sleep(0.001)
        for visitor in visitors:
            self._let_go(visitor)

    # ── in ───────────────────────────────────────────────────────────────────

    def _let_in(self) -> None:
        loop = self._scheduler.loop
        while True:
            try:
                sock = self._door.accept()
            except OSError as error:
                if error.errno not in _NO_DESCRIPTORS:
                    raise
                self._scheduler.on_event("server-full", detail=f"no client can connect now: {error.strerror}; raise 'ulimit -n'")
                loop.remove_reader(self._door.fileno())
                loop.call_at(time.monotonic() + PAUSE_S, self._open_again)
                return
            if sock is None:
                return
            close_in_children(sock)
            channel = Channel(sock)
            visitor = _Visitor(channel, loop.call_at(time.monotonic() + HELLO_S, partial(self._give_up, channel.fileno())))
            self._visitors[channel.fileno()] = visitor
            loop.add_reader(channel.fileno(), partial(self._read, visitor))

    def _open_again(self) -> None:
        if self._door.fileno() >= 0:
            self._scheduler.loop.add_reader(self._door.fileno(), self._let_in)

    def _give_up(self, fd: int) -> None:
        visitor = self._visitors.get(fd)
        if visitor is not None and not visitor.client:
            self._let_go(visitor)

    def _let_go(self, visitor: _Visitor) -> None:
        """End a connection, and release what its client wanted."""
        fd = visitor.channel.fileno()
        if self._visitors.pop(fd, None) is None:
            return
        visitor.patience.cancel()
        self._scheduler.loop.remove_reader(fd)
        self._scheduler.loop.remove_writer(fd)
        if visitor.client:
            self._scheduler.disconnect(visitor.client)
        with self._scheduler.lock:  # nobody is sending to it
            visitor.channel.close()

    def _read(self, visitor: _Visitor) -> None:
        try:
            words = visitor.channel.receive()
            if words and not visitor.client:
                self._greet(visitor, words.pop(0))
            if words:
                self._hear(visitor, words)
        except EOFError:
            self._let_go(visitor)
        except ProtocolError as error:
            self._scheduler.on_event("protocol-error", worker=visitor.client or "a visitor", detail=str(error))
            self._let_go(visitor)

    def _greet(self, visitor: _Visitor, word: Any) -> None:
        if not isinstance(word, Hello) or not isinstance(word.client, str) or not word.client:
            raise ProtocolError(f"a visitor's first word was {word!r:.80}, and not Hello")
        if word.version != __version__:
            self._refuse(
                visitor,
                f"cluster {self._scheduler.name!r} runs localdask {__version__} and this client {word.version!r:.40}: "
                "use the same version, or start the cluster again",
            )
            return
        if word.client in self._scheduler.state.clients:
            raise ProtocolError(f"there is a client {word.client!r:.80} already")
        visitor.client = word.client
        visitor.patience.cancel()
        self._send(visitor, [Welcome(__version__, self._facts)])
        self._scheduler.connect(word.client, partial(self._send, visitor))

    def _refuse(self, visitor: _Visitor, reason: str) -> None:
        visitor.channel.send([Refused(reason)])
        visitor.channel.flush()
        self._let_go(visitor)

    def _hear(self, visitor: _Visitor, words: list[Any]) -> None:
        for word in words:
            if type(word) not in _SHAPES or word.client != visitor.client or not _SHAPES[type(word)](word):
                raise ProtocolError(f"{visitor.client} said {word!r:.80}, which is no word of a client or not in its shape")
        for _, group in groupby(words, lambda word: type(word) in QUESTION_WORDS):
            try:
                self._scheduler.post(visitor.client, list(group))
            except ClosedClusterError:
                return  # its goodbye is on the way

    # ── out ──────────────────────────────────────────────────────────────────

    def _send(self, visitor: _Visitor, words: list[Any]) -> None:
        """Send words, or keep what its pipe does not take now. Under the scheduler's lock, or before anybody else could send."""
        channel = visitor.channel
        try:
            channel.send(words)
        except ProtocolError as error:  # one value that is longer than any frame; the others are on their way
            print(f"localdask: {visitor.client} was not told: {error}", file=sys.stderr)
        if channel.has_unsent and not visitor.is_writing:
            visitor.is_writing = True
            self._scheduler.loop.call_soon_threadsafe(partial(self._write_when_possible, visitor))

    def _write_when_possible(self, visitor: _Visitor) -> None:
        fd = visitor.channel.fileno()
        if self._visitors.get(fd) is visitor:
            self._scheduler.loop.add_writer(fd, partial(self._write, visitor))

    def _write(self, visitor: _Visitor) -> None:
        with self._scheduler.lock:
            is_done = visitor.channel.flush()
            if is_done:
                visitor.is_writing = False
        if is_done:
            self._scheduler.loop.remove_writer(visitor.channel.fileno())


# ── the shape of a client's words ────────────────────────────────────────────


def _is_text_list(keys: Any) -> bool:
    return type(keys) in (list, tuple) and all([type(key) is str for key in keys])


def _are_keys(keys: Any) -> bool:
    return type(keys) in (list, tuple) and all(map(is_key, keys))


def _has_keys(word: Any) -> bool:
    return _are_keys(word.keys)


def _is_task(task: TaskSpec) -> bool:
    return (
        is_key(task.key)
        and type(task.arguments) is bytes
        and type(task.dependencies) is tuple
        and type(task.retries) is int
        and type(task.priority) in (int, float)
        and type(task.workers) is tuple
        and type(task.resources) is tuple
        and (not task.dependencies or _are_keys(task.dependencies))
        and (not task.workers or _is_text_list(task.workers))
        and all([type(row) is tuple and len(row) == 2 and type(row[0]) is str and type(row[1]) is float for row in task.resources])
    )


def _is_function(function: Function) -> bool:
    return type(function.function_id) is str and type(function.name) is str and type(function.pickled) is bytes


def _is_submission(word: SubmitTasks) -> bool:
    functions = {id(task.function): task.function for task in word.tasks}
    return all([_is_task(task) for task in word.tasks]) and all([_is_function(function) for function in functions.values()])


def _is_item(item: Any) -> bool:
    return type(item) is tuple and len(item) == 3 and is_key(item[0]) and type(item[1]) in (bytes, tuple) and type(item[2]) is int


_SHAPES: dict[type, Callable[[Any], bool]] = {
    SubmitTasks: _is_submission,
    WantKeys: _has_keys,
    ReleaseKeys: _has_keys,
    RetryKeys: _has_keys,
    FetchKeys: _has_keys,
    FireAndForget: _has_keys,
    CancelKeys: lambda word: _has_keys(word) and type(word.reason) is str and type(word.msg) is str,
    AddData: lambda word: type(word.items) in (list, tuple) and all([_is_item(item) for item in word.items]),
    ClientGone: lambda word: True,
    Ask: lambda word: type(word.request) is int and type(word.what) is str and type(word.arguments) is tuple,
    Withdraw: lambda word: type(word.request) is int,
}
