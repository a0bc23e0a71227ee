"""system/watcher: every way to save a file is seen, in every mode, and nothing else is."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest

from localdask.errors import UsageError
from localdask.system import news, watcher
from localdask.system.watcher import Watcher, trace
from tests.conftest import wait_until

LINUX = sys.platform.startswith("linux")
MODES = ["inotify", "watchfiles", "poll"] if LINUX else ["watchfiles", "poll"]


class Listener:
    """Keeps what a watcher says, and closes it."""

    def __init__(self):
        self.saves, self.troubles, self.watcher = [], [], None

    def watch(self, *paths, mode="auto", known=None):
        self.watcher = Watcher(paths, self.saves.append, self.troubles.append, mode, known)
        return self.watcher

    @property
    def latest(self):
        return {path: content for save in self.saves for path, content in save.items()}

    def wait_for(self, path, content):
        wait_until(lambda: self.latest.get(path) == content, what=f"{content!r} of {path}: {self.saves}, {self.troubles}")


@pytest.fixture
def listener(monkeypatch):
    monkeypatch.delenv("LOCALDASK_WATCHER", raising=False)
    monkeypatch.setattr(watcher, "POLL_S", 0.05)
    monkeypatch.setattr(watcher, "HEARTBEAT_S", 0.2)
    listener = Listener()
    yield listener
    if listener.watcher is not None:
        listener.watcher.close()


@pytest.fixture
def file(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    path = folder / "x.py"
    path.write_bytes(b"first")
    return path


# ── the save matrix ──────────────────────────────────────────────────────────


def in_place(path, content):
    path.write_bytes(content)


def temp_and_rename(path, content):
    temporary = path.with_name(".x.py.swp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def backup_dance(path, content):
    """As vim does with backupcopy=no: move the old away, write the new, remove the old."""
    backup = path.with_name("x.py~")
    os.rename(path, backup)
    path.write_bytes(content)
    os.unlink(backup)


def truncate_then_write(path, content):
    with path.open("wb") as file:
        file.flush()
        os.fsync(file.fileno())
        file.write(content[:1])
        file.flush()
        file.write(content[1:])


def delete_and_recreate(path, content):
    path.unlink()
    path.write_bytes(content)


def rename_keeping_times(path, content):
    """As rsync -t and cp -p do: same size, same time of modification."""
    status = path.stat()
    temporary = path.with_name(".x.py.rsync")
    temporary.write_bytes(content)
    os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(temporary, path)


def in_place_keeping_times(path, content):
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def directory_replaced(path, content):
    fresh = path.parent.with_name("fresh")
    shutil.copytree(path.parent, fresh)
    (fresh / path.name).write_bytes(content)
    os.rename(path.parent, path.parent.with_name("stale"))
    os.rename(fresh, path.parent)
    shutil.rmtree(path.parent.with_name("stale"))


def directory_recreated(path, content):
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    path.write_bytes(content)


SAVES = [
    in_place,
    temp_and_rename,
    backup_dance,
    truncate_then_write,
    delete_and_recreate,
    rename_keeping_times,
    in_place_keeping_times,
    directory_replaced,
    directory_recreated,
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("save", SAVES, ids=lambda save: save.__name__)
def test_a_save_of_any_kind_is_seen_and_the_next_one_too(save, mode, listener, file):
    listener.watch(file, mode=mode)
    for content in (b"second", b"thirds", b"fourth"):
        save(file, content)
        listener.wait_for(file, content)
    assert [list(saved.values()) for saved in listener.saves] == [[b"second"], [b"thirds"], [b"fourth"]]
    assert listener.troubles == []


NEWS = [(save, "inotify") for save in SAVES] if LINUX else []
# Without inotify's word on the directory itself, the heartbeat sees to it.
NEWS += [(save, "watchfiles") for save in SAVES if save not in (directory_replaced, directory_recreated)]


@pytest.mark.parametrize(("save", "mode"), NEWS)
def test_the_news_come_without_waiting_for_a_heartbeat(save, mode, listener, file, monkeypatch):
    monkeypatch.setattr(watcher, "HEARTBEAT_S", 3600.0)
    listener.watch(file, mode=mode)
    for content in (b"second", b"thirds", b"fourth"):
        save(file, content)
        listener.wait_for(file, content)


@pytest.mark.parametrize("mode", MODES)
def test_a_symlink_that_is_retargeted_is_seen_and_so_are_saves_behind_it(mode, listener, tmp_path, monkeypatch):
    monkeypatch.setattr(watcher, "HEARTBEAT_S", 3600.0)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.py").write_bytes(name.encode())
    (tmp_path / "current").symlink_to("one")
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "x.py"
    link.symlink_to("../current/x.py")
    listener.watch(link, mode=mode)

    def point_to(name):
        (tmp_path / "next").symlink_to(name)
        os.replace(tmp_path / "next", tmp_path / "current")

    point_to("two")
    listener.wait_for(link, b"two")
    (tmp_path / "two" / "x.py").write_bytes(b"two again")
    listener.wait_for(link, b"two again")
    link.unlink()
    link.symlink_to("../one/x.py")
    listener.wait_for(link, b"one")
    (tmp_path / "one" / "x.py").write_bytes(b"one again")
    listener.wait_for(link, b"one again")


def touch(path):
    os.utime(path)


def change_mode(path):
    path.chmod(0o600)


def save_identically(path):
    temp_and_rename(path, path.read_bytes())


def save_a_neighbour(path):
    path.with_name("y.py").write_bytes(b"neighbour")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("act", [touch, change_mode, save_identically, save_a_neighbour], ids=lambda act: act.__name__)
def test_what_changes_no_bytes_reloads_nothing(act, mode, listener, file, tmp_path):
    witness = tmp_path / "witness.py"
    witness.write_bytes(b"")
    listener.watch(file, witness, mode=mode)
    act(file)
    # What comes after it is seen, and alone.
    witness.write_bytes(b"later")
    listener.wait_for(witness, b"later")
    wait_until(lambda: not listener.watcher._settling.pending)
    assert listener.saves == [{witness: b"later"}]


@pytest.mark.parametrize("mode", ["inotify", "poll"] if LINUX else ["poll"])
def test_a_checkout_of_many_files_is_one_burst(mode, listener, tmp_path):
    paths = [tmp_path / f"m{number}.py" for number in range(40)]
    for path in paths:
        path.write_bytes(b"old")
    listener.watch(*paths, mode=mode)
    staged = {path: path.with_suffix(".staged") for path in paths}
    for temporary in staged.values():
        temporary.write_bytes(b"new")
    for path, temporary in staged.items():
        os.replace(temporary, path)
    wait_until(lambda: len(listener.latest) == 40)
    assert set(listener.latest.values()) == {b"new"}
    # A machine that stops us in the middle may split the burst; it never becomes one call a file.
    assert len(listener.saves) <= 3


@pytest.mark.parametrize("mode", MODES)
def test_a_storm_of_a_thousand_saves_ends_with_the_newest_bytes(mode, listener, file):
    listener.watch(file, mode=mode)
    for number in range(1000):
        (temp_and_rename if number % 2 else in_place)(file, b"save %d" % number)
    listener.wait_for(file, b"save 999")
    assert len(listener.saves) < 100
    assert all(content.startswith(b"save ") for saved in listener.saves for content in saved.values())


@pytest.mark.parametrize("mode", MODES)
def test_a_deletion_is_told_once_and_the_new_file_is_seen(mode, listener, file):
    listener.watch(file, mode=mode)
    file.unlink()
    wait_until(lambda: listener.troubles)
    file.write_bytes(b"back")
    listener.wait_for(file, b"back")
    assert listener.troubles == [f"{file} was deleted: the running generation stays; put the file back to reload it"]


@pytest.mark.parametrize("mode", MODES)
def test_a_directory_in_the_place_of_the_file_is_told_once_and_outlived(mode, listener, file):
    listener.watch(file, mode=mode)
    file.unlink()
    file.mkdir()
    wait_until(lambda: listener.troubles)
    file.rmdir()
    file.write_bytes(b"back")
    listener.wait_for(file, b"back")
    assert listener.troubles == [f"{file} is a directory now: the running generation stays; put the file back to reload it"]


@pytest.mark.parametrize("mode", MODES)
def test_a_file_that_cannot_be_read_is_told_once_and_read_as_soon_as_it_can_be(mode, listener, file, monkeypatch):
    # Said by the system and not by a mode, because root may read everything.
    real = os.open
    refuses = [True]

    def refuse(path, flags, *rest):
        if refuses[0] and Path(path) == file:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, flags, *rest)

    listener.watch(file, mode=mode)
    monkeypatch.setattr(watcher.os, "open", refuse)
    with open(file, "wb", opener=real) as out:
        out.write(b"hidden")
    wait_until(lambda: listener.troubles)
    refuses[0] = False
    listener.wait_for(file, b"hidden")
    assert listener.troubles == [f"{file} cannot be read (Permission denied): the running generation stays; make it readable again"]


@pytest.mark.parametrize("mode", MODES)
def test_a_file_that_is_held_open_is_seen_all_the_same(mode, listener, file):
    listener.watch(file, mode=mode)
    with file.open("wb") as out:
        out.write(b"never closed")
        out.flush()
        listener.wait_for(file, b"never closed")


# ── what is watched ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", MODES)
def test_paths_can_be_added_and_dropped_while_it_runs(mode, listener, file, monkeypatch):
    monkeypatch.setattr(watcher, "HEARTBEAT_S", 3600.0)
    helper = file.with_name("helper.py")
    helper.write_bytes(b"old")
    listener.watch(file, mode=mode)
    file.write_bytes(b"second")
    listener.wait_for(file, b"second")
    listener.watcher.set_paths([helper])
    file.write_bytes(b"dropped")
    helper.write_bytes(b"added")
    listener.wait_for(helper, b"added")
    assert listener.latest[file] == b"second"


@pytest.mark.parametrize("mode", MODES)
def test_a_path_that_does_not_exist_yet_nor_its_directory_is_seen_when_it_does(mode, listener, tmp_path):
    path = tmp_path / "later" / "x.py"
    listener.watch(path, mode=mode)
    path.parent.mkdir()
    path.write_bytes(b"here")
    listener.wait_for(path, b"here")


def test_a_save_between_the_first_read_and_the_watch_is_not_lost(listener, file):
    listener.watch(file, known={file: b"what runs"})
    listener.wait_for(file, b"first")


@pytest.mark.skipif(not LINUX, reason="inotify is of Linux")
def test_a_save_while_the_messenger_is_being_aimed_is_not_lost(listener, file, monkeypatch):
    monkeypatch.setattr(watcher, "HEARTBEAT_S", 3600.0)
    monkeypatch.setattr(watcher, "POLL_S", 3600.0)
    real = news.Inotify.aim

    def aim(self, directories):
        file.write_bytes(b"just before")
        return real(self, directories)

    monkeypatch.setattr(news.Inotify, "aim", aim)
    monkeypatch.setattr(Watcher, "_beat", lambda self, now: setattr(self, "_next_beat", now + 3600.0))
    listener.watch(file)
    listener.wait_for(file, b"just before")


@pytest.mark.parametrize("mode", ["inotify", "watchfiles"] if LINUX else ["watchfiles"])
def test_a_folder_that_is_away_while_the_messenger_is_being_aimed_is_no_trouble(mode, listener, file, monkeypatch):
    kind = news.Inotify if mode == "inotify" else news.WatchfilesNews
    real, n_aims = kind.aim, []

    def aim(self, directories):
        n_aims.append(len(directories))
        if len(n_aims) > 1:
            return real(self, directories)
        away = file.parent.with_name("away")
        os.rename(file.parent, away)
        failed = real(self, directories)
        os.rename(away, file.parent)
        return failed

    monkeypatch.setattr(kind, "aim", aim)
    listener.watch(file, mode=mode)
    wait_until(lambda: len(n_aims) > 1 and None not in listener.watcher._identities.values())
    assert listener.watcher.state == mode
    file.write_bytes(b"second")
    listener.wait_for(file, b"second")
    assert listener.troubles == []


@pytest.mark.skipif(not LINUX, reason="inotify is of Linux")
def test_a_folder_further_up_that_is_replaced_is_watched_anew(listener, tmp_path):
    path = tmp_path / "above" / "project" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"first")
    shutil.copytree(tmp_path / "above", tmp_path / "fresh")
    listener.watch(path)
    os.rename(tmp_path / "above", tmp_path / "stale")
    os.rename(tmp_path / "fresh", tmp_path / "above")
    status = path.parent.stat()
    wait_until(lambda: (status.st_dev, status.st_ino) in listener.watcher._identities.values())
    path.write_bytes(b"second")
    listener.wait_for(path, b"second")


def test_a_path_that_is_known_to_hold_what_runs_is_not_reported(listener, file):
    listener.watch(file, known={file: b"first"})
    wait_until(lambda: listener.watcher._settling.stamps[file] is not None)
    file.write_bytes(b"second")
    listener.wait_for(file, b"second")
    assert len(listener.saves) == 1


def test_every_place_that_decides_what_a_path_means_is_traced(tmp_path):
    real = Path(os.path.realpath(tmp_path))
    (real / "releases" / "1").mkdir(parents=True)
    (real / "releases" / "1" / "x.py").write_bytes(b"")
    (real / "..data").symlink_to("releases/1")
    (real / "x.py").symlink_to("..data/x.py")
    assert trace(real / "x.py") == [(str(real), "x.py"), (str(real), "..data"), (str(real / "releases" / "1"), "x.py")]


def test_a_circle_of_symlinks_ends(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert len(trace(tmp_path / "a")) <= watcher.N_LINKS_MAX + 20


# ── never silently dead ──────────────────────────────────────────────────────


@pytest.mark.skipif(not LINUX, reason="inotify is of Linux")
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSPC])
def test_when_the_kernel_refuses_the_poller_takes_over_and_says_so_once(code, listener, file, monkeypatch):
    def refuse(self, number, what):
        os.close(number)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(news.Inotify, "_checked", refuse)
    listener.watch(file)
    for content in (b"second", b"third"):
        file.write_bytes(content)
        listener.wait_for(file, content)
    assert listener.watcher.state == "polling"
    (trouble,) = listener.troubles
    assert "raise" in trouble and "looking at" in trouble


@pytest.mark.skipif(not LINUX, reason="inotify is of Linux")
def test_one_directory_that_cannot_be_watched_is_polled_and_the_others_are_not(listener, file, tmp_path, monkeypatch):
    other = tmp_path / "other" / "y.py"
    other.parent.mkdir()
    other.write_bytes(b"first")
    real = news.Inotify._checked

    def refuse(self, number, what):
        if what == str(other.parent):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), what)
        return real(self, number, what)

    monkeypatch.setattr(news.Inotify, "_checked", refuse)
    listener.watch(file, other)
    for path in (file, other):
        path.write_bytes(b"second")
        listener.wait_for(path, b"second")
    assert listener.watcher.state == "inotify+polling"
    assert len(listener.troubles) == 1 and str(other.parent) in listener.troubles[0]


@pytest.mark.skipif(not LINUX, reason="the kernel's list of mounts")
def test_a_network_file_system_is_polled_and_said_once(listener, file, monkeypatch):
    monkeypatch.setattr(watcher, "read_mounts", lambda: [("/", "ext4"), (os.path.realpath(file.parent), "nfs4")])
    listener.watch(file)
    for content in (b"second", b"third"):
        file.write_bytes(content)
        listener.wait_for(file, content)
    assert listener.watcher.state == "inotify+polling"
    assert len(listener.troubles) == 1 and "tells of no changes" in listener.troubles[0]


@pytest.mark.parametrize(
    ("directory", "expected"),
    [("/home/me", False), ("/mnt/share/code", True), ("/mnt/shared", False), ("/mnt/share/local", False), ("/ssh/x", True), ("/", False)],
)
def test_the_file_system_of_a_directory_is_that_of_the_mount_just_above_it(directory, expected):
    mounts = [("/", "ext4"), ("/mnt/share", "nfs"), ("/mnt/share/local", "xfs"), ("/ssh", "fuse.sshfs")]
    assert news.is_silent(directory, mounts) is expected


@pytest.mark.parametrize("mode", MODES)
def test_a_messenger_that_loses_all_news_costs_a_second_and_never_an_edit(mode, listener, file, monkeypatch):
    kind = {"inotify": news.Inotify, "watchfiles": news.WatchfilesNews, "poll": news.NoNews}[mode]
    real = kind.wait
    monkeypatch.setattr(kind, "wait", lambda self, timeout_s: real(self, timeout_s) and set())
    listener.watch(file, mode=mode)
    file.write_bytes(b"second")
    listener.wait_for(file, b"second")


@pytest.mark.parametrize("mode", MODES)
def test_a_messenger_that_breaks_is_replaced_by_the_poller_and_told(mode, listener, file, monkeypatch):
    kind = {"inotify": news.Inotify, "watchfiles": news.WatchfilesNews, "poll": news.NoNews}[mode]
    breaks = iter([OSError(errno.EIO, "the disk is on fire")])
    real = kind.wait

    def wait(self, timeout_s):
        for error in breaks:
            raise error
        return real(self, timeout_s)

    monkeypatch.setattr(kind, "wait", wait)
    listener.watch(file, mode=mode)
    file.write_bytes(b"second")
    listener.wait_for(file, b"second")
    assert listener.watcher.state == "polling"
    assert ["on fire" in trouble for trouble in listener.troubles] == [True]


@pytest.mark.skipif(not LINUX, reason="inotify is of Linux")
def test_an_overflow_of_the_kernels_queue_loses_nothing(listener, file, monkeypatch):
    monkeypatch.setattr(watcher, "HEARTBEAT_S", 3600.0)
    real = os.read
    overflow = news.Inotify._HEADER.pack(-1, 0x4000, 0, 0)
    seen = []

    def read(fd, nbytes):
        data = real(fd, nbytes)
        if nbytes == 1 << 16 and data:
            seen.append(data)
            return overflow  # everything that stood there was dropped
        return data

    monkeypatch.setattr(news.os, "read", read)
    listener.watch(file, mode="inotify")
    for content in (b"second", b"third"):
        temp_and_rename(file, content)
        listener.wait_for(file, content)
    assert seen


def test_a_listener_that_raises_does_not_end_the_watch(file, monkeypatch):
    errors, seen = [], []
    monkeypatch.setattr(threading, "excepthook", errors.append)

    def on_saved(saved):
        seen.append(saved[file])
        raise ValueError("a listener's mistake")

    with_mistakes = Watcher([file], on_saved, lambda text: None)
    try:
        for content in (b"second", b"third"):
            file.write_bytes(content)
            wait_until(lambda: seen[-1:] == [content])
    finally:
        with_mistakes.close()
    assert [str(error.exc_value) for error in errors] == ["a listener's mistake"] * 2


@pytest.mark.parametrize("mode", MODES)
def test_a_noisy_neighbourhood_hides_nothing(mode, listener, file):
    listener.watch(file, mode=mode)
    for number in range(300):
        file.with_name(f"scratch{number % 7}").write_bytes(b"noise")
        if number == 200:
            file.write_bytes(b"second")
    listener.wait_for(file, b"second")
    assert listener.saves == [{file: b"second"}]


# ── its own life ─────────────────────────────────────────────────────────────


def n_system_threads():
    return len(os.listdir("/proc/self/task")) if LINUX else threading.active_count()


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_left_after_close_neither_threads_nor_descriptors(mode, file):
    n_of_libraries = n_system_threads() - threading.active_count()  # arrow's, if an earlier test used it
    Watcher([file], lambda saved: None, lambda text: None, mode).close()  # what is imported once is not counted
    wait_until(lambda: n_system_threads() - threading.active_count() <= n_of_libraries)  # an earlier test's may be about to end
    n_threads, n_fds = n_system_threads(), len(os.listdir("/dev/fd"))
    for _ in range(20):
        watched = Watcher([file], lambda saved: None, lambda text: None, mode)
        watched.close()
        watched.close()
        watched.set_paths([])
        assert watched.state == "closed"
    wait_until(lambda: n_system_threads() <= n_threads and len(os.listdir("/dev/fd")) <= n_fds)


def test_the_listener_may_close_the_watcher_and_set_its_paths(listener, file):
    done = []

    def on_saved(saved):
        watched.set_paths([file])
        watched.close()
        done.append(saved)

    watched = Watcher([file], on_saved, listener.troubles.append)
    file.write_bytes(b"second")
    wait_until(lambda: done and watched.state == "closed")


@pytest.mark.parametrize(("word", "state"), [("poll", "polling"), ("watchfiles", "watchfiles")])
def test_the_environment_chooses_who_brings_the_news(word, state, listener, file, monkeypatch):
    monkeypatch.setenv("LOCALDASK_WATCHER", word)
    assert listener.watch(file).state == state


def test_an_unknown_mode_is_refused_with_the_modes_that_there_are(file):
    with pytest.raises(UsageError, match="auto, poll, inotify, watchfiles"):
        Watcher([file], lambda saved: None, lambda text: None, "pol")


def test_the_wall_clock_may_be_set_back(listener, file):
    status = file.stat()
    listener.watch(file)
    temporary = file.with_name("older")
    temporary.write_bytes(b"older")
    os.utime(temporary, ns=(status.st_atime_ns - 10**13, status.st_mtime_ns - 10**13))
    os.replace(temporary, file)
    listener.wait_for(file, b"older")
    assert time.time() > file.stat().st_mtime
