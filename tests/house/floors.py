"""The plan of the house, as data: which rooms there are, and which may import which.

A folder is a floor and a file is a room. ``test_house.py`` holds the code to this
plan. A new room is entered here first.
"""

from __future__ import annotations

import functools

#: Floors from the ground up. Each line is one floor; folders on the same floor do not see each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("cancellations",),
    ("errors", "version", "records", "spelling"),
    ("messages", "parameters"),
    ("layers", "sizing"),
    ("dask_config",),
    ("config",),
    ("state",),
    ("system",),
    ("preloads",),
    ("processes",),
    ("api",),
    ("integrations",),
    ("cli",),
    ("__main__",),
    ("__init__",),
)

#: Stacks of rooms in each folder, from the ground up: a room may import those before it in one of its stacks,
#: and no others of its folder.
STACKS: dict[str, tuple[tuple[str, ...], ...]] = {
    "messages": (
        ("wire", "tasks"),
        ("wire", "questions"),
        ("wire", "processes"),
        ("wire", "reloads"),
        ("wire", "greetings"),
        ("wire", "plugins"),
    ),
    "state": (
        (
            "queues",
            "tasks",
            "actors",
            "validation",
            "memory",
            "interrupts",
            "placement",
            "lineage",
            "clients",
            "answers",
            "scheduler",
            "retirement",
            "pausing",
        ),
        ("supervision",),
        ("memory",),
        ("spilling",),
        ("lifetimes",),
        ("attempts", "reload"),
        ("settling",),
        ("queues", "tasks", "interrupts", "placement", "adaptive"),
        ("plugins",),
        ("leases", "flags", "items", "variables", "pipelines"),
        ("notes",),
        ("tasks", "description"),
    ),
    "system": (
        ("exits", "process", "sessions", "child"),
        ("loop", "shared_pipes"),
        ("by_value", "culprits", "codec", "outcomes"),
        ("free_segments", "segment_bytes", "unfinished_segments", "segments", "mappings"),
        ("segments", "sockets"),
        ("shield",),
        ("descriptors", "transport", "memory_channel"),
        ("board",),
        ("environment",),
        ("memory",),
        ("streams",),
        ("signatures",),
        ("versions",),
        ("keys",),
        ("news", "watcher"),
    ),
    "preloads": (
        ("trust", "urls", "modules", "failures", "sources", "loading", "standins", "clicks", "limits", "hooks", "generations"),
        ("failures", "limits", "hooks", "plugins", "forwarding"),
        ("modules", "sources", "loading", "plugins", "uploads"),
        ("modules", "plugins", "installing"),
        ("modules", "sources", "loading", "standins", "generations", "plugin_sources"),
    ),
    "processes": (
        ("bodies",),
        (
            "output",
            "intake",
            "surroundings",
            "task_output",
            "runner",
            "stacks",
            "sampling",
            "moves",
            "crew",
            "plugin_words",
            "calls",
            "actors",
            "ears",
            "listener",
            "desk",
            "spiller",
            "scratch",
            "starting",
            "generation_words",
            "worker",
            "worker_process",
            "newborn",
            "memory_watch",
            "nanny",
            "launcher",
        ),
        ("generation_words", "scheduler_member", "launching", "nannies", "source_book", "thread_workers", "reloading"),
        ("generation_words", "task_output", "worker", "thread_workers"),
        (
            "worker_links",
            "observers",
            "alarm",
            "anteroom",
            "changes",
            "questions",
            "requests",
            "roster",
            "scheduler_plugins",
            "scheduler",
            "unsent",
        ),
        ("questions", "scheduler", "leftovers"),
        ("questions", "scheduler", "server"),
        ("questions", "scheduler", "topics", "plugin_keeping"),
        ("questions", "scheduler", "actor_calls"),
        ("launching", "nannies", "plugin_keeping"),
        ("launching", "nannies", "thread_workers", "reloading", "scheduler", "retiring", "pausing", "supervisor"),
        ("questions", "reloading", "scheduler", "reload_answers"),
        ("scheduler", "lifetimes"),
        ("questions", "scheduler", "journal"),
        ("questions", "waits", "scheduler", "coordination", "exchange"),
        ("questions", "scheduler", "recording"),
        ("scheduler", "hints"),
    ),
    "api": (
        (
            "companions",
            "links",
            "socket_link",
            "addresses",
            "portraits",
            "callbacks",
            "futures",
            "wait",
            "as_completed",
            "asking",
            "actors",
            "handing",
            "hearing",
            "releasing",
            "waiting",
            "awaiting",
            "scattering",
            "storing",
            "datasets",
            "control",
            "annotations",
            "executor",
            "executing",
            "graphs",
            "collections",
            "plugin_reloads",
            "plugins",
            "topics",
            "inspection",
            "looking",
            "stacks",
            "task_stream",
            "memory_sampler",
            "report",
            "profiling",
            "dump",
            "seeing",
            "likeness",
            "arguments",
            "progress",
            "client_preloads",
            "client",
            "arrays",
            "nesting",
            "reception",
            "adapting",
            "worker_settings",
            "telling",
            "parts",
            "cluster",
            "asynchronous",
            "coordination",
            "semaphores",
            "multilocks",
            "events",
            "variables",
            "queues",
        ),
    ),
    "integrations": (("connect",), ("joblib",), ("dask",)),
    "cli": (
        (
            "arguments",
            "verbs",
            "version",
            "talk",
            "options",
            "reports",
            "script",
            "detached",
            "foreground",
            "mending",
            "up",
            "run",
            "main",
        ),
        ("arguments", "verbs", "talk", "listing", "targets", "visits", "clusters"),
        ("arguments", "verbs", "talk", "listing", "targets", "visits", "processes"),
        ("arguments", "verbs", "talk", "listing", "targets", "visits", "workers"),
        ("arguments", "verbs", "talk", "listing", "targets", "visits", "logs"),
        ("arguments", "verbs", "talk", "listing", "targets", "visits", "reload"),
        ("arguments", "verbs", "talk", "listing", "config"),
        ("arguments", "verbs", "talk", "listing", "targets", "visits", "doctor"),
        ("arguments", "verbs", "completion"),
    ),
}

#: What decides without doing: these see none of the world, and import nothing that could show it to them.
PURE_ROOMS = ("cancellations", "errors", "messages", "state")
PURE_MODULES = frozenset(
    {
        "__future__",
        "bisect",
        "collections",
        "dataclasses",
        "enum",
        "functools",
        "heapq",
        "itertools",
        "math",
        "operator",
        "types",
        "typing",
    }
)
#: The exceptions, each with its reason: (room, module) → why.
PURE_EXCEPTIONS: dict[tuple[str, str], str] = {
    ("messages.wire", "io"): "a frame is read from bytes by a plain-data unpickler",
    ("messages.wire", "pickle"): "frames are pickled lists of plain tuples",
    ("cancellations", "concurrent"): "Dask's CancelledError is the one of concurrent.futures",
}
#: Built-in functions that reach into the world, or give an answer that differs from run to run.
IMPURE_BUILTINS = frozenset({"open", "print", "input", "exec", "eval", "__import__", "breakpoint", "id", "hash", "globals", "vars"})

#: Modules that are dear to import (1 ms or more): a function that alone needs one imports it itself. module → why.
LATE_MODULES: dict[str, str] = {
    "ast": "2 ms; only a source with a click command or a syntax error is looked into",
    "asyncio": "60 ms; only an async hook, or a user's own loop, needs it",
    "click": "30 ms; only the command line and preloads with options need it",
    "cloudpickle": "28 ms; only what plain pickle refuses needs it",
    "concurrent": "5 ms; only executors and threads of several workers need it",
    "ctypes": "4 ms; only prctl and its like need it",
    "dask": "an extra of the user's",
    "dataclasses": "6 ms; only the one who treats a record as a dataclass needs it",
    "datetime": "2 ms; only its durations need it, and a type checker",
    "difflib": "3 ms; only a misspelt word needs it",
    "distributed": "an extra of the user's",
    "faulthandler": "only a stuck worker's stacks need it",
    "hashlib": "3 ms; only a preload that is read is hashed, and most processes are handed theirs",
    "http": "25 ms; only a preload given as a URL needs it",
    "importlib": "only a preload given as a module needs importlib.util and importlib.machinery",
    "inspect": "9 ms; only shapes of hooks need it",
    "joblib": "an extra of the user's",
    "json": "3 ms; only --format json needs it",
    "linecache": "1 ms; only an error needs it",
    "logging": "6 ms; only a user who configured logging needs it",
    "multiprocessing": "30 ms; only its pickling of descriptors and sockets is used, by those who send them",
    "numpy": "an extra of the user's",
    "pandas": "an extra of the user's",
    "pathlib": "4 ms; only a file that is watched needs it",
    "platform": "5 ms; only who asks for versions needs it",
    "psutil": "38 ms; only limits and reports on running processes need it",
    "resource": "Windows has none; only who plans a cluster needs it",
    "shlex": "only arguments in one string need it",
    "shutil": "4 ms; only closing a cluster's folder and uploads need it",
    "socket": "2 ms; only a cluster or client that is made needs it, and its launcher starts meanwhile",
    "subprocess": "8 ms; only exec from a process with threads needs it",
    "tempfile": "7 ms; only a cluster's folder needs it",
    "textwrap": "1 ms; only a preload that is a text needs it",
    "threading": "1 ms; a worker of one thread has no other",
    "traceback": "4 ms; only an error needs it",
    "typing_extensions": "no process needs it, but type checkers",
    "urllib": "20 ms; only a preload given as a URL needs it",
    "uuid": "5 ms; only a random key needs it",
    "watchfiles": "49 ms; only the watcher needs it",
    "yaml": "18 ms; only configuration files need it",
    "zipfile": "5 ms; only an uploaded directory or archive needs it",
}
#: Rooms that may import other rooms of the house late, always downward: room or folder → why.
LATE_ROOMS: dict[str, str] = {
    "__init__": "the public face loads its parts when they are first named",
    "__main__": "Ctrl-C is answered before the command line is imported",
    "cli": "a verb imports what it alone needs, so that --help is quick",
}

#: Rooms that anybody above may import late, and name for type checkers: they are dear, and not needed by all who import the importer.
DEAR_ROOMS: dict[str, str] = {
    "cancellations": "6 ms; only a cancelled future needs it",
    "api.actors": "5 ms; only who makes an actor, or is given one, needs it, and with it what runs in workers",
    "api.executor": "6 ms; only a client that is asked for an executor needs it",
    "api.parts": "20 ms; only a cluster that is made needs it, and its launcher starts meanwhile",
    "api.progress": "3 ms; only who looks how far tasks are needs it",
    "api.report": "1 ms; only who asks for a report needs it",
    "api.portraits": "2 ms; only a notebook shows one",
    "api.socket_link": "4 ms with sockets and pipes; only a client of another process's cluster needs it",
    "api.wait": "1 ms for its named tuple; only who waits needs it",
    "api.plugin_reloads": "only a plugin that is reloaded needs it, and the watcher with it",
    "config": "1 ms with its layers; only a cluster or client that is made needs it",
    "preloads.failures": "only an error needs it",
    "preloads.forwarding": "2 ms with hooks and plugins; only who registers a plugin needs them",
    "preloads.generations": "2 ms; only a client with preloads needs it",
    "preloads.plugins": "see preloads.forwarding",
    "system.segments": "2 ms; only a cluster that is made needs it, and its launcher starts meanwhile",
    "system.sockets": "see api.socket_link",
    "system.transport": "3 ms; see system.segments",
    "preloads.sources": "1 ms; only where there are preloads",
    "preloads.uploads": "only an upload needs it",
    "processes.questions": "only a cluster that is made needs it",
    "processes.runner": "1 ms; only a task has a runner",
    "processes.scheduler": "6 ms; only a cluster that is made needs it",
    "processes.sampling": "4 ms; only who asks for a profile needs it",
    "processes.stacks": "3 ms with the runner; only who asks where tasks are needs it",
    "system.memory_channel": "only workers that are threads have one",
    "state.lifetimes": "only a cluster that is made needs it",
    "state.tasks": "2 ms; only a cluster that is made needs it",
}

FORBIDDEN_NAMES = frozenset({"utils", "util", "common", "helpers", "helper", "base", "misc", "core", "shared", "tools"})

#: Names that, wherever they stand, hold a message; nobody assigns to an attribute of one.
MESSAGE_NAMES = frozenset({"message", "msg", "event", "command", "word"})

MAX_ROOM_LINES = 400
MAX_FUNCTION_LINES = 60
MIN_DOCSTRING_WORDS = 12


@functools.cache
def planned_rooms() -> set[str]:
    """Return every room of the plan, dotted below the package (``state.tasks``)."""
    rooms = {f"{folder}.{room}" for folder, stacks in STACKS.items() for stack in stacks for room in stack}
    rooms |= {f"{folder}.__init__" for folder in STACKS}
    return rooms | {place for floor in FLOORS for place in floor if place not in STACKS}


@functools.cache
def may_import(importer: str, imported: str) -> bool:
    """Whether the plan lets one room import another; both dotted below the package."""
    upper, lower = importer.split(".")[0], imported.split(".")[0]
    if upper != lower:
        level = {place: number for number, floor in enumerate(FLOORS) for place in floor}
        return level.get(upper, -1) > level.get(lower, -1)
    if imported == f"{lower}.__init__":
        return False
    for stack in STACKS.get(upper, ()):
        order = [f"{upper}.{room}" for room in stack]
        if importer in order and imported in order:
            return order.index(importer) > order.index(imported)
    return importer == f"{upper}.__init__"
