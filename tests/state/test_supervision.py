"""One child's life, decided in microseconds: the whole table, all short histories, the budget."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product

import pytest

from localdask.errors import ExitWord
from localdask.state.supervision import (
    EVENTS,
    IGNORE,
    IMPOSSIBLE,
    TABLE,
    AbortChild,
    AskChild,
    BootBroken,
    BootProgressed,
    ChildExited,
    ChildReady,
    ChildStarted,
    ChildState,
    DeadlinePassed,
    KillChild,
    Limits,
    Phase,
    ReportAbandoned,
    ReportDegraded,
    ReportDown,
    ReportEnded,
    ReportFailed,
    RestartAsked,
    Rung,
    StartAsked,
    StartChild,
    StartRefused,
    StopAsked,
    TerminateChild,
    step,
    transition_table,
)

GRACE_S = 1.0


def up(limits: Limits = Limits(), now: float = 0.0) -> ChildState:
    """A child that is running its first life."""
    child = ChildState(limits)
    step(child, StartAsked(), now)
    step(child, ChildStarted(1), now)
    step(child, ChildReady(1), now)
    assert child.phase is Phase.RUNNING
    return child


def revive(child: ChildState, now: float) -> None:
    """Let the child that is being started become ready."""
    step(child, ChildStarted(child.life), now)
    step(child, ChildReady(child.life), now)


# ── by hand: one test, one sentence ──────────────────────────────────────────


def test_a_wanted_child_is_started_and_becomes_ready() -> None:
    child = ChildState()
    assert step(child, StartAsked(), 0.0) == [StartChild(1)]
    assert step(child, ChildStarted(1), 0.1) == []
    assert child.deadline == child.limits.boot_limit_s
    assert step(child, ChildReady(1), 0.2) == []
    assert child.deadline is None


def test_a_child_whose_start_goes_on_has_time_for_the_next_step_and_never_less_than_it_had() -> None:
    child = ChildState()
    step(child, StartAsked(), 0.0)
    step(child, ChildStarted(1), 0.0)
    step(child, BootProgressed(1, 2.0), 1.0)
    assert child.deadline == child.limits.boot_limit_s
    step(child, BootProgressed(1, 30.0), 29.0)
    assert child.deadline == 29.0 + 30.0 + child.limits.boot_step_margin_s
    assert step(child, DeadlinePassed(), 60.0) == []


def test_a_child_that_dies_is_replaced_at_once_by_the_next_life() -> None:
    child = up()
    assert step(child, ChildExited(1, ExitWord.OUT_OF_MEMORY), 0.5) == [ReportDown(1, ExitWord.OUT_OF_MEMORY), StartChild(2)]


def test_a_boot_that_fails_at_the_first_start_is_told_and_not_tried_again() -> None:
    child = ChildState()
    step(child, StartAsked(), 0.0)
    step(child, ChildStarted(1), 0.0)
    assert step(child, BootBroken(1), 0.1) == []
    assert step(child, ChildExited(1), 0.2) == [ReportDown(1, ExitWord.BOOT_FAILED), ReportFailed(1, ExitWord.BOOT_FAILED)]
    assert child.deadline is None


def test_a_child_that_dies_without_a_word_during_its_first_boot_failed_to_boot() -> None:
    child = ChildState()
    step(child, StartAsked(), 0.0)
    step(child, ChildStarted(1), 0.0)
    assert step(child, ChildExited(1, ExitWord.CRASHED), 0.2) == [
        ReportDown(1, ExitWord.BOOT_FAILED),
        ReportFailed(1, ExitWord.BOOT_FAILED),
    ]


def test_a_failed_first_start_can_be_tried_again_by_request_and_fails_again_rather_than_loops() -> None:
    child = ChildState()
    step(child, StartAsked(), 0.0)
    step(child, StartRefused(1), 0.0)
    assert child.phase is Phase.FAILED
    assert step(child, RestartAsked(GRACE_S), 1.0) == [StartChild(2)]
    step(child, ChildStarted(2), 1.0)
    step(child, ChildExited(2), 1.0)
    assert child.phase is Phase.FAILED


def test_a_boot_that_takes_too_long_is_ended_with_its_stacks_shown_then_killed() -> None:
    child = ChildState()
    limits = child.limits
    step(child, StartAsked(), 0.0)
    step(child, ChildStarted(1), 0.0)
    assert step(child, DeadlinePassed(), limits.boot_limit_s) == [AbortChild(1)]
    assert step(child, DeadlinePassed(), limits.boot_limit_s + limits.fail_wait_s) == [KillChild(1)]
    assert step(child, ChildExited(1), 99.0) == [ReportDown(1, ExitWord.HUNG), ReportFailed(1, ExitWord.HUNG)]


def test_a_failing_boot_after_a_good_life_is_charged_to_the_budget() -> None:
    child = up()
    step(child, ChildExited(1), 100.0)
    assert not child.charged
    step(child, ChildStarted(2), 100.0)
    step(child, BootBroken(2), 100.1)
    assert step(child, ChildExited(2), 100.2) == [ReportDown(2, ExitWord.BOOT_FAILED), StartChild(3)]
    assert list(child.charged) == [100.2]


def test_after_five_short_lives_in_thirty_seconds_the_sixth_degrades_with_growing_pauses_before() -> None:
    child = up()
    now = 0.0
    pauses = []
    for _ in range(5):
        commands = step(child, ChildExited(child.life), now)
        assert not any(isinstance(command, ReportDegraded) for command in commands)
        if child.phase is Phase.WAITING:
            assert child.deadline is not None
            pauses.append(child.deadline - now)
            now = child.deadline
            step(child, DeadlinePassed(), now)
        else:
            pauses.append(0.0)
        revive(child, now)
    assert pauses == sorted(pauses)
    assert len(set(pauses)) == 5
    assert step(child, ChildExited(6), now) == [ReportDown(6, ExitWord.CRASHED), ReportDegraded(6, 30.0)]
    assert child.deadline is None


def test_deaths_older_than_the_period_are_forgiven() -> None:
    child = up()
    for n in range(1, 50):
        now = n * 8.0
        revive_at = now - 0.5  # a short life each time, but only four in a period
        if n > 1:
            if child.phase is Phase.WAITING:
                step(child, DeadlinePassed(), revive_at)
            revive(child, revive_at)
        else:
            child.ready_since = revive_at
        step(child, ChildExited(child.life), now)
        assert child.phase in (Phase.STARTING, Phase.WAITING)


def test_a_death_that_a_task_answers_for_costs_nothing_of_the_budget() -> None:
    child = up()
    for life in range(1, 40):
        assert step(child, ChildExited(life, blameless=True), 0.0) == [ReportDown(life, ExitWord.CRASHED), StartChild(life + 1)]
        revive(child, 0.0)
    assert not child.charged


def test_a_life_that_served_long_enough_costs_nothing_of_the_budget() -> None:
    child = up()
    for life in range(1, 40):
        now = life * child.limits.healthy_s
        assert step(child, ChildExited(life), now) == [ReportDown(life, ExitWord.CRASHED), StartChild(life + 1)]
        revive(child, now)


def test_a_restart_by_request_refills_the_budget_and_leaves_degraded() -> None:
    child = up(Limits(n_restarts_max=0))
    step(child, ChildExited(1), 0.1)
    assert child.phase is Phase.DEGRADED
    assert step(child, RestartAsked(GRACE_S), 0.2) == [StartChild(2)]
    assert not child.charged


def test_a_restart_asks_first_and_starts_the_next_life_when_the_old_is_gone() -> None:
    child = up()
    assert step(child, RestartAsked(3.0), 1.0) == [AskChild(1, 3.0)]
    assert step(child, ChildExited(1), 2.0) == [ReportDown(1, ExitWord.ASKED), StartChild(2)]


def test_an_asked_stop_climbs_from_asking_to_terminating_to_killing() -> None:
    child = up()
    limits = child.limits
    assert step(child, StopAsked(3.0), 1.0) == [AskChild(1, 3.0)]
    assert step(child, DeadlinePassed(), 3.9) == [], "too early"
    assert step(child, DeadlinePassed(), 4.0) == [TerminateChild(1)]
    assert step(child, DeadlinePassed(), 4.0 + limits.terminate_wait_s) == [KillChild(1)]
    assert step(child, ChildExited(1), 5.0) == [ReportDown(1, ExitWord.ASKED), ReportEnded()]


def test_a_second_stop_can_only_shorten_the_first() -> None:
    child = up()
    step(child, StopAsked(10.0), 0.0)
    step(child, StopAsked(60.0), 1.0)
    assert child.deadline == 10.0
    step(child, StopAsked(0.5), 1.0)
    assert child.deadline == 1.5


def test_a_process_that_outlives_its_kill_is_abandoned_by_a_stop_and_never_by_a_restart() -> None:
    stopped = up()
    step(stopped, StopAsked(0.0), 0.0)
    restarted = copy.deepcopy(up())
    step(restarted, RestartAsked(0.0), 0.0)
    for _ in range(3):
        assert stopped.deadline is not None
        commands = step(stopped, DeadlinePassed(), stopped.deadline)
    assert commands == [ReportAbandoned(1), ReportEnded()]
    for _ in range(50):
        assert restarted.deadline is not None
        commands = step(restarted, DeadlinePassed(), restarted.deadline)
    assert commands == [KillChild(1)], "two processes would share one name"


def test_a_child_that_keeps_children_may_take_its_margin_beyond_the_grace() -> None:
    child = up(Limits(margin_s=2.0))
    assert step(child, StopAsked(1.0), 0.0) == [AskChild(1, 1.0)]
    assert child.deadline == 3.0


def test_a_stop_before_there_is_a_process_stops_it_when_it_comes() -> None:
    child = ChildState()
    step(child, StartAsked(), 0.0)
    assert step(child, StopAsked(2.0), 0.5) == []
    assert step(child, ChildStarted(1), 1.0) == [AskChild(1, 1.5)]
    assert child.deadline == 2.5


def test_a_process_that_comes_after_its_start_was_given_up_is_killed() -> None:
    child = ChildState()
    step(child, StartAsked(), 0.0)
    step(child, DeadlinePassed(), child.limits.boot_limit_s)
    assert child.phase is Phase.FAILED
    assert step(child, ChildStarted(1), 50.0) == [KillChild(1)]
    step(child, RestartAsked(GRACE_S), 51.0)
    assert step(child, ChildStarted(1), 52.0) == [KillChild(1)], "also while the next one is being started"
    assert child.phase is Phase.STARTING


def test_news_of_another_life_is_dropped() -> None:
    child = up()
    step(child, ChildExited(1), 9.0)
    revive(child, 9.0)
    before = copy.deepcopy(child)
    for event in (ChildExited(1), BootBroken(1), ChildReady(1), StartRefused(1), ChildExited(3)):
        assert step(child, event, 9.1) == []
    assert child == before


def test_a_keeper_that_takes_over_passes_lives_on_and_a_failing_boot_is_then_retried() -> None:
    child = ChildState(life=7, was_ready=True)
    assert step(child, StartAsked(), 0.0) == [StartChild(8)]
    assert step(child, StartRefused(8), 0.0) == [ReportDown(8, ExitWord.BOOT_FAILED), StartChild(9)]


# ── the whole matrix ─────────────────────────────────────────────────────────


def make_event(kind: type, life: int) -> object:
    if kind in (StartAsked, DeadlinePassed):
        return kind()
    if kind in (StopAsked, RestartAsked):
        return kind(GRACE_S)
    return kind(life)


@pytest.mark.parametrize("phase", list(Phase))
def test_every_cell_moves_ignores_or_refuses_as_the_table_says(phase: Phase) -> None:
    for kind, rung, was_ready, n_charged in product(EVENTS, Rung, [False, True], range(7)):
        cell = TABLE[phase, kind]
        child = ChildState(life=1, phase=phase, was_ready=was_ready, deadline=0.0, rung=rung, ready_since=0.0)
        child.charged.extend([0.0] * n_charged)
        event = make_event(kind, 1)
        if cell is IMPOSSIBLE:
            with pytest.raises(AssertionError, match=f"cannot happen to a child that is {phase.value}"):
                step(child, event, 0.5)  # type: ignore[arg-type]
        elif cell is IGNORE:
            before = copy.deepcopy(child)
            assert step(child, event, 0.5) == []  # type: ignore[arg-type]
            assert child == before
        else:
            step(child, event, 0.5)  # type: ignore[arg-type]
            assert child.phase in (cell.targets or (phase,))
            assert child.has_process == (child.phase in {Phase.BOOTING, Phase.RUNNING, Phase.FAILING, Phase.STOPPING, Phase.REPLACING})


def test_every_target_that_the_table_promises_is_reached_by_some_history() -> None:
    reached: set[tuple[Phase, type, Phase]] = set()
    for limits in (Limits(n_restarts_max=0), Limits(n_restarts_max=1), Limits(n_restarts_max=3)):
        explore(World(limits), 6, reached)
        takeover = World(limits)
        takeover.child.was_ready = True
        explore(takeover, 5, reached)
        old = World(limits)
        for _ in range(2):  # a spent budget, so that a pause and an end of it are near
            for action in ("start", "started", "ready", "exited", "deadline"):
                if action in old.actions():
                    old.act(action)
        explore(old, 5, reached)
    promised = {
        (phase, kind, target) for (phase, kind), cell in TABLE.items() for target in cell.targets or (phase,) if cell is not IMPOSSIBLE
    }
    assert reached <= promised
    unreached = promised - reached
    assert {pair for pair in unreached if TABLE[pair[0], pair[1]] is not IGNORE} == set()


# ── all short histories ──────────────────────────────────────────────────────


class World:
    """What could really happen around one child: processes live, die, come late, or never listen."""

    def __init__(self, limits: Limits) -> None:
        self.child = ChildState(limits)
        self.now = 0.0
        self.asked_for: list[int] = []  # starts that are not answered yet
        self.alive: list[int] = []
        self.condemned: set[int] = set()  # killed, not yet gone
        self.highest_life = 0
        self.last_event: object = None
        self.charged_starts: tuple[float, ...] = ()
        self.ended = 0

    def copy(self) -> World:
        other = copy.copy(self)
        other.child = replace(self.child, charged=copy.copy(self.child.charged))
        other.asked_for = list(self.asked_for)
        other.alive = list(self.alive)
        other.condemned = set(self.condemned)
        return other

    def actions(self) -> list[str]:
        if self.child.phase is Phase.IDLE:
            return ["start", "stop", "restart"]
        found = ["stop", "restart"]
        if self.asked_for:
            found += ["started", "refused"]
        if self.child.life in self.alive:
            found += ["ready", "goes on", "broken"]
        if self.alive:
            found += ["exited", "exited late"]
        if self.child.deadline is not None:
            found += ["deadline"]
        return found

    def act(self, action: str) -> list[object]:
        child = self.child
        event: object
        if action == "start":
            event = StartAsked()
        elif action == "stop":
            event = StopAsked(GRACE_S)
        elif action == "restart":
            event = RestartAsked(GRACE_S)
            self.charged_starts = ()
        elif action == "started":
            life = self.asked_for.pop(0)
            self.alive.append(life)
            event = ChildStarted(life)
        elif action == "refused":
            event = StartRefused(self.asked_for.pop(0))
        elif action == "ready":
            event = ChildReady(child.life)
        elif action == "goes on":
            event = BootProgressed(child.life, 20.0)
        elif action == "broken":
            event = BootBroken(child.life)
        elif action in ("exited", "exited late"):
            if action == "exited late":
                self.now += child.limits.period_s
                if child.phase is Phase.RUNNING:
                    self.charged_starts = ()  # a good life: its death is not charged, and older charges lapse
            life = self.alive.pop(0)
            self.condemned.discard(life)
            event = ChildExited(life)
        else:
            assert action == "deadline"
            assert child.deadline is not None
            self.now = max(self.now, child.deadline)
            event = DeadlinePassed()
        self.last_event = event
        return self.feed(event)

    def feed(self, event: object) -> list[object]:
        before = self.child.phase
        commands = step(self.child, event, self.now)  # type: ignore[arg-type]
        self.check(commands, before, event)
        return commands  # type: ignore[return-value]

    def check(self, commands: list[object], before: Phase, event: object) -> None:
        child = self.child
        for command in commands:
            if isinstance(command, StartChild):
                assert command.life > self.highest_life, "lives increase"
                self.highest_life = command.life
                assert not set(self.alive) - self.condemned, "at most one live child"
                assert self.ended == 0, "nothing is started after the end"
                self.asked_for.append(command.life)
                self.charged_starts += (self.now,)
            elif isinstance(command, KillChild):
                assert command.life in self.alive
                self.condemned.add(command.life)
            elif isinstance(command, AskChild | AbortChild | TerminateChild):
                assert command.life in self.alive
                assert command.life == child.life
            elif isinstance(command, ReportDown):
                assert command.life not in self.alive
            elif isinstance(command, ReportEnded):
                self.ended += 1
        assert self.ended <= 1
        assert (self.ended == 1) == (child.phase is Phase.ENDED)
        assert len(set(self.alive) - self.condemned) <= 1
        if child.has_process:
            assert child.life in self.alive
        # Beyond the budget nothing starts: the first start, and one for each charged death.
        since = self.now - child.limits.period_s + child.limits.pause_max_s
        assert sum(start > since for start in self.charged_starts) <= 1 + child.limits.n_restarts_max
        if child.phase in (Phase.IDLE, Phase.RUNNING, Phase.DEGRADED, Phase.FAILED, Phase.ENDED):
            assert child.deadline is None, "nothing wakes a child that waits for nothing"
        else:
            assert child.deadline is not None, "a child that is on its way somewhere has a limit"
            if isinstance(event, DeadlinePassed):
                assert child.deadline > self.now or child.phase is Phase.STOPPING, "never a spin"

    def check_it_can_be_stopped(self) -> None:
        """Asked to stop, the child ends within grace, margin and ladder, though nothing ever answers."""
        limits = self.child.limits
        begun = self.now
        self.feed(StopAsked(GRACE_S))
        for _ in range(5):
            if self.child.phase is Phase.ENDED:
                break
            assert self.child.deadline is not None
            self.now = self.child.deadline
            self.feed(DeadlinePassed())
        assert self.child.phase is Phase.ENDED
        ladder_s = limits.terminate_wait_s + limits.kill_wait_s
        assert self.now - begun <= GRACE_S + limits.margin_s + ladder_s + limits.fail_wait_s + 1e-9
        for life in list(self.asked_for):  # a process that comes even later is killed
            self.asked_for.remove(life)
            self.alive.append(life)
            assert self.feed(ChildStarted(life)) == [KillChild(life)]
        assert set(self.alive) <= self.condemned, "what is left was killed"

    def check_it_never_spins(self) -> None:
        """Left alone with its deadlines for two minutes, it wakes up a few dozen times at most."""
        until = self.now + 120.0
        n_steps = 0
        while self.child.deadline is not None and self.child.deadline <= until:
            self.now = max(self.now, self.child.deadline)
            self.feed(DeadlinePassed())
            n_steps += 1
        assert n_steps <= 120


def explore(world: World, depth: int, reached: set[tuple[Phase, type, Phase]]) -> int:
    """Try every history of ``depth`` more events; at the end of each, see whether the child can be stopped and rests."""
    n_histories = 1
    for action in world.actions():
        following = world.copy()
        before, life = following.child.phase, following.child.life
        following.act(action)
        if getattr(following.last_event, "life", life) == life:
            reached.add((before, type(following.last_event), following.child.phase))
        if depth > 1:
            n_histories += explore(following, depth - 1, reached)
        else:
            following.copy().check_it_never_spins()
            following.check_it_can_be_stopped()
    return n_histories


@pytest.mark.parametrize("n_restarts_max", [1, 5])
@pytest.mark.parametrize("was_ready", [False, True])
def test_in_every_history_of_six_events_the_laws_hold(n_restarts_max: int, was_ready: bool) -> None:
    world = World(Limits(n_restarts_max=n_restarts_max))
    world.child.was_ready = was_ready
    assert explore(world, 6, set()) > 1_000


def test_a_child_that_always_dies_soon_is_started_six_times_and_then_no_more() -> None:
    world = World(Limits())
    world.act("start")
    for _ in range(200):
        if world.child.phase is Phase.WAITING:
            world.act("deadline")
        for action in ("started", "ready", "exited"):
            if action in world.actions():
                world.act(action)
    assert world.child.phase is Phase.DEGRADED
    assert world.highest_life == 6
    assert world.now < world.child.limits.period_s


def test_boots_that_hang_one_after_another_are_started_six_times_though_each_outlasts_the_period() -> None:
    world = World(Limits())
    world.child.was_ready = True
    world.act("start")
    for _ in range(200):
        for action in ("started", "deadline", "exited"):
            if action in world.actions():
                world.act(action)
    assert world.child.phase is Phase.DEGRADED
    assert world.highest_life == 6


def test_the_table_prints_a_row_for_each_phase_and_a_column_for_each_event() -> None:
    text = transition_table()
    rows = [line for line in text.splitlines() if line.startswith("| **")]
    assert len(rows) == len(Phase)
    assert all(line.count("|") == len(EVENTS) + 2 for line in rows)
    assert "| **idle** | starting |" in text
