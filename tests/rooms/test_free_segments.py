"""A released segment's pages are written over only when it is proven that nobody reads them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from localdask.system import free_segments, segments
from localdask.system.segments import SegmentFolder, map_payload

SIZE = free_segments.KEPT_MIN


class Clock:
    """Calls back when told to."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        assert seconds == free_segments.KEPT_S
        self.waiting.append(callback)

    def strike(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(free_segments, "KEPT_S", 0.0)
        while self.waiting:
            self.waiting.pop()()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def folder(clock: Clock) -> Iterator[SegmentFolder]:
    if sys.platform != "linux":
        pytest.skip("only Linux has leases")
    with SegmentFolder.create(later=clock.later) as made:
        yield made
        assert not [name for name in os.listdir(made.path) if name.endswith(".part")]


def inode(payload: Any) -> int:
    return os.stat(payload[0]).st_ino


def kept(folder: SegmentFolder) -> list[str]:
    place = os.path.join(folder.path, "free")
    return os.listdir(place) if os.path.isdir(place) else []


def read(payload: Any) -> bytes:
    return b"".join(map_payload(payload)[1])


@pytest.mark.parametrize("nbytes", [SIZE, SIZE + 1, 2 * SIZE, 3 * SIZE])
def test_a_released_segment_is_written_over(folder: SegmentFolder, nbytes: int) -> None:
    first = folder.publish(b"h", [b"a" * 2 * SIZE])
    was = inode(first)
    folder.unlink(first[0])
    with pytest.raises(FileNotFoundError):
        map_payload(first)
    second = folder.publish(b"h", [b"b" * nbytes])
    assert inode(second) == was
    assert read(second) == b"b" * nbytes
    assert os.stat(second[0]).st_size == nbytes + -nbytes % segments.ALIGNMENT
    assert kept(folder) == []


def test_one_that_is_mapped_is_not_written_over(folder: SegmentFolder) -> None:
    first = folder.publish(b"h", [b"a" * SIZE])
    _, views = map_payload(first)
    folder.unlink(first[0])
    second = folder.publish(b"h", [b"b" * SIZE])
    assert bytes(views[0]) == b"a" * SIZE
    assert read(second) == b"b" * SIZE
    assert kept(folder) == []


def test_one_that_another_process_maps_is_not_written_over(folder: SegmentFolder) -> None:
    first = folder.publish(b"h", [b"a" * SIZE])
    code = f"""
import sys
from localdask.system.segments import map_payload
_, (view,) = map_payload({first!r})
print("mapped", flush=True)
sys.stdin.readline()
assert bytes(view) == b"a" * {SIZE}
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "mapped\n"
        folder.unlink(first[0])
        second = folder.publish(b"h", [b"b" * SIZE])
        reader.communicate("\n")
    assert reader.returncode == 0
    assert read(second) == b"b" * SIZE


def test_the_one_that_fits_best_is_taken(folder: SegmentFolder) -> None:
    payloads = {n: folder.publish(b"h", [bytes(n * SIZE)]) for n in (1, 2, 3)}
    inodes = {n: inode(payload) for n, payload in payloads.items()}
    for payload in payloads.values():
        folder.unlink(payload[0])
    assert inode(folder.publish(b"h", [bytes(2 * SIZE)])) == inodes[2]
    assert inode(folder.publish(b"h", [bytes(2 * SIZE)])) == inodes[3]
    assert inode(folder.publish(b"h", [bytes(2 * SIZE)])) == inodes[1]


def test_a_much_larger_one_is_left(folder: SegmentFolder) -> None:
    folder.unlink(folder.publish(b"h", [bytes(free_segments.TOO_LARGE * SIZE + 4096)])[0])
    folder.publish(b"h", [bytes(SIZE)])
    assert len(kept(folder)) == 1


def test_what_nobody_took_is_removed_soon(folder: SegmentFolder, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.unlink(folder.publish(b"h", [bytes(SIZE)])[0])
    assert len(kept(folder)) == 1
    clock.strike(monkeypatch)
    assert kept(folder) == []


def test_no_more_is_kept_than_may_be(folder: SegmentFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_segments, "KEPT_MAX", 3 * SIZE)
    payloads = [folder.publish(b"h", [bytes(2 * SIZE)]) for _ in range(3)]
    for payload in payloads:
        folder.unlink(payload[0])
    assert len(kept(folder)) == 1


def test_small_ones_are_removed_at_once(folder: SegmentFolder) -> None:
    folder.unlink(folder.publish(b"h", [bytes(SIZE // 2)])[0])
    assert kept(folder) == []


def test_only_the_owner_of_a_folder_keeps_what_is_released(folder: SegmentFolder) -> None:
    payload = folder.publish(b"h", [bytes(SIZE)])
    SegmentFolder(folder.path).unlink(payload[0])
    assert kept(folder) == []
    folder.unlink(payload[0])  # gone already: fine


def test_whoever_publishes_in_a_folder_writes_over_what_is_kept(folder: SegmentFolder) -> None:
    payload = folder.publish(b"h", [bytes(SIZE)])
    was = inode(payload)
    folder.unlink(payload[0])
    assert inode(SegmentFolder(folder.path).publish(b"h", [bytes(SIZE)], prefix="held-")) == was


def test_what_is_kept_goes_before_data_goes_to_disk(clock: Clock) -> None:
    left = [3 * SIZE]

    def reserve(fd: int, nbytes: int) -> None:
        used = sum(os.stat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder.path) for name in names)
        if used + nbytes > left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    told: list[str] = []
    with SegmentFolder.create(later=clock.later, reserve=reserve, tell=told.append) as folder:
        for size in (SIZE // 2 + SIZE, SIZE // 2 + SIZE):
            folder.unlink(folder.publish(b"h", [bytes(size)])[0])
        held = map_payload(folder.publish(b"h", [bytes(SIZE)]))
        folder.unlink(folder.publish(b"h", [bytes(2 * SIZE - 4096)])[0])
        del held
        assert told == []


def test_a_closed_folder_leaves_nothing(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    with SegmentFolder.create(later=clock.later) as folder:
        folder.unlink(folder.publish(b"h", [bytes(SIZE)])[0])
    assert not os.path.exists(folder.path)
    clock.strike(monkeypatch)
