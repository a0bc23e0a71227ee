"""The driver of hot reload: from a saved file to every process on the new generation, or none.

Runs in the user's process. The watcher's thread brings saved bytes and compiles them here;
everything else happens on the scheduler's I/O thread, which owns the ``ReloadState``: births,
deaths and votes of processes are its events, and its commands become words to nannies. The
cluster makes one ``Reloader`` and asks it; it never runs a preload and never decides who
swaps (``state/reload.py`` does).
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from localdask.errors import ExitWord, ProtocolError, UsageError
from localdask.messages import Commit, Discard, HelpersFound, InterruptTasks, KeepPreloads, LoadGeneration, RollBack, SwapGeneration
from localdask.preloads.generations import Preloads
from localdask.preloads.sources import Source
from localdask.processes.nannies import NannyHandle
from localdask.processes.scheduler_member import SchedulerMember
from localdask.processes.source_book import SourceBook, version_hash
from localdask.processes.thread_workers import ThreadHandle
from localdask.records import record
from localdask.state import reload as decisions
from localdask.state.attempts import (
    CommittedPreload,
    CompileFailed,
    KeepSources,
    MemberAccount,
    MemberJoined,
    MemberLeft,
    MemberStarted,
    Overrun,
    PreloadVersion,
    ReloadAsked,
    ReloadDeadlinePassed,
    ReloadOutcome,
    ReloadPolicy,
    ReloadReport,
    ReloadSettings,
    ReloadState,
    RestartMember,
    SourceChanged,
    StartMember,
    Tell,
    TellWaiting,
)
from localdask.state.supervision import PATIENCE_S
from localdask.system.loop import Loop, Timer
from localdask.system.watcher import Watcher

if TYPE_CHECKING:
    from pathlib import Path

#: Through whom a worker is reached.
AnyHandle: TypeAlias = "NannyHandle | ThreadHandle"

__all__ = ["PreloadStatus", "ReloadRecord", "Reloader", "reload_settings", "tell_of_reloads"]

#: What a process may take beyond the limits of its hooks.
ANSWER_S = 5.0
N_RECORDS = 1000
QUIET_OUTCOMES = frozenset({ReloadOutcome.UNCHANGED})


@record(frozen=True)
class PreloadStatus:
    """One preload as it runs now.

    Attributes
    ----------
    role : str
        ``"scheduler"``, ``"nanny"`` or ``"worker"``.
    name, path : str
        As it was named, and its file.
    generation : int
        1 after the start, and one more after each swap.
    hash : str
        SHA-256 of the code that runs, helpers included.
    status : dict of str to str
        For each process: ``"ok"``, ``"behind"``, or how far its reload has come.
    helpers : tuple of str
        The files of the user's own modules that it imports.
    """

    role: str
    name: str
    path: str
    generation: int
    hash: str
    status: dict[str, str]
    helpers: tuple[str, ...] = ()


@record(frozen=True)
class ReloadRecord:
    """One reload, or one edit that led to none.

    Attributes
    ----------
    number : int
        Counts up.
    outcome : str
        A ``ReloadOutcome``: ``"swapped"``, ``"rolled-back"``, ``"failed-to-load"``, ``"failed-to-compile"``, …
    preloads : tuple of (role, path, generation)
        What it was about, and which generation of it holds now.
    cause, detail : str
        Why, and what went wrong.
    time, seconds : float
        When it ended, as ``time.time()``, and how long it took.
    processes : dict of str to MemberAccount
        What each process did.
    """

    number: int
    outcome: str
    preloads: tuple[tuple[str, str, int], ...]
    cause: str
    detail: str
    time: float
    seconds: float
    processes: dict[str, MemberAccount]

    @property
    def role(self) -> str:
        """Whose preload it was; several are joined by a comma."""
        return ", ".join(dict.fromkeys(role for role, _, _ in self.preloads))

    @property
    def path(self) -> str:
        """The preload's file; several are joined by a comma."""
        return ", ".join(dict.fromkeys(path for _, path, _ in self.preloads))

    @property
    def generation(self) -> int:
        """The generation that holds now, the highest of several."""
        return max((generation for _, _, generation in self.preloads), default=0)

    @property
    def durations(self) -> dict[str, float]:
        """Seconds that the new code took in each process: its body, its hooks, and the way back."""
        return {name: account.load_s + account.swap_s + account.roll_back_s for name, account in self.processes.items()}

    @property
    def by_process(self) -> str:
        """What became of it in each process, on one line."""
        return ", ".join(_told(account, self.outcome) for account in self.processes.values())

    @property
    def has_failed(self) -> bool:
        return self.outcome in ("rolled-back", "failed-to-load", "failed-to-compile")

    def __str__(self) -> str:
        """Tell it on one line, with what follows of the detail below."""
        n = len(self.processes)
        generations = "/".join(dict.fromkeys(str(generation) for _, _, generation in self.preloads))
        if not self.has_failed:
            done = [account for account in self.processes.values() if account.ended in ("committed", "discarded")]
            words = {"checked": "loaded", "swapped": f"loaded {n}/{n} · swapped", "brought-along": "brought to the running code"}
            what = f"reload {generations}".rstrip()  # who is brought along may be behind in any of them
            line = f"{what}  {self.cause}   {words.get(self.outcome, self.outcome)} {len(done)}/{n} · {self.seconds * 1000:.0f} ms"
            return "\n".join([line, *self._old_teardowns()])
        first, _, rest = self.detail.partition("\n")
        where = f" on {n}/{n}" if n else ""
        word = "rolled back to generation" if self.outcome == "rolled-back" else "generation"
        stays = f"{word} {generations}{where}" if self.outcome == "rolled-back" else f"{word} {generations} stays{where}"
        return f"reload failed  {first}   {stays}" + (f"\n{rest}" if rest else "")

    def _old_teardowns(self) -> list[str]:
        """Return what old teardowns raised, each with the processes in which they did."""
        told: dict[str, list[str]] = {}
        for account in self.processes.values():
            if account.ended == "committed" and account.detail:
                told.setdefault(account.detail, []).append(account.member)
        return [f"    {', '.join(names)}: {detail}" for detail, names in told.items()]


class Reloader:
    """The reloads of one cluster. Methods may be called from any thread unless they say otherwise.

    Parameters
    ----------
    sources : mapping of role to list of Source
        What the first generation is made of.
    settings : ReloadSettings
        Policy and times.
    loop : Loop
        The scheduler's.
    trust : bool
        Whether files may be such that other users can write them.
    handles : callable
        Returns the nannies, or the workers in threads, by their workers' names.
    on_record, on_trouble : callable
        Is given each ``ReloadRecord``, and each text for the user, on the scheduler's thread.
    """

    def __init__(
        self,
        sources: Mapping[str, list[Source]],
        settings: ReloadSettings,
        *,
        loop: Loop,
        trust: bool,
        handles: Callable[[], Mapping[str, AnyHandle]],
        on_record: Callable[[ReloadRecord], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        self.records: deque[ReloadRecord] = deque(maxlen=N_RECORDS)
        #: The last edit, if it failed and nothing made up for it since.
        self.failed: ReloadRecord | None = None
        self._book = SourceBook(sources, trust=trust)
        self._sources = self._book.sources
        committed = {key: CommittedPreload(1, PreloadVersion(0, source.hash, source.to_wire())) for key, source in self._sources.items()}
        self._state = ReloadState(committed, settings)
        self._loop = loop
        self._get_handles = handles
        self._on_record = on_record
        self._on_trouble = on_trouble
        #: Is called when it is known what the preloads of a role import.
        self.notify: Callable[[], None] = lambda: None
        self._heard_of: set[str] = set()
        self._timer: Timer | None = None
        self._watcher: Watcher | None = None
        self._handles: dict[str, AnyHandle] = {}
        self._unsent: dict[AnyHandle, list[Any]] = {}
        self._scheduler: SchedulerMember | None = None
        self._answers: dict[int, Callable[[ReloadRecord], object]] = {}
        self._n_requests = 0
        self._lock = threading.Lock()
        self._is_closed = False

    # ── beginning and end ────────────────────────────────────────────────────

    def watch(self) -> None:
        """Begin to watch the files, unless reloads are off or there is nothing to watch."""
        known = self._book.watched()
        if known and self._state.settings.policy is not ReloadPolicy.OFF:
            self._watcher = Watcher(
                list(known), self._saved, lambda text: self._soon(lambda: self._on_trouble(text)), known=_bytes_of(known)
            )

    def close(self) -> None:
        """Stop watching and reloading."""
        self._is_closed = True
        if self._watcher is not None:
            self._watcher.close()
        if self._scheduler is not None:
            self._scheduler.close()

    def _soon(self, call: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(lambda: None if self._is_closed else call())

    # ── looking ──────────────────────────────────────────────────────────────

    @property
    def watcher_state(self) -> str:
        """How news of saves comes, or "off"."""
        return "off" if self._watcher is None else self._watcher.state

    @property
    def knows_helpers(self) -> bool:
        """Whether a process of each role that has preloads said what they import."""
        return {role for role, _ in self._sources} <= self._heard_of

    def rows(self, role: str) -> list[Any]:
        """Return what a new process of that role is to start from."""
        return self._with_helpers(role, self._state.sources(role))

    def _with_helpers(self, role: str, rows: Iterable[Any]) -> list[Any]:
        def full(index: int, wire: Any) -> Any:
            return self._book.with_helpers((role, index), Source.from_wire(wire)).to_wire()

        return [(index, generation, version, full(index, wire)) for index, generation, version, wire in rows]

    def preloads(self) -> list[PreloadStatus]:
        """Return every preload as it stands."""
        found = []
        for (role, index), committed in dict(self._state.committed).items():
            source = Source.from_wire(committed.version.source)
            members = [member for member in list(self._state.members.values()) if member.role == role]
            status = {
                member.name: "ok"
                if member.state == "running" and member.on.get((role, index)) == committed.version.number
                else "behind"
                if member.state == "running"
                else member.state
                for member in members
            }
            helpers = tuple(self._book.helpers_of((role, index)))
            found.append(PreloadStatus(role, source.name, source.path, committed.generation, committed.version.hash, status, helpers))
        return found

    def generation(self, path: str | None) -> int:
        """Return the generation of a preload, or the highest of all."""
        if not self._sources:
            raise UsageError("this cluster has no preloads, and so no generations of them; give it some by preload=…")
        return max(self._state.committed[key].generation for key in self._keys_of(path))

    def _keys_of(self, path: str | None) -> list[tuple[str, int]]:
        if path is None:
            return list(self._sources)
        from pathlib import Path  # noqa: PLC0415 - 4 ms, and most clusters watch no file

        real = Path(path).expanduser().absolute()
        keys = [key for key, source in self._sources.items() if source.name == path or Path(source.path) == real]
        if not keys:
            known = ", ".join(source.label for source in self._sources.values()) or "none"
            raise UsageError(f"no preload is called {path}; there are: {known}")
        return keys

    # ── what is asked and saved, on any thread ───────────────────────────────

    def ask(self, path: str | None, on_answer: Callable[[ReloadRecord], object], *, is_check: bool = False) -> None:
        """Read the files and reload what they hold, changed or not. ``on_answer`` is called on the scheduler's thread."""
        keys = [key for key in self._keys_of(path) if self._sources[key].is_watched]
        if not keys:
            raise UsageError("no preload is a file of yours: there is nothing to reload")
        with self._lock:
            self._n_requests += 1
            request = self._n_requests
            self._answers[request] = on_answer
        found = self._book.read_again(keys)
        if found.broken:
            self._soon(lambda: self._take(CompileFailed(found.broken, found.cause, found.detail, (request,))))
            return
        self._soon(lambda: self._take(ReloadAsked(request, _versions(found.renewed), found.cause, is_check)))

    def _saved(self, saved: dict[Path, bytes]) -> None:
        """Files have new bytes. On the watcher's thread."""
        found = self._book.take_saved(saved)
        if found.broken:
            self._soon(lambda: self._take(CompileFailed(found.broken, found.cause, found.detail)))
        if found.renewed:
            self._soon(lambda: self._take(SourceChanged(_versions(found.renewed), found.cause)))

    # ── births, deaths and votes, on the scheduler's thread ──────────────────

    def scheduler_began(self, preloads: Preloads) -> None:
        """The scheduler's preloads are set up, in this process. From any thread."""
        if preloads:
            member = self._scheduler = SchedulerMember(preloads, lambda vote: self._soon(lambda: self.vote(vote)))
            versions = {row[0]: row[2] for row in self._state.sources(member.name)}
            self._soon(lambda: self._take(MemberJoined(member.name, member.life, member.name, versions, is_replaceable=False)))
            self._soon(lambda: self._take(MemberStarted(member.name, member.life)))
            member.tell_helpers()

    def nanny_began(self, handle: NannyHandle, life: int) -> None:
        for role in ("nanny", "worker"):
            handle.keep(role, self.rows(role))
        if any(role == "nanny" for role, _ in self._sources):
            self._handles[handle.name] = handle
            versions = {row[0]: row[2] for row in self._state.sources("nanny")}
            self._take(MemberJoined(handle.name, life, "nanny", versions))

    def nanny_started(self, handle: NannyHandle, life: int) -> None:
        self._take(MemberStarted(handle.name, life))

    def nanny_left(self, handle: NannyHandle, life: int, word: ExitWord) -> None:
        self._take(MemberLeft(handle.name, life, word, handle.is_ending))

    def worker_began(self, handle: AnyHandle, life: int, versions: tuple[tuple[int, int], ...]) -> None:
        if versions:
            self._handles[handle.worker_name] = handle
            # A thread that does not start on new code would not be started again: it is swapped in place, whatever the policy.
            self._take(MemberJoined(handle.worker_name, life, "worker", dict(versions), is_replaceable=isinstance(handle, NannyHandle)))

    def worker_started(self, name: str, life: int) -> None:
        self._take(MemberStarted(name, life))

    def worker_left(self, handle: AnyHandle, life: int, word: str) -> None:
        self._take(MemberLeft(handle.worker_name, life, ExitWord(word), handle.is_ending))

    def vote(self, vote: Any) -> None:
        if not isinstance(vote, HelpersFound):
            self._take(vote)
            return
        role = "worker" if vote.member in self._get_handles() else "scheduler" if vote.member == "scheduler" else "nanny"
        if self._book.note_helpers(role, vote.helpers):
            known = self._book.watched()
            if self._watcher is not None:
                self._watcher.set_paths(list(known), _bytes_of(known))
            self._keep_sources(KeepSources(role, self._state.sources(role)))
            self._flush()
        self._heard_of.add(role)
        self.notify()

    def _take(self, event: Any) -> None:
        if self._is_closed:
            return
        try:
            commands = decisions.step(self._state, event, time.monotonic())
        except ProtocolError as error:
            self._on_trouble(str(error))
            handle = self._handles.get(event.member)
            if handle is not None:
                handle.kill()
            return
        for command in commands:
            self._do[type(command)](self, command)
        self._flush()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = decisions.next_deadline(self._state)
        if deadline is not None:
            self._timer = self._loop.call_at(deadline, lambda: self._take(ReloadDeadlinePassed()))

    # ── what is decided, on the scheduler's thread ───────────────────────────

    def _send(self, command: Any) -> None:
        if self._scheduler is not None and command.member == self._scheduler.name:
            self._scheduler.say(command)
        else:
            self._say(self._handles[command.member], command)

    def _say(self, handle: AnyHandle, word: Any) -> None:
        """Have a word sent together with the others to the same nanny: each sending wakes a process."""
        self._unsent.setdefault(handle, []).append(word)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, {}
        for handle, words in unsent.items():
            handle.say(*words)

    def _restart_member(self, command: RestartMember) -> None:
        self._flush()
        handle = self._handles[command.member]
        assert isinstance(handle, NannyHandle), "a thread is not replaced"
        grace_s = PATIENCE_S if command.grace_s is None else command.grace_s
        role = "worker" if command.member == handle.worker_name else "nanny"
        rows = self._with_helpers(role, command.sources)
        if role == "worker":
            handle.replace_worker(command.life, grace_s, rows)
        else:
            handle.keep("nanny", rows)
            handle.replace_nanny(min(grace_s, self._state.settings.grace_s))

    def _start_member(self, command: StartMember) -> None:
        raise AssertionError(f"{command.member} was born with versions")

    def _keep_sources(self, command: KeepSources) -> None:
        rows = self._with_helpers(command.role, command.sources)
        for handle in self._get_handles().values():
            handle.keep(command.role, rows)
            if command.role == "worker":
                self._say(handle, KeepPreloads(rows))

    def _tell_waiting(self, command: TellWaiting) -> None:
        self._on_trouble(f"a reload waits for the tasks of {command.member}, {command.waited_s:.0f} s now")

    def _tell(self, command: Tell) -> None:
        self._flush()  # who hears of it may rely on it
        record = self._record_of(command.report)
        self.failed = record if record.has_failed else None
        if command.report.outcome not in QUIET_OUTCOMES or command.report.requests:
            self.records.append(record)
            try:
                self._on_record(record)
            except Exception as error:
                print(f"localdask: on_reload raised {error!r}", file=sys.stderr)
        for request in command.report.requests:
            answer = self._answers.pop(request, None)
            if answer is not None:
                answer(record)

    def _record_of(self, report: ReloadReport) -> ReloadRecord:
        about = tuple((row.role, self._sources[row.role, row.index].path, row.generation) for row in report.preloads)
        seconds = report.ended - report.began
        accounts = _by_name(report.members)
        return ReloadRecord(report.attempt, report.outcome.value, about, report.cause, report.detail, time.time(), seconds, accounts)

    _do: ClassVar[dict[type, Callable[[Reloader, Any], None]]] = {
        **dict.fromkeys((LoadGeneration, SwapGeneration, RollBack, Discard, Commit, InterruptTasks), _send),
        RestartMember: _restart_member,
        StartMember: _start_member,
        KeepSources: _keep_sources,
        TellWaiting: _tell_waiting,
        Tell: _tell,
    }


def _told(account: MemberAccount, outcome: str) -> str:
    took = f"{1000 * (account.load_s + account.swap_s):.0f} ms"
    if account.ended == "committed" or (account.ended == "discarded" and outcome == ReloadOutcome.CHECKED.value):
        return f"{account.member} ok {took}"
    detail = f": {account.detail}" if account.detail else ""
    return f"{account.member} {account.vote or account.ended} {took}{detail} → {account.ended or 'unknown'}"


def _bytes_of(known: Mapping[Path, bytes | None]) -> dict[Path, bytes]:
    """Return the bytes in use, where they are known."""
    return {path: code for path, code in known.items() if code is not None}


def _versions(renewed: Mapping[tuple[str, int], Source]) -> dict[tuple[str, int], tuple[str, Any]]:
    """Return sources as the reload's state machine takes them."""
    return {key: (version_hash(source), source.to_wire()) for key, source in renewed.items()}


def _by_name(accounts: Iterable[MemberAccount]) -> dict[str, MemberAccount]:
    """Return the accounts by process, w2 before w10; the last life of each counts."""
    return {account.member: account for account in sorted(accounts, key=lambda account: (len(account.member), account.member))}


def reload_settings(policy: str, grace_s: float, overrun: str, hooks_s: tuple[float, float], n_preloads: int) -> ReloadSettings:
    """Return what a user's words mean, or raise ``UsageError``; a process has as long as all its hooks may take, one after the other."""
    if policy not in [known.value for known in ReloadPolicy]:
        raise UsageError(f"reload_policy={policy!r}; it is one of {', '.join(known.value for known in ReloadPolicy)}")
    if overrun not in [known.value for known in Overrun]:
        raise UsageError(f"reload_overrun={overrun!r}; it is one of {', '.join(known.value for known in Overrun)}")
    setup_s, teardown_s = hooks_s
    load_limit_s = n_preloads * setup_s + ANSWER_S
    swap_limit_s = n_preloads * (setup_s + teardown_s) + ANSWER_S
    return ReloadSettings(ReloadPolicy(policy), Overrun(overrun), float(grace_s), load_limit_s, swap_limit_s, load_limit_s + swap_limit_s)


def tell_of_reloads(kind: str, **fields: Any) -> None:
    """Show reloads to whoever did not ask for events: a failed edit must not go by unseen."""
    if kind == "reload":
        print(f"localdask: {fields['record']}", file=sys.stderr)
    elif kind == "reload-trouble":
        print(f"localdask: {fields['detail']}", file=sys.stderr)
