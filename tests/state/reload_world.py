"""A world around ``state/reload``: processes that really keep count of their hooks, nannies, and pipes with lag.

A ``World`` owns a ``ReloadState``, plays the shell, and holds the truth: which versions every
process has set up, how often, and what it was told. Its checks are the specification's sentences;
the tests only decide who moves next and what goes wrong.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from localdask.errors import ExitWord
from localdask.messages import (
    Begun,
    Commit,
    Discard,
    InterruptTasks,
    Loaded,
    LoadFailed,
    LoadGeneration,
    RollBack,
    RollBackFailed,
    RolledBack,
    SwapFailed,
    SwapGeneration,
    Swapped,
)
from localdask.state.attempts import (
    CommittedPreload,
    KeepSources,
    Key,
    MemberJoined,
    MemberLeft,
    MemberStarted,
    PreloadVersion,
    ReloadDeadlinePassed,
    ReloadOutcome,
    ReloadSettings,
    ReloadState,
    RestartMember,
    SourceChanged,
    StartMember,
    Tell,
    TellWaiting,
)
from localdask.state.reload import next_deadline, step

OK, FAIL, DIE, HANG = "ok", "fail", "die", "hang"


@dataclass
class Process:
    """One life of a member: ``up`` is what it has set up now, ``counts`` how often each version was set up and torn down."""

    name: str
    life: int
    role: str
    up: dict[int, int] = field(default_factory=dict)
    counts: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    inbox: deque[Any] = field(default_factory=deque)
    loaded: dict[int, int] = field(default_factory=dict)
    before: dict[int, int | None] = field(default_factory=dict)
    swap: str = ""
    is_busy: bool = False
    is_hung: bool = False

    def set_up(self, index: int, version: int) -> None:
        assert index not in self.up, f"{self.name} sets up version {version} over {self.up[index]}"
        self.up[index] = version
        self.counts.setdefault((index, version), [0, 0])[0] += 1

    def tear_down(self, index: int) -> None:
        counts = self.counts[index, self.up.pop(index)]
        counts[1] += 1
        assert counts[0] == counts[1], f"{self.name}: {counts[0]} setups, {counts[1]} teardowns"

    def end(self) -> None:
        for index in list(self.up):
            self.tear_down(index)


class World:
    """Processes, a nanny for each, one FIFO to the machine for each, and a clock."""

    def __init__(self, settings: ReloadSettings, keys: tuple[Key, ...], *, nannies_choose: bool = False) -> None:
        self.state = ReloadState({key: CommittedPreload(1, PreloadVersion(0, f"{key}-first", "good")) for key in keys}, settings)
        self.now = 0.0
        self.nannies_choose = nannies_choose
        self.processes: dict[str, Process] = {}
        self.roles: dict[str, str] = {}
        self.lives: dict[str, int] = {}
        self.stored: dict[str, dict[int, tuple[int, str]]] = {}
        self.letters: dict[str, deque[KeepSources]] = {}
        self.outbox: dict[str, deque[Any]] = {}
        self.history: list[Any] = []
        self.reports: list[Any] = []
        self.warnings: list[TellWaiting] = []
        self.log: list[Any] = []
        self.n_saves = 0
        self.last_saved: dict[Key, str] = {}
        self.sources: dict[int, dict[Key, str]] = {}
        self.owed: dict[int, set[tuple[str, int]]] = {}
        self.no_votes: set[int] = set()

    # ── what the user and the nannies do ─────────────────────────────────────

    def add(self, name: str, role: str) -> None:
        self.roles[name] = role
        self.outbox.setdefault(name, deque())
        self.letters.setdefault(name, deque())
        self.stored[name] = {row[0]: (row[2], row[3]) for row in self.state.sources(role)}
        self.bear(name)

    def bear(self, name: str) -> None:
        assert name not in self.processes
        self.lives[name] = life = self.lives.get(name, -1) + 1
        process = self.processes[name] = Process(name, life, self.roles[name])
        versions = None
        if self.nannies_choose:
            rows = self.stored[name]
            versions = {index: version for index, (version, _) in rows.items()}
            process.inbox.append(StartMember(name, life, tuple((index, 0, *pair) for index, pair in rows.items())))
        self.say(MemberJoined(name, life, process.role, versions, process.role != "scheduler"))

    def kill(self, name: str, word: ExitWord = ExitWord.CRASHED, is_retired: bool = False) -> None:
        process = self.processes.pop(name)
        if is_retired:
            del self.roles[name]
        self.say(MemberLeft(name, process.life, word, is_retired))

    def save(self, keys: list[Key], quality: str = "good") -> None:
        self.n_saves += 1
        sources = {key: (f"{key}-{self.n_saves}", quality) for key in keys}
        self.last_saved.update({key: pair[0] for key, pair in sources.items()})
        self.take(SourceChanged(sources, f"save {self.n_saves}"))

    def say(self, event: Any) -> None:
        self.outbox[event.member].append(event)
        self.history.append(event)

    # ── pipes ────────────────────────────────────────────────────────────────

    def take(self, event: Any) -> None:
        before = {key: (preload.generation, preload.version) for key, preload in self.state.committed.items()}
        expected = next(iter(self.state.members[event.member].candidate.items()), None) if self.is_rebirth(event) else None
        if isinstance(event, LoadFailed | SwapFailed) and self.state.attempt and self.state.attempt.kind.name != "CATCH_UP":
            self.no_votes.add(event.attempt)
        if isinstance(event, Loaded | LoadFailed | MemberLeft):
            for owed in self.owed.values():
                owed.discard((event.member, event.life))
        self.log.append(event)
        commands = step(self.state, event, self.now)
        self.log.extend(commands)
        for command in commands:
            self.check(command, expected)
            self.obey(command)
        self.check_generations(before, commands)

    def is_rebirth(self, event: Any) -> bool:
        member = self.state.members.get(event.member) if isinstance(event, MemberJoined) else None
        return member is not None and member.state in ("replacing", "vacant")

    def check(self, command: Any, expected: Any) -> None:
        if isinstance(command, LoadGeneration):
            self.owed.setdefault(command.attempt, set()).add((command.member, command.life))
        if isinstance(command, RestartMember):
            self.owed.get(command.attempt, set()).discard((command.member, command.life))  # its next process votes by starting
        if isinstance(command, SwapGeneration):
            assert not self.owed[command.attempt], f"swap before all loaded: {self.owed[command.attempt]} owe a vote"
        if isinstance(command, StartMember) and expected is None:
            committed = {key[1]: p.version.number for key, p in self.state.committed.items() if key[0] == self.roles.get(command.member)}
            if command.member in self.roles:
                assert {row[0]: row[2] for row in command.sources} == committed, "a newborn starts on what is committed"

    def check_generations(self, before: dict[Key, Any], commands: list[Any]) -> None:
        generations = {key: pair[0] for key, pair in before.items()}
        for command in commands:
            if isinstance(command, Tell) and command.report.outcome is ReloadOutcome.SWAPPED:
                assert command.report.attempt not in self.no_votes, "committed in spite of a no"
                for account in command.report.preloads:
                    generations[account.role, account.index] += 1
        for key, preload in self.state.committed.items():
            assert preload.generation == generations[key], "a generation rises by a success, and by nothing else"
            assert (preload.version == before[key][1]) == (preload.generation == before[key][0])

    def obey(self, command: Any) -> None:
        if isinstance(command, Tell):
            assert command.report.attempt not in [report.attempt for report in self.reports], "one record an attempt"
            self.reports.append(command.report)
        elif isinstance(command, TellWaiting):
            self.warnings.append(command)
        elif isinstance(command, KeepSources):
            for name, role in self.roles.items():
                if role == command.role:
                    self.letters[name].append(command)
        elif isinstance(command, RestartMember):
            self.letters[command.member].clear()
            self.stored[command.member] = {row[0]: (row[2], row[3]) for row in command.sources}
            process = self.processes.get(command.member)
            if process is not None and process.life == command.life:
                process.inbox.clear()
                process.inbox.append(command)
        elif command.member in self.processes and self.processes[command.member].life == command.life:
            self.processes[command.member].inbox.append(command)

    def read_letters(self, name: str) -> None:
        """A nanny learns from what its next process starts; until then it starts them from what it knew."""
        while self.letters[name]:
            self.stored[name] = {row[0]: (row[2], row[3]) for row in self.letters[name].popleft().sources}

    def deliver(self, name: str) -> None:
        self.take(self.outbox[name].popleft())

    def pass_time(self, to: float | None = None) -> None:
        deadline = next_deadline(self.state)
        if to is None:
            assert deadline is not None
            to = deadline
        self.now = max(self.now, to)
        self.take(ReloadDeadlinePassed())

    # ── what a process does with a command ───────────────────────────────────

    def can_act(self, name: str) -> bool:
        process = self.processes.get(name)
        if process is None or not process.inbox:
            return False
        if isinstance(process.inbox[0], RestartMember):
            return not process.is_busy or process.inbox[0].grace_s is not None
        # A busy process still reads what comes after a swap that waits for its task.
        waits = process.is_busy and isinstance(process.inbox[0], SwapGeneration)
        return not process.is_hung and (not waits or any(isinstance(word, (RollBack, InterruptTasks)) for word in process.inbox))

    def act(self, name: str, outcome: str = OK) -> None:
        """Let a process do the next thing that it was told; ``outcome`` says what becomes of the user's code in it."""
        process = self.processes[name]
        word = process.inbox.popleft()
        if isinstance(word, StartMember):
            self.boot(process, word, outcome)
        elif isinstance(word, LoadGeneration):
            self.load(process, word, outcome)
        elif isinstance(word, SwapGeneration):
            self.swap(process, word, outcome)
        elif isinstance(word, RollBack):
            self.roll_back(process, word, outcome)
        elif isinstance(word, RestartMember):
            if not process.is_hung and not process.is_busy:
                process.end()
            self.kill(name, ExitWord.ASKED)
        elif isinstance(word, Discard):
            process.loaded.clear()
        elif isinstance(word, Commit):
            process.before.clear()
            process.loaded.clear()
            process.swap = ""
        else:
            assert isinstance(word, InterruptTasks)
            process.is_busy = False

    def boot(self, process: Process, word: StartMember, outcome: str) -> None:
        if outcome == HANG:
            outcome = DIE
        if outcome in (DIE, FAIL) or any(row[3] != "good" for row in word.sources):
            self.kill(process.name, ExitWord.CRASHED if outcome == DIE else ExitWord.BOOT_FAILED)
            return
        for index, _, version, _ in word.sources:
            process.set_up(index, version)
        self.say(MemberStarted(process.name, process.life))

    def load(self, process: Process, word: LoadGeneration, outcome: str) -> None:
        name = (process.name, process.life, word.attempt)
        self.say(Begun(*name))
        if outcome == DIE:
            self.no_votes.add(word.attempt)
            self.kill(process.name)
        elif outcome == HANG:
            process.is_hung = True
        elif outcome == FAIL or any(row[3] == "bad body" for row in word.sources):
            self.say(LoadFailed(*name, 0.1, "x.py:1 NameError"))
        else:
            process.loaded = {row[0]: row[2] for row in word.sources}
            process.swap = "bad" if any(row[3] == "bad setup" for row in word.sources) else ""
            self.say(Loaded(*name, 0.1))

    def swap(self, process: Process, word: SwapGeneration, outcome: str) -> None:
        name = (process.name, process.life, word.attempt)
        if process.is_busy and not any(isinstance(later, InterruptTasks) for later in process.inbox):
            return  # a roll back is behind it: never begun
        self.say(Begun(*name))
        if outcome == DIE:
            self.kill(process.name)
            return
        process.before = {index: process.up.get(index) for index in process.loaded}
        for index in process.loaded:
            if index in process.up:
                process.tear_down(index)
        if outcome == HANG:
            process.is_hung = True
        elif outcome == FAIL or process.swap == "bad":
            self.say(SwapFailed(*name, 0.1, "x.py:2 OSError"))
        else:
            for index, version in process.loaded.items():
                process.set_up(index, version)
            self.say(Swapped(*name, 0.1))

    def roll_back(self, process: Process, word: RollBack, outcome: str) -> None:
        name = (process.name, process.life, word.attempt)
        process.loaded.clear()
        process.swap = ""
        if not process.before:
            self.say(RolledBack(*name, 0.0))
            return
        self.say(Begun(*name))
        if outcome == DIE:
            self.kill(process.name)
            return
        for index in process.before:
            if index in process.up:
                process.tear_down(index)
        before, process.before = process.before, {}
        if outcome == HANG:
            process.is_hung = True
        elif outcome == FAIL:
            self.say(RollBackFailed(*name, 0.1, "x.py:3 OSError"))
        else:
            for index, version in before.items():
                if version is not None:
                    process.set_up(index, version)
            self.say(RolledBack(*name, 0.1))

    # ── the end ──────────────────────────────────────────────────────────────

    def missing(self) -> list[str]:
        return [name for name in self.roles if name not in self.processes]

    def is_good(self, role: str) -> bool:
        """Whether a process of this role can start on what is committed: with nobody there to try them, bad bytes are committed."""
        return all(preload.version.source == "good" for key, preload in self.state.committed.items() if key[0] == role)

    def settle(self) -> None:
        """Nothing goes wrong any more: everybody finishes, everything arrives, who is missing is born."""
        for process in self.processes.values():
            process.is_busy = False
        for _ in range(1_000):
            moved = False
            for name in list(self.outbox):
                while self.outbox[name]:
                    self.deliver(name)
                    moved = True
            for name in list(self.processes):
                if self.can_act(name):
                    self.act(name)
                    moved = True
            if moved:
                continue
            for name in self.roles:
                self.read_letters(name)
            can_start = [name for name in self.missing() if self.is_good(self.roles[name])]
            if can_start:
                for name in can_start:
                    self.bear(name)
            elif next_deadline(self.state) is not None:
                self.pass_time()
            else:
                return
        raise AssertionError(f"the world never came to rest: {self.state}, {self.log[-12:]}, {self.processes}")

    def check_rest(self) -> None:
        """What holds whenever nothing is going on."""
        assert self.state.is_quiet, self.state
        for process in self.processes.values():
            if self.state.members[process.name].state == "broken":
                assert process.role == "scheduler"
                continue
            committed = {key[1]: p.version.number for key, p in self.state.committed.items() if key[0] == process.role}
            assert process.up == committed, f"{process.name} runs {process.up}, committed is {committed}"
            for (index, version), (n_setups, n_teardowns) in process.counts.items():
                assert n_setups - n_teardowns == (process.up.get(index) == version)
        tried = {(account.role, account.index, account.hash) for report in self.reports for account in report.preloads}
        for key, text in self.last_saved.items():
            assert (*key, text) in tried, f"the last bytes of {key} were never tried"

    def make_good(self) -> None:
        """Mend every file; then every process must be on those bytes, one generation up."""
        self.settle()
        if not self.missing():
            self.check_rest()
        before = {key: preload.generation for key, preload in self.state.committed.items()}
        self.save(list(self.state.committed))
        self.settle()
        self.check_rest()
        for key, preload in self.state.committed.items():
            assert preload.version.hash == self.last_saved[key]
            assert preload.generation > before[key]
        for process in self.processes.values():
            assert self.state.members[process.name].state == "running"
