"""A simulated cluster: the real scheduler's state, and model workers, clients and pipes.

Nothing here is random by itself; whoever drives it (a seed, or hypothesis) chooses what
happens next. The model knows the truth: what every key's value is, what every worker
really holds, and what every client was promised.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass
from typing import Any

from localdask import messages as words
from localdask.state import scheduler
from localdask.state.tasks import SchedulerState, WorkerState
from localdask.state.validation import validate

LARGE = "large"
BAD = "bad"
FLAKY = "flaky"
ACTOR = "actor"


def digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


@dataclass
class Recipe:
    """What the truth knows of a key."""

    key: str
    inputs: tuple[str, ...]
    kind: str
    retries: int = 0
    workers: tuple[str, ...] = ()
    resources: tuple[tuple[str, float], ...] = ()
    limit_s: float = 0.0
    n_failed: int = 0


class ModelWorker:
    """A worker that behaves as ``processes/worker.py`` promises, one small step at a time."""

    def __init__(self, name: str, life: int, nthreads: int, resources: tuple[tuple[str, float], ...]) -> None:
        self.state = WorkerState(name, life, 1000 + life, nthreads, resources)
        self.nthreads = nthreads
        self.inbox: deque[Any] = deque()
        self.outbox: deque[Any] = deque()
        self.functions: set[str] = set()
        self.ready: list[words.RunTask] = []
        self.running: dict[int, words.RunTask] = {}
        self.data: dict[str, bytes] = {}
        self.seceded: set[int] = set()
        self.interrupted: set[int] = set()
        self.spilled: set[str] = set()

    def makes(self, key: str) -> bool:
        return any(task.key == key for task in (*self.ready, *self.running.values()))


class World:
    """The whole: one scheduler state, its workers and clients."""

    def __init__(self, allowed_failures: int = 3) -> None:
        self.state = SchedulerState(allowed_failures=allowed_failures)
        self.now = 0.0
        self.recipes: dict[str, Recipe] = {}
        self.workers: dict[str, ModelWorker] = {}
        self.n_lives = 0
        #: What each client was told last of each key it wants.
        self.told: dict[str, dict[str, Any]] = {}
        self.transcript = hashlib.blake2b(digest_size=16)
        self.stale: deque[tuple[ModelWorker, Any]] = deque(maxlen=20)
        self.n_charged: dict[str, int] = {}

    # ── clients ──────────────────────────────────────────────────────────────

    def connect(self, client: str) -> None:
        scheduler.connect_client(self.state, client)
        self.told.setdefault(client, {})

    def submit(self, client: str, recipes: list[Recipe]) -> None:
        specs = []
        for recipe in recipes:
            self.recipes.setdefault(recipe.key, recipe)
            recipe = self.recipes[recipe.key]
            function = words.Function(recipe.kind, recipe.kind, b"function")
            specs.append(
                words.TaskSpec(
                    recipe.key,
                    function,
                    b"",
                    recipe.inputs,
                    retries=recipe.retries,
                    workers=recipe.workers,
                    resources=recipe.resources,
                    limits=(recipe.limit_s, b"") if recipe.limit_s else None,
                    is_actor=recipe.kind == ACTOR,
                )
            )
            self.told[client].setdefault(recipe.key, None)
        self.say(client, [words.SubmitTasks(client, specs)])

    def say(self, client: str, messages: list[Any]) -> None:
        scheduler.client_said(self.state, messages, self.now)
        self.carry()

    def release(self, client: str, keys: list[str]) -> None:
        for key in keys:
            self.told[client].pop(key, None)
        self.say(client, [words.ReleaseKeys(client, keys)])

    def hear(self, client: str, message: Any) -> None:
        told = self.told.get(client)
        if told is None or message.key not in told:
            return
        if isinstance(message, words.KeyInMemory | words.KeyFetched):
            if message.payload is not None:
                assert message.payload == self.truth(message.key), f"{client} was given a wrong value of {message.key}"
            if isinstance(message, words.KeyInMemory):
                assert not self.is_bad(message.key), f"{message.key} cannot have a value"
        if isinstance(message, words.KeyErred) and isinstance(message.error, bytes):
            culprit = self.recipes[message.error.decode()]
            assert culprit.kind in (BAD, FLAKY) or culprit.limit_s, f"{culprit.key} was blamed and is innocent"
            assert culprit.n_failed > culprit.retries, f"{culprit.key} had retries left"
        if isinstance(message, words.KeyErred) and message.error[0] == "actor-lost":
            assert self.recipes[message.error[1]].kind == ACTOR, f"{message.error[1]} is no actor, and can be made again"
        if not isinstance(message, words.KeyFetched):
            told[message.key] = message

    # ── the truth ────────────────────────────────────────────────────────────

    def truth(self, key: str) -> bytes:
        return digest(key)

    def is_bad(self, key: str) -> bool:
        stack, seen = [key], set()
        while stack:
            recipe = self.recipes[stack.pop()]
            if recipe.kind == BAD:
                return True
            if recipe.key not in seen:
                seen.add(recipe.key)
                stack.extend(recipe.inputs)
        return False

    # ── workers ──────────────────────────────────────────────────────────────

    def boot(self, name: str, nthreads: int = 1, resources: tuple[tuple[str, float], ...] = ()) -> None:
        self.n_lives += 1
        worker = ModelWorker(name, self.n_lives, nthreads, resources)
        self.workers[name] = worker
        scheduler.worker_joined(self.state, worker.state, self.now)
        self.carry()

    def crash(self, name: str, n_heard: int = 0, is_expected: bool = False) -> None:
        """Kill a worker; the first ``n_heard`` words it had sent are still heard."""
        worker = self.workers[name]
        heard = [worker.outbox.popleft() for _ in range(min(n_heard, len(worker.outbox)))]
        if heard:
            scheduler.worker_said(self.state, worker.state, heard, self.now)
            self.carry()
        del self.workers[name]
        self.stale.extend((worker, word) for word in worker.outbox)
        executing = tuple(attempt for attempt in worker.running)
        if not is_expected:
            for attempt in executing:
                if attempt in worker.state.in_flight:
                    key = worker.running[attempt].key
                    self.n_charged[key] = self.n_charged.get(key, 0) + 1
        scheduler.worker_left(self.state, worker.state, self.now, is_expected=is_expected, executing=executing, exit_text="SIGKILL")
        self.carry()

    def pause(self, name: str, is_paused: bool) -> None:
        """A worker uses too much memory, or no longer."""
        scheduler.set_paused(self.state, self.workers[name].state, is_paused, self.now)
        self.carry()

    def spill(self, name: str) -> None:
        """A worker writes a large value to disk."""
        worker = self.workers[name]
        for key in worker.data:
            if self.recipes[key].kind == LARGE and key not in worker.spilled:
                worker.spilled.add(key)
                worker.outbox.append(words.KeyPublished(key, worker.data[key], None, True))
                return

    def lose_file(self, name: str) -> None:
        """A file that a worker spilled to is gone."""
        worker = self.workers[name]
        if worker.spilled:
            key = min(worker.spilled)
            worker.spilled.discard(key)
            worker.data.pop(key, None)
            self._drop_orphans(worker)

    def deliver(self, name: str) -> None:
        """One word from the scheduler reaches a worker."""
        worker = self.workers[name]
        if not worker.inbox:
            return
        word = worker.inbox.popleft()
        if isinstance(word, words.DefineFunction):
            worker.functions.add(word.function_id)
        elif isinstance(word, words.ForgetFunctions):
            worker.functions -= set(word.function_ids)
        elif isinstance(word, words.RunTask):
            self._receive_task(worker, word)
        elif isinstance(word, words.TakeBack):
            taken = tuple(task.attempt for task in worker.ready if task.attempt in word.attempts)
            worker.ready = [task for task in worker.ready if task.attempt not in taken]
            if taken:
                worker.outbox.append(words.TakenBack(taken))
            self._drop_orphans(worker)
        elif isinstance(word, words.InterruptTask):
            if word.attempt in worker.running and word.attempt % 3:  # every third task is stubborn
                worker.interrupted.add(word.attempt)
        elif isinstance(word, words.ForgetKeys):
            for key in word.keys:
                worker.data.pop(key, None)
                worker.spilled.discard(key)
        elif isinstance(word, words.PublishKey):
            if word.key in worker.data and len(worker.data) % 2:  # it keeps only the place
                worker.spilled.add(word.key)
            worker.outbox.append(words.KeyPublished(word.key, worker.data.get(word.key), None, word.key in worker.spilled))
        else:
            raise AssertionError(f"a worker got {word}")

    def _receive_task(self, worker: ModelWorker, task: words.RunTask) -> None:
        assert task.function_id in worker.functions, f"{task.key} came without its function"
        recipe = self.recipes[task.key]
        assert tuple(key for key, _ in task.inputs) == recipe.inputs, f"{task.key} came with other inputs"
        for key, payload in task.inputs:
            if payload is not None:
                assert payload == self.truth(key), f"{task.key} came with a wrong {key}"
        lacking = tuple(key for key, payload in task.inputs if payload is None and key not in worker.data and not worker.makes(key))
        if lacking:
            worker.outbox.append(words.TaskMissing(task.attempt, lacking))
        else:
            worker.ready.append(task)

    def _drop_orphans(self, worker: ModelWorker) -> None:
        """Tell of tasks whose inputs nobody here will make any more."""
        again = True
        while again:
            again = False
            for task in worker.ready:
                lacking = tuple(key for key, payload in task.inputs if payload is None and key not in worker.data and not worker.makes(key))
                if lacking:
                    worker.ready.remove(task)
                    worker.outbox.append(words.TaskMissing(task.attempt, lacking))
                    again = True
                    break

    def start(self, name: str) -> None:
        """A worker starts the next task whose inputs are there."""
        worker = self.workers[name]
        if len(worker.running) - len(worker.seceded) >= worker.nthreads:
            return
        for task in worker.ready:
            if all(payload is not None or key in worker.data for key, payload in task.inputs):
                worker.ready.remove(task)
                worker.running[task.attempt] = task
                return

    def secede(self, name: str) -> None:
        worker = self.workers[name]
        for attempt in worker.running:
            if attempt not in worker.seceded:
                worker.seceded.add(attempt)
                worker.outbox.append(words.TaskSeceded(attempt))
                return

    def finish(self, name: str, duration_s: float = 0.001, reschedule: bool = False) -> None:
        """The oldest running task of a worker ends, one way or the other."""
        worker = self.workers[name]
        if not worker.running:
            return
        attempt = next(iter(worker.running))
        task = worker.running.pop(attempt)
        worker.seceded.discard(attempt)
        recipe = self.recipes[task.key]
        if reschedule:
            worker.outbox.append(words.TaskRescheduled(attempt))
            self._drop_orphans(worker)
            return
        if attempt in worker.interrupted or recipe.kind == BAD or (recipe.kind == FLAKY and recipe.n_failed < 2):
            recipe.n_failed += 1
            worker.outbox.append(words.TaskErred(attempt, task.key.encode(), duration_s))
            self._drop_orphans(worker)
            return
        value = self.truth(task.key)
        worker.data[task.key] = value
        worker.spilled.discard(task.key)
        # Large values of several sizes, some of them worth waiting for.
        nbytes = 10 ** (5 + value[0] % 5) if recipe.kind == LARGE else len(value)
        worker.outbox.append(words.TaskDone(attempt, None if recipe.kind == LARGE else value, nbytes, duration_s))

    def hear_from(self, name: str, n: int = 1) -> None:
        """The scheduler reads up to n words of a worker."""
        worker = self.workers[name]
        batch = [worker.outbox.popleft() for _ in range(min(n, len(worker.outbox)))]
        if batch:
            scheduler.worker_said(self.state, worker.state, batch, self.now)
            self.carry()

    def echo_stale(self) -> None:
        """A word of an earlier life arrives."""
        if self.stale:
            worker, word = self.stale.popleft()
            scheduler.worker_said(self.state, worker.state, [word], self.now)
            self.carry()

    def tick(self, seconds: float) -> None:
        self.now += seconds
        for attempt, entry in self.state.interrupts.items():
            task = entry.worker.in_flight.get(attempt)
            if task is not None and entry.is_sent and entry.at <= self.now:
                self.recipes[task.key].n_failed += 1  # it is given up
        scheduler.tick(self.state, self.now)
        stuck, self.state.stuck = self.state.stuck, []
        self.carry()
        for state in stuck:
            if state.name in self.workers and self.workers[state.name].state is state:
                self.crash(state.name, is_expected=True)
                self.boot(state.name, state.nthreads, tuple(state.resources.items()))

    def carry(self) -> None:
        """Put what the scheduler said on the pipes."""
        to_workers, to_clients = self.state.drain()
        for worker_state, batch in to_workers:
            self.transcript.update(repr((worker_state.name, batch)).encode())
            worker = self.workers.get(worker_state.name)
            assert worker is not None and worker.state is worker_state, "words for a worker that is gone"
            for word in batch:
                assert worker_state.is_running or not isinstance(word, words.RunTask), f"{word.key} was sent to a paused worker"
            worker.inbox.extend(batch)
        for client, batch in to_clients:
            self.transcript.update(repr((client, batch)).encode())
            for message in batch:
                self.hear(client, message)

    # ── the end ──────────────────────────────────────────────────────────────

    def settle(self, max_steps: int = 100_000) -> None:
        """Faults stop; everything that can happen happens, until nothing is left to happen."""
        for name in self.workers:
            self.pause(name, False)
        for _ in range(max_steps):
            busy = False
            for name in list(self.workers):
                worker = self.workers[name]
                if worker.inbox or worker.outbox or worker.running or worker.ready:
                    busy = True
                    self.deliver(name)
                    self.start(name)
                    self.finish(name)
                    self.hear_from(name, 3)
            if not busy:
                if self.state.next_deadline is not None:
                    self.tick(1.0)
                    if any(worker.inbox for worker in self.workers.values()):
                        continue
                return
        raise AssertionError("the cluster never came to rest")

    def check_promises(self) -> None:
        """Whatever a client wants has a value, or failed for a reason that is true."""
        for client, told in self.told.items():
            for key, message in told.items():
                if isinstance(message, words.KeyInMemory):
                    continue
                if isinstance(message, words.KeyCancelled):
                    continue
                if isinstance(message, words.KeyErred):
                    if isinstance(message.error, tuple) and message.error[0] == "killed":
                        culprit = message.error[1]
                        assert self.n_charged.get(culprit, 0) > self.state.allowed_failures, f"{culprit} was charged without cause"
                    continue
                raise AssertionError(f"{client} waits for {key} for ever: told {message}, state {self.state.tasks.get(key)}")

    def check_nothing_left(self) -> None:
        """After everything was released nothing remains, in the scheduler or in any worker."""
        for client, told in self.told.items():
            self.release(client, list(told))
        self.settle()
        assert not self.state.tasks, f"left: {list(self.state.tasks.values())}"
        for worker in self.workers.values():
            assert not worker.data, f"{worker.state.name} still holds {list(worker.data)}"
            assert not worker.state.has, f"the scheduler believes that {worker.state.name} holds {list(worker.state.has)}"
            assert not worker.state.in_flight and not worker.state.leaving, f"{worker.state} owes an answer"
            assert worker.state.n_occupied == 0
            assert worker.state.free_resources == worker.state.resources

    def validate(self) -> None:
        validate(self.state)
