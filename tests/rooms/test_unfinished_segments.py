"""Segments that are filled in place: published without a copy, unchanged from then on, and gone with their array."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localdask.system import codec
from localdask.system.segments import SegmentFolder, map_payload
from localdask.system.unfinished_segments import find_unfinished

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no segment is filled in place")

N = 1 << 18


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SegmentFolder]:
    places = [tmp_path / "memory", tmp_path / "disk"]
    for place in places:
        place.mkdir()
    with SegmentFolder.create(shared_memory=str(places[0]), places=[str(places[1])]) as folder:
        yield folder


def begin(folder: SegmentFolder) -> Any:
    segment = folder.begin(8 * N)
    assert segment is not None
    array = np.ndarray((N,), float, segment)
    array[:] = 1
    return array


def files(folder: SegmentFolder) -> list[str]:
    return [name for name in os.listdir(folder.path) if name not in ("owner.lock", "spare")]


def publish(folder: SegmentFolder, value: Any, **how: Any) -> Any:
    return folder.publish(*codec.dumps_buffers(value), **how)


def read(payload: Any) -> Any:
    return codec.loads_buffers(*map_payload(payload))


def test_the_file_that_was_filled_is_the_one_that_is_published(folder: SegmentFolder) -> None:
    array = begin(folder)
    inode = os.stat(os.path.join(folder.path, *files(folder))).st_ino
    payload = publish(folder, array.reshape(2, -1).T, prefix="held-")
    assert files(folder) == [os.path.basename(payload[0])]
    assert files(folder)[0].startswith("held-") and os.stat(payload[0]).st_ino == inode
    assert read(payload).shape == (N // 2, 2) and (read(payload) == 1).all()


def test_what_was_published_does_not_change_when_its_maker_goes_on(folder: SegmentFolder) -> None:
    array = begin(folder)
    view = array[N // 2 :]
    payload = publish(folder, array)
    array[0], view[0] = 7, 8
    assert (read(payload) == 1).all()
    again = publish(folder, array)  # a copy this time
    array[1] = 9
    assert read(again)[[0, 1, N // 2]].tolist() == [7, 1, 8]
    assert array[[0, 1, N // 2]].tolist() == [7, 9, 8]
    read(payload)[2] = 5
    assert array[2] == 1


@pytest.mark.parametrize("part", [lambda array: array[1:], lambda array: [array, np.ones(N)], lambda array: array[::2]])
def test_what_is_not_the_whole_is_copied(folder: SegmentFolder, part: Any) -> None:
    array = begin(folder)
    payload = publish(folder, part(array))
    array[:] = 2
    np.testing.assert_equal(read(payload), part(np.ones(N)))
    assert sorted(name.endswith(".part") for name in files(folder)) == [False, True]


def test_on_disk_it_is_copied_and_may_be_published_still(folder: SegmentFolder) -> None:
    array = begin(folder)
    spilled = publish(folder, array, on_disk=True)
    array[0] = 2
    assert os.path.dirname(spilled[0]) != folder.path and read(spilled)[0] == 1
    assert read(publish(folder, array))[0] == 2


def test_an_array_that_is_not_published_takes_its_file_along(folder: SegmentFolder) -> None:
    array = begin(folder)
    view = array[1:]
    del array
    assert len(files(folder)) == 1
    del view
    assert files(folder) == []


def test_where_there_is_no_room_there_is_none_and_no_file(folder: SegmentFolder) -> None:
    def reserve(fd: int, nbytes: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder._reserve = reserve
    assert folder.begin(8 * N) is None
    assert files(folder) == []


def test_when_it_cannot_be_named_it_stays_the_makers_and_the_next_is_a_copy(folder: SegmentFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_names: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    array = begin(folder)
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", fail)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            publish(folder, array)
    assert files(folder) == []
    array[0] = 3
    assert read(publish(folder, array))[0] == 3


def test_a_forked_child_changes_only_its_own(folder: SegmentFolder) -> None:
    array = begin(folder)
    child = os.fork()
    if not child:
        array[:] = 2
        del array
        os._exit(len(files(folder)) - 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (read(publish(folder, array)) == 1).all()


def test_memory_that_is_not_a_segments_is_no_unfinished_segment() -> None:
    assert find_unfinished(memoryview(np.ones(3))) is None
    assert find_unfinished(memoryview(b"123")) is None
