"""A zoo of objects crosses from the client to a worker and back unharmed, at sizes on either side of each threshold."""

from __future__ import annotations

import decimal
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localdask import Client, LocalCluster
from localdask.api.scattering import INLINE_MAX
from localdask.system import codec, segments

pytestmark = pytest.mark.shared

#: Where the way that a value takes changes: within the pickle, beside it, in the words, in a segment, recognised.
THRESHOLDS = (0, codec._SMALL_BUFFER, segments.MAX_HEADER, INLINE_MAX, codec.LARGE_MIN)
DTYPES = ("?", "i1", ">i4", "<f8", "c16", "M8[ns]", "m8[s]", "S5", "U3", "f2", [("a", "<i4"), ("b", "S7"), ("c", "f8", (2,))], "V9")


class Buffered:
    """Has a buffer of its own, as arrays do, and something beside it."""

    def __init__(self, buffer: Any, beside: Any = None) -> None:
        self.buffer = buffer
        self.beside = beside

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (Buffered, (pickle.PickleBuffer(self.buffer) if protocol >= 5 else bytes(self.buffer), self.beside))

    def __eq__(self, other: object) -> bool:
        return type(other) is Buffered and bytes(self.buffer) == bytes(other.buffer) and bool(self.beside == other.beside)

    __hash__ = object.__hash__


def identity(value: Any) -> Any:
    return value


def spoil(value: Any) -> None:
    """Change a value in place, wherever there is a way to."""
    if isinstance(value, np.ndarray) and value.dtype != object and value.flags.writeable:
        value.ravel("K").view("u1")[:] = 0xFF if value.dtype.kind not in "UO?" else 1
    elif isinstance(value, bytearray):
        value[:] = b"\xff" * len(value)
    elif isinstance(value, dict):
        for part in list(value.values()):
            spoil(part)
        value.clear()
    elif isinstance(value, list):
        for part in value:
            spoil(part)
        value.clear()


def filled(nbytes: int) -> bytes:
    """Return bytes of which no two neighbours are alike."""
    return (bytes(range(251)) * (nbytes // 251 + 1))[:nbytes]


def array(nbytes: int, dtype: Any, order: str) -> Any:
    """Return an array of about so many bytes: flat, of two dimensions in either order, with gaps, reversed, or read-only."""
    kind = np.dtype(dtype)
    if kind.kind == "U":  # its bytes are no characters
        flat = np.array(["aé", "", "日本語"] * (nbytes // kind.itemsize // 3 + 1), kind)[: nbytes // kind.itemsize]
    elif kind.kind == "?":
        flat = np.arange(nbytes) % 3 == 0
    else:
        flat = np.frombuffer(filled(nbytes // kind.itemsize * kind.itemsize), kind).copy()
    if order in "CF":
        return np.array(flat[: len(flat) // 4 * 4].reshape(-1, 4), order=order)  # type: ignore[call-overload]
    if order == "gaps":
        return np.repeat(flat, 2)[::2]
    if order == "reversed":
        return flat[::-1]
    flat.flags.writeable = order != "read-only"
    return flat


def frame(nbytes: int) -> Any:
    n = nbytes // 40
    return pd.DataFrame(
        {
            "x": np.arange(n, dtype="f8"),
            "text": pd.array([f"row {number}" if number % 5 else None for number in range(n)], dtype="string[pyarrow]"),
            "sort": pd.Categorical(["a", "b", "c"] * (n // 3) + ["a"] * (n % 3)),
            "when": pd.date_range("2020", periods=n, freq="s", tz="UTC"),
            "maybe": pd.array([None if number % 2 else number for number in range(n)], dtype="Int64"),
        }
    )


SIZES = st.builds(lambda threshold, beside: max(0, threshold + beside), st.sampled_from(THRESHOLDS), st.integers(-200, 200))
ORDERS = st.sampled_from(["flat", "C", "F", "gaps", "reversed", "read-only"])
ARRAYS = st.builds(array, SIZES, st.sampled_from(DTYPES), ORDERS)
ZERO_SIZED = st.builds(np.zeros, st.sampled_from([(0,), (0, 3), (3, 0, 2), ()]), st.sampled_from(["f8", "S5", "M8[ns]", "O"]))
OBJECTS = st.builds(lambda n: np.array([None, "a", decimal.Decimal(n), (n,)] * (n // 100), object), SIZES)
BYTES = st.builds(lambda nbytes, kind: kind(filled(nbytes)), SIZES, st.sampled_from([bytes, bytearray]))
TEXTS = st.builds(lambda n: "é" * (n // 2) + "\ud800", SIZES)
BUFFERED = st.builds(lambda nbytes, kind, beside: Buffered(kind(filled(nbytes)), beside), SIZES, st.sampled_from([bytes, bytearray]), BYTES)
ANIMALS = ARRAYS | ZERO_SIZED | OBJECTS | BYTES | TEXTS | BUFFERED | SIZES.map(frame) | SIZES.map(lambda n: frame(n)["text"])
CAGES = st.lists(ANIMALS, max_size=3) | st.lists(ANIMALS, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=3), ANIMALS, max_size=3)


def assert_alike(found: Any, given_: Any) -> None:
    """Hold that two values are equal in all that a program could depend on; what was read-only may be writable now."""
    assert type(found) is type(given_)
    if isinstance(given_, np.ndarray):
        if not given_.flags.forc:
            given_ = pickle.loads(pickle.dumps(given_, 5))  # numpy closes gaps, and turns the bytes of what had them
        assert (found.dtype, found.shape) == (given_.dtype, given_.shape)
        assert found.flags.f_contiguous == given_.flags.f_contiguous
        assert found.flags.writeable or not given_.flags.writeable
        assert found.flags.aligned
        assert found.tobytes() == given_.tobytes() if given_.dtype != object else found.tolist() == given_.tolist()
    elif isinstance(given_, pd.DataFrame):
        pd.testing.assert_frame_equal(found, given_)
    elif isinstance(given_, pd.Series):
        pd.testing.assert_series_equal(found, given_)
    elif isinstance(given_, (list, tuple)):
        assert len(found) == len(given_)
        for one, other in zip(found, given_, strict=True):
            assert_alike(one, other)
    elif isinstance(given_, dict):
        assert list(found) == list(given_)
        for key, other in given_.items():
            assert_alike(found[key], other)
    else:
        assert found == given_


@pytest.fixture(scope="module")
def keeper(shared_cluster: LocalCluster) -> Any:
    with Client(shared_cluster) as client:
        yield client


@settings(max_examples=50, deadline=None)
@given(animal=ANIMALS | CAGES)
def test_any_animal_comes_back_as_it_went(keeper: Client, animal: Any) -> None:
    assert_alike(keeper.submit(identity, animal, pure=False).result(), animal)


@settings(max_examples=30, deadline=None)
@given(animal=ANIMALS)
def test_any_animal_is_scattered_handed_on_and_gathered_and_is_each_readers_own(keeper: Client, animal: Any) -> None:
    known = pickle.loads(pickle.dumps(animal, 5))
    (scattered,) = keeper.scatter([animal])
    first, second = keeper.map(identity, [scattered, scattered], pure=False, workers=["w0"])
    keeper.gather([keeper.submit(spoil, scattered, pure=False), keeper.submit(spoil, first, pure=False, workers=["w1"])])
    spoil(scattered.result())
    for found in keeper.gather([scattered, first, keeper.submit(identity, second, workers=["w1"])]):
        assert_alike(found, known)
    assert_alike(known, animal)


def test_a_view_of_memory_comes_back_as_bytes(keeper: Client) -> None:
    for nbytes in (10, INLINE_MAX + 1, codec.LARGE_MIN + 1):
        data = filled(nbytes)
        assert keeper.submit(identity, memoryview(data)).result() == data
