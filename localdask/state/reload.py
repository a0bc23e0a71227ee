"""Generations of preloads: load everywhere, then swap everywhere, else be as before.

Pure decisions. The cluster's process owns one ``ReloadState`` and calls
``step(state, event, now)``, which changes it and returns commands in the order in which
they are to be carried out; ``next_deadline`` says when ``ReloadDeadlinePassed`` is due. This
room knows no file, pipe, clock or thread, never looks into a source, and never runs a hook.

*Members* are the processes that hold preloads. They vote: ``Loaded``, then ``Swapped``.
One *attempt* runs at a time; what is saved meanwhile is kept, newest bytes only, for the
next. A preload's *generation* rises by one when every voter swapped, and only then. A
*version* is the number of the attempt that first proposed those bytes: generations that
were never reached are used again, versions are not, so members are compared by version.

Who leaves while the new code runs in it (it said ``Begun``) voted no, unless it was asked
to leave; who leaves at any other time has no say. Who is born meanwhile starts on what is
committed: it joins the voters while they load, else it is *brought along* afterwards by
an attempt of its own, which raises nothing and whose failure replaces that process only.

A word about another life or attempt than the current one is dropped, by ``_is_stale``
alone. A word that nobody in that state can say raises ``ProtocolError`` before anything
changed; whoever reads that pipe closes it, and the member leaves.
"""

from __future__ import annotations

from typing import Any

from localdask.errors import ExitWord, ProtocolError
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
    COLUMNS,
    TABLE,
    UNKNOWN,
    AttemptKind,
    AttemptPhase,
    CommittedPreload,
    CompileFailed,
    KeepSources,
    Key,
    MemberAccount,
    MemberJoined,
    MemberLeft,
    MemberStarted,
    MemberState,
    Overrun,
    PreloadVersion,
    ReloadAsked,
    ReloadAttempt,
    ReloadCommand,
    ReloadDeadlinePassed,
    ReloadEvent,
    ReloadMember,
    ReloadOutcome,
    ReloadPolicy,
    ReloadReport,
    ReloadState,
    RestartMember,
    SourceChanged,
    StartMember,
    Tell,
    TellWaiting,
    WantedReload,
)


def step(state: ReloadState, event: ReloadEvent, now: float) -> list[ReloadCommand]:
    """Let one event happen; return what is to be done, in order."""
    if state.is_stale(event):
        return []
    decision = _Decision(state, now)
    decision.take(event)
    decision.advance()
    return decision.commands


def next_deadline(state: ReloadState) -> float | None:
    """Return when ``ReloadDeadlinePassed`` is due, or None."""
    return min((member.deadline for member in state.members.values() if member.deadline is not None), default=None)


class _Decision:
    """One step being taken. The methods named in the table are the moves of a member."""

    __slots__ = ("commands", "now", "state")

    def __init__(self, state: ReloadState, now: float) -> None:
        self.state = state
        self.now = now
        self.commands: list[ReloadCommand] = []

    @property
    def attempt(self) -> ReloadAttempt:
        assert self.state.attempt is not None, "no attempt runs"
        return self.state.attempt

    # ── taking an event ──────────────────────────────────────────────────────

    def take(self, event: ReloadEvent) -> None:
        if isinstance(event, SourceChanged):
            self.want(event.sources, event.cause)
        elif isinstance(event, ReloadAsked):
            self.want(event.sources, event.cause, request=event.request, is_check=event.is_check)
        elif isinstance(event, CompileFailed):
            tried = {key: PreloadVersion(UNKNOWN, text, None) for key, text in event.hashes.items()}
            self.tell_edit(ReloadOutcome.FAILED_TO_COMPILE, tried, event.cause, event.detail, event.requests)
        elif isinstance(event, ReloadDeadlinePassed):
            for name in list(self.state.members):
                member = self.state.members.get(name)
                if member is not None and member.deadline is not None and member.deadline <= self.now:
                    self.move(member, event)
        else:
            self.move(self.state.members.get(event.member), event)

    def move(self, member: ReloadMember | None, event: Any) -> None:
        row = "absent" if member is None else member.state
        move = TABLE[row, COLUMNS[type(event)]]
        if move == "!":
            raise ProtocolError(
                f"{getattr(event, 'member', row)} said {type(event).__name__} while it was {row}: end it, and it starts anew"
            )
        if move != "-":
            getattr(self, move)(member, event)

    def want(self, sources: Any, cause: str, request: int | None = None, is_check: bool = False) -> None:
        unknown = [key for key in sources if key not in self.state.committed]
        assert not unknown, f"no preload goes by {unknown}"
        if request is None and self.state.settings.policy is ReloadPolicy.OFF:
            self.tell_edit(ReloadOutcome.OFF, {key: PreloadVersion(UNKNOWN, *pair) for key, pair in sources.items()}, cause)
            return
        wanted = next((wanted for wanted in self.state.wanted if wanted.is_check is is_check), None)
        if wanted is None:
            wanted = WantedReload(is_check)
            self.state.wanted.append(wanted)
        wanted.add(sources, cause, request)

    # ── birth and death ──────────────────────────────────────────────────────

    def join(self, member: ReloadMember | None, event: MemberJoined, instead: dict[Key, PreloadVersion] | None = None) -> ReloadMember:
        rows = self.state.sources(event.role, instead)
        versions = {index: version for index, _, version, _ in rows} if event.versions is None else event.versions
        on = {(event.role, index): versions.get(index, UNKNOWN) for index, *_ in rows}
        newborn = ReloadMember(event.member, event.life, event.role, event.is_replaceable, "starting", on)
        self.state.members[event.member] = newborn
        self.state.lives[event.member] = event.life
        if event.versions is None:
            self.commands.append(StartMember(event.member, event.life, rows))
        return newborn

    def rejoin(self, member: ReloadMember, event: MemberJoined) -> None:
        # A new life is the news that the old one ended.
        self.move(member, MemberLeft(member.name, member.life))
        self.join(None, event)

    def reborn(self, member: ReloadMember, event: MemberJoined) -> None:
        self.leave(member, event)
        self.note(member, ended="replaced")
        newborn = self.join(None, event, member.candidate)
        if all(newborn.on.get(key) == version.number for key, version in member.candidate.items()):
            newborn.state = "trial"
            newborn.candidate, newborn.attempt = member.candidate, member.attempt
            newborn.deadline = self.now + self.state.settings.start_limit_s
            self.open_account(newborn)

    def start(self, member: ReloadMember, event: MemberStarted) -> None:
        self.settle(member)

    def settle(self, member: ReloadMember, event: object = None) -> None:
        """It runs, and is free: it joins the voters if they still load."""
        member.candidate, member.attempt = {}, None
        self.enter(member, "broken" if UNKNOWN in member.on.values() and not member.is_replaceable else "running")
        attempt = self.state.attempt
        if attempt is not None and attempt.phase is AttemptPhase.LOADING and attempt.kind is not AttemptKind.CATCH_UP:
            self.call(member)

    def leave(self, member: ReloadMember, event: object) -> None:
        self.note(member, ended="gone")
        del self.state.members[member.name]

    def die(self, member: ReloadMember, event: MemberLeft) -> None:
        self.leave(member, event)
        if event.word is not ExitWord.ASKED and not event.is_retired:
            self.vote_no(member, "died", f"its process ended ({event.word.value}) while the new code ran")

    def make_way(self, member: ReloadMember, event: MemberLeft) -> None:
        if event.is_retired:
            self.leave(member, event)
        elif member.state != "vacant":
            self.enter(member, "vacant", self.state.settings.start_limit_s)

    # ── voting ───────────────────────────────────────────────────────────────

    def call(self, member: ReloadMember) -> None:
        """Make a running member a voter, if the attempt is about a preload of its role."""
        attempt, state = self.attempt, self.state
        if attempt.kind is AttemptKind.CATCH_UP:
            member.candidate = {key: state.committed[key].version for key in self.state.behind(member)}
        else:
            member.candidate = {key: version for key, version in attempt.candidates.items() if key[0] == member.role}
        if not member.candidate:
            return
        member.attempt = attempt.number
        self.open_account(member)
        if not self.is_replaced(member):
            self.enter(member, "called", state.settings.grace_s)
            rows = (row for row in state.sources(member.role, member.candidate) if (member.role, row[0]) in member.candidate)
            self.commands.append(LoadGeneration(member.name, member.life, attempt.number, tuple(rows)))
        elif attempt.kind is AttemptKind.CATCH_UP:
            self.restart(member, self.grace())
        else:
            self.enter(member, "loaded")

    def begin_load(self, member: ReloadMember, event: Begun) -> None:
        self.enter(member, "loading", self.state.settings.load_limit_s)

    def begin_swap(self, member: ReloadMember, event: Begun) -> None:
        self.enter(member, "swapping", self.state.settings.swap_limit_s)

    def load(self, member: ReloadMember, event: Loaded) -> None:
        self.note(member, vote="loaded", load_s=event.seconds)
        self.enter(member, "loaded")

    def fail_load(self, member: ReloadMember, event: LoadFailed) -> None:
        self.note(member, load_s=event.seconds, traceback_text=event.traceback_text)
        self.enter(member, "loaded")
        self.vote_no(member, "load failed", event.detail, event.traceback_text)

    def swap(self, member: ReloadMember, event: Swapped) -> None:
        self.note(member, vote="swapped", swap_s=event.seconds, detail=event.detail)
        self.enter(member, "swapped")

    def fail_swap(self, member: ReloadMember, event: SwapFailed) -> None:
        self.note(member, swap_s=event.seconds, traceback_text=event.traceback_text)
        self.enter(member, "swapping")
        self.vote_no(member, "swap failed", event.detail, event.traceback_text)

    def prove(self, member: ReloadMember, event: MemberStarted) -> None:
        self.note(member, vote="swapped")
        self.enter(member, "proven")

    def fail_trial(self, member: ReloadMember, event: object) -> None:
        self.restart(member, 0.0)
        self.vote_no(member, "hung", "no process started on the new code in time")

    def hang(self, member: ReloadMember, event: object) -> None:
        # Only its end brings it back: nothing else gets through to it.
        self.restart(member, 0.0)
        self.vote_no(member, "hung", "the new code ran beyond every limit")

    def refuse(self, member: ReloadMember, event: LoadFailed | SwapFailed) -> None:
        # Said before it heard that it is replaced, and as true as ever.
        self.note(member, traceback_text=event.traceback_text)
        self.vote_no(member, "load failed" if isinstance(event, LoadFailed) else "swap failed", event.detail, event.traceback_text)

    def vote_no(self, member: ReloadMember, vote: str, detail: str, traceback_text: str = "") -> None:
        self.note(member, vote=vote, detail=detail)
        if self.attempt.kind is not AttemptKind.CATCH_UP:
            self.undo(f"{member.name} {vote}: {detail}" + (f"\n{traceback_text}" if traceback_text else ""))
        elif self.state.members.get(member.name) is member and member.state != "restarting":
            self.restart(member, self.grace())

    # ── waiting for tasks ────────────────────────────────────────────────────

    def wait_longer(self, member: ReloadMember, event: object) -> None:
        member.deadline = self.now + self.state.settings.grace_s
        self.commands.append(TellWaiting(member.attempt or 0, member.name, self.now - member.told_at))

    def overrun(self, member: ReloadMember, event: object) -> None:
        # A check stops nobody's work for code that it throws away.
        policy = Overrun.WAIT if self.attempt.kind is AttemptKind.CHECK else self.state.settings.overrun
        grace_s = self.state.settings.grace_s
        # What does not heed an interrupt (it sits in C, or in a thread that none reaches) is not interrupted twice.
        gives_up = policy is Overrun.RESTART_WORKER or (policy is Overrun.INTERRUPT and self.now - member.told_at > 1.5 * grace_s)
        if gives_up and member.role == "worker" and member.is_replaceable:
            (self.restart if self.attempt.kind is AttemptKind.CATCH_UP else self.replace)(member, 0.0)
            return
        if policy is Overrun.INTERRUPT:
            self.commands.append(InterruptTasks(member.name, member.life, self.attempt.number))
        self.wait_longer(member, event)

    def delay(self, member: ReloadMember, event: object) -> None:
        (self.wait_longer if self.grace() is None else self.fail_trial)(member, event)

    # ── undoing ──────────────────────────────────────────────────────────────

    def undo(self, detail: str) -> None:
        attempt = self.attempt
        if attempt.outcome is not None:
            return
        attempt.detail = detail
        if attempt.phase is AttemptPhase.LOADING:
            attempt.outcome = ReloadOutcome.FAILED_TO_LOAD
        else:
            attempt.outcome = ReloadOutcome.ROLLED_BACK
        attempt.phase = AttemptPhase.ROLLING_BACK
        self.discard()
        for member in self.state.members_in("waiting", "swapping", "swapped"):
            # Who swapped runs tasks again, and goes back at the next boundary only.
            if member.state == "swapping":
                self.enter(member, "rolling_back", 2 * self.state.settings.swap_limit_s)
            else:
                self.enter(member, "standing_down", self.state.settings.grace_s)
            self.commands.append(RollBack(member.name, member.life, attempt.number))
        if attempt.has_replaced:
            self.keep_sources()
        for member in self.state.members_in("replacing", "vacant", "trial", "proven"):
            self.restart(member, self.grace())

    def discard(self) -> None:
        for member in self.state.members_in("called", "loading", "loaded"):
            if not self.is_replaced(member):
                self.commands.append(Discard(member.name, member.life, self.attempt.number))
            self.note(member, ended="discarded")
            if member.state == "loaded":
                self.settle(member)
            else:
                # Nobody waits for it, yet it is not free before it answers: its body may never end.
                member.deadline = member.deadline if member.state == "loading" else None
                member.state = "discarding"

    def begin_end(self, member: ReloadMember, event: Begun) -> None:
        self.enter(member, "discarding", self.state.settings.load_limit_s)

    def begin_back(self, member: ReloadMember, event: Begun) -> None:
        self.enter(member, "rolling_back", 2 * self.state.settings.swap_limit_s)

    def roll_back(self, member: ReloadMember, event: RolledBack) -> None:
        self.note(member, roll_back_s=event.seconds, ended="rolled back")
        self.settle(member)

    def fail_back(self, member: ReloadMember, event: RollBackFailed) -> None:
        self.note(member, roll_back_s=event.seconds, traceback_text=event.traceback_text)
        self.note(member, detail=f"{event.detail} while rolling back")
        self.restart(member, self.grace())

    def hang_back(self, member: ReloadMember, event: object) -> None:
        self.note(member, detail="hung while it was undone")
        self.restart(member, 0.0)

    # ── what moves are made of ───────────────────────────────────────────────

    def enter(self, member: ReloadMember, state: MemberState, limit_s: float | None = None) -> None:
        member.state = state
        member.told_at = self.now
        member.deadline = None if limit_s is None else self.now + limit_s

    def replace(self, member: ReloadMember, grace_s: float | None) -> None:
        settings = self.state.settings
        self.attempt.has_replaced = True
        self.enter(member, "replacing", settings.grace_s if grace_s is None else grace_s + settings.start_limit_s)
        rows = self.state.sources(member.role, member.candidate)
        self.commands.append(RestartMember(member.name, member.life, member.attempt or 0, grace_s, rows))

    def keep_sources(self) -> None:
        for role in dict.fromkeys(role for role, _ in self.attempt.candidates):
            self.commands.append(KeepSources(role, self.state.sources(role)))

    def restart(self, member: ReloadMember, grace_s: float | None) -> None:
        """Bring a member to what is committed by a new process, or say that nothing can."""
        if member.is_replaceable:
            self.note(member, ended="restarted")
            self.enter(member, "restarting")
            rows = self.state.sources(member.role)
            self.commands.append(RestartMember(member.name, member.life, member.attempt or 0, grace_s, rows))
        else:
            member.on.update(dict.fromkeys(member.candidate, UNKNOWN))
            self.note(member, ended="broken")
            member.candidate, member.attempt = {}, None
            self.enter(member, "broken")

    def grace(self) -> float | None:
        return None if self.state.settings.overrun is Overrun.WAIT else self.state.settings.grace_s

    def is_replaced(self, member: ReloadMember) -> bool:
        return self.attempt.policy is ReloadPolicy.RESTART and member.role == "worker" and member.is_replaceable

    def account_of(self, member: ReloadMember) -> MemberAccount | None:
        return None if self.state.attempt is None else self.state.attempt.accounts.get((member.name, member.life))

    def open_account(self, member: ReloadMember) -> None:
        self.attempt.accounts[member.name, member.life] = MemberAccount(member.name, member.life, member.role)

    def note(self, member: ReloadMember, **facts: Any) -> None:
        account = self.account_of(member)
        for name, fact in facts.items() if account is not None else ():
            setattr(account, name, fact)

    # ── from one phase to the next ───────────────────────────────────────────

    def advance(self) -> None:
        """Go on as far as nobody has to be waited for."""
        while self.state.attempt is not None or self.begin_next():
            if self.attempt.phase is AttemptPhase.LOADING:
                if self.is_loading():
                    return
                self.finish_loading()
            elif self.attempt.phase is AttemptPhase.SWAPPING:
                if self.state.members_in("waiting", "swapping", "replacing", "vacant", "trial"):
                    return
                self.begin_wave()
            elif self.state.members_in("standing_down", "rolling_back"):
                return
            else:
                self.end(self.attempt.outcome)

    def is_loading(self) -> bool:
        if self.state.members_in("called", "loading"):
            return True
        # With nobody else to try the new code, wait for those that are being born or are still busy with an earlier one.
        roles = {role for role, _ in self.attempt.candidates}
        return not self.state.members_in("loaded") and any(m.role in roles for m in self.state.members_in("starting", "discarding"))

    def begin_next(self) -> bool:
        """Begin what is wanted next, else bring along who is behind; False when there is nothing to do."""
        state = self.state
        policy = ReloadPolicy.ATOMIC if state.settings.policy is ReloadPolicy.OFF else state.settings.policy
        while state.wanted:
            wanted = state.wanted.pop(0)
            cause, requests = " · ".join(wanted.causes), tuple(wanted.requests)
            tried = {key: PreloadVersion(state.number + 1, *pair) for key, pair in wanted.sources.items()}
            news = {key: new for key, new in tried.items() if key in wanted.forced or new.hash != state.committed[key].version.hash}
            if not news:
                self.tell_edit(ReloadOutcome.UNCHANGED, tried, cause, requests=requests)
                continue
            state.number += 1
            kind = AttemptKind.CHECK if wanted.is_check else AttemptKind.RELOAD
            state.attempt = ReloadAttempt(state.number, kind, policy, cause, self.now, requests, news)
            for member in self.state.members_in("running", "broken"):
                self.call(member)
            return True
        stragglers = [member for member in self.state.members_in("running") if self.state.behind(member)]
        if stragglers:
            state.number += 1
            cause = ", ".join(member.name for member in stragglers) + " started during a reload"
            state.attempt = ReloadAttempt(state.number, AttemptKind.CATCH_UP, policy, cause, self.now)
            for member in stragglers:
                self.call(member)
        return bool(stragglers)

    def finish_loading(self) -> None:
        attempt = self.attempt
        if attempt.kind is AttemptKind.CHECK:
            attempt.outcome, attempt.phase = ReloadOutcome.CHECKED, AttemptPhase.ROLLING_BACK
            self.discard()
        else:
            attempt.phase = AttemptPhase.SWAPPING
            attempt.waves = self.plan_waves()

    def plan_waves(self) -> list[list[str]]:
        loaded = self.state.members_in("loaded")
        if self.attempt.policy is ReloadPolicy.ROLLING:
            return [[member.name] for member in loaded]
        # The first process that is replaced tries the new code for all the others.
        replaced = [member.name for member in loaded if self.is_replaced(member)]
        return [[member.name for member in loaded if not self.is_replaced(member)], replaced[:1], replaced[1:]]

    def begin_wave(self) -> None:
        if not self.attempt.waves:
            self.commit()
            return
        names = self.attempt.waves.pop(0)
        for member in [member for member in self.state.members_in("loaded") if member.name in names]:
            if self.is_replaced(member):
                self.replace(member, self.grace())
            else:
                self.enter(member, "waiting", self.state.settings.grace_s)
                self.commands.append(SwapGeneration(member.name, member.life, self.attempt.number))

    def commit(self) -> None:
        state, attempt = self.state, self.attempt
        for key, version in attempt.candidates.items():
            state.committed[key] = CommittedPreload(state.committed[key].generation + 1, version)
        self.keep_sources()
        for member in self.state.members_in("swapped", "proven"):
            if member.state == "swapped":
                member.on.update({key: version.number for key, version in member.candidate.items()})
                pairs = tuple((key[1], state.committed[key].generation) for key in member.candidate)
                self.commands.append(Commit(member.name, member.life, attempt.number, pairs))
            self.note(member, ended="committed")
            self.settle(member)
        self.end(ReloadOutcome.BROUGHT_ALONG if attempt.kind is AttemptKind.CATCH_UP else ReloadOutcome.SWAPPED)

    # ── telling ──────────────────────────────────────────────────────────────

    def end(self, outcome: ReloadOutcome | None) -> None:
        attempt = self.attempt
        assert outcome is not None, "an attempt that is undone has an outcome"
        preloads, accounts = self.state.accounts_of(attempt.candidates), tuple(attempt.accounts.values())
        times = (attempt.began, self.now)
        self.state.attempt = None
        self.commands.append(
            Tell(ReloadReport(attempt.number, outcome, attempt.cause, attempt.detail, *times, preloads, accounts, attempt.requests))
        )

    def tell_edit(
        self, outcome: ReloadOutcome, tried: dict[Key, PreloadVersion], cause: str, detail: str = "", requests: tuple[int, ...] = ()
    ) -> None:
        """Tell of bytes that led to no attempt; the record has a number of its own all the same."""
        self.state.number += 1
        preloads = self.state.accounts_of(tried)
        report = ReloadReport(self.state.number, outcome, cause, detail, self.now, self.now, preloads, requests=requests)
        self.commands.append(Tell(report))
