"""The scheduler in the user's process: a lock around the state machine, and its pipes.

Whoever brings a word runs the transition: a submitting thread for its submission, the
one I/O thread for what workers say. Both do it under one lock, and what is to be sent
is put on the pipes under that same lock, so the order on a pipe is the order of the
transitions. Writing never blocks: what a full pipe refuses waits in its channel until
the I/O thread finds room. Payloads pass through unopened.

Called by ``api/cluster.py`` (workers come and go) and by clients (``connect``). It never
starts or ends a process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from localdask.errors import ClosedClusterError, ProtocolError
from localdask.messages import (
    Ask,
    ClientGone,
    ClusterGone,
    FromClient,
    FunctionRan,
    RunFunction,
    SubmitTasks,
    ToClient,
    Told,
    WorkerUp,
    address_of,
    from_wire,
    to_wire,
)
from localdask.processes.alarm import Alarm
from localdask.processes.anteroom import Anteroom
from localdask.processes.changes import Changes
from localdask.processes.observers import WatchedAttempts, WorkerObserver
from localdask.processes.questions import QUESTION_WORDS, Answerer, Questions
from localdask.processes.requests import OnAnswer, Requests
from localdask.processes.roster import Roster
from localdask.processes.scheduler_plugins import SchedulerPlugins
from localdask.processes.worker_links import BESIDE_TASKS, WorkerLink
from localdask.sizing import SETUP_S, TEARDOWN_S
from localdask.state import scheduler as decisions
from localdask.state.tasks import SchedulerState, TaskState, WorkerState
from localdask.system.loop import Loop
from localdask.system.shared_pipes import SharedPipes
from localdask.system.shield import ShieldedLock
from localdask.system.transport import Channel

if TYPE_CHECKING:
    from localdask.system.memory_channel import AnyChannel

Deliver = Callable[[list[Any]], None]
R = TypeVar("R")


class Scheduler:
    """A cluster's scheduler. ``limits_s`` are those of its plugins' beginning and end.

    Attributes
    ----------
    name : str
        The cluster's name.
    address : str
        How other processes reach it; set by the cluster.
    workers : dict of str to WorkerState
        The workers that are registered now, by name.
    plugins : SchedulerPlugins
        Its plugins by name.
    answerers : dict of str to callable
        Who answers what clients ask beside their tasks; see ``processes/questions.py``.
    worker_observers : list of WorkerObserver
        Who is told of workers that come and go.
    client_observers : list of callable
        Are given the id of each client that goes, on the I/O thread, after its questions were withdrawn.
    attempts : WatchedAttempts
        Who is told of attempts at tasks that end by themselves.
    on_worker_word : dict of type to callable
        Who is given (name, life, word) for what workers say beside their tasks, on the I/O thread.
    """

    def __init__(
        self,
        name: str,
        *,
        allowed_failures: int = 3,
        on_event: Callable[..., None] | None = None,
        limits_s: tuple[float, float] = (SETUP_S, TEARDOWN_S),
    ) -> None:
        self.name = name
        self.id = f"Scheduler-{name}"
        self.address = ""
        self.started_at = time.time()
        self._state = SchedulerState(allowed_failures=allowed_failures)
        self.lock = ShieldedLock()
        self.loop = Loop()
        self.pipes = SharedPipes(self.loop)
        self.plugins = SchedulerPlugins(self, self._state, self.lock, limits_s)
        self.is_closed = False
        self.on_event = on_event or (lambda kind, **fields: None)
        self.on_garbage: Callable[[list[Any]], None] = lambda payloads: None
        self.answerers: dict[str, Answerer] = {}
        self.worker_observers: list[WorkerObserver] = []
        self.client_observers: list[Callable[[str], None]] = []
        self.attempts = WatchedAttempts()
        self.on_worker_word: dict[type, Callable[[str, int, Any], None]] = {}
        self._questions = Questions(self.answerers, self._say)
        #: Told of workers that do not stop what they were told to stop, on the I/O thread.
        self.on_stuck: Callable[[str, int], None] = lambda name, life: None
        self._links: dict[str, WorkerLink] = {}
        self._delivers: dict[str, Deliver] = {}
        self._anteroom = Anteroom(self._state)
        self._requests = Requests()
        self._changes = Changes()
        self._thread = threading.Thread(target=self.loop.run, name=f"localdask-scheduler-{name}", daemon=True)
        self._alarm = Alarm(self.loop, self._thread, self._tick)

    def __repr__(self) -> str:
        return f"<Scheduler {self.name!r}, workers: {len(self._state.workers)}, tasks: {len(self._state.tasks)}>"

    @property
    def state(self) -> SchedulerState:
        """What it knows, with all that was said so far taken in. Who holds ``lock`` asks by ``decide``."""
        if self._anteroom and not self.lock.is_mine:
            with self.lock:
                self._send_out()
        return self._state

    @property
    def workers(self) -> Roster:
        return Roster(self._state.workers)

    @property
    def tasks(self) -> Mapping[str, TaskState]:
        return self.state.tasks

    def worker_address(self, name: str) -> str:
        """Return the address of a worker by its name."""
        return address_of(self.name, name)

    def add_plugin(self, plugin: Any, *, idempotent: bool = False, name: str | None = None, **kwargs: Any) -> None:
        """Start a plugin and register it. One of the same name is closed first, or kept when ``idempotent``.

        Parameters
        ----------
        plugin : object
            Anything with hooks of ``SchedulerPlugin``.
        idempotent : bool, default False
            Whether to keep one of the same name.
        name : str, optional
            Its name; the plugin's own attribute, or one made up, by default.
        **kwargs
            Accepted for Dask's sake.
        """
        self.plugins.add(plugin, name, keep_old=idempotent)

    def remove_plugin(self, name: str | None = None) -> None:
        """Close a plugin and forget it; ``ValueError`` when there is none of that name."""
        self.plugins.remove(name or "")

    def start(self) -> None:
        """Start the I/O thread."""
        self._thread.start()

    def close(self) -> None:
        """Close the plugins, stop the I/O thread and close every data pipe. Idempotent."""
        if self.is_closed:
            return
        self.plugins.end()
        self._questions.close()
        with self.lock:
            self.is_closed = self._changes.is_over = True
            for deliver in list(self._delivers.values()):
                deliver([ClusterGone(f"cluster {self.name!r} was closed")])
        self.loop.stop()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        with self.pipes.claimed():
            for link in self._links.values():
                link.channel.close()
            self._links.clear()
        self.pipes.close()
        self.loop.close()
        self.notify()

    # ── clients ──────────────────────────────────────────────────────────────

    def connect(self, client: str, deliver: Deliver) -> None:
        """Make a client known. ``deliver`` takes its words, under the lock, and must be quick."""
        with self.lock:
            self._delivers[client] = deliver
            decisions.connect_client(self._state, client)
        self.plugins.tell("add_client", scheduler=self, client=client)

    def disconnect(self, client: str) -> None:
        """Release all that a client wanted."""
        self.post(client, [ClientGone(client)])
        if self._delivers.pop(client, None) is not None:
            self.plugins.tell("remove_client", scheduler=self, client=client)
        for observe in (self._questions.client_gone, *self.client_observers):
            self._on_thread(partial(observe, client))

    def post(self, client: str, messages: list[Any]) -> None:
        """Take in a client's words, questions apart from others. From any thread, also from a ``__del__`` within a transition."""
        if type(messages[0]) in QUESTION_WORDS:
            self._asked(messages)
            return
        if self.lock.is_mine:
            self._anteroom.add(client, messages)
            return
        is_submission = type(messages[0]) is SubmitTasks
        if is_submission and self._anteroom.may_wait(messages[0]):
            self._anteroom.add(client, messages)
            if self._anteroom.may_wait(messages[0]):
                return
            messages = []
        with self.lock:
            if self.is_closed:
                return
            self._let_in()
            if messages:
                self._client_said(client, messages)
            self._send_out(is_patient=is_submission)

    def _client_said(self, client: str, messages: list[Any]) -> None:
        """Have the transitions of a client's words made, and the plugins told of them. Under the lock."""
        if self.plugins.watches_tasks:
            self.plugins.because(f"{client}-said")
            for message in messages:
                if type(message) is SubmitTasks:
                    self.plugins.tell_of_graph(message)
        decisions.client_said(self._state, messages, time.monotonic())

    def _let_in(self) -> None:
        """Take in what waits in the anteroom. Under the lock."""
        while self._anteroom:
            waiting = self._anteroom.take()
            if self.plugins.watches_tasks:
                for client, messages in waiting:
                    self._client_said(client, messages)
            else:
                decisions.client_said(self._state, [word for _, messages in waiting for word in messages], time.monotonic())

    def _asked(self, words: list[Any]) -> None:
        for word in words:
            if isinstance(word, Ask):
                self._on_thread(partial(self._questions.put, self._questions.open(word)))
            else:
                self._on_thread(partial(self._questions.withdraw, word))

    def tell_client(self, client: str, topic: str, data: Any) -> None:
        """Send plain data to a client that listens to a topic. From any thread."""
        self._say(client, Told(topic, data))

    def _say(self, client: str, word: Any) -> None:
        with self.lock:
            if not self.is_closed:
                self._state.say_to_client(client, word)
                self._send_out()

    def _on_thread(self, call: Callable[[], None]) -> None:
        """Run a call on the I/O thread, in its turn."""
        if not self.is_closed:
            self.loop.call_soon_threadsafe(call)

    # ── workers ──────────────────────────────────────────────────────────────

    def attach(self, name: str, life: int, pid: int, fd: int) -> None:
        """Take the scheduler's end of a new worker's data pipe. On the I/O thread."""
        self.attach_channel(name, life, pid, Channel(socket.socket(fileno=fd)))

    def attach_channel(self, name: str, life: int, pid: int, channel: AnyChannel) -> None:
        """As ``attach``, for an end that is there already."""
        link = WorkerLink(name, life, pid, channel, self.loop, self.lock)
        self._links[name] = link
        self.pipes.add(channel.fileno(), partial(self._read, link), partial(self._try_read, link))
        for observer in self.worker_observers:
            observer.worker_came(name, life)

    def tell_worker(self, name: str, life: int, word: Any) -> None:
        """Send a word to one life of a worker, registered or not yet; dropped when that is gone. From any thread."""
        with self.lock:
            link = self.link_of(name, life)
            if link is not None:
                link.put([word])

    def link_of(self, name: str, life: int) -> WorkerLink | None:
        """Return how one life of a worker is reached, registered or not yet; None when that is gone."""
        link = self._links.get(name)
        return link if link is not None and link.life == life else None

    def detach(
        self,
        name: str,
        life: int,
        *,
        is_expected: bool,
        executing: tuple[int, ...] = (),
        exit_text: str = "",
        peak_rss: int = 0,
        last_lines: tuple[str, ...] = (),
    ) -> None:
        """A worker's process ended. What it said before is heard first. On the I/O thread."""
        link = self.link_of(name, life)
        if link is None:
            return
        with self.pipes.claimed():
            while link.unheard:  # read before what is still in the pipe
                self._read(link)
            self._read(link)
            del self._links[name]
            self._stop_reading(link)
            link.channel.close()
        for client in link.clients:
            self.disconnect(client)
        worker = link.worker
        self._requests.lose(name)
        for observer in self.worker_observers:
            observer.worker_left(name, life, is_expected)
        if worker is None:
            return
        cause = self.plugins.because(f"{name}-left")
        with self.lock:
            decisions.worker_left(
                self._state,
                worker,
                time.monotonic(),
                is_expected=is_expected,
                executing=executing,
                exit_text=exit_text,
                peak_rss=peak_rss,
                last_lines=last_lines,
            )
            self._send_out()
        self.plugins.tell_of_worker("remove_worker", self.worker_address(name), stimulus_id=cause)
        self.notify()

    def _read(self, link: WorkerLink) -> None:
        try:
            messages = link.unheard or link.channel.receive()
            link.unheard = []
        except EOFError:
            self._stop_reading(link)
            self._quiet(link)
            return
        except ProtocolError as error:
            self._stop_reading(link)
            self._quiet(link)
            self.on_event("protocol-error", worker=link.name, detail=str(error))
            if link.pid != os.getpid():  # a worker in a thread is this process
                with contextlib.suppress(ProcessLookupError):  # it is gone already
                    os.kill(link.pid, signal.SIGKILL)
            return
        if not messages:
            return
        worker = link.worker
        if worker is None:
            self._register(link, messages[0])
            messages = messages[1:]
            worker = link.worker
            if worker is None or not messages:
                return
        if not BESIDE_TASKS.isdisjoint(map(type, messages)):
            messages = [message for message in messages if not self._heard_beside(link, message)]
        self._worker_said(link, worker, messages)

    def _worker_said(self, link: WorkerLink, worker: WorkerState, messages: list[Any]) -> None:
        with self.lock:
            if self.plugins.watches_tasks:
                self.plugins.because(f"{link.name}-said")
            decisions.worker_said(self._state, worker, messages, time.monotonic())
            self._send_out()
        if self.attempts:
            for call in self.attempts.ended(messages):
                self._on_thread(call)

    def _try_read(self, link: WorkerLink) -> bool:
        """Take in what a worker says of its tasks, in a thread that waits for it; leave all else to the I/O thread."""
        worker = link.worker
        if worker is None or link.unheard:
            return False
        try:
            messages = link.channel.receive()
        except (EOFError, ProtocolError):
            return False  # as it will be for the I/O thread
        if not BESIDE_TASKS.isdisjoint(map(type, messages)):
            link.unheard = messages
            self.loop.call_soon_threadsafe(partial(self._read_unheard, link))
            return False
        if messages:
            self._worker_said(link, worker, messages)
        return True

    def _read_unheard(self, link: WorkerLink) -> None:
        with self.pipes.claimed():
            if link.unheard:
                self._read(link)

    def _stop_reading(self, link: WorkerLink) -> None:
        self.pipes.remove(link.channel.fileno())
        link.stop_writing()

    def _quiet(self, link: WorkerLink) -> None:
        """Send nothing more to a worker whose pipe ended; its nanny's word will say why."""
        if link.worker is not None:
            with self.lock:
                decisions.set_leaving(self._state, link.worker, time.monotonic())
                self._send_out()

    def _register(self, link: WorkerLink, word: Any) -> None:
        if not isinstance(word, WorkerUp):
            self._stop_reading(link)
            self.on_event("protocol-error", worker=link.name, detail=f"first word was {word!r:.80}")
            return
        worker = WorkerState(link.name, link.life, word.pid, word.nthreads, word.resources, word.memory_limit)
        worker.address, worker.generations = self.worker_address(link.name), word.generations
        worker.is_paused = link.is_paused
        link.worker = worker
        with self.lock:
            self.plugins.because(f"{link.name}-joined")
            decisions.worker_joined(self._state, worker, time.monotonic())
            self._send_out()
        self.plugins.tell_of_worker("add_worker", self.worker_address(link.name))
        for observer in self.worker_observers:
            observer.worker_joined(link.name, link.life)
        self.notify()
        self.on_event("worker-joined", worker=link.name, life=link.life, pid=word.pid)

    # ── out ──────────────────────────────────────────────────────────────────

    def _send_out(self, *, is_patient: bool = False) -> None:
        """Put all that is to be said on its way; when ``is_patient``, busy workers may wait for more. Under the lock."""
        state = self._state
        while True:
            self._let_in()
            to_workers, to_clients = state.drain(is_patient=is_patient)
            for worker, messages in to_workers:
                link = self._links.get(worker.name)
                if link is not None and link.worker is worker:
                    link.put(messages)
            for client, messages in to_clients:
                deliver = self._delivers.get(client)
                if deliver is not None:
                    deliver(messages)
            self._anteroom.look(is_open=not self.plugins.watches_tasks)
            was_said = to_workers or to_clients
            if not self._anteroom and not (was_said and (state.dirty_workers or state.dirty_clients)):
                break
        if state.garbage:
            garbage, state.garbage = state.garbage, []
            self.on_garbage(garbage)
        for worker in state.stuck:
            self.loop.call_soon_threadsafe(partial(self.on_stuck, worker.name, worker.life))
        state.stuck.clear()
        self._alarm.set(state.next_deadline)

    def _tick(self) -> None:
        with self.lock:
            decisions.tick(self._state, time.monotonic())
            self._send_out()

    # ── beside the tasks: functions run now, and clients that live in tasks ──

    def _heard_beside(self, link: WorkerLink, message: Any) -> bool:
        if isinstance(message, FunctionRan):
            self._requests.answer(message.request, message.outcome)
            return True
        if isinstance(message, FromClient):
            self._from_task(link, message)
            return True
        hear = self.on_worker_word.get(type(message))
        if hear is not None:
            hear(link.name, link.life, message)
        return hear is not None

    def _from_task(self, link: WorkerLink, message: FromClient) -> None:
        client = message.client
        if client not in link.clients:
            link.clients.add(client)
            self.connect(client, lambda words: link.put([ToClient(client, [to_wire(word) for word in words])]))
        self.post(client, [from_wire(row) for row in message.words])

    def run_function(self, call: bytes, workers: list[str], on_answer: OnAnswer, *, wait: bool = True, actor: str = "") -> None:
        """Call a pickled function on these workers now, outside the queue; or a method of an actor there.

        ``on_answer(worker, outcome)`` is called once for each on the I/O thread; the
        outcome is None when the worker died first.
        """
        with self.lock:
            if self.is_closed:
                raise ClosedClusterError(f"cluster {self.name!r} is closed")
            for name in workers:
                number = self._requests.number()
                link = self._links.get(name)
                if link is None or link.worker is None:
                    on_answer(name, None)
                    continue
                if wait:
                    self._requests.expect(number, name, on_answer)
                self._state.say_to_worker(link.worker, RunFunction(number, call, wait, actor))
            self._send_out()

    # ── looking ──────────────────────────────────────────────────────────────

    def wait_for(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until a condition on the workers holds; it is asked again whenever one comes or goes."""
        return self._changes.wait_for(condition, timeout_s)

    def notify(self) -> None:
        """Have ``wait_for`` ask its condition again."""
        self._changes.notify()

    def decide(self, decision: Callable[[SchedulerState], R]) -> R:
        """Return what a decision on the state returns, once what it has to say is on its way."""
        with self.lock:
            self._let_in()
            decided = decision(self._state)
            self._send_out()
        return decided

    def forget_everything(self, reason: str) -> None:
        """Cancel every task, for a restart of the workers."""
        self.decide(lambda state: decisions.forget_everything(state, reason))
        self.plugins.tell("restart", self)
