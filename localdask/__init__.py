"""localdask: a Dask-compatible cluster on one machine.

The public names load when they are first used, so that ``import localdask`` costs next
to nothing.
"""

from __future__ import annotations

import gc
import importlib

from localdask.version import __version__

TYPE_CHECKING = False  # as typing has it, which takes 3 ms to import
if TYPE_CHECKING:  # what type checkers read in place of __getattr__ below
    from typing import Any

    from localdask.api.actors import Actor as Actor
    from localdask.api.actors import ActorFuture as ActorFuture
    from localdask.api.annotations import annotate as annotate
    from localdask.api.arrays import empty as empty
    from localdask.api.as_completed import as_completed as as_completed
    from localdask.api.client import Client as Client
    from localdask.api.client import default_client as default_client
    from localdask.api.client import get_client as get_client
    from localdask.api.cluster import LocalCluster as LocalCluster
    from localdask.api.collections import futures_of as futures_of
    from localdask.api.events import Event as Event
    from localdask.api.futures import Future as Future
    from localdask.api.futures import fire_and_forget as fire_and_forget
    from localdask.api.memory_sampler import MemorySampler as MemorySampler
    from localdask.api.multilocks import MultiLock as MultiLock
    from localdask.api.nesting import local_client as local_client
    from localdask.api.nesting import worker_client as worker_client
    from localdask.api.progress import progress as progress
    from localdask.api.queues import Queue as Queue
    from localdask.api.report import performance_report as performance_report
    from localdask.api.semaphores import Lock as Lock
    from localdask.api.semaphores import Semaphore as Semaphore
    from localdask.api.task_stream import get_task_metadata as get_task_metadata
    from localdask.api.task_stream import get_task_stream as get_task_stream
    from localdask.api.variables import Variable as Variable
    from localdask.api.wait import wait as wait
    from localdask.errors import KilledWorker as KilledWorker
    from localdask.integrations.connect import connect as connect
    from localdask.preloads.forwarding import ForwardOutput as ForwardOutput
    from localdask.preloads.installing import Environ as Environ
    from localdask.preloads.installing import InstallPlugin as InstallPlugin
    from localdask.preloads.installing import PipInstall as PipInstall
    from localdask.preloads.plugins import NannyPlugin as NannyPlugin
    from localdask.preloads.plugins import SchedulerPlugin as SchedulerPlugin
    from localdask.preloads.plugins import WorkerPlugin as WorkerPlugin
    from localdask.preloads.uploads import UploadDirectory as UploadDirectory
    from localdask.preloads.uploads import UploadFile as UploadFile
    from localdask.processes.runner import Reschedule as Reschedule
    from localdask.processes.runner import get_worker as get_worker
    from localdask.processes.runner import rejoin as rejoin
    from localdask.processes.runner import secede as secede

_PLACES = {
    "Actor": "localdask.api.actors",
    "ActorFuture": "localdask.api.actors",
    "CancelledError": "concurrent.futures",
    "Client": "localdask.api.client",
    "Environ": "localdask.preloads.installing",
    "Event": "localdask.api.events",
    "ForwardOutput": "localdask.preloads.forwarding",
    "Future": "localdask.api.futures",
    "InstallPlugin": "localdask.preloads.installing",
    "KilledWorker": "localdask.errors",
    "LocalCluster": "localdask.api.cluster",
    "Lock": "localdask.api.semaphores",
    "MemorySampler": "localdask.api.memory_sampler",
    "MultiLock": "localdask.api.multilocks",
    "NannyPlugin": "localdask.preloads.plugins",
    "PipInstall": "localdask.preloads.installing",
    "Queue": "localdask.api.queues",
    "Reschedule": "localdask.processes.runner",
    "SchedulerPlugin": "localdask.preloads.plugins",
    "Semaphore": "localdask.api.semaphores",
    "TimeoutError": "builtins",
    "UploadDirectory": "localdask.preloads.uploads",
    "UploadFile": "localdask.preloads.uploads",
    "Variable": "localdask.api.variables",
    "WorkerPlugin": "localdask.preloads.plugins",
    "annotate": "localdask.api.annotations",
    "as_completed": "localdask.api.as_completed",
    "connect": "localdask.integrations.connect",
    "default_client": "localdask.api.client",
    "empty": "localdask.api.arrays",
    "fire_and_forget": "localdask.api.futures",
    "futures_of": "localdask.api.collections",
    "get_client": "localdask.api.client",
    "get_task_metadata": "localdask.api.task_stream",
    "get_task_stream": "localdask.api.task_stream",
    "get_worker": "localdask.processes.runner",
    "local_client": "localdask.api.nesting",
    "performance_report": "localdask.api.report",
    "progress": "localdask.api.progress",
    "rejoin": "localdask.processes.runner",
    "secede": "localdask.processes.runner",
    "wait": "localdask.api.wait",
    "worker_client": "localdask.api.nesting",
}

__all__ = [
    "Actor",
    "ActorFuture",
    "Client",
    "Environ",
    "Event",
    "ForwardOutput",
    "Future",
    "InstallPlugin",
    "KilledWorker",
    "LocalCluster",
    "Lock",
    "MemorySampler",
    "MultiLock",
    "NannyPlugin",
    "PipInstall",
    "Queue",
    "Reschedule",
    "SchedulerPlugin",
    "Semaphore",
    "UploadDirectory",
    "UploadFile",
    "Variable",
    "WorkerPlugin",
    "__version__",
    "annotate",
    "as_completed",
    "connect",
    "default_client",
    "empty",
    "fire_and_forget",
    "futures_of",
    "get_client",
    "get_task_metadata",
    "get_task_stream",
    "get_worker",
    "local_client",
    "performance_report",
    "progress",
    "rejoin",
    "secede",
    "wait",
    "worker_client",
]


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if name == "config":
        return importlib.import_module("localdask.config")
    if place is None:
        raise AttributeError(f"module 'localdask' has no attribute {name!r}")
    was_enabled = gc.isenabled()
    gc.disable()  # what an import makes is no garbage, and looking for it takes a tenth of the time
    try:
        value = _load(place, name)
    finally:
        if was_enabled:
            gc.enable()
    globals()[name] = value
    return value


def _load(place: str, name: str) -> Any:
    if place in ("localdask.api.client", "localdask.api.cluster", "localdask.integrations.connect"):
        importlib.import_module("localdask.api.asynchronous")  # each makes others: Client() a cluster, asynchronous=True another kind
    return getattr(importlib.import_module(place), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
