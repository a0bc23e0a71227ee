"""What a worker hears and says: its pipes, the words on them, and the errands that these bring.

The worker's main thread and its listener use it, both under the worker's one lock; which
of them waits for the pipes, and what a death or a goodbye means, is the worker's affair.
Words about tasks and values go straight to ``Intake``. What runs a user's code (pickling
a value, bringing words to a client) becomes an *errand*, done without the lock, in order.

Clients that live in tasks say their words from any thread, and from any ``__del__``, even
one that the garbage collector runs in the middle of a transition here. So ``post`` leaves
a word in a queue and sends it only if the lock is free; else its holder is woken to look.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from localdask.errors import ProtocolError
from localdask.messages import (
    ClientGone,
    DefineFunction,
    ForgetFunctions,
    ForgetKeys,
    FromClient,
    KeyPublished,
    PublishKey,
    RunTask,
    TakeBack,
    ToClient,
    WorkerStirred,
    WorkerTold,
    from_wire,
    to_wire,
)
from localdask.messages.wire import check_plain
from localdask.processes.ears import Ear
from localdask.processes.intake import Intake, Spilled
from localdask.processes.moves import Moves
from localdask.state.spilling import is_let_go
from localdask.system import codec, outcomes
from localdask.system.board import SLOTS
from localdask.system.segments import SegmentFolder, SegmentPayload

if TYPE_CHECKING:
    from localdask.system.memory_channel import AnyChannel

__all__ = ["Desk"]

#: How often a full pipe is looked at when the last words leave.
_LOOK_S = 0.05


class Desk:
    """The pipes of one worker.

    Parameters
    ----------
    lock : threading.Lock
        The worker's lock, held around every call but ``post``, ``ring`` and ``connect_client``.
    intake : Intake
        Its tasks and values.
    data, supervise : channel
        Its ends of the pipes to the scheduler and, in a process of its own, to its nanny.
    segment_folder : str or None
        Where large values are published; without one they travel in the answer.
    board : memoryview or None
        Says whether the nanny wants to hear of the next work.
    on_word : mapping
        What to do with words that this room does not know.
    on_end : callable
        Is given the pipe that ended, and why.
    want_main : callable
        Has the main thread come back between two tasks.
    tell : callable
        Shows a sentence to the user.

    Attributes
    ----------
    main_ear, listeners_ear : Ear
        Where the two threads wait.
    is_main_waiting : bool
        Whether the main thread waits at its ear; the worker sets it.
    moves : Moves or None
        What plugins are told of tasks, if one asks; told as an errand.
    """

    def __init__(
        self,
        lock: threading.Lock,
        intake: Intake,
        data: AnyChannel,
        supervise: AnyChannel | None,
        *,
        segment_folder: str | None,
        board: memoryview | None,
        on_word: Mapping[type, Callable[[Any], None]],
        on_end: Callable[[AnyChannel, Exception], None],
        want_main: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self.data = data
        self.supervise = supervise
        self.is_main_waiting = False
        #: How the names of files begin that results are published to.
        self.prefix = ""
        self.moves: Moves | None = None
        self._lock = lock
        self._intake = intake
        self._on_end = on_end
        self._want_main = want_main
        self._tell = tell
        self._segment_folder = segment_folder
        self._unwatched = board[SLOTS:] if board is not None else None
        self._segments: SegmentFolder | None = None
        self._posts: deque[Any] = deque()
        self._deliver: dict[str, Callable[[list[Any]], None]] = {}
        self._errands: deque[Callable[[], Any]] = deque()
        self._is_on_errand = False
        others = [supervise.fileno()] if supervise is not None else []
        self.main_ear = Ear(data.fileno(), others)
        self.listeners_ear = Ear(data.fileno(), others)
        self._on_word: dict[type, Callable[[Any], None]] = {
            DefineFunction: intake.define,
            ForgetFunctions: lambda word: intake.forget_functions(word.function_ids),
            TakeBack: lambda word: intake.take_back(word.attempts),
            ForgetKeys: self._forget_keys,
            PublishKey: self._publish_key,
            ToClient: self._bring_to_client,
            **on_word,
        }

    def listen(self, kind: type, on_word: Callable[[Any], None]) -> None:
        """Say what to do with another kind of words."""
        self._on_word[kind] = on_word

    # ── in ───────────────────────────────────────────────────────────────────

    def hear(self, fds: Iterable[int]) -> None:
        """Take in what is in these pipes now."""
        for fd in fds:
            channel = self.data if fd == self.data.fileno() else self.supervise
            if channel is None or channel.fileno() != fd:
                continue
            try:
                words = channel.receive()
            except (EOFError, ProtocolError) as error:
                self._on_end(channel, error)
                continue
            add = self._intake.add if self.moves is None else self._add_watched
            on_word = self._on_word
            for word in words:
                if type(word) is RunTask:
                    add(word)
                elif type(word) in on_word:
                    on_word[type(word)](word)
                else:
                    self._on_end(channel, ProtocolError(f"a worker has no use for the word {word!r:.80}"))

        if self._unwatched is not None and self.supervise is not None and self._unwatched[0]:
            self._unwatched[0] = 0  # the nanny looks at the worker no more, and wants to hear of work
            self.supervise.send([WorkerStirred()])
        if self.moves is not None and self.moves.has_news:
            self.add_errand(self.moves.tell)

    def _add_watched(self, task: RunTask) -> None:
        """Take in a task of which plugins want to know."""
        assert self.moves is not None
        self._intake.add(task)
        self.moves.came(task, is_whole=not self._intake.absent(task))

    def stop_hearing(self, channel: AnyChannel) -> None:
        """Wait no more for a pipe that ended."""
        for ear in (self.main_ear, self.listeners_ear):
            ear.forget(channel.fileno())

    def _forget_keys(self, word: ForgetKeys) -> None:
        if self.moves is not None:
            self.moves.forgot([key for key in word.keys if key in self._intake.data])
        self._intake.forget(word.keys)

    def _publish_key(self, word: PublishKey) -> None:
        key, intake = word.key, self._intake
        if key not in intake.data:
            intake.words.append(KeyPublished(key, None))
        elif type(intake.data[key]) is Spilled:
            intake.words.append(KeyPublished(key, intake.data[key].payload, None, True))  # it has been already
        else:
            self.add_errand(partial(self._publish, key, intake.data[key]))

    def _bring_to_client(self, word: ToClient) -> None:
        deliver = self._deliver.get(word.client)
        if deliver is not None:
            self.add_errand(partial(deliver, [from_wire(row) for row in word.words]))

    # ── errands ──────────────────────────────────────────────────────────────

    def add_errand(self, errand: Callable[[], Any]) -> None:
        """Have something done without the lock; ``ring`` when nobody who hears the pipes knows."""
        self._errands.append(errand)
        self._want_main()

    def do_errands(self) -> None:
        """Do what was asked for without the lock, one after the other, and by one thread at a time."""
        if self._is_on_errand:
            return
        self._is_on_errand = True
        try:
            while self._errands:
                errand = self._errands.popleft()
                self._lock.release()
                try:
                    errand()
                except Exception as error:  # a client's or plugin's own fault, and not the tasks'
                    self._tell(
                        f"{getattr(errand, 'func', errand)} failed: {outcomes.loads_error(outcomes.dumps_error(error)).traceback_text}"
                    )
                finally:
                    del errand
                    self._lock.acquire()
        finally:
            self._is_on_errand = False

    def _publish(self, key: str, value: Any) -> None:
        payload, error = None, None
        try:
            payload = self._payload(key, value)
        except BaseException as raised:  # whatever the value's own code raises
            error = outcomes.dumps_error(raised, skip=2)
        with self._lock:
            is_spilled = isinstance(payload, tuple) and self._published(key, value, payload)
            self._intake.words.append(KeyPublished(key, payload, error, is_spilled))
            self.flush()  # before the value goes, which takes a while

    def _published(self, key: str, value: Any, payload: SegmentPayload) -> bool:
        """Let a value go that others read now, if that pays; return whether it did. Under the lock."""
        _, header, lengths = payload
        is_copied = type(value) is bytes or type(value) is bytearray  # whenever it is read
        if not is_copied and is_let_go(len(header), lengths):
            return self._intake.let_go(key, value, payload)
        if self._intake.spilling is not None and self._intake.data.get(key) is value:
            self._intake.spilling.published[key] = payload
        return False

    def _payload(self, key: str, value: Any) -> Any:
        what = f"the result {key!r}"
        folder = self.segments
        return codec.dumps(value, what) if folder is None else folder.publish(*codec.dumps_buffers(value, what), prefix=self.prefix)

    @property
    def segments(self) -> SegmentFolder | None:
        """Where this worker publishes; None when it has no such place."""
        if self._segments is None and self._segment_folder is not None:
            self._segments = SegmentFolder(self._segment_folder, tell=self._tell)
        return self._segments

    # ── clients that live in tasks ───────────────────────────────────────────

    def connect_client(self, client_id: str, deliver: Callable[[list[Any]], None]) -> Callable[[list[Any]], None]:
        """Let a client use the pipe to the scheduler; return what sends a batch of its words."""
        self._deliver[client_id] = deliver

        def post(words: list[Any]) -> None:
            if any(type(word) is ClientGone for word in words):
                self._deliver.pop(client_id, None)
            self.post(FromClient(client_id, [to_wire(word) for word in words]))

        return post

    def post(self, word: FromClient | WorkerTold) -> None:
        """Send a client's words, or news, now, or have it done. From anywhere."""
        if type(word) is WorkerTold:
            check_plain("the message of an event", word.data)
        self._posts.append(word)
        if self._lock.acquire(blocking=False):
            try:
                self.flush()
                is_stuck = self.data.has_unsent
            finally:
                self._lock.release()
            if not is_stuck:
                return
        self.ring()

    # ── out ──────────────────────────────────────────────────────────────────

    def flush(self) -> None:
        """Send all words that wait, those of clients first: a task's own come before the news that it is done."""
        words = self._intake.take_words() if self._intake.words else []
        if self._posts:
            posts = []
            while self._posts:
                posts.append(self._posts.popleft())
            words = [*posts, *words]
        if words:
            try:
                self.data.send(words)
            except ProtocolError as error:
                self._tell(str(error))
        elif self.data.has_unsent:
            self.data.flush()

    def ring(self) -> None:
        """Wake the thread that waits for the pipes, or would."""
        (self.main_ear if self.is_main_waiting or self.supervise is None else self.listeners_ear).ring()

    def say_last_words(self, timeout_s: float) -> None:
        """Send what waits, for so long at most."""
        deadline = time.monotonic() + timeout_s
        self.flush()
        while self.data.has_unsent and time.monotonic() < deadline:
            self.main_ear.wait(_LOOK_S, wants_out=True)
            self.data.flush()

    def close(self) -> None:
        """Close the pipes and the bells. In a forked child only its copies."""
        self.main_ear.close()
        self.listeners_ear.close()
        self.data.close()
        if self.supervise is not None:
            self.supervise.close()
