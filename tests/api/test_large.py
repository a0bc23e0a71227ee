"""Large arguments, functions and scattered values are stored once, are each reader's own, and leave nothing behind."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import pytest

from localdask import Client, LocalCluster, wait
from localdask.api import storing
from localdask.system import codec, segments
from tests.conftest import wait_until

N = codec.LARGE_MIN // 8 + 1


def stored(cluster: LocalCluster) -> list[str]:
    assert cluster.segments is not None
    return [name for name in os.listdir(cluster.segments.path) if name not in ("owner.lock", "spare", "free")]


def total(data: Any, number: int = 0) -> float:
    return float(np.sum(data)) + number


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.ones(N),
        lambda: b"x" * (8 * N),
        lambda: "é" * (8 * N),
        lambda: bytearray(8 * N),
        lambda: [os.urandom(1000) for _ in range(8 * N // 1000 + 1)],
        lambda: {"a": np.ones(N), "b": [np.zeros(N), "text"]},
    ],
    ids=["array", "bytes", "str", "bytearray", "list", "nested"],
)
def test_a_large_argument_given_many_times_is_stored_once(cluster: LocalCluster, make: Any) -> None:
    with Client(cluster) as client:
        value = make()
        futures = [client.submit(lambda data, number: (type(data), number), value, number) for number in range(5)]
        futures += client.map(lambda number, data: (type(data), number), range(5, 10), data=value)
        assert client.gather(futures) == [(type(value), number) for number in range(10)]
        assert len(stored(cluster)) == 1
        np.testing.assert_equal(client.submit(lambda data: data, value).result(), value)
        del futures, value
        wait_until(lambda: not stored(cluster), what="the segments to go")


def test_what_was_given_first_makes_room_before_the_next_is_written(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "KEPT_MAX", 2 * 8 * N + 1000)
    counts = []

    class Watched(segments.SegmentFolder):
        def publish(self, *args: Any, **kwargs: Any) -> Any:
            counts.append(len(stored(cluster)))
            return super().publish(*args, **kwargs)

    assert cluster.segments is not None
    monkeypatch.setattr(cluster.segments, "__class__", Watched)
    with Client(cluster) as client:
        arrays = [np.full(N, float(number)) for number in range(4)]
        for array in arrays:
            assert client.submit(total, array).result() == array.sum()
        assert counts == [0, 1, 1, 1]
        assert client.submit(total, arrays[-1], 1).result() == 3 * N + 1
        assert len(counts) == 4, "the last ones are kept"
        monkeypatch.setattr(storing, "KEPT_MAX", 8 * N)
        client.submit(total, np.full(N, 4.0)).result()
        wait_until(lambda: not stored(cluster), what="the segment of what is too large to keep")


def test_equal_large_calls_are_one_task_and_a_changed_argument_is_another(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        data = np.ones(N)
        one, same = client.submit(total, data), client.submit(total, data.copy())
        assert one.key == same.key
        data[N // 2] = 5
        other = client.submit(total, data)
        assert (one.result(), other.result()) == (N, N + 4)


def test_what_a_task_does_to_its_large_argument_nobody_else_sees(cluster: LocalCluster) -> None:
    def spoil(data: Any) -> float:
        data[:] = -1
        return float(data.sum())

    with Client(cluster) as client:
        data = np.ones(N)
        scattered = client.scatter(data)
        assert client.gather([client.submit(spoil, source, pure=False) for source in (data, scattered) for _ in range(4)]) == [-N] * 8
        assert client.submit(total, data).result() == client.submit(total, scattered).result() == data.sum() == N


def test_a_large_function_is_stored_once(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        table = np.arange(float(N))

        def look_up(index: int) -> float:
            return float(table[index])

        futures = [client.submit(look_up, index) for index in range(3)] + client.map(look_up, [3, 4])
        assert client.gather(futures) == [0, 1, 2, 3, 4]
        assert futures[0].key.startswith("look_up-")
        assert len(stored(cluster)) == 1


def test_large_arguments_beside_futures_and_within_lists(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        data, one = np.ones(N), client.submit(int, 1)
        both = client.submit(lambda parts, more: total(parts["x"], parts["one"]) + total(more), {"x": data, "one": one}, data)
        assert both.result() == 2 * N + 1
        assert len(stored(cluster)) == 1


def test_a_task_whose_worker_died_is_given_its_large_argument_again(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        pids = set(client.run(os.getpid).values())
        kept = client.submit(np.add, np.ones(N), 1)
        again = client.submit(lambda data: data + 1, kept)
        wait([again])
        del kept  # the argument is needed all the same, should the result be lost
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert again.result().sum() == 3 * N


def test_tasks_store_large_arguments_too(cluster: LocalCluster) -> None:
    def outer() -> float:
        from localdask import get_client

        client = get_client()
        data = np.ones(N)
        return sum(client.gather([client.submit(total, data, number) for number in range(3)]))

    with Client(cluster) as client:
        assert client.submit(outer).result() == 3 * N + 3


@pytest.mark.parametrize("size", [0, 1, segments.MAX_HEADER, 1 << 18, (1 << 18) + 1, 1 << 20])
def test_a_segment_is_compared_byte_for_byte(size: int) -> None:
    with segments.SegmentFolder.create() as folder:
        value = os.urandom(size)
        payload = folder.publish(b"header", [b"first", value])
        assert segments.holds(payload, b"header", [b"first", value])
        assert not segments.holds(payload, b"other!", [b"first", value])
        assert not segments.holds(payload, b"header", [b"first"])
        if size:
            changed = bytearray(value)
            changed[-1] ^= 1
            assert not segments.holds(payload, b"header", [b"first", changed])
        folder.unlink(payload[0])
        assert not segments.holds(payload, b"header", [b"first", value])
