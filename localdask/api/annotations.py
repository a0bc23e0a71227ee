"""How tasks that are submitted here are to run, beyond what ``submit``'s own keywords say.

``submit`` hands keywords that it does not know to the function, so an option that Dask
does not have cannot be one of them: it is given for a block of code. Nothing is sent from
here; ``Client`` reads what holds at each submission.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from queue import Queue, SimpleQueue
from typing import Any

from localdask.api.control import worker_names
from localdask.api.futures import parse_timeout
from localdask.errors import UsageError
from localdask.messages import Function, TaskSpec
from localdask.parameters import check_count, check_priority
from localdask.sizing import check_resources
from localdask.system import codec
from localdask.system.keys import check_key

#: Calls of one ``map`` that are handed over at a time: workers start on the first while the rest is pickled.
MAP_BATCH = 256
#: What holds here: the options of every block around, the innermost last. None costs nothing.
present: ContextVar[dict[str, Any] | None] = ContextVar("localdask-annotations", default=None)

#: Those that ``dask.annotate`` has too.
_OF_DASK = ("retries", "priority", "workers", "resources", "allow_other_workers")
_KNOWN = ("timeout", "retry_on", *_OF_DASK)


def options_here() -> dict[str, Any] | None:
    """Return what the blocks around say, of ours and of ``dask.annotate``; ours go first. None when they say nothing."""
    own = present.get()
    find = getattr(sys.modules.get("dask.base"), "get_annotations", None)
    theirs = None if find is None else find()
    if not theirs:
        return own
    # A function of the key is for the tasks of a collection, which have it with their graph.
    known = {name: theirs[name] for name in _OF_DASK if theirs.get(name) is not None and not callable(theirs[name])}
    return {**known, **(own or {})} if known else own


@contextlib.contextmanager
def annotate(**options: Any) -> Iterator[None]:
    """Give options to all tasks that are submitted in the block, as ``dask.annotate`` does.

    What a call of ``submit`` or ``map`` says itself goes first. Blocks may be nested; the
    innermost goes first. What ``dask.annotate`` says holds too, after these.

    Parameters
    ----------
    timeout : float or str
        Seconds (or ``"2 s"``, ``"5m"``) that one run of a task may take. The task is then interrupted, as
        Ctrl-C would, and fails with ``TaskTimeoutError``, which is a ``TimeoutError``; a task
        that does not stop within half a second has its worker replaced.
    retry_on : exception class or tuple of them
        The errors after which a task with ``retries`` runs again; any by default.
    retries, priority, workers, resources, allow_other_workers
        As for ``submit``.

    Raises
    ------
    UsageError
        There is no such option, or its value makes no sense.

    Examples
    --------
    >>> with annotate(timeout=2.0, retries=3, retry_on=(OSError, TimeoutError)):  # doctest: +SKIP
    ...     pages = client.map(fetch, urls)
    """
    unknown = [name for name in options if name not in _KNOWN]
    if unknown:
        raise UsageError(f"annotate({unknown[0]}=…): there is no such option; there are {', '.join(_KNOWN)}")
    if "timeout" in options:
        options["timeout"] = _checked_limit(options["timeout"])
    if "retry_on" in options:
        options["retry_on"] = _checked_errors(options["retry_on"])
    _checked(*map(options.get, ("workers", "resources", "retries", "priority")))  # refuses now what a submission would
    token = present.set({**(present.get() or {}), **options})
    try:
        yield
    finally:
        present.reset(token)


def _checked(
    workers: Any, resources: Any, retries: Any, priority: Any
) -> tuple[tuple[str, ...], tuple[tuple[str, float], ...], int, float]:
    """Return how a task is to run as its word tells it; refuse what makes no sense."""
    n_retries = check_count("retries", retries, " of runs after a failed one") or 0
    return worker_names(workers), check_resources(resources), n_retries, check_priority(priority or 0)


class TaskOptions:
    """How a task is to run: what the keywords of ``submit`` say, else what the blocks around it say."""

    __slots__ = ("allow_other_workers", "is_default", "limits", "priority", "resources", "retries", "workers")

    def __init__(
        self,
        workers: Any = None,
        allow_other_workers: bool = False,
        resources: Mapping[str, float] | None = None,
        retries: int | None = None,
        priority: float = 0,
    ) -> None:
        here = options_here() or {}
        workers = here.get("workers") if workers is None else workers
        allow_other_workers = allow_other_workers or here.get("allow_other_workers", False)
        if allow_other_workers and not workers:
            raise ValueError("allow_other_workers=True goes with workers=…; without it every worker is allowed already")
        self.allow_other_workers = bool(allow_other_workers)
        resources = here.get("resources") if resources is None else resources
        retries = here.get("retries") if retries is None else retries
        self.workers, self.resources, self.retries, self.priority = _checked(workers, resources, retries, priority or here.get("priority"))
        self.limits = _limits(here)
        self.is_default = not (self.workers or self.resources or self.retries or self.priority or self.limits)

    def spec(self, key: str, function: Function, arguments: bytes, dependencies: tuple[str, ...]) -> TaskSpec:
        """Return a task that is to run so."""
        if self.is_default:
            return TaskSpec(key, function, arguments, dependencies)
        return TaskSpec(
            key,
            function,
            arguments,
            dependencies,
            self.retries,
            self.priority,
            self.workers,
            self.allow_other_workers,
            self.resources,
            self.limits,
        )


def _limits(options: dict[str, Any]) -> tuple[float, bytes] | None:
    """Return what ``TaskSpec.limits`` is under these options."""
    limit_s, errors = options.get("timeout") or 0.0, options.get("retry_on")
    if not limit_s and errors is None:
        return None
    return limit_s, b"" if errors is None else codec.dumps(errors, "retry_on")


def _checked_limit(timeout: Any) -> float:
    seconds = parse_timeout(timeout)
    if seconds is not None and seconds <= 0:
        raise UsageError(f"annotate(timeout={timeout!r}): give seconds above 0, or None for no limit")
    return seconds or 0.0


def _checked_errors(errors: Any) -> tuple[type[BaseException], ...]:
    classes = errors if isinstance(errors, (tuple, list, set, frozenset)) else (errors,)
    for known in classes:
        if not (isinstance(known, type) and issubclass(known, BaseException)):
            raise UsageError(f"annotate(retry_on={errors!r:.80}): give exception classes, like (OSError, TimeoutError)")
    return tuple(classes)


def check_mapped(iterables: tuple[Any, ...], key: Any) -> Iterator[Any] | None:
    """Raise for what ``map`` cannot run over or name tasks by; return the names, where each has one."""
    if not iterables:
        raise TypeError("map takes an iterable of arguments after the function, as in map(abs, [1, 2])")
    for iterable in iterables:
        if isinstance(iterable, (Iterator, Queue, SimpleQueue)):
            raise TypeError("Dask, and so localdask, does not map over iterators or queues; give a list, or submit as they come")
        if not hasattr(iterable, "__iter__") and not hasattr(iterable, "__getitem__"):
            raise TypeError(f"map runs over iterables, and {iterable!r:.80} is none; give what is the same in each call as a keyword")
    if key is None or isinstance(key, str):
        return None
    if not isinstance(key, list):
        raise TypeError(f"key={key!r:.80}; give a text that begins each task's name, or a list of names")
    for name in key:
        check_key(name)
    n_calls = min((len(iterable) for iterable in iterables if hasattr(iterable, "__len__")), default=len(key))
    if len(key) < n_calls:
        raise ValueError(f"map has {n_calls} calls and {len(key)} keys; give as many, or a text that begins each task's name")
    return iter(key)
