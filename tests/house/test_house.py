"""The house stands as planned: floors, walls, sizes and words, read from the sources alone."""

from __future__ import annotations

import ast
import gc
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest

from tests.house import floors, laws
from tests.house.laws import Room

Law = Callable[[Room, set[str]], Iterator[str]]
ROOMS = laws.read_rooms()
KNOWN = {room.name for room in ROOMS}
LAWS: list[Law] = [
    laws.is_on_the_plan,
    laws.imports_go_down,
    laws.imports_stand_first,
    laws.no_imports_for_types_only,
    laws.decides_without_doing,
    laws.says_what_it_is_for,
    laws.is_small,
    laws.swallows_nothing,
    laws.leaves_messages_alone,
]


@pytest.fixture(autouse=True, scope="module")
def rooms_are_parsed_once() -> Iterator[None]:
    """Have the rooms' trees for all tests, and out of the way of the search for garbage after each."""
    for room in ROOMS:
        _ = room.tree
    gc.freeze()
    yield
    for room in ROOMS:
        vars(room).pop("tree")


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_every_room_keeps_the_law(law: Law) -> None:
    complaints = list(dict.fromkeys(complaint for room in ROOMS for complaint in law(room, KNOWN)))
    assert not complaints, "\n" + "\n".join(complaints)


def test_no_rooms_import_each_other_in_a_circle() -> None:
    edges = defaultdict(set)
    for room in ROOMS:
        for found in laws.imports_of(room, KNOWN):
            target = laws.room_of(found.module, KNOWN)
            if target is not None and not found.is_late:
                edges[room.name].add(target)
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in sorted(edges[name]):
                walk(target, (*path, name))
            done.add(name)

    for name in sorted(KNOWN):
        walk(name, ())


def test_no_class_name_stands_twice_in_the_package() -> None:
    homes = defaultdict(list)
    for room in ROOMS:
        for node in ast.walk(room.tree):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(room.name)
    doubles = {name: rooms for name, rooms in homes.items() if len(rooms) > 1}
    assert not doubles


def test_every_message_says_what_it_means() -> None:
    silent = [name for name, node in laws.message_classes().items() if not (ast.get_docstring(node) or "").strip()]
    assert not silent


def test_the_plan_names_each_place_once() -> None:
    places = [place for floor in floors.FLOORS for place in floor]
    assert len(places) == len(set(places))
    assert all(len(stack) == len(set(stack)) for stacks in floors.STACKS.values() for stack in stacks)
    assert set(floors.STACKS) <= set(places)


LONG = "\n".join(f"    x = {number}" for number in range(floors.MAX_FUNCTION_LINES + 1))
BREACHES: list[tuple[Law, str, str]] = [
    (laws.is_on_the_plan, "state.attic", ""),
    (laws.is_on_the_plan, "state.task_utils", ""),
    (laws.imports_go_down, "state.tasks", "from localdask.processes.worker import Worker"),
    (laws.imports_go_down, "state.tasks", "from localdask.state import scheduler"),
    (laws.imports_go_down, "state.supervision", "import localdask.state.tasks"),
    (laws.imports_go_down, "system.loop", "from . import process"),
    (laws.imports_go_down, "processes.worker", "import localdask"),
    (laws.imports_stand_first, "system.loop", "def f():\n    import heapq"),
    (laws.imports_stand_first, "api.client", "def f():\n    from localdask.api import futures"),
    (laws.no_imports_for_types_only, "api.client", "import typing\nif typing.TYPE_CHECKING: pass"),
    (laws.decides_without_doing, "state.tasks", "import time"),
    (laws.decides_without_doing, "state.tasks", "import os.path"),
    (laws.decides_without_doing, "state.tasks", "import pickle"),
    (laws.decides_without_doing, "state.tasks", "print(1)"),
    (laws.says_what_it_is_for, "api.client", '"""The client."""'),
    (laws.is_small, "api.client", f"def f():\n{LONG}"),
    (laws.is_small, "api.client", "x = 1\n" * (floors.MAX_ROOM_LINES + 1)),
    (laws.swallows_nothing, "api.client", "try:\n    f()\nexcept Exception:\n    pass"),
    (laws.swallows_nothing, "api.client", "for x in y:\n    try:\n        f()\n    except:\n        continue"),
    (laws.swallows_nothing, "api.client", "with suppress(Exception):\n    f()"),
    (laws.leaves_messages_alone, "api.client", "def f(message):\n    message.key = 1"),
    (laws.leaves_messages_alone, "api.client", "def f(ready: WorkerUp):\n    ready.pid += 1"),
]


@pytest.mark.parametrize(("law", "name", "source"), BREACHES)
def test_each_law_catches_its_breach(law: Law, name: str, source: str) -> None:
    known = KNOWN | floors.planned_rooms()
    assert list(law(Room(name, source), known))


def test_comments_blank_lines_and_docstrings_are_free() -> None:
    source = '"""Says\n\nmuch."""\n\n# why\nx = """two\nlines"""\n'
    assert laws.code_lines(source) == {6, 7}
