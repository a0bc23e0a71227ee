"""A mapping is handed on only as if it were fresh."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localdask.system import mappings as module
from localdask.system.mappings import Mappings
from localdask.system.segments import SegmentFolder

SIZE = module.HANDED_ON_MIN


@pytest.fixture(scope="module")
def folder() -> Iterator[SegmentFolder]:
    with SegmentFolder.create() as made:
        yield made


@pytest.fixture(scope="module")
def payload(folder: SegmentFolder) -> Any:
    return folder.publish(b"h", [b"a" * SIZE, b"b" * 100])


def read(mappings: Mappings, *payloads: Any) -> list[list[memoryview]]:
    """Map what one task reads."""
    mappings.begin()
    found = [mappings.map(payload)[1] for payload in payloads]
    mappings.end_loading()
    return found


def address(view: memoryview) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_ubyte.from_buffer(view))


def n_mapped(payload: Any) -> int:
    with open("/proc/self/maps") as maps:
        return maps.read().count(os.path.basename(payload[0]))


def test_what_was_only_read_is_handed_on(payload: Any) -> None:
    mappings = Mappings()
    ((first, second),) = read(mappings, payload)
    assert bytes(first) + bytes(second) == b"a" * SIZE + b"b" * 100
    was = address(first)
    del first, second
    ((first, second),) = read(mappings, payload)
    assert address(first) == was
    assert bytes(first) + bytes(second) == b"a" * SIZE + b"b" * 100


@pytest.mark.parametrize("place", [0, 4095, 4096, SIZE - 1])
def test_what_was_written_to_is_mapped_anew(payload: Any, place: int) -> None:
    mappings = Mappings()
    ((first, second),) = read(mappings, payload)
    first[place] = 7
    del first, second
    ((first, second),) = read(mappings, payload)
    assert bytes(first) == b"a" * SIZE
    second[0] = 7  # the last page too
    del first, second
    ((first, second),) = read(mappings, payload)
    assert bytes(second) == b"b" * 100


def test_what_is_still_read_is_mapped_anew(payload: Any) -> None:
    mappings = Mappings()
    ((kept, _),) = read(mappings, payload)
    part = kept[10:20]
    del kept, _
    ((other, _),) = read(mappings, payload)
    other[10] = 7
    assert bytes(part) == b"a" * 10


def test_two_readers_in_one_task_have_one_each(payload: Any) -> None:
    (one, _), (other, _) = read(Mappings(), payload, payload)
    one[0] = 7
    assert other[0] == ord("a")


def test_a_task_that_does_not_read_it_lets_go(folder: SegmentFolder, payload: Any) -> None:
    mappings = Mappings()
    read(mappings, payload)
    assert n_mapped(payload) == 1
    another = folder.publish(b"h", [bytes(SIZE)])
    read(mappings, another)
    assert n_mapped(payload) == 0
    assert n_mapped(another) == 1
    assert mappings.held
    mappings.drop()
    assert not mappings.held
    assert n_mapped(another) == 0
    folder.unlink(another[0])


def test_small_ones_are_not_kept(folder: SegmentFolder) -> None:
    mappings = Mappings()
    small = folder.publish(b"h", [bytes(1000)])
    read(mappings, small)
    assert not mappings.held
    assert n_mapped(small) == 0
    folder.unlink(small[0])


def test_without_a_page_table_each_maps_for_itself(payload: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mappings = Mappings()
    read(mappings, payload)

    def refuse(*_: Any) -> int:
        raise PermissionError

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", refuse)
        ((first, _),) = read(mappings, payload)
    assert bytes(first) == b"a" * SIZE


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tasks=st.lists(st.lists(st.tuples(st.sampled_from("rwk"), st.integers(0, SIZE - 1)), max_size=4), max_size=8))
def test_whatever_tasks_do_each_reads_what_was_published(payload: Any, tasks: list[list[tuple[str, int]]]) -> None:
    mappings, kept = Mappings(), []
    for acts in tasks:
        ((view, _),) = read(mappings, payload)
        assert bytes(view) == b"a" * SIZE
        for act, place in acts:
            if act == "r":
                assert view[place] in b"aw"
            elif act == "w":
                view[place] = ord("w")
            else:
                kept.append(view[place:])
        del view, _
