"""state/reload: whatever fails, dies, joins or is saved in any order, every process ends on the same generation."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

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
from localdask.state import reload as reload_room
from localdask.state.attempts import (
    COLUMNS,
    TABLE,
    TABLE_TEXT,
    CommittedPreload,
    CompileFailed,
    KeepSources,
    MemberJoined,
    MemberLeft,
    MemberStarted,
    Overrun,
    PreloadVersion,
    ReloadAsked,
    ReloadDeadlinePassed,
    ReloadOutcome,
    ReloadPolicy,
    ReloadSettings,
    ReloadState,
    RestartMember,
    SourceChanged,
    StartMember,
    Tell,
    TellWaiting,
)
from localdask.state.reload import next_deadline, step
from tests.state.reload_world import DIE, FAIL, HANG, OK, World

X = ("worker", 0)


def new_state(n_workers=2, policy=ReloadPolicy.ATOMIC, overrun=Overrun.WAIT, keys=(X,)):
    committed = {key: CommittedPreload(1, PreloadVersion(0, "a", "A")) for key in keys}
    state = ReloadState(committed, ReloadSettings(policy, overrun))
    for number in range(n_workers):
        step(state, MemberJoined(f"w{number}", 1, "worker"), 0.0)
        step(state, MemberStarted(f"w{number}", 1), 0.0)
    return state


def save(state, text="b", now=1.0, key=X):
    return step(state, SourceChanged({key: (text, text.upper())}, "x.py changed"), now)


def say(state, cls, *names, attempt=1, life=1, now=1.0, seconds=(0.5,), detail=()):
    commands = []
    for name in names:
        extra = () if cls is Begun else seconds
        extra += ("boom",) if cls in (LoadFailed, SwapFailed, RollBackFailed) else detail
        commands += step(state, cls(name, life, attempt, *extra), now)
    return commands


def kinds(commands):
    return [type(command) for command in commands]


def report_in(commands):
    (report,) = [command.report for command in commands if isinstance(command, Tell)]
    return report


# ── one sentence of the specification each ───────────────────────────────────


def test_the_new_body_is_loaded_everywhere_before_anybody_swaps():
    state = new_state()
    assert save(state) == [LoadGeneration("w0", 1, 1, ((0, 2, 1, "B"),)), LoadGeneration("w1", 1, 1, ((0, 2, 1, "B"),))]
    assert say(state, Loaded, "w0") == []
    assert say(state, Loaded, "w1") == [SwapGeneration("w0", 1, 1), SwapGeneration("w1", 1, 1)]


def test_a_generation_rises_when_every_process_swapped():
    state = new_state()
    save(state)
    say(state, Loaded, "w0", "w1")
    assert say(state, Swapped, "w0") == []
    assert state.committed[X].generation == 1
    commands = say(state, Swapped, "w1", now=3.0)
    assert commands[0] == KeepSources("worker", ((0, 2, 1, "B"),))
    assert commands[1:3] == [Commit("w0", 1, 1, ((0, 2),)), Commit("w1", 1, 1, ((0, 2),))]
    assert state.committed[X] == CommittedPreload(2, PreloadVersion(1, "b", "B"))
    report = report_in(commands)
    assert (report.outcome, report.cause, report.began, report.ended) == (ReloadOutcome.SWAPPED, "x.py changed", 1.0, 3.0)
    assert [(a.member, a.vote, a.ended, a.load_s, a.swap_s) for a in report.members] == [
        ("w0", "swapped", "committed", 0.5, 0.5),
        ("w1", "swapped", "committed", 0.5, 0.5),
    ]


def test_a_body_that_fails_anywhere_is_discarded_everywhere():
    state = new_state()
    save(state)
    say(state, Loaded, "w0")
    commands = say(state, LoadFailed, "w1")
    assert commands[:2] == [Discard("w0", 1, 1), Discard("w1", 1, 1)]
    report = report_in(commands)
    assert (report.outcome, report.detail) == (ReloadOutcome.FAILED_TO_LOAD, "w1 load failed: boom")
    assert report.preloads[0].generation == 1
    assert state.is_quiet


def test_a_setup_that_fails_anywhere_is_rolled_back_everywhere():
    state = new_state()
    save(state)
    say(state, Loaded, "w0", "w1")
    say(state, Swapped, "w0")
    assert say(state, SwapFailed, "w1") == [RollBack("w0", 1, 1), RollBack("w1", 1, 1)]
    assert say(state, RolledBack, "w0") == []
    report = report_in(say(state, RolledBack, "w1"))
    assert report.outcome is ReloadOutcome.ROLLED_BACK
    assert [(a.vote, a.ended, a.detail) for a in report.members] == [("swapped", "rolled back", ""), ("swap failed", "rolled back", "boom")]
    assert state.committed[X].generation == 1


def test_a_process_that_waits_for_its_task_is_rolled_back_without_waiting():
    state = new_state()
    save(state)
    say(state, Loaded, "w0", "w1")
    assert RollBack("w0", 1, 1) in say(state, SwapFailed, "w1")
    say(state, RolledBack, "w1")
    # Its swap had begun when the word came: what it then says of the swap is not its last word.
    assert say(state, Begun, "w0") + say(state, Swapped, "w0") == []
    assert report_in(say(state, RolledBack, "w0")).outcome is ReloadOutcome.ROLLED_BACK


@pytest.mark.parametrize("ending", [RollBackFailed, MemberLeft, ReloadDeadlinePassed])
def test_who_cannot_roll_back_is_replaced_on_the_committed_generation(ending):
    state = new_state()
    save(state)
    say(state, Loaded, "w0", "w1")
    say(state, Swapped, "w0")
    say(state, SwapFailed, "w1")
    say(state, RolledBack, "w0")
    if ending is RollBackFailed:
        commands = say(state, RollBackFailed, "w1")
    elif ending is MemberLeft:
        commands = step(state, MemberLeft("w1", 1), 2.0)
    else:
        commands = step(state, ReloadDeadlinePassed(), next_deadline(state))
    if ending is not MemberLeft:
        (restart,) = [command for command in commands if isinstance(command, RestartMember)]
        assert restart.sources == ((0, 1, 0, "A"),)
        step(state, MemberLeft("w1", 1, ExitWord.ASKED), 3.0)
    assert report_in(commands).outcome is ReloadOutcome.ROLLED_BACK
    assert step(state, MemberJoined("w1", 2, "worker"), 4.0) == [StartMember("w1", 2, ((0, 1, 0, "A"),))]
    step(state, MemberStarted("w1", 2), 5.0)
    assert state.is_quiet


def test_a_syntax_error_is_told_and_changes_nothing():
    state = new_state()
    (tell,) = step(state, CompileFailed({X: "b"}, "x.py changed", "x.py:14:22 SyntaxError"), 1.0)
    assert (tell.report.outcome, tell.report.detail) == (ReloadOutcome.FAILED_TO_COMPILE, "x.py:14:22 SyntaxError")
    assert state.is_quiet and state.committed[X].generation == 1


def test_edits_during_a_reload_become_one_more_with_the_newest_bytes():
    state = new_state(1)
    save(state)
    assert save(state, "c") + save(state, "d") == []
    say(state, Loaded, "w0")
    commands = say(state, Swapped, "w0")
    assert kinds(commands) == [KeepSources, Commit, Tell, LoadGeneration]
    assert commands[3].sources == ((0, 3, 2, "D"),)


def test_an_edit_back_to_what_runs_reloads_nothing_and_says_so():
    state = new_state()
    assert report_in(save(state, "a")).outcome is ReloadOutcome.UNCHANGED
    assert state.is_quiet


def test_a_reload_that_was_asked_for_runs_the_same_bytes_again_and_its_record_names_the_request():
    state = new_state(1)
    assert kinds(step(state, ReloadAsked(7, {X: ("a", "A")}, "asked"), 1.0)) == [LoadGeneration]
    say(state, Loaded, "w0")
    report = report_in(say(state, Swapped, "w0"))
    assert (report.requests, report.outcome, report.preloads[0].generation) == ((7,), ReloadOutcome.SWAPPED, 2)


def test_a_check_only_loads():
    state = new_state()
    step(state, ReloadAsked(7, {X: ("b", "B")}, "asked", is_check=True), 1.0)
    commands = say(state, Loaded, "w0", "w1")
    assert kinds(commands) == [Discard, Discard, Tell]
    assert report_in(commands).outcome is ReloadOutcome.CHECKED
    assert state.committed[X].generation == 1


@pytest.mark.parametrize("overrun", list(Overrun))
def test_a_check_waits_for_a_task_and_stops_none(overrun):
    state = new_state(1, overrun=overrun)
    step(state, ReloadAsked(7, {X: ("b", "B")}, "asked", is_check=True), 1.0)
    assert step(state, ReloadDeadlinePassed(), 11.0) == [TellWaiting(1, "w0", 10.0)]
    assert step(state, ReloadDeadlinePassed(), 21.0) == [TellWaiting(1, "w0", 20.0)]
    assert report_in(say(state, Loaded, "w0")).outcome is ReloadOutcome.CHECKED


def test_policy_off_reloads_only_when_asked():
    state = new_state(policy=ReloadPolicy.OFF)
    assert report_in(save(state)).outcome is ReloadOutcome.OFF
    assert kinds(step(state, ReloadAsked(1, {X: ("b", "B")}, "asked"), 1.0)) == [LoadGeneration, LoadGeneration]


def test_only_processes_of_the_preloads_role_take_part():
    state = new_state(1, keys=(X, ("nanny", 0)))
    step(state, MemberJoined("n0", 1, "nanny"), 0.0)
    step(state, MemberStarted("n0", 1), 0.0)
    assert [command.member for command in save(state, key=("nanny", 0))] == ["n0"]


def test_only_the_edited_one_of_several_preloads_is_loaded():
    state = new_state(1, keys=(X, ("worker", 1), ("worker", 2)))
    (load,) = save(state, key=("worker", 1))
    assert load.sources == ((1, 2, 1, "B"),)


def test_rolling_swaps_one_process_at_a_time():
    state = new_state(3, ReloadPolicy.ROLLING)
    save(state)
    assert say(state, Loaded, "w0", "w1", "w2") == [SwapGeneration("w0", 1, 1)]
    assert say(state, Swapped, "w0") == [SwapGeneration("w1", 1, 1)]
    assert kinds(say(state, SwapFailed, "w1")) == [Discard, RollBack, RollBack]
    assert report_in(say(state, RolledBack, "w0", "w1")).outcome is ReloadOutcome.ROLLED_BACK


def test_restart_replaces_one_worker_first_and_then_the_others():
    state = new_state(3, ReloadPolicy.RESTART)
    assert save(state) == [RestartMember("w0", 1, 1, None, ((0, 2, 1, "B"),))]
    assert step(state, MemberLeft("w0", 1, ExitWord.ASKED), 2.0) == []
    assert step(state, MemberJoined("w0", 2, "worker"), 2.0) == [StartMember("w0", 2, ((0, 2, 1, "B"),))]
    commands = step(state, MemberStarted("w0", 2), 3.0)
    assert [(command.member, type(command)) for command in commands] == [("w1", RestartMember), ("w2", RestartMember)]


def test_a_replaced_worker_that_does_not_start_brings_everybody_back():
    state = new_state(2, ReloadPolicy.RESTART)
    save(state)
    step(state, MemberLeft("w0", 1, ExitWord.ASKED), 2.0)
    step(state, MemberJoined("w0", 2, "worker"), 2.0)
    report = report_in(step(state, MemberLeft("w0", 2, ExitWord.BOOT_FAILED), 3.0))
    assert report.outcome is ReloadOutcome.ROLLED_BACK
    assert step(state, MemberJoined("w0", 3, "worker"), 4.0) == [StartMember("w0", 3, ((0, 1, 0, "A"),))]
    step(state, MemberStarted("w0", 3), 5.0)
    assert state.is_quiet and state.committed[X].generation == 1


def test_who_is_born_while_others_load_starts_on_the_committed_bytes_and_joins_them():
    state = new_state(1)
    save(state)
    assert step(state, MemberJoined("w1", 1, "worker"), 2.0) == [StartMember("w1", 1, ((0, 1, 0, "A"),))]
    assert kinds(step(state, MemberStarted("w1", 1), 2.0)) == [LoadGeneration]
    assert say(state, Loaded, "w0") == []


def test_who_is_born_while_others_swap_is_brought_along_afterwards():
    state = new_state(1)
    save(state)
    say(state, Loaded, "w0")
    step(state, MemberJoined("w1", 1, "worker"), 2.0)
    assert step(state, MemberStarted("w1", 1), 2.0) == []
    commands = say(state, Swapped, "w0")
    assert kinds(commands) == [KeepSources, Commit, Tell, LoadGeneration]
    assert (commands[3].member, commands[3].sources) == ("w1", ((0, 2, 1, "B"),))
    say(state, Loaded, "w1", attempt=2)
    commands = say(state, Swapped, "w1", attempt=2)
    assert commands[0] == Commit("w1", 1, 2, ((0, 2),))
    assert report_in(commands).outcome is ReloadOutcome.BROUGHT_ALONG
    assert state.committed[X].generation == 2 and state.is_quiet


def test_who_cannot_be_brought_along_is_replaced_and_nobody_else_is_touched():
    state = new_state(1)
    save(state)
    say(state, Loaded, "w0")
    step(state, MemberJoined("w1", 1, "worker"), 2.0)
    step(state, MemberStarted("w1", 1), 2.0)
    say(state, Swapped, "w0")
    commands = say(state, LoadFailed, "w1", attempt=2)
    assert commands[0] == RestartMember("w1", 1, 2, None, ((0, 2, 1, "B"),))
    assert kinds(commands) == [RestartMember, Tell]


def test_with_nobody_else_to_try_it_the_new_code_waits_for_who_is_being_born():
    state = new_state(0)
    step(state, MemberJoined("w0", 1, "worker"), 0.0)
    assert save(state) == []
    assert kinds(step(state, MemberStarted("w0", 1), 2.0)) == [LoadGeneration]


def test_with_no_process_at_all_the_new_bytes_are_what_the_next_one_starts_on():
    state = new_state(0)
    assert report_in(save(state)).outcome is ReloadOutcome.SWAPPED
    assert step(state, MemberJoined("w0", 1, "worker"), 2.0) == [StartMember("w0", 1, ((0, 2, 1, "B"),))]


@pytest.mark.parametrize("phase", ["load", "swap"])
def test_who_dies_while_the_new_code_runs_in_it_voted_no(phase):
    state = new_state()
    save(state)
    if phase == "swap":
        say(state, Loaded, "w0", "w1")
    say(state, Begun, "w0")
    commands = step(state, MemberLeft("w0", 1), 2.0)
    if phase == "swap":
        assert commands == [RollBack("w1", 1, 1)]
        commands = say(state, RolledBack, "w1")
    report = report_in(commands)
    assert "w0 died" in report.detail and state.committed[X].generation == 1


@pytest.mark.parametrize("moment", ["called", "loaded", "waiting", "swapped", "asked while swapping"])
def test_who_dies_at_another_moment_or_was_asked_to_leave_has_no_say(moment):
    state = new_state(3)
    save(state)
    if moment not in ("called",):
        say(state, Loaded, "w0")
    if moment not in ("called", "loaded"):
        say(state, Loaded, "w1", "w2")
    if moment == "swapped":
        say(state, Swapped, "w0")
    if moment == "asked while swapping":
        say(state, Begun, "w0")
    step(state, MemberLeft("w0", 1, ExitWord.ASKED if "asked" in moment else ExitWord.CRASHED), 2.0)
    if moment in ("called", "loaded"):
        say(state, Loaded, "w1", "w2")
    report = report_in(say(state, Swapped, "w1", "w2"))
    assert report.outcome is ReloadOutcome.SWAPPED
    assert [account.ended for account in report.members] == ["gone", "committed", "committed"]


def test_a_swap_that_waits_for_a_task_is_told_every_grace_time_and_goes_on():
    state = new_state(1)
    save(state)
    say(state, Loaded, "w0")
    assert next_deadline(state) == 11.0
    assert step(state, ReloadDeadlinePassed(), 11.0) == [TellWaiting(1, "w0", 10.0)]
    assert step(state, ReloadDeadlinePassed(), 21.0) == [TellWaiting(1, "w0", 20.0)]
    assert report_in(say(state, Swapped, "w0")).outcome is ReloadOutcome.SWAPPED


def test_overrun_interrupt_interrupts_the_tasks():
    state = new_state(1, overrun=Overrun.INTERRUPT)
    save(state)
    say(state, Loaded, "w0")
    assert step(state, ReloadDeadlinePassed(), 11.0)[0] == InterruptTasks("w0", 1, 1)


def test_overrun_restart_worker_replaces_the_worker_by_one_on_the_new_code():
    state = new_state(1, overrun=Overrun.RESTART_WORKER)
    save(state)
    say(state, Loaded, "w0")
    assert step(state, ReloadDeadlinePassed(), 11.0) == [RestartMember("w0", 1, 1, 0.0, ((0, 2, 1, "B"),))]
    step(state, MemberLeft("w0", 1, ExitWord.ASKED), 11.0)
    step(state, MemberJoined("w0", 2, "worker"), 11.0)
    assert report_in(step(state, MemberStarted("w0", 2), 12.0)).outcome is ReloadOutcome.SWAPPED


def test_a_no_that_crosses_with_a_replacement_counts():
    state = new_state(2, overrun=Overrun.RESTART_WORKER)
    save(state)
    step(state, ReloadDeadlinePassed(), 11.0)
    commands = say(state, LoadFailed, "w0")
    assert [command.sources for command in commands if isinstance(command, RestartMember)] == [((0, 1, 0, "A"),)] * 2
    assert report_in(commands).outcome is ReloadOutcome.ROLLED_BACK


@pytest.mark.parametrize("phase", ["load", "swap"])
def test_new_code_that_hangs_is_a_failure_and_its_process_is_replaced(phase):
    state = new_state()
    save(state)
    if phase == "swap":
        say(state, Loaded, "w0", "w1")
    say(state, Begun, "w0")
    commands = step(state, ReloadDeadlinePassed(), 1.0 + ReloadSettings().swap_limit_s)
    commands = [command for command in commands if not isinstance(command, TellWaiting)]
    assert commands[0] == RestartMember("w0", 1, 1, 0.0, ((0, 1, 0, "A"),))
    assert kinds(commands)[1] is (Discard if phase == "load" else RollBack)


def test_the_scheduler_cannot_be_replaced_and_is_mended_by_the_next_reload():
    state = new_state(0, keys=(("scheduler", 0),))
    step(state, MemberJoined("scheduler", 1, "scheduler", None, False), 0.0)
    step(state, MemberStarted("scheduler", 1), 0.0)
    save(state, key=("scheduler", 0))
    say(state, Loaded, "scheduler")
    say(state, SwapFailed, "scheduler")
    report = report_in(say(state, RollBackFailed, "scheduler"))
    assert report.members[0].ended == "broken"
    assert state.members["scheduler"].state == "broken"
    assert kinds(save(state, "c", key=("scheduler", 0))) == [LoadGeneration]
    say(state, Loaded, "scheduler", attempt=2)
    say(state, Swapped, "scheduler", attempt=2)
    assert state.members["scheduler"].state == "running"


def test_a_word_about_another_attempt_or_life_is_dropped():
    state = new_state(2)
    save(state)
    assert say(state, LoadFailed, "w0", attempt=9) == []
    assert say(state, LoadFailed, "w0", life=0) == []
    assert say(state, LoadFailed, "w7") == []
    assert step(state, MemberLeft("w0", 0), 1.0) == []
    assert step(state, MemberJoined("w0", 1, "worker"), 1.0) == []
    assert [member.state for member in state.members.values()] == ["called", "called"]


def test_a_new_life_is_the_news_that_the_old_one_ended():
    state = new_state(2)
    save(state)
    say(state, Begun, "w0")
    commands = step(state, MemberJoined("w0", 2, "worker"), 2.0)
    assert kinds(commands) == [Discard, StartMember, Tell]


# ── the table ────────────────────────────────────────────────────────────────


def test_every_cell_of_the_table_is_filled_and_every_move_exists():
    states = ["absent", *reload_room.MemberState.__args__]
    assert set(TABLE) == set(itertools.product(states, COLUMNS.values()))
    moves = set(TABLE.values()) - {"-", "!"}
    assert moves <= set(vars(reload_room._Decision))


@pytest.mark.parametrize("column", [column for column in COLUMNS.values() if column != "deadline"])
def test_each_cell_does_what_the_table_says(column):
    for row in reload_room.MemberState.__args__:
        check_cell(row, column)


def check_cell(row, column):
    state = new_state(2)
    save(state)
    member = state.members["w0"]
    member.state = row
    cls = {name: cls for cls, name in COLUMNS.items()}[column]
    event = {
        MemberJoined: lambda: MemberJoined("w0", 2, "worker"),
        MemberStarted: lambda: MemberStarted("w0", 1),
        MemberLeft: lambda: MemberLeft("w0", 1, is_retired=row == "vacant"),
        Begun: lambda: Begun("w0", 1, 1),
    }.get(cls, lambda: cls("w0", 1, 1, 0.1, "boom") if cls in (LoadFailed, SwapFailed, RollBackFailed) else cls("w0", 1, 1, 0.1))()
    before = repr(state)
    if TABLE[row, column] == "!":
        with pytest.raises(ProtocolError, match=f"w0 said {cls.__name__} while it was {row}"):
            step(state, event, 1.0)
        assert repr(state) == before, "refused before anything changed"
    else:
        step(state, event, 1.0)
        assert (repr(state) == before) == (TABLE[row, column] == "-")


def test_the_table_reads_as_text():
    lines = TABLE_TEXT.strip().splitlines()
    assert len({len(line.split()) for line in lines}) == 1
    assert len(lines) == 1 + len({row for row, _ in TABLE})


# ── small cases, exhaustively ────────────────────────────────────────────────


class Choices:
    """Every list of choices in turn: each run replays a prefix and then takes the first of what is offered."""

    def __init__(self):
        self.made, self.place, self.is_over = [], 0, False

    def choose(self, options):
        if self.place == len(self.made):
            self.made.append([0, len(options)])
        choice = self.made[self.place]
        assert choice[1] == len(options), "the run is not repeatable"
        self.place += 1
        return options[choice[0]]

    def advance(self):
        self.place = 0
        while self.made and self.made[-1][0] == self.made[-1][1] - 1:
            self.made.pop()
        if self.made:
            self.made[-1][0] += 1
        else:
            self.is_over = True


ATTENDED = (LoadGeneration, SwapGeneration, RollBack)


@pytest.mark.parametrize(("policy", "n_expected"), [(ReloadPolicy.ATOMIC, 2000), (ReloadPolicy.ROLLING, 300), (ReloadPolicy.RESTART, 8)])
def test_every_outcome_of_every_step_ends_both_processes_on_the_same_generation(policy, n_expected):
    choices, n_runs, outcomes = Choices(), 0, set()
    while not choices.is_over:
        world = World(ReloadSettings(policy, Overrun.INTERRUPT), (X,))
        world.add("w0", "worker")
        world.add("w1", "worker")
        world.settle()
        world.save([X])
        births_are_prompt = choices.choose([True, False])
        while world.reports == []:
            for name in world.outbox:
                while world.outbox[name]:
                    world.deliver(name)
            if births_are_prompt:
                for name in world.missing():
                    world.bear(name)
            able = [name for name in world.processes if world.can_act(name)]
            if able:
                name = choices.choose(able)
                word = world.processes[name].inbox[0]
                is_trial = isinstance(word, StartMember) and word.sources[0][2] == 1
                world.act(name, choices.choose([OK, FAIL, DIE, HANG]) if isinstance(word, ATTENDED) or is_trial else OK)
            elif any(world.outbox.values()):
                continue
            elif next_deadline(world.state) is not None:
                world.pass_time()
            else:
                for name in world.missing():
                    world.bear(name)
        world.settle()
        world.check_rest()
        outcomes.add(world.reports[0].outcome)
        world.make_good()
        n_runs += 1
        choices.advance()
    assert n_runs >= n_expected, n_runs
    assert ReloadOutcome.SWAPPED in outcomes and ReloadOutcome.ROLLED_BACK in outcomes


# ── anything in any order ────────────────────────────────────────────────────

QUALITIES = ("good", "good", "bad body", "bad setup")
KEYS = (X, ("worker", 1), ("nanny", 0), ("scheduler", 0))


class AnythingInAnyOrder(RuleBasedStateMachine):
    """Saves, failures, deaths, births, time and stale echoes, with lag on every pipe; then peace."""

    @initialize(
        policy=st.sampled_from([policy for policy in ReloadPolicy if policy is not ReloadPolicy.OFF]),
        overrun=st.sampled_from(list(Overrun)),
        nannies_choose=st.booleans(),
        n_workers=st.integers(0, 3),
    )
    def boot(self, policy, overrun, nannies_choose, n_workers):
        self.world = World(ReloadSettings(policy, overrun), KEYS, nannies_choose=nannies_choose)
        for name in [*(f"w{number}" for number in range(n_workers)), "n0", "scheduler"]:
            self.world.add(name, {"w": "worker", "n": "nanny", "s": "scheduler"}[name[0]])
        self.world.settle()
        self.n_names = 10

    @rule(data=st.data(), outcome=st.sampled_from([OK, OK, OK, FAIL, DIE, HANG]))
    def act(self, data, outcome):
        able = [name for name in self.world.processes if self.world.can_act(name)]
        if able:
            name = data.draw(st.sampled_from(able))
            if self.world.roles[name] == "scheduler" and outcome in (DIE, HANG):
                outcome = FAIL  # it lives in the user's process, and goes with it
            if isinstance(self.world.processes[name].inbox[0], StartMember) and self.world.roles[name] == "scheduler":
                outcome = OK
            self.world.act(name, outcome)

    @rule(data=st.data())
    def deliver(self, data):
        full = [name for name, words in self.world.outbox.items() if words]
        if full:
            self.world.deliver(data.draw(st.sampled_from(full)))

    @rule()
    def everything_arrives_and_is_done(self):
        for _ in range(3):
            for name in list(self.world.outbox):
                while self.world.outbox[name]:
                    self.world.deliver(name)
            for name in list(self.world.processes):
                if self.world.can_act(name):
                    self.world.act(name)

    @rule(
        keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True),
        quality=st.sampled_from(["good", "good", "bad body", "bad setup"]),
    )
    def save(self, keys, quality):
        self.world.save(keys, quality)

    @rule(key=st.sampled_from(KEYS), is_check=st.booleans())
    def ask(self, key, is_check):
        version = self.world.state.committed[key].version
        self.world.take(ReloadAsked(1, {key: (version.hash, version.source)}, "asked", is_check))
        if not is_check:
            self.world.last_saved.pop(key, None)

    @rule(key=st.sampled_from(KEYS))
    def save_what_does_not_compile(self, key):
        self.world.take(CompileFailed({key: "broken"}, "save", "x.py:1:1 SyntaxError"))
        self.world.last_saved.pop(key, None)

    @rule(data=st.data())
    def kill(self, data):
        able = [name for name in self.world.processes if self.world.roles[name] != "scheduler"]
        if able:
            name = data.draw(st.sampled_from(able))
            self.world.kill(name, data.draw(st.sampled_from([ExitWord.CRASHED, ExitWord.OUT_OF_MEMORY, ExitWord.ASKED])))

    @rule(data=st.data())
    def bear(self, data):
        missing = self.world.missing()
        if missing:
            self.world.bear(data.draw(st.sampled_from(missing)))

    @rule(data=st.data())
    def a_nanny_reads(self, data):
        waiting = [name for name, letters in self.world.letters.items() if letters]
        if waiting:
            self.world.read_letters(data.draw(st.sampled_from(waiting)))

    @rule()
    def scale_up(self):
        if len(self.world.roles) < 6:
            self.n_names += 1
            self.world.add(f"w{self.n_names}", "worker")

    @rule(data=st.data())
    def retire(self, data):
        able = [name for name in self.world.processes if self.world.roles[name] == "worker"]
        if able:
            self.world.kill(data.draw(st.sampled_from(able)), ExitWord.ASKED, is_retired=True)

    @rule(data=st.data())
    def make_busy(self, data):
        able = [name for name in self.world.processes if self.world.roles[name] == "worker"]
        if able:
            process = self.world.processes[data.draw(st.sampled_from(able))]
            process.is_busy = not process.is_busy

    @precondition(lambda self: next_deadline(self.world.state) is not None)
    @rule()
    def a_deadline_passes(self):
        self.world.pass_time()

    @rule(data=st.data())
    def stale_echo(self, data):
        """A word of an earlier life or attempt comes once more: dropped, whatever it says."""
        state = self.world.state

        def is_stale(event):
            member = state.members.get(event.member)
            if isinstance(event, MemberJoined):
                return event.life <= state.lives[event.member] if event.member in state.lives else False
            return member is None or event.life != member.life or getattr(event, "attempt", member.attempt) != member.attempt

        stale = [event for event in self.world.history[-60:] if is_stale(event)]
        if stale:
            before = repr(state)
            assert step(state, data.draw(st.sampled_from(stale)), self.world.now) == []
            assert repr(state) == before

    @invariant()
    def validate(self):
        if not hasattr(self, "world"):
            return
        state = self.world.state
        assert [wanted.is_check for wanted in state.wanted].count(False) <= 1
        if state.attempt is None:
            assert not state.wanted
            assert {member.state for member in state.members.values()} <= {"starting", "running", "discarding", "restarting", "broken"}

    def teardown(self):
        if hasattr(self, "world"):
            self.world.make_good()


AnythingInAnyOrder.TestCase.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAnythingInAnyOrder = AnythingInAnyOrder.TestCase


def test_the_same_events_give_the_same_commands():
    def run():
        world = World(ReloadSettings(), KEYS)
        for name in ("w0", "w1", "n0", "scheduler"):
            world.add(name, {"w": "worker", "n": "nanny", "s": "scheduler"}[name[0]])
        world.settle()
        world.save(list(KEYS), "bad setup")
        world.kill("w1")
        world.settle()
        world.make_good()
        return repr(world.log)

    assert run() == run()
