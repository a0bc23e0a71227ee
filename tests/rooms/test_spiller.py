"""A worker's large results on their way to disk and back, with a real folder and no process."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from localdask.errors import DataLostError
from localdask.messages import KeyPublished, MemoryPressed, RunTask
from localdask.processes import spiller as room
from localdask.processes.intake import Intake, Spilled
from localdask.processes.spiller import HeldValues, Spiller
from localdask.system.segments import SegmentFolder


class Place:
    """A worker's intake, desk and spiller; errands are done when the test says so."""

    def __init__(self, folder: SegmentFolder, **steps: Any) -> None:
        self.intake = Intake()
        self.segments = folder
        self.errands: list[Callable[[], Any]] = []
        self.add_errand = self.errands.append
        self.n_rings = 0
        self.main_ear = SimpleNamespace(ring=lambda: None)
        self.told: list[str] = []
        self.n_attempts = 0
        self.worker = SimpleNamespace(name="w0", life=1, lock=threading.Lock(), status="running")
        settings = {"memory_limit": 100_000, "memory_steps": {"target": 0.5, **steps}}
        desk: Any = self
        self.spiller = Spiller(self.worker, self.intake, desk, settings, self.told.append)

    def listen(self, kind: type, on_word: Callable[[Any], None]) -> None:
        assert kind is MemoryPressed
        self.hear = on_word

    def ring(self) -> None:
        self.n_rings += 1

    def make(self, key: str, value: Any, nbytes: int = 30_000) -> None:
        self.n_attempts += 1
        task = RunTask(self.n_attempts, key, "f", b"")
        self.intake.add(task)
        self.intake.start_next()
        self.intake.finish(task, value, nbytes)

    def do_errands(self) -> None:
        while self.errands:
            self.errands.pop(0)()

    def spilled(self) -> list[str]:
        return [key for key, value in self.intake.data.items() if isinstance(value, Spilled)]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SegmentFolder]:
    with SegmentFolder.create(shared_memory=str(tmp_path / "absent"), places=[str(tmp_path)]) as folder:
        yield folder


@pytest.fixture
def place(folder: SegmentFolder) -> Place:
    return Place(folder)


def names(folder: SegmentFolder) -> list[str]:
    return [name for name in os.listdir(folder.path) if name != "owner.lock"]


def test_beyond_the_target_the_oldest_goes_and_the_scheduler_is_told_where_it_lies(place: Place, folder: SegmentFolder) -> None:
    place.make("a", [1, 2, 3])
    assert not place.errands
    place.make("b", b"b" * 30_000)
    assert place.n_rings == 1
    place.do_errands()
    value = place.intake.data["a"]
    assert isinstance(value, Spilled) and place.intake.take_words() == [KeyPublished("a", value.payload, None, True)]
    assert [name.startswith("held-w0-1-") for name in names(folder)] == [True]
    assert place.intake.take_dropped() == []  # let go outside the lock already
    held = HeldValues(place.intake.data)
    assert dict(held) == {"a": [1, 2, 3], "b": b"b" * 30_000} and "1 in files" in repr(held)


def test_what_was_published_already_is_only_let_go(place: Place, folder: SegmentFolder) -> None:
    payload = folder.publish(b"header", [])
    place.make("a", b"a" * 30_000)
    assert place.intake.spilling is not None
    place.intake.spilling.published["a"] = payload
    place.make("b", b"b" * 30_000)
    place.do_errands()
    assert place.intake.data["a"] == Spilled(payload) and len(names(folder)) == 1


def test_a_process_that_is_too_large_lets_all_go(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "trim", lambda: None)
    for key in "abc":
        place.make(key, [key], nbytes=10_000)
    place.hear(MemoryPressed(is_paused=True, must_spill=True))
    assert place.worker.status == "paused"
    place.do_errands()
    assert place.spilled() == ["a", "b", "c"] and not place.errands
    place.hear(MemoryPressed(is_paused=False, must_spill=True))
    place.do_errands()  # there is no more, and it ends
    assert place.worker.status == "running"


def test_a_process_that_comes_down_keeps_the_rest(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "trim", lambda: None)
    monkeypatch.setattr(room, "private_nbytes", lambda pid: 40_000)
    for key in "abc":
        place.make(key, [key], nbytes=10_000)
    place.hear(MemoryPressed(is_paused=False, must_spill=True))
    place.do_errands()
    assert place.spilled() == ["a"]


def test_a_full_disk_is_told_once_and_loses_nothing(place: Place, folder: SegmentFolder) -> None:
    def refuse(fd: int, nbytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder._reserve = refuse
    for key in "abc":
        place.make(key, key.encode() * 30_000)
        place.do_errands()
    assert place.spilled() == [] and not names(folder) and list(place.intake.data) == ["a", "b", "c"]
    assert len(place.told) == 1 and "stay in memory" in place.told[0]
    folder._reserve = lambda fd, nbytes: None
    place.hear(MemoryPressed(is_paused=False, must_spill=True))
    place.do_errands()
    assert place.spilled() == ["a", "b", "c"]


def test_the_cap_is_never_passed_and_told_once(folder: SegmentFolder) -> None:
    place = Place(folder, max_spill=70_000)
    for key in "abcdef":
        place.make(key, key.encode() * 30_000)
        place.do_errands()
    assert place.spilled() == ["a", "b"] and sum((Path(folder.path) / name).stat().st_size for name in names(folder)) <= 70_000
    assert len(place.told) == 1 and "max-spill (68.36 kiB) is reached" in place.told[0]


def test_what_is_released_while_it_is_written_leaves_no_file(place: Place, folder: SegmentFolder) -> None:
    class Fickle:
        def __reduce__(self) -> tuple[Any, ...]:
            place.intake.forget(["a"])
            return str, ()

    place.make("a", Fickle())
    place.make("b", b"b" * 30_000)
    place.do_errands()
    assert not names(folder) and not place.intake.take_words() and list(place.intake.data) == ["b"]


def test_what_cannot_be_written_stays_and_is_named(place: Place) -> None:
    class Stubborn:
        def __reduce__(self) -> tuple[Any, ...]:
            raise RuntimeError("not me")

    place.make("a", Stubborn())
    place.make("b", b"b" * 30_000)
    place.do_errands()
    assert place.spilled() == ["b"] and len(place.told) == 1 and "'a' stays in memory" in place.told[0] and "not me" in place.told[0]


def test_a_value_whose_file_is_gone_says_so(place: Place, folder: SegmentFolder) -> None:
    place.make("a", b"a" * 30_000)
    place.make("b", b"b" * 30_000)
    place.do_errands()
    for name in names(folder):
        os.unlink(os.path.join(folder.path, name))
    with pytest.raises((FileNotFoundError, DataLostError)):
        HeldValues(place.intake.data)["a"]


def test_what_is_released_while_it_is_looked_through_does_no_harm(place: Place) -> None:
    for key in "abc":
        place.make(key, key, nbytes=1)
    held, seen = HeldValues(place.intake.data), []
    for key, value in held.items():
        place.intake.forget(["b", "c"])
        seen.append((key, value))
    assert seen == [("a", "a"), ("b", "b"), ("c", "c")] and list(held.values()) == ["a"]


def test_without_a_limit_nothing_is_counted(folder: SegmentFolder) -> None:
    place = Place(folder, target=None)
    assert place.intake.spilling is None


def test_what_a_dead_worker_left_is_swept_but_for_what_is_known(folder: SegmentFolder) -> None:
    known, unknown = (folder.publish(b"header", [b"x"], on_disk=True, prefix="held-w0-1-")[0] for _ in range(2))
    others = [folder.publish(b"header", [b"x"], on_disk=True, prefix=f"held-{other}-")[0] for other in ("w0-11", "w0-1-1")]
    folder.sweep("held-w0-1-", lambda: {known})
    assert sorted(names(folder)) == sorted(map(os.path.basename, (known, *others))) and not os.path.exists(unknown)
    folder.sweep("held-w7-1-", lambda: pytest.fail("nobody needs to know"))
