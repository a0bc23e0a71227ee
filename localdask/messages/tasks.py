"""Words about tasks and their values: between clients, the scheduler and workers.

``attempt`` numbers every sending of a task to a worker, uniquely in a cluster's life, so a
late word about an earlier attempt is recognised by its number alone. Payloads are bytes
that nobody but clients and workers ever loads.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from localdask.messages.wire import Payload, message, register
from localdask.records import record

# ── client → scheduler ───────────────────────────────────────────────────────


@record
class Function:
    """A pickled function, sent to each worker once; many tasks share one."""

    function_id: str
    name: str
    pickled: bytes


@record
class TaskSpec:
    """One task as a client submits it. ``arguments`` is the pickle of ``(args, kwargs)``."""

    key: str
    function: Function
    arguments: bytes
    dependencies: tuple[str, ...] = ()
    retries: int = 0
    priority: float = 0
    workers: tuple[str, ...] = ()
    allow_other_workers: bool = False
    resources: tuple[tuple[str, float], ...] = ()
    #: Seconds that a run may take (0: no limit), and the pickle of the errors that are worth another run (empty: all).
    limits: tuple[float, bytes] | None = None
    #: Whether its value is to stay in its worker, as an actor.
    is_actor: bool = False
    #: What its client holds on to for as long as it holds the task's future; it never travels.
    keeps: tuple[Any, ...] = ()

    @property
    def is_ordinary(self) -> bool:
        """Whether nothing is asked for but that it runs."""
        return not (self.priority or self.workers or self.resources or self.limits)


@record
class SubmitTasks:
    """A client wants these tasks' results, or (``wanted``) only some of them. A key that is already known is shared, not run again."""

    client: str
    tasks: list[TaskSpec]
    wanted: tuple[str, ...] | None = None


@message(2)
@record
class WantKeys:
    """A client made futures of keys that it did not submit."""

    client: str
    keys: list[str]


@message(3)
@record
class ReleaseKeys:
    """A client dropped its last future of each of these keys."""

    client: str
    keys: list[str]


@message(4)
@record
class CancelKeys:
    """Cancel these tasks, and what depends on them; with ``force`` also stop what runs already."""

    client: str
    keys: list[str]
    reason: str = "unknown"
    msg: str = ""
    force: bool = False


@message(5)
@record
class RetryKeys:
    """Run these erred tasks again."""

    client: str
    keys: list[str]


@message(6)
@record
class AddData:
    """Scattered data: values without a recipe, held by the scheduler for their clients; arguments also for the tasks that take them."""

    client: str
    items: list[tuple[str, Payload, int]]
    are_arguments: bool = False


@message(7)
@record
class FetchKeys:
    """A client wants the values themselves; each is answered by ``KeyFetched``."""

    client: str
    keys: list[str]


@message(8)
@record
class FireAndForget:
    """Keep these keys wanted until they are finished, whoever else lets go."""

    client: str
    keys: list[str]


@message(9)
@record
class ClientGone:
    """A client closed or died: all it wanted is released."""

    client: str


_spec_fields = attrgetter(
    "arguments", "dependencies", "retries", "priority", "workers", "allow_other_workers", "resources", "limits", "is_actor"
)


def _submission_to_wire(message: SubmitTasks) -> tuple[Any, ...]:
    """Return the fields of a submission with each function named once."""
    functions = {task.function.function_id: task.function for task in message.tasks}
    rows = [(task.key, task.function.function_id, *_spec_fields(task)) for task in message.tasks]
    return message.client, [(known.function_id, known.name, known.pickled) for known in functions.values()], rows, message.wanted


def _submission_from_wire(
    client: str, functions: list[tuple[str, str, bytes]], rows: list[tuple[Any, ...]], wanted: tuple[str, ...] | None
) -> SubmitTasks:
    known = {row[0]: Function(*row) for row in functions}
    return SubmitTasks(client, [TaskSpec(key, known[function_id], *rest) for key, function_id, *rest in rows], wanted)


register(1, SubmitTasks, _submission_to_wire, 4, _submission_from_wire)


# ── scheduler → client ───────────────────────────────────────────────────────


@message(20)
@record
class KeyInMemory:
    """A result exists. ``payload`` is None when it is large and must be fetched."""

    key: str
    payload: Payload | None
    nbytes: int
    type_name: str = ""


@message(21)
@record
class KeyErred:
    """A task failed for good. ``error`` is a pickled ``codec.Err``."""

    key: str
    error: bytes


@message(22)
@record
class KeyCancelled:
    """A task was cancelled or its value lost without a recipe."""

    key: str
    reason: str
    msg: str = ""


@message(23)
@record
class KeyPending:
    """A finished key is being made again (its worker died, or it was retried)."""

    key: str


@message(24)
@record
class KeyFetched:
    """The answer to ``FetchKeys`` for one key."""

    key: str
    payload: Payload


# ── scheduler → worker ───────────────────────────────────────────────────────


@message(40)
@record
class DefineFunction:
    """Sent before the first ``RunTask`` that names this function."""

    function_id: str
    pickled: bytes


@message(41)
@record
class ForgetFunctions:
    """These functions will not be named again without being defined again."""

    function_ids: tuple[str, ...]


@message(42)
@record
class RunTask:
    """Run a task. An input's payload is None when this worker holds or will make the value."""

    attempt: int
    key: str
    function_id: str
    arguments: bytes
    inputs: tuple[tuple[str, Payload | None], ...] = ()
    retry_on: bytes = b""


@message(43)
@record
class TakeBack:
    """Give back these attempts if they have not started; answered by ``TakenBack``."""

    attempts: tuple[int, ...]


@message(44)
@record
class ForgetKeys:
    """Drop these values; nobody will ask for them again."""

    keys: tuple[str, ...]


@message(45)
@record
class PublishKey:
    """Make this value readable by other processes; answered by ``KeyPublished``."""

    key: str


@message(46)
@record
class RunFunction:
    """Call a function outside the task queue; answered by ``FunctionRan``. ``call`` is the pickle of (function, args, kwargs).

    With the key of an actor, call its method: ``call`` then is the pickle of (name, args, kwargs), where args are None for an attribute.
    """

    request: int
    call: bytes
    wait: bool = True
    actor: str = ""


@message(47)
@record
class ToClient:
    """Words for a client that lives in one of this worker's tasks."""

    client: str
    words: list[Any]


@message(48)
@record
class Quit:
    """End yourself: finish the running tasks for up to ``grace_s`` seconds, tear down, exit 0."""

    grace_s: float = 0.0


@message(32)
@record
class InterruptTask:
    """Stop this attempt if it runs: it was cancelled, or (``limit_s`` above 0) it ran longer than that. Answered as any attempt is."""

    attempt: int
    limit_s: float = 0.0


# ── worker → scheduler ───────────────────────────────────────────────────────


@message(60)
@record
class WorkerUp:
    """The first word on a data pipe: preloads are set up, of these generations, and tasks may come."""

    name: str
    life: int
    pid: int
    nthreads: int
    resources: tuple[tuple[str, float], ...] = ()
    memory_limit: int = 0
    generations: tuple[int, ...] = ()


@message(27)
@record
class WorkerSpent:
    """A worker has run as many tasks, or has as much memory, as one is to; said once. It starts no more, and is to be retired."""

    n_tasks: int


@message(61)
@record
class TaskDone:
    """A task returned. ``payload`` is its value when small, else None and the worker holds it."""

    attempt: int
    payload: bytes | None
    nbytes: int
    duration_s: float
    type_name: str = ""


@message(62)
@record
class TaskErred:
    """A task raised, or something of it could not be pickled. ``error`` is a pickled ``codec.Err``."""

    attempt: int
    error: bytes
    duration_s: float
    is_retriable: bool = True


@message(63)
@record
class TaskMissing:
    """A task could not start, because these inputs are not here. It did not run."""

    attempt: int
    inputs: tuple[str, ...]


@message(64)
@record
class TakenBack:
    """These attempts had not started, and will not."""

    attempts: tuple[int, ...]


@message(65)
@record
class KeyPublished:
    """The answer to ``PublishKey``; None when the value is not here or cannot be pickled.

    With ``is_spilled`` it is there now, and no longer in the worker's own memory; unasked, when it went to disk.
    """

    key: str
    payload: Payload | None
    error: bytes | None = None
    is_spilled: bool = False


@message(66)
@record
class TaskSeceded:
    """A running task gave up its slot: it blocks on other tasks, or asked to."""

    attempt: int


@message(67)
@record
class TaskRejoined:
    """A seceded task takes a slot again."""

    attempt: int


@message(68)
@record
class TaskRescheduled:
    """The task raised ``Reschedule``: it wants to run elsewhere."""

    attempt: int


@message(71)
@record
class TaskWrote:
    """What a task wrote to its standard streams; said just before the word that ends the attempt, and only if there is something.

    A word of its own, so that those of tasks that print nothing are as short as ever.
    """

    attempt: int
    text: str


@message(69)
@record
class FunctionRan:
    """The answer to ``RunFunction``. ``outcome`` is a pickled ``codec.Ok`` or ``codec.Err``."""

    request: int
    outcome: bytes


@message(70)
@record
class FromClient:
    """Words of a client that lives in one of this worker's tasks."""

    client: str
    words: list[Any]
