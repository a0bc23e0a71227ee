"""Every error localdask raises, as one tree, and the words for how a process ended.

Each text says what happened, where, and what mends it. Each error pickles with
its fields, so that it reads the same in the process that caught it. Code decides
by class and field, never by matching text.

    LocaldaskError
    ├── StartError (RuntimeError)          a process of the cluster did not start
    │   └── PreloadError                   because a preload failed
    ├── UsageError (ValueError)            an argument or option makes no sense
    │   └── ConfigError                    … and it came from a configuration file
    ├── WorkerStartTimeoutError (TimeoutError)
    ├── ClusterNotFoundError (OSError)
    ├── WorkerNotFoundError (ValueError)
    ├── ClosedError (RuntimeError)
    │   ├── ClosedClientError
    │   └── ClosedClusterError
    ├── KilledWorker                       the workers that ran a task died
    ├── NoWorkerError                      nothing can ever run this task
    │   └── NoValidWorkerError
    ├── SerializationError (TypeError)     something could not be pickled
    ├── RemoteError                        stands in for an exception that could not travel
    ├── DataLostError                      a value died with its worker and has no recipe
    └── ProtocolError (OSError)            a pipe said something that is no message

    concurrent.futures.CancelledError
    ├── FutureCancelledError
    └── FuturesCancelledError
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localdask.cancellations import FutureCancelledError, FuturesCancelledError

__all__ = [
    "ClosedClientError",
    "ClosedClusterError",
    "ClosedError",
    "ClusterNotFoundError",
    "ConfigError",
    "DataLostError",
    "ExitWord",
    "FutureCancelledError",
    "FuturesCancelledError",
    "KilledWorker",
    "LocaldaskError",
    "NoValidWorkerError",
    "NoWorkerError",
    "PreloadError",
    "ProtocolError",
    "RemoteError",
    "SerializationError",
    "StartError",
    "UsageError",
    "WorkerNotFoundError",
    "WorkerStartTimeoutError",
]


class ExitWord(str, enum.Enum):
    """Why a supervised process ended, in one word."""

    ASKED = "asked"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out_of_memory"
    BOOT_FAILED = "boot_failed"
    HUNG = "hung"
    LOST_PARENT = "lost_parent"


class LocaldaskError(Exception):
    """The root of localdask's own errors."""

    def __reduce__(self) -> Any:
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[BaseException], args: tuple[Any, ...], fields: dict[str, Any]) -> BaseException:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class StartError(LocaldaskError, RuntimeError):
    """A nanny or worker did not start; nothing of it is left running."""


class PreloadError(StartError):
    """A preload failed: its body, its ``dask_setup`` or its ``dask_teardown``.

    Attributes
    ----------
    preload : str
        The preload as it was named.
    process : str
        The process in which it failed (``w0``, ``n0``, ``scheduler``, ``client``).
    where : str
        ``file:line`` of the failure, or ``""`` when there is none.
    detail : str
        The traceback, or the message for errors that need none.
    exit_code : int
        What the command line ends with: 5, or 2 when the preload's own arguments were wrong, or 0 when its ``--help`` was asked for.
    helpers : tuple of str
        The user's own files that it imported, those that failed included: saving one of them may mend it.
    """

    def __init__(
        self,
        message: str,
        *,
        preload: str = "",
        process: str = "",
        where: str = "",
        detail: str = "",
        exit_code: int = 5,
        helpers: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.preload = preload
        self.process = process
        self.where = where
        self.detail = detail
        self.exit_code = exit_code
        self.helpers = helpers

    @property
    def usage(self) -> bool:
        """Whether this is about the preload's own command-line arguments."""
        return self.exit_code in (0, 2)

    def __str__(self) -> str:
        text = str(self.args[0]) if self.args else ""
        return f"{text}\n{self.detail}" if self.detail else text


class UsageError(LocaldaskError, ValueError):
    """An argument or a command-line option that makes no sense."""


class ConfigError(UsageError):
    """A configuration value that makes no sense; the text names its origin."""


class WorkerStartTimeoutError(LocaldaskError, TimeoutError):
    """Fewer workers than asked for arrived in time."""

    def __init__(self, available: int, expected: int, timeout: float) -> None:
        super().__init__(available, expected, timeout)
        self.available = available
        self.expected = expected
        self.timeout = timeout

    def __str__(self) -> str:
        return f"Only {self.available}/{self.expected} workers arrived after {self.timeout}"


class ClusterNotFoundError(LocaldaskError, OSError):
    """No running cluster goes by that name."""


class WorkerNotFoundError(LocaldaskError, ValueError):
    """No worker or nanny of the cluster goes by that name."""


class ClosedError(LocaldaskError, RuntimeError):
    """The object was closed before this call."""


class ClosedClientError(ClosedError):
    """The client is closed."""


class ClosedClusterError(ClosedError):
    """The cluster is closed."""


class KilledWorker(LocaldaskError):
    """The workers that ran a task died, more often than ``allowed-failures`` allows.

    Attributes
    ----------
    task : str
        The task's key.
    last_worker : str
        Name of the worker that died last.
    allowed_failures : int
        How many deaths were forgiven.
    exit_text : str
        How the last worker died: its exit code or signal.
    peak_rss : int
        The last worker's largest resident memory, in bytes; 0 when unknown.
    last_lines : tuple of str
        The last lines that worker wrote.
    """

    def __init__(
        self,
        task: str,
        last_worker: str,
        allowed_failures: int,
        exit_text: str = "",
        peak_rss: int = 0,
        last_lines: tuple[str, ...] = (),
    ) -> None:
        super().__init__(task, last_worker, allowed_failures, exit_text, peak_rss, last_lines)
        self.task = task
        self.last_worker = last_worker
        self.allowed_failures = allowed_failures
        self.exit_text = exit_text
        self.peak_rss = peak_rss
        self.last_lines = last_lines

    def __str__(self) -> str:
        deaths = self.allowed_failures + 1
        times = "once" if deaths == 1 else f"{deaths} times"
        text = f"the worker running task {self.task!r} died {times}; last was {self.last_worker}"
        if self.exit_text:
            text += f", which ended by {self.exit_text}"
        if self.peak_rss:
            text += f" with a peak of {self.peak_rss / 2**20:.0f} MiB"
        text += f". allowed-failures is {self.allowed_failures}; run the function in this process to see what it does."
        if self.last_lines:
            text += "\nIts last lines:\n" + "\n".join(f"    {line}" for line in self.last_lines)
        return text


class NoWorkerError(LocaldaskError):
    """No worker came in the time allowed."""


class NoValidWorkerError(NoWorkerError):
    """Workers there are, but none that the task's restrictions admit."""


class SerializationError(LocaldaskError, TypeError):
    """A function, argument, result or exception could not be pickled or unpickled."""


class RemoteError(LocaldaskError):
    """Stands in for an exception that could not be pickled, or not be loaded here.

    Attributes
    ----------
    type_name : str
        The exception's own type.
    text : str
        Its text, where it was raised.
    why : str
        Why it could not travel.
    """

    def __init__(self, type_name: str, text: str = "", why: str = "") -> None:
        super().__init__(type_name, text, why)
        self.type_name = type_name
        self.text = text
        self.why = why

    def __str__(self) -> str:
        text = f"{self.type_name}: {self.text}" if self.text else self.type_name
        return f"{text}\n(a stand-in: the exception itself could not travel, {self.why})" if self.why else text


class TaskTimeoutError(LocaldaskError, TimeoutError):
    """A task ran longer than the limit that ``annotate(timeout=…)`` gave it.

    Attributes
    ----------
    key : str
        The task's key.
    limit_s : float
        The limit, in seconds.
    """

    def __init__(self, key: str, limit_s: float) -> None:
        super().__init__(key, limit_s)
        self.key = key
        self.limit_s = limit_s

    def __str__(self) -> str:
        return f"task {self.key!r} ran longer than its limit of {self.limit_s:g} s; raise annotate(timeout=…), or look where it hangs"


class DataLostError(LocaldaskError):
    """A value died with its worker, and nothing says how to make it again."""


class ActorLostError(LocaldaskError, ValueError):
    """An actor is gone, with its worker or by being released; what it was told cannot be computed again.

    Attributes
    ----------
    key : str
        The key of the task that made it.
    worker : str
        Where it lived, if that is known.
    why : str
        What happened.
    """

    def __init__(self, key: str, worker: str = "", why: str = "the worker died or left") -> None:
        super().__init__(key, worker, why)
        self.key = key
        self.worker = worker
        self.why = why

    def __str__(self) -> str:
        where = f" of worker {self.worker}" if self.worker else ""
        return f"Worker holding Actor was lost: actor {self.key!r}{where} is gone: {self.why}; make a new one"


class ProtocolError(LocaldaskError, OSError):
    """A pipe carried bytes that are no message; that pipe is closed."""


def __getattr__(name: str) -> Any:
    """Load the errors of cancelled futures when one is first named."""
    if name in ("FutureCancelledError", "FuturesCancelledError"):
        from localdask import cancellations  # noqa: PLC0415 - 6 ms, and hardly any future is cancelled

        return getattr(cancellations, name)
    raise AttributeError(f"module 'localdask.errors' has no attribute {name!r}")
