"""Segments are whole or absent, private to each reader, and gone with their cluster."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localdask.errors import DataLostError
from localdask.system import codec, segment_bytes, segments
from localdask.system.segments import SegmentFolder, map_payload, sweep_stale
from tests.conftest import wait_until


@pytest.fixture
def folder() -> Iterator[SegmentFolder]:
    with SegmentFolder.create() as made:
        yield made


def read(payload: Any) -> tuple[bytes, list[bytes]]:
    header, views = map_payload(payload)
    return bytes(header), [bytes(view) for view in views]


def names(folder: SegmentFolder) -> list[str]:
    return sorted(name for name in os.listdir(folder.path) if name not in ("owner.lock", "spare"))


class RunsOut:
    """Reserves space until a limit in bytes, for one folder; beyond it, fails as the system does."""

    def __init__(self, place: str, limit: int = 0, code: int = errno.ENOSPC) -> None:
        self.place = place
        self.limit = limit
        self.code = code

    def __call__(self, fd: int, nbytes: int) -> None:
        where = os.readlink(f"/proc/self/fd/{fd}") if os.path.exists("/proc/self/fd") else fcntl.fcntl(fd, 50, bytes(1024)).decode()
        if self.place in where and nbytes > self.limit:
            raise OSError(self.code, os.strerror(self.code))
        segments.reserve_space(fd, nbytes)


# ── publish and map ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("sizes", [[], [0], [1], [0, 0, 0], [63, 64, 65], [0, 5, 0], [4096], [100_001, 3], [7] * 2000])
def test_buffers_of_any_number_and_size_come_back(folder: SegmentFolder, sizes: list[int]) -> None:
    buffers = [os.urandom(size) for size in sizes]
    payload = folder.publish(b"header", buffers)
    assert payload[2] == tuple(sizes)
    assert read(payload) == (b"header", buffers)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 9000), max_size=8), n_header=st.integers(1, 40_000), on_disk=st.booleans())
def test_any_header_and_buffers_come_back(folder: SegmentFolder, sizes: list[int], n_header: int, on_disk: bool) -> None:
    header, buffers = os.urandom(n_header), [os.urandom(size) for size in sizes]
    payload = folder.publish(header, buffers, on_disk=on_disk)
    assert len(payload[1]) <= segments.MAX_HEADER
    assert read(payload) == (header, buffers)
    folder.unlink(payload[0])


@pytest.mark.parametrize(
    "convert", [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data)), lambda data: memoryview(np.frombuffer(data, "i8"))]
)
def test_any_contiguous_buffer_can_be_published(folder: SegmentFolder, convert: Any) -> None:
    data = os.urandom(800)
    assert read(folder.publish(b"h", [convert(data)])) == (b"h", [data])


def test_a_large_header_lies_in_the_segment_and_not_in_the_message(folder: SegmentFolder) -> None:
    path, header, lengths = folder.publish(b"h" * 100_000, [b"data"])
    assert header == b""
    assert lengths == (100_000, 4)
    assert read((path, header, lengths)) == (b"h" * 100_000, [b"data"])


def test_each_buffer_is_aligned_to_64_bytes(folder: SegmentFolder) -> None:
    _header, views = map_payload(folder.publish(b"h", [b"a" * size for size in (1, 64, 65, 0, 3)]))
    addresses = [np.frombuffer(view, "u1").__array_interface__["data"][0] for view in views if view.nbytes]
    assert [address % 64 for address in addresses] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "value",
    [
        {"a": np.arange(5000), "b": [np.zeros((0, 3)), b"x" * 3000], "c": "text"},
        np.asfortranarray(np.arange(6000.0).reshape(60, 100)),
        np.arange(9000)[::3],
        np.zeros(900, np.dtype([("a", "i4"), ("b", "S7")])),
        b"b" * 70_000,
        bytearray(70_000),
    ],
    ids=["nested", "fortran", "strided", "structured", "bytes", "bytearray"],
)
def test_a_value_crosses_through_a_segment(folder: SegmentFolder, value: Any) -> None:
    header, buffers = codec.dumps_buffers(value)
    loaded = codec.loads_buffers(*map_payload(folder.publish(header, buffers)))
    np.testing.assert_equal(loaded, value)
    assert type(loaded) is type(value)


def test_a_mapped_array_can_be_changed_and_nobody_else_sees_it(folder: SegmentFolder) -> None:
    payload = folder.publish(*codec.dumps_buffers(np.arange(5000)))
    one, other = (codec.loads_buffers(*map_payload(payload)) for _ in range(2))
    one[:] = -1
    assert one.sum() == -5000
    assert other.sum() == codec.loads_buffers(*map_payload(payload)).sum() == np.arange(5000).sum()


def test_a_mapped_array_shares_the_segments_memory_until_it_is_changed(folder: SegmentFolder) -> None:
    path, _header, _lengths = payload = folder.publish(*codec.dumps_buffers(np.zeros(5000)))
    array = codec.loads_buffers(*map_payload(payload))
    with open(path, "r+b") as file:
        file.write(np.ones(1).tobytes())
    assert array[0] == 1


def test_a_mapping_outlives_its_file_its_folder_and_the_payload() -> None:
    with SegmentFolder.create() as folder:
        payload = folder.publish(*codec.dumps_buffers(np.arange(5000)))
        array = codec.loads_buffers(*map_payload(payload))
        folder.unlink(payload[0])
        assert names(folder) == []
        assert array.sum() == np.arange(5000).sum()
    assert array.sum() == np.arange(5000).sum()


def test_a_segment_that_was_unlinked_is_a_file_not_found_error(folder: SegmentFolder) -> None:
    payload = folder.publish(b"h", [b"data"])
    folder.unlink(payload[0])
    folder.unlink(payload[0])
    with pytest.raises(FileNotFoundError):
        map_payload(payload)


def test_a_segment_shorter_than_its_payload_says_is_an_error_and_no_bus_error(folder: SegmentFolder) -> None:
    payload = folder.publish(b"h", [b"d" * 10_000])
    os.truncate(payload[0], 100)
    with pytest.raises(DataLostError, match="has 100 bytes where 10048 were published"):
        map_payload(payload)


def test_only_a_segment_of_this_folder_can_be_unlinked(folder: SegmentFolder, tmp_path: Path) -> None:
    stranger = tmp_path / "precious"
    stranger.touch()
    with pytest.raises(ValueError, match="is no segment of"):
        folder.unlink(str(stranger))
    assert stranger.exists()


def test_many_mappings_leave_descriptors_for_the_rest(folder: SegmentFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments.resource, "getrlimit", lambda _which: (40, 40))
    payload = folder.publish(b"h", [b"abc" * 1000])
    before = len(os.listdir("/dev/fd"))
    mappings = [map_payload(payload) for _ in range(100)]
    assert len(os.listdir("/dev/fd")) - before <= 10
    mappings[99][1][0][:3] = b"xyz"
    assert all(bytes(views[0]) == b"abc" * 1000 for _header, views in mappings[:99])


def test_threads_publish_at_once_without_a_mix_up(folder: SegmentFolder) -> None:
    found: list[bool] = []

    def publish_often(mark: int) -> None:
        for _ in range(30):
            data = bytes([mark]) * 5000
            found.append(read(folder.publish(b"h", [data, data])) == (b"h", [data, data]))

    threads = [threading.Thread(target=publish_often, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 120
    assert all(found)


def test_pieces_beyond_one_system_calls_limits_are_all_written(folder: SegmentFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_bytes, "WRITE_MAX", 1000)
    monkeypatch.setattr(segment_bytes, "_PIECES_MAX", 3)
    buffers = [os.urandom(size) for size in (5000, 0, 1, 64, 999, 1001, 2000)]
    assert read(folder.publish(b"h", buffers)) == (b"h", buffers)


def test_a_write_that_takes_less_than_asked_for_goes_on(folder: SegmentFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, pieces: real(fd, [pieces[0][: max(1, pieces[0].nbytes // 2)]]))
    buffers = [os.urandom(size) for size in (5000, 1, 64, 130)]
    assert read(folder.publish(b"h", buffers)) == (b"h", buffers)


# ── privacy ──────────────────────────────────────────────────────────────────


def test_folders_and_files_are_the_users_alone(folder: SegmentFolder) -> None:
    on_disk = folder.publish(b"h", [b"x"], on_disk=True)[0]
    for path, mode in [
        (folder.path, 0o700),
        (os.path.dirname(on_disk), 0o700),
        (folder.publish(b"h", [b"x"])[0], 0o600),
        (on_disk, 0o600),
        (os.path.join(folder.path, "owner.lock"), 0o600),
    ]:
        assert stat.S_IMODE(os.lstat(path).st_mode) == mode


def test_a_permissive_umask_changes_nothing() -> None:
    old = os.umask(0)
    try:
        with SegmentFolder.create() as folder:
            assert stat.S_IMODE(os.stat(folder.path).st_mode) == 0o700
            assert stat.S_IMODE(os.stat(folder.publish(b"h", [b"x"])[0]).st_mode) == 0o600
    finally:
        os.umask(old)


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    open_folder = tmp_path / "open"
    open_folder.mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="not a private folder"):
        SegmentFolder(str(open_folder))


def test_a_link_instead_of_a_folder_or_a_segment_is_refused(folder: SegmentFolder, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder.path)
    with pytest.raises(PermissionError, match="not a private folder"):
        SegmentFolder(str(link))
    path, header, lengths = folder.publish(b"h", [b"x" * 100])
    other = os.path.join(folder.path, "other")
    os.symlink(path, other)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        map_payload((other, header, lengths))


# ── no room ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOMEM, errno.EDQUOT])
def test_a_full_shared_memory_falls_back_to_disk_and_is_told_once(tmp_path: Path, code: int) -> None:
    told: list[str] = []
    shared = tmp_path / "shm"
    shared.mkdir()
    with SegmentFolder.create(tell=told.append, reserve=RunsOut(str(shared), 5000, code), shared_memory=str(shared)) as folder:
        small, large, larger = (folder.publish(b"h", [b"x" * size]) for size in (100, 10_000, 20_000))
        assert os.path.dirname(small[0]) == folder.path
        assert os.path.dirname(large[0]) != folder.path
        assert read(large) == (b"h", [b"x" * 10_000])
        assert read(larger) == (b"h", [b"x" * 20_000])
        assert len(names(folder)) == 1, "the file that found no room is gone"
        folder.unlink(large[0])
        assert not os.path.exists(large[0])
    assert told == [f"{shared} is full; large data goes to {os.path.dirname(large[0])}, which is slower"]


def test_a_joined_folder_falls_back_to_the_owners_place_on_disk(tmp_path: Path) -> None:
    shared = tmp_path / "shm"
    shared.mkdir()
    with SegmentFolder.create(shared_memory=str(shared)) as owned:
        joined = SegmentFolder(owned.path, reserve=RunsOut(str(shared)))
        payload = joined.publish(b"h", [b"data"])
        assert not payload[0].startswith(owned.path)
        assert read(payload) == (b"h", [b"data"])
        joined.close()
        assert read(payload) == (b"h", [b"data"])
    assert not os.path.exists(payload[0])


def test_no_room_anywhere_is_told_with_the_mend_and_leaves_nothing(tmp_path: Path) -> None:
    with SegmentFolder.create(reserve=RunsOut("/"), places=[str(tmp_path)]) as folder:
        with pytest.raises(OSError, match="no room for 4 bytes in .*; free some space, or set TMPDIR") as caught:
            folder.publish(b"h", [b"data"])
        assert caught.value.errno == errno.ENOSPC
        assert names(folder) == []


def test_a_limit_on_files_is_not_told_as_a_lack_of_room(tmp_path: Path) -> None:
    told: list[str] = []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with SegmentFolder.create(tell=told.append, places=[str(tmp_path)]) as folder:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            with pytest.raises(OSError, match=r"no file of 20000 bytes may be written; raise the limit on files \(`ulimit -f`\)") as caught:
                folder.publish(b"h", [b"x" * 20_000])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert caught.value.errno == errno.EFBIG
        assert names(folder) == [] == told


def test_an_error_that_is_not_lack_of_room_is_not_hidden(folder: SegmentFolder) -> None:
    joined = SegmentFolder(folder.path, reserve=RunsOut("/", code=errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        joined.publish(b"h", [b"data"])
    assert names(folder) == []


def test_a_failed_write_leaves_no_file(folder: SegmentFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_fd: int, _pieces: Any) -> int:
        assert [name for name in names(folder) if name.endswith(".part")], "nothing has its name before it is whole"
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "writev", fail)
    with pytest.raises(KeyboardInterrupt):
        folder.publish(b"h", [b"data"])
    assert names(folder) == []


def test_room_is_looked_for_before_anything_is_written(folder: SegmentFolder) -> None:
    reserved: list[int] = []

    def reserve(fd: int, nbytes: int) -> None:
        assert os.fstat(fd).st_size == 0
        reserved.append(nbytes)
        segments.reserve_space(fd, nbytes)

    SegmentFolder(folder.path, reserve=reserve).publish(b"h", [b"x" * 100, b"y"])
    assert reserved == [192]


def test_missing_shared_memory_means_disk_and_is_told_once_where_it_is_expected(tmp_path: Path) -> None:
    told: list[str] = []
    with SegmentFolder.create(tell=told.append, shared_memory=str(tmp_path / "absent"), places=[str(tmp_path)]) as folder:
        assert folder.path.startswith(str(tmp_path))
        assert read(folder.publish(b"h", [b"data"])) == (b"h", [b"data"])
        assert read(folder.publish(b"h", [b"data"], on_disk=True)) == (b"h", [b"data"])
    assert len(told) == (1 if sys.platform == "linux" else 0)
    assert all("cannot be used (No such file or directory); large data goes to" in text for text in told)
    assert os.listdir(tmp_path) == []


def test_without_a_place_on_disk_shared_memory_is_used_alone(tmp_path: Path) -> None:
    shared = tmp_path / "shm"
    shared.mkdir()
    with SegmentFolder.create(shared_memory=str(shared), places=[str(tmp_path / "absent")]) as folder:
        assert read(folder.publish(b"h", [b"data"], on_disk=True)) == (b"h", [b"data"])
    assert os.listdir(shared) == []


def test_no_place_at_all_is_told_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no folder for large data could be made .* set TMPDIR to a writable one"):
        SegmentFolder.create(shared_memory=str(tmp_path / "absent"), places=[str(tmp_path / "gone")])


# ── ends ─────────────────────────────────────────────────────────────────────


def test_closing_removes_everything_and_twice_is_fine() -> None:
    folder = SegmentFolder.create()
    paths = [folder.publish(b"h", [b"x"], on_disk=on_disk)[0] for on_disk in (False, True)]
    folder.close()
    folder.close()
    assert not any(os.path.exists(os.path.dirname(path)) for path in paths)


def test_a_joined_folder_is_not_removed_by_those_who_joined(folder: SegmentFolder) -> None:
    joined = SegmentFolder(folder.path)
    payload = joined.publish(b"h", [b"data"])
    joined.close()
    assert read(payload) == (b"h", [b"data"])


def test_a_forked_copy_of_the_owner_does_not_remove_the_folder(folder: SegmentFolder) -> None:
    script = """if 1:
        import os, sys
        from localdask.system.segments import SegmentFolder
        folder = SegmentFolder.create()
        if os.fork() == 0:
            folder.close()
            os._exit(0)
        os.wait()
        assert os.path.isdir(folder.path)
        folder.close()
        assert not os.path.exists(folder.path)
    """
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_living_owners_folder_is_not_swept(folder: SegmentFolder) -> None:
    payload = folder.publish(b"h", [b"data"])
    assert folder.path not in sweep_stale()
    assert read(payload) == (b"h", [b"data"])


def test_a_killed_owners_folders_are_swept_and_a_living_ones_stay(tmp_path: Path) -> None:
    script = f"""if 1:
        import sys
        from localdask.system.segments import SegmentFolder
        folder = SegmentFolder.create(shared_memory={str(tmp_path)!r}, places=[{str(tmp_path)!r}])
        folder.publish(b"h", [b"data"]); folder.publish(b"h", [b"data"], on_disk=True)
        print(folder.path, flush=True)
        sys.stdin.read()
    """
    owners = [subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = [owner.stdout.readline().strip() for owner in owners if owner.stdout]
    try:
        assert sweep_stale([str(tmp_path)]) == []
        owners[0].kill()
        owners[0].wait()
        assert len(os.listdir(tmp_path)) == 4
        assert len(sweep_stale([str(tmp_path)])) == 2
        assert not os.path.exists(paths[0])
        assert os.path.isdir(paths[1])
    finally:
        for owner in owners:
            owner.kill()
            owner.communicate()
    assert len(sweep_stale([str(tmp_path)])) == 2
    assert os.listdir(tmp_path) == []


def test_a_sweep_leaves_what_it_cannot_prove_stale(tmp_path: Path) -> None:
    prefix = segments._prefix()
    (tmp_path / "mine").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / f"{prefix}link").symlink_to(tmp_path / "target")
    (tmp_path / f"{prefix}open").mkdir(mode=0o755)
    (tmp_path / f"{prefix}file").touch()
    no_lock = tmp_path / f"{prefix}nolock"
    no_lock.mkdir(mode=0o700)
    (no_lock / "data").touch()
    before = sorted(os.listdir(tmp_path))
    assert sweep_stale([str(tmp_path), str(tmp_path / "absent")]) == []
    assert sorted(os.listdir(tmp_path)) == before


def test_a_maker_whose_folder_was_swept_under_its_hands_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.mkdir
    n_swept = []

    def mkdir(path: str, mode: int) -> None:
        real(path, mode)
        if len(n_swept) < 3:
            n_swept.extend(sweep_stale([str(tmp_path)]))

    monkeypatch.setattr(os, "mkdir", mkdir)
    with SegmentFolder.create(shared_memory=str(tmp_path), places=[]) as folder:
        assert len(n_swept) == 3
        assert read(folder.publish(b"h", [b"data"])) == (b"h", [b"data"])


def test_a_maker_that_locks_what_was_just_swept_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.flock
    swept: list[str] = []

    def flock(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real)
        swept.extend(sweep_stale([str(tmp_path)]))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with SegmentFolder.create(shared_memory=str(tmp_path), places=[]) as folder:
        assert len(swept) == 1
        assert read(folder.publish(b"h", [b"data"])) == (b"h", [b"data"])
        assert sweep_stale([str(tmp_path)]) == []


def test_makers_and_sweepers_at_once_lose_nothing(tmp_path: Path) -> None:
    stop = threading.Event()
    swept: list[str] = []

    def sweep() -> None:
        while not stop.is_set():
            swept.extend(sweep_stale([str(tmp_path)]))

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for _ in range(100):
            with SegmentFolder.create(shared_memory=str(tmp_path), places=[str(tmp_path)]) as folder:
                assert read(folder.publish(b"h", [b"data"])) == (b"h", [b"data"])
    finally:
        stop.set()
        sweeper.join()
    sweep_stale([str(tmp_path)])
    wait_until(lambda: os.listdir(tmp_path) == [])


def test_the_private_mapping_is_what_python_calls_copy_on_write(folder: SegmentFolder) -> None:
    _header, (view,) = map_payload(folder.publish(b"h", [b"data"]))
    assert not view.readonly
    assert isinstance(view.obj, mmap.mmap)
