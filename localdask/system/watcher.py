"""Named files, watched: their settled bytes are handed over whenever they differ from what was known.

One ``Watcher`` lives in the cluster's process and runs one daemon thread, which calls
``on_saved`` and ``on_trouble``. Nannies and workers have none. It watches the *directories*
that decide what each path means (its own, and that of every symlink on the way), because
a file that is saved by rename is another inode each time; and it takes from them the names
that it was given, nothing else. ``state/settling.py`` decides when bytes are believed.

Who brings the news: on Linux the kernel's inotify, through ctypes; elsewhere ``watchfiles``
at a step of 5 ms. Both work, and both are tested, on Linux; the former is the default there because
it sleeps: ``watchfiles`` wakes 200 times a second (measured here: 0.5 % of a core, where 0.1 %
is allowed, and 37 ms to import), and brings news 5 to 15 ms later. ``LOCALDASK_WATCHER``
chooses (``poll``, ``inotify``, ``watchfiles``).

Whoever brings the news, a heartbeat looks at the stamp of every file and directory: once a
second, so that a lost event, a replaced directory or an overflow costs a second and never
an edit; four times a second where no news can come (a network file system, a limit of the
kernel), and that is said once. The watcher never runs a file, and never stops on its own.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from localdask.errors import UsageError
from localdask.state.settling import Look, Settling
from localdask.system.news import STEP_MS, Messenger, NoNews, is_silent, make_messenger, read_mounts

if TYPE_CHECKING:
    from pathlib import Path

HEARTBEAT_S = 1.0
POLL_S = 0.25
RETRY_S = 30.0
N_LINKS_MAX = 40
N_IDLE_TURNS_MAX = 50
NBYTES_MAX = 64 * 2**20
MODES = ("auto", "poll", "inotify", "watchfiles")

# ── looking ──────────────────────────────────────────────────────────────────


def trace(path: Path) -> list[tuple[str, str]]:
    """Return every (real directory, name) that decides what a path means: each symlink on the way, and the file at its end."""
    places: list[tuple[str, str]] = []
    rest = [part for part in reversed(os.path.abspath(path).split("/")) if part]
    at, n_links = "/", 0
    while rest:
        part = rest.pop()
        if part == "..":
            at = os.path.dirname(at)
            continue
        try:
            target = os.readlink(os.path.join(at, part))
        except OSError:
            if not rest:
                places.append((at, part))
            at = os.path.join(at, part)
            continue
        places.append((at, part))
        n_links += 1
        if n_links > N_LINKS_MAX:
            break
        at = "/" if target.startswith("/") else at
        rest.extend(piece for piece in reversed(target.split("/")) if piece not in ("", "."))
    return places


def stamp_of(status: os.stat_result) -> tuple[int, ...]:
    # The time of change catches what keeps size, mtime and inode: rsync -t, cp -p, a clock that was set back.
    return (status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev, status.st_ctime_ns)


def read_stamp(path: Path) -> tuple[int, ...] | None:
    """Return a file's stamp; None when there is none, and one that no file has when it cannot be told."""
    try:
        return stamp_of(os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return (-1, error.errno or 0)


def look_at(path: Path) -> Look:
    """Read a file once."""
    stays = "the running generation stays"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return Look(None, None, f"{path} was deleted: {stays}; put the file back to reload it")
    except OSError as error:
        return Look(read_stamp(path), None, f"{path} cannot be read ({error.strerror}): {stays}; make it readable again")
    try:
        before = os.fstat(fd)
        stamp = stamp_of(before)
        if not stat.S_ISREG(before.st_mode):
            what = "a directory" if stat.S_ISDIR(before.st_mode) else "no regular file"
            return Look(stamp, None, f"{path} is {what} now: {stays}; put the file back to reload it")
        if before.st_size > NBYTES_MAX:
            return Look(stamp, None, f"{path} has {before.st_size} bytes, {NBYTES_MAX} are the limit: {stays}; make it smaller")
        chunks = []
        while chunk := os.read(fd, 1 << 20):
            chunks.append(chunk)
        content = b"".join(chunks)
        is_whole = stamp_of(os.fstat(fd)) == stamp and len(content) == before.st_size
        return Look(stamp, content, is_whole=is_whole)
    except OSError as error:
        return Look((-1, error.errno or 0), None, f"{path} cannot be read ({error.strerror}): {stays}; make it readable again")
    finally:
        os.close(fd)


# ── the watcher ──────────────────────────────────────────────────────────────


class Watcher:
    """Watches the bytes of named files until it is closed.

    ``on_saved`` is given the new bytes of every file of a burst at once; ``on_trouble`` a text
    for the user. Both are called on the watcher's thread, and may call ``set_paths`` and
    ``close``. ``known`` holds the bytes that are in use already, where the caller has them:
    a file that differs from them is reported at once.
    """

    def __init__(
        self,
        paths: Iterable[Path],
        on_saved: Callable[[dict[Path, bytes]], None],
        on_trouble: Callable[[str], None],
        mode: str = "auto",
        known: Mapping[Path, bytes] | None = None,
    ) -> None:
        mode = os.environ.get("LOCALDASK_WATCHER") or mode
        if mode not in MODES:
            raise UsageError(f"a watcher cannot {mode!r}: set LOCALDASK_WATCHER, or mode, to one of {', '.join(MODES)}")
        self._on_saved, self._on_trouble, self._mode = on_saved, on_trouble, mode
        self._lock = threading.Lock()
        self._settling: Settling[Path] = Settling()
        self._names: dict[tuple[str, str], set[Path]] = {}
        self._identities: dict[str, tuple[int, int] | None] = {}
        self._polled: dict[str, str] = {}
        self._said: set[str] = set()
        self._must_aim = True
        self._is_closing = self._is_over = False
        self._n_idle_turns = 0
        self._next_beat, self._next_retry = 0.0, time.monotonic() + RETRY_S
        self._messenger = self._choose_messenger()
        self.set_paths(paths, known)
        self._thread = threading.Thread(target=self._run, name="localdask-watcher", daemon=True)
        self._thread.start()

    @property
    def state(self) -> str:
        """How news comes: "inotify", "watchfiles", "polling", a mixture ("inotify+polling"), or "closed"."""
        if self._is_closing or not self._thread.is_alive():
            return "closed"
        word = self._messenger.word
        return f"{word}+polling" if self._polled and word != "polling" else word

    def set_paths(self, paths: Iterable[Path], known: Mapping[Path, bytes] | None = None) -> None:
        """Watch these paths, and no others; for one that is new, from the bytes that it has now or that are ``known``."""
        wanted = dict.fromkeys(paths)
        with self._lock:
            for path in [path for path in self._settling.names() if path not in wanted]:
                self._settling.forget(path)
            for path in wanted:
                if path not in self._settling.known:
                    look = look_at(path)
                    if known is not None and path in known:
                        self._settling.watch(path, known[path], None)
                    else:
                        self._settling.watch(path, look.content, look.stamp)
            self._must_aim = True
        self._wake()

    def close(self) -> None:
        """Stop watching, and wait for the thread to end."""
        self._is_closing = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _wake(self) -> None:
        with self._lock:
            if not self._is_over:
                self._messenger.wake()

    # ── on the thread ────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            while not self._is_closing:
                try:
                    self._turn()
                except Exception as error:
                    # Whatever it was, the heartbeat goes on without the messenger.
                    self._say_once(f"watching files failed ({type(error).__name__}: {error}): looking at them every {POLL_S} s instead")
                    self._replace_messenger(NoNews())
        finally:
            with self._lock:
                self._is_over = True
                self._messenger.close()

    def _turn(self) -> None:
        now = time.monotonic()
        if self._must_aim:
            self._aim(now)
        if self._n_idle_turns > N_IDLE_TURNS_MAX:
            # The neighbourhood is noisy, say with a task's temporary files: read its events in batches.
            time.sleep(STEP_MS / 1000)
        due = self._settling.next_due()
        wake_at = self._next_beat if due is None else min(due, self._next_beat)
        found = self._messenger.wait(max(0.0, wake_at - now))
        if self._is_closing:
            return
        now = time.monotonic()
        saved, troubles = self._take(found, now)
        for text in troubles:
            self._call(self._on_trouble, text)
        if saved:
            self._call(self._on_saved, saved)

    def _take(self, found: set[tuple[str, str]] | None, now: float) -> tuple[dict[Path, bytes], list[str]]:
        with self._lock:
            mine = [path for place in found or () for path in self._names.get(place, ())]
            for path in mine:
                self._settling.notice(path, now)
            self._n_idle_turns += bool(found) and not mine
            if found is None or now >= self._next_beat:
                self._must_aim |= found is None
                self._beat(now)
            for path in self._settling.due(now):
                self._settling.take(path, look_at(path), time.monotonic())
                # A symlink on the way may lead elsewhere now.
                self._must_aim |= any(path not in self._names.get(place, ()) for place in trace(path))
            return self._settling.collect(time.monotonic()), self._settling.collect_troubles()

    def _beat(self, now: float) -> None:
        self._n_idle_turns = 0
        # No news come out of a directory that is not there.
        has_news = self._messenger.word != "polling" and not self._polled and None not in self._identities.values()
        self._next_beat = now + (HEARTBEAT_S if has_news else POLL_S)
        for path in self._settling.names():
            self._settling.compare(path, read_stamp(path), now)
        if any(self._identity(directory) != identity for directory, identity in self._identities.items()):
            self._must_aim = True
        if (self._polled or self._messenger.word == "polling") and now >= self._next_retry:
            self._must_aim = True

    def _identity(self, directory: str) -> tuple[int, int] | None:
        try:
            status = os.stat(directory)
        except OSError:
            return None
        return (status.st_dev, status.st_ino)

    def _aim(self, now: float) -> None:
        """Aim the messenger at what decides the meaning of the paths now; look at all of them, since they may have changed before."""
        if self._messenger.word == "polling" and self._mode != "poll" and now >= self._next_retry:
            self._replace_messenger(self._choose_messenger())
        with self._lock:
            self._must_aim = False
            self._names = {}
            for path in self._settling.names():
                for place in trace(path):
                    self._names.setdefault(place, set()).add(path)
            directories = list(dict.fromkeys(directory for directory, _ in self._names))
            self._identities = {directory: self._identity(directory) for directory in directories}
            self._polled = {}
            if self._mode == "auto":
                mounts = read_mounts()
                self._polled = {
                    directory: "its file system tells of no changes" for directory in directories if is_silent(directory, mounts)
                }
            present = [d for d in directories if self._identities[d] is not None and d not in self._polled]
            for directory, error in self._messenger.aim(present).items():
                if isinstance(error, (FileNotFoundError, NotADirectoryError)):
                    self._identities[directory] = None  # gone meanwhile, and the heartbeat sees it come back
                else:
                    self._polled[directory] = self._explain(error)
            for path in self._settling.names():
                self._settling.compare(path, read_stamp(path), now)
            self._next_retry = now + RETRY_S
            self._next_beat = min(self._next_beat, now + POLL_S)
        for directory, reason in self._polled.items():
            self._say_once(f"{directory} cannot be watched: {reason}; looking at its files every {POLL_S} s instead")

    def _explain(self, error: OSError) -> str:
        if error.errno == errno.EMFILE:
            return "no descriptors or inotify instances are left; raise ulimit -n or fs.inotify.max_user_instances"
        if error.errno == errno.ENOSPC:
            return "no inotify watches are left; raise fs.inotify.max_user_watches"
        return f"{error.strerror or error}"

    def _choose_messenger(self) -> Messenger:
        try:
            return make_messenger(self._mode)
        except (OSError, ImportError, AttributeError) as error:
            reason = self._explain(error) if isinstance(error, OSError) else str(error)
            self._say_once(f"files cannot be watched: {reason}; looking at them every {POLL_S} s instead")
            return NoNews()

    def _replace_messenger(self, messenger: Messenger) -> None:
        with self._lock:
            self._messenger.close()
            self._messenger, self._must_aim = messenger, True

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._call(self._on_trouble, text)

    def _call(self, callback: Callable[[Any], None], argument: Any) -> None:
        try:
            callback(argument)
        except Exception:
            # The watcher outlives its listener's mistakes, and the interpreter shows them as those of any thread.
            threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
