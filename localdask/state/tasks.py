"""What the scheduler knows: tasks, workers, clients, and the states a task can be in.

Data only; ``state/validation.py`` has the laws that it obeys. What clients say changes it in
``state/clients.py``, what workers answer in ``state/answers.py``; where tasks run is decided in
``state/placement.py``, and what is kept and made again in ``state/lineage.py``.

A task's states carry Dask's names where Dask has one:

    released    known, not wanted now: it has no value, but its recipe is kept
    waiting     wanted; an input is not in memory yet
    publishing  wanted; every input is in memory, and one is being made readable to others
    no-worker   runnable, but no present worker is admitted by its restrictions
    queued      runnable; every admitted worker has enough to do
    staged      sent ahead to the worker that is about to make its inputs
    processing  sent to a worker with all its inputs
    memory      its value exists: as a payload here, or live in the workers that hold it
    erred       it failed for good
    forgotten   nobody can ask for it again; it has left the tables
"""

from __future__ import annotations

from collections import deque
from typing import Any, TypeAlias

from localdask.messages import ForgetKeys, Payload
from localdask.records import field, record
from localdask.state.queues import TaskQueue

RELEASED = "released"
WAITING = "waiting"
PUBLISHING = "publishing"
NO_WORKER = "no-worker"
QUEUED = "queued"
STAGED = "staged"
PROCESSING = "processing"
MEMORY = "memory"
ERRED = "erred"
FORGOTTEN = "forgotten"

STATES = (RELEASED, WAITING, PUBLISHING, NO_WORKER, QUEUED, STAGED, PROCESSING, MEMORY, ERRED, FORGOTTEN)

#: Waiting for something inside the scheduler; no worker has been told.
PENDING_HERE = frozenset({WAITING, PUBLISHING, NO_WORKER, QUEUED})
#: A worker has been told, and owes an answer.
IN_FLIGHT = frozenset({STAGED, PROCESSING})
#: Needs its inputs, sooner or later.
UNFINISHED = PENDING_HERE | IN_FLIGHT

#: Every move a task may make. What is not here is impossible, and ``validate`` says so.
MOVES: dict[str, frozenset[str]] = {
    RELEASED: frozenset({WAITING, ERRED, FORGOTTEN, MEMORY}),
    WAITING: frozenset({PUBLISHING, NO_WORKER, QUEUED, STAGED, PROCESSING, ERRED, RELEASED}),
    PUBLISHING: frozenset({WAITING, ERRED, RELEASED}),
    NO_WORKER: frozenset({WAITING, RELEASED, ERRED}),
    QUEUED: frozenset({WAITING, PUBLISHING, NO_WORKER, STAGED, PROCESSING, RELEASED}),
    STAGED: frozenset({PROCESSING, WAITING, MEMORY, ERRED, RELEASED}),
    PROCESSING: frozenset({WAITING, MEMORY, ERRED, RELEASED}),
    MEMORY: frozenset({RELEASED}),
    ERRED: frozenset({RELEASED}),
    FORGOTTEN: frozenset(),
}

#: How many moves ``story`` can look back on.
LOG_LENGTH_MAX = 100_000
#: Values to be forgotten, in bytes, that may wait for company; each counts for its key as well.
FORGETS_NBYTES_MAX = 1_000_000
FORGET_NBYTES = 200
#: How many words may wait for a busy worker before they are sent.
PATIENCE_MAX = 64
#: The name under which fire-and-forget tasks are wanted.
FIRE_AND_FORGET = "fire-and-forget"

#: A move of a task: (key, start, finish, worker, attempt, generations of the worker's preloads).
StoryRow: TypeAlias = "tuple[str, str, str, str, int, tuple[int, ...]]"

#: A pickled error, or plain facts ``("killed", …)`` for those that the scheduler itself finds.
ErrorValue = Any


class FunctionState:
    """A function that tasks share: its pickle, and how long it has been seen to take."""

    __slots__ = ("duration_s", "function_id", "n_tasks", "name", "pickled")

    def __init__(self, function_id: str, name: str, pickled: bytes) -> None:
        self.function_id = function_id
        self.name = name
        self.pickled = pickled
        self.duration_s = -1.0
        self.n_tasks = 0

    @property
    def is_measured(self) -> bool:
        return self.duration_s >= 0


class Restriction:
    """Which workers may run a task. Tasks with equal restrictions share one, and its queue."""

    __slots__ = ("allow_other_workers", "is_none", "parked", "queue", "resources", "workers")

    def __init__(self, workers: tuple[str, ...], allow_other_workers: bool, resources: tuple[tuple[str, float], ...]) -> None:
        self.workers = frozenset(workers)
        self.allow_other_workers = allow_other_workers
        self.resources = resources
        self.queue = TaskQueue()
        self.parked: dict[str, TaskState] = {}
        self.is_none = not workers and not resources


class TaskState:
    """One task. ``attempt`` numbers its present or last sending; ``n_missing`` its inputs that are not in memory."""

    __slots__ = (
        "arguments",
        "attempt",
        "clients",
        "dependencies",
        "dependents",
        "error",
        "expected_s",
        "fetchers",
        "function",
        "holders",
        "is_actor",
        "is_argument",
        "is_publishing",
        "is_spilled",
        "key",
        "limits",
        "n_deaths",
        "n_missing",
        "n_publishing",
        "n_waiters",
        "nbytes",
        "order",
        "output",
        "payload",
        "priority",
        "restriction",
        "retries_left",
        "state",
        "type_name",
        "worker",
    )

    def __init__(
        self, key: str, function: FunctionState | None, arguments: bytes, order: int, user_priority: float, restriction: Restriction
    ) -> None:
        self.key = key
        self.function = function
        self.arguments = arguments
        self.order = order
        self.priority = (-user_priority, order)
        self.restriction = restriction
        self.state = RELEASED
        self.dependencies: tuple[TaskState, ...] = ()
        self.dependents: dict[TaskState, None] | None = None
        self.clients: tuple[str, ...] = ()
        self.fetchers: tuple[str, ...] = ()
        self.n_missing = 0
        self.n_publishing = 0
        #: How many unfinished tasks need this one's value.
        self.n_waiters = 0
        self.retries_left = 0
        #: As in ``TaskSpec``.
        self.limits: tuple[float, bytes] | None = None
        self.n_deaths = 0
        self.attempt = 0
        self.worker: WorkerState | None = None
        self.expected_s = 0.0
        self.payload: Payload | None = None
        self.nbytes = 0
        self.type_name = ""
        self.holders: tuple[WorkerState, ...] = ()
        self.is_publishing = False
        #: Whether its holder has its value on disk, where the payload says, and not in memory.
        self.is_spilled = False
        #: Whether it stands for a large argument, which nobody could give again: it lives as long as a recipe names it.
        self.is_argument = False
        #: As in ``TaskSpec``.
        self.is_actor = False
        self.error: ErrorValue = None
        #: What its last run wrote. It is kept here, for a client to ask for, because the worker may be dead by then.
        self.output = ""

    def __repr__(self) -> str:
        return f"<TaskState {self.key!r} {self.state}>"

    @property
    def is_done(self) -> bool:
        """Whether it ran to an end, and is not to run again."""
        return self.state in (MEMORY, ERRED)

    @property
    def is_wanted(self) -> bool:
        """Whether a client, or a task that is not finished, needs this task's value; or a recipe names it that cannot be had again."""
        return bool(self.clients or self.n_waiters or (self.is_argument and self.dependents))


class WorkerState:
    """One life of a worker: what it was sent, what it holds, and what is to be sent to it next."""

    __slots__ = (
        "address",
        "forgets",
        "forgets_nbytes",
        "free_resources",
        "functions",
        "generations",
        "has",
        "in_flight",
        "is_leaving",
        "is_paused",
        "is_running",
        "late_s",
        "leaving",
        "life",
        "memory_limit",
        "n_done",
        "name",
        "nthreads",
        "occupancy_s",
        "outbox",
        "pid",
        "progress_at",
        "resources",
        "seceded",
        "taking_back",
    )

    def __init__(
        self, name: str, life: int, pid: int, nthreads: int, resources: tuple[tuple[str, float], ...] = (), memory_limit: int = 0
    ) -> None:
        self.name = name
        #: What scripts written for Dask call it by; set by who knows the cluster.
        self.address = name
        self.life = life
        self.pid = pid
        self.nthreads = nthreads
        self.memory_limit = memory_limit
        self.resources = dict(resources)
        self.free_resources = dict(resources)
        #: It uses too much memory; it goes for good. Either keeps tasks from it, and ``is_running`` says that neither does.
        self.is_paused = False
        self.is_leaving = False
        self.is_running = True
        self.in_flight: dict[int, TaskState] = {}
        #: Attempts that were given up and not answered yet: they may still hold a thread.
        self.leaving: dict[int, TaskState] = {}
        self.taking_back: set[int] = set()
        self.seceded: set[int] = set()
        self.occupancy_s = 0.0
        #: For how long it was seen to say nothing, since its last task ended, while others could have had its work.
        self.late_s = 0.0
        #: Keys whose values this worker holds, as far as its words tell.
        self.has: dict[str, None] = {}
        self.functions: dict[str, None] = {}
        #: Of its preloads: what it runs now, as far as its words tell.
        self.generations: tuple[int, ...] = ()
        self.outbox: list[Any] = []
        self.forgets: list[str] = []
        self.forgets_nbytes = 0
        self.progress_at = 0.0
        self.n_done = 0

    def __repr__(self) -> str:
        return f"<WorkerState {self.name!r} life={self.life} in flight={len(self.in_flight)}>"

    @property
    def n_occupied(self) -> int:
        """Threads taken and tasks queued behind them."""
        return len(self.in_flight) + len(self.leaving) - len(self.seceded)

    @property
    def status(self) -> str:
        """Dask's word for whether it takes tasks."""
        return "closing_gracefully" if self.is_leaving else "paused" if self.is_paused else "running"

    @property
    def is_idle(self) -> bool:
        return self.is_running and self.n_occupied < self.nthreads


class ClientState:
    """A client: the keys it wants, and what is to be told to it next."""

    __slots__ = ("client", "outbox", "wants")

    def __init__(self, client: str) -> None:
        self.client = client
        self.wants: dict[str, None] = {}
        self.outbox: list[Any] = []


@record
class Interrupt:
    """An attempt that is to be interrupted at ``at``; or that was, and is to be given up then. ``limit_s`` as in the word."""

    worker: WorkerState
    at: float
    limit_s: float
    is_sent: bool = False


@record
class SchedulerState:
    """Everything the scheduler knows.

    Commands are left in the outboxes of the workers and clients they are for;
    ``drain`` hands them out in the order in which they arose.
    """

    allowed_failures: int = 3
    tasks: dict[str, TaskState] = field(default_factory=dict)
    workers: dict[str, WorkerState] = field(default_factory=dict)
    clients: dict[str, ClientState] = field(default_factory=dict)
    functions: dict[str, FunctionState] = field(default_factory=dict)
    restrictions: dict[tuple[Any, ...], Restriction] = field(default_factory=dict)
    unrestricted: Restriction = field(default_factory=lambda: Restriction((), False, ()))
    #: Workers with a free thread, and workers that only have room in their queue; both in turn.
    idle: dict[str, WorkerState] = field(default_factory=dict)
    open: dict[str, WorkerState] = field(default_factory=dict)
    dirty_workers: dict[str, WorkerState] = field(default_factory=dict)
    dirty_clients: dict[str, ClientState] = field(default_factory=dict)
    #: Segments that nobody needs any more, for the shell to unlink.
    garbage: list[Payload] = field(default_factory=list)
    has_forgets: bool = False
    #: The time of the present step.
    now: float = 0.0
    #: Attempts that have a time limit, or were told to stop.
    interrupts: dict[int, Interrupt] = field(default_factory=dict)
    #: Workers that do not stop what they were told to stop, for the shell to replace.
    stuck: list[WorkerState] = field(default_factory=list)
    n_attempts: int = 0
    n_tasks_seen: int = 0
    n_done: int = 0
    log: deque[StoryRow] = field(default_factory=lambda: deque(maxlen=LOG_LENGTH_MAX))
    #: Called with (task, start, finish) after each move; None costs nothing.
    on_move: Any = None
    #: Called with the restriction of a task that no present worker may run.
    on_park: Any = None
    #: Called with (task, worker, word) when a worker ran a task; None costs nothing.
    on_ran: Any = None
    #: When idle workers look at others' queues again, when small values are forgotten, and the first of the interrupts; or None.
    rebalance_at: float | None = None
    forget_at: float | None = None
    interrupt_at: float | None = None

    @property
    def next_deadline(self) -> float | None:
        """When ``tick`` wants to be called next, or None."""
        first = self.rebalance_at
        for at in (self.forget_at, self.interrupt_at):
            if at is not None and (first is None or at < first):
                first = at
        return first

    def say_to_worker(self, worker: WorkerState, message: Any) -> None:
        if not worker.outbox:
            self.dirty_workers[worker.name] = worker
        worker.outbox.append(message)

    def forget_on_worker(self, worker: WorkerState, key: str, nbytes: int) -> None:
        """Have a worker drop a value. Small ones go with the next words, or with the next tick: nobody waits for them."""
        worker.forgets.append(key)
        worker.forgets_nbytes += nbytes + FORGET_NBYTES
        if worker.forgets_nbytes >= FORGETS_NBYTES_MAX:
            self.dirty_workers[worker.name] = worker
        else:
            self.has_forgets = True

    def wake_forgets(self) -> None:
        """Let all that waits to be forgotten go now."""
        self.has_forgets = False
        self.forget_at = None
        for worker in self.workers.values():
            if worker.forgets:
                self.dirty_workers[worker.name] = worker

    def say_to_client(self, client: str, message: Any) -> None:
        known = self.clients.get(client)
        if known is None:
            return
        if not known.outbox:
            self.dirty_clients[client] = known
        known.outbox.append(message)

    def drain(self, *, is_patient: bool = False) -> tuple[list[tuple[WorkerState, list[Any]]], list[tuple[str, list[Any]]]]:
        """Return and clear all that is to be sent, by worker and by client.

        When ``is_patient``, words for workers that have plenty to do stay, to go with
        more: such a worker owes answers, and each of them leads to a drain.
        """
        to_workers = []
        kept = {}
        for worker in self.dirty_workers.values():
            outbox = worker.outbox
            if is_patient and len(outbox) < PATIENCE_MAX and len(worker.in_flight) - len(outbox) >= worker.nthreads:
                kept[worker.name] = worker
                continue
            if worker.forgets:
                # Before the rest: a key that runs again makes a new value after this.
                outbox.insert(0, ForgetKeys(tuple(worker.forgets)))
                worker.forgets = []
                worker.forgets_nbytes = 0
            if outbox:
                to_workers.append((worker, outbox))
                worker.outbox = []
        to_clients = []
        for client in self.dirty_clients.values():
            to_clients.append((client.client, client.outbox))
            client.outbox = []
        self.dirty_workers = kept
        self.dirty_clients.clear()
        return to_workers, to_clients

    def move(self, task: TaskState, finish: str) -> None:
        """Put a task into another state. All state changes pass here."""
        start = task.state
        task.state = finish
        if task.dependencies:
            change = (finish in UNFINISHED) - (start in UNFINISHED)
            if change:
                for dependency in task.dependencies:
                    dependency.n_waiters += change
        worker = task.worker
        if worker is None:
            self.log.append((task.key, start, finish, "", task.attempt, ()))
        else:
            self.log.append((task.key, start, finish, worker.name, task.attempt, worker.generations))
        if self.on_move is not None:
            self.on_move(task, start, finish)

    def story(self, *keys: str) -> list[StoryRow]:
        """Return the remembered moves of these keys: (key, start, finish, worker, attempt, the worker's generations), oldest first."""
        wanted = set(keys)
        return [row for row in self.log if row[0] in wanted]

    def statistics(self) -> dict[str, int]:
        """Return how many tasks are in each state, and how many there ever were."""
        counts = dict.fromkeys(STATES, 0)
        for task in self.tasks.values():
            counts[task.state] += 1
        return {**counts, "seen": self.n_tasks_seen, "done": self.n_done, "workers": len(self.workers)}
