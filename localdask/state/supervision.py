"""One child's life: when to start it, ask it, force it, replace it, and when to give up.

Pure decisions. A nanny drives one of these for its worker, the cluster one for each
of its nannies, and the machine cannot tell which: whatever differs is a number in
``Limits``. It never forks, kills, waits or looks at a clock; time comes in as ``now``,
and what must happen later goes out as ``ChildState.deadline``.

``step(child, event, now)`` changes the child and returns commands, in the order in
which they are to be carried out. Every event carries the *life* that it is about;
one about another life is stale and dropped in one place. The caller keeps one
promise: ``ChildStarted`` or ``StartRefused`` is the first news of a life.

The phases, and what a child's process does meanwhile:

    idle        nothing was asked for yet; no process
    starting    asked for; it is not known yet whether there is a process
    aborting    as starting, but it was told to stop before it was there
    booting     a process that is not ready
    running     a process that is ready
    failing     a process whose boot failed or took too long; being ended
    stopping    a process that was asked to end, for good
    replacing   a process that was asked to end; another follows
    waiting     none; the next one starts after a pause
    degraded    none; it died too often, and only a request starts another
    failed      none; it never once became ready, and only a request starts another
    ended       none, and none will follow
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from localdask.errors import ExitWord
from localdask.records import field, record


class Phase(str, enum.Enum):
    """Where a child is in its life; the module's text tells what each means."""

    IDLE = "idle"
    STARTING = "starting"
    ABORTING = "aborting"
    BOOTING = "booting"
    RUNNING = "running"
    FAILING = "failing"
    STOPPING = "stopping"
    REPLACING = "replacing"
    WAITING = "waiting"
    DEGRADED = "degraded"
    FAILED = "failed"
    ENDED = "ended"


class Rung(enum.IntEnum):
    """How hard a process that is to end was pressed."""

    ASKED = 0
    TERMINATED = 1
    KILLED = 2


#: The grace of who is replaced without hurry: as long as its running tasks take.
PATIENCE_S = 1e6


@record(frozen=True)
class Limits:
    """Every time and count that bounds a child.

    ``margin_s`` is what a child may take beyond the grace that it was given, because it
    has children of its own to force. A death is *charged* to the restart budget when the
    life was short (ready for less than ``healthy_s``, or never) and nothing else answers
    for it; the pause before the next start doubles with each charged death.
    """

    boot_limit_s: float = 35.0
    boot_step_margin_s: float = 5.0
    boot_grace_s: float = 1.0
    margin_s: float = 0.0
    terminate_wait_s: float = 0.3
    kill_wait_s: float = 2.0
    fail_wait_s: float = 0.5
    n_restarts_max: int = 5
    period_s: float = 30.0
    healthy_s: float = 1.0
    first_pause_s: float = 0.1
    pause_max_s: float = 5.0


@record
class ChildState:
    """What is known of one child; only ``step`` changes it.

    ``was_ready`` says whether any life was ever ready: until then a failing boot is a
    failing start, which is told and not tried again. A keeper that takes over a child
    from a dead keeper passes the last ``life`` and ``was_ready`` on.
    """

    limits: Limits = field(default_factory=Limits)
    life: int = 0
    was_ready: bool = False
    phase: Phase = Phase.IDLE
    deadline: float | None = None
    rung: Rung = Rung.ASKED
    ready_since: float | None = None
    failing_word: ExitWord = ExitWord.BOOT_FAILED
    charged: deque[float] = field(default_factory=deque)
    n_restarts: int = 0

    @property
    def has_process(self) -> bool:
        """Whether a process of this child is known to live."""
        return self.phase in _WITH_PROCESS


_WITH_PROCESS = frozenset({Phase.BOOTING, Phase.RUNNING, Phase.FAILING, Phase.STOPPING, Phase.REPLACING})


# ── events ───────────────────────────────────────────────────────────────────


@record
class StartAsked:
    """The child is wanted."""


@record
class ChildStarted:
    """A process exists."""

    life: int


@record
class StartRefused:
    """No process could be made: a limit of the system, or whoever forks is gone."""

    life: int


@record
class ChildReady:
    """The child said that it is ready."""

    life: int


@record
class BootProgressed:
    """The child said that its start goes on with a step that may take ``limit_s``."""

    life: int
    limit_s: float = 0.0


@record
class BootBroken:
    """The child said that its start failed; it is about to end."""

    life: int


@record
class ChildExited:
    """The process is gone. ``blameless`` when something with a budget of its own answers for it, such as a task."""

    life: int
    word: ExitWord = ExitWord.CRASHED
    blameless: bool = False


@record
class StopAsked:
    """End the child for good."""

    grace_s: float


@record
class RestartAsked:
    """Replace the child, or start it again after it failed; the budget is refilled."""

    grace_s: float


@record
class DeadlinePassed:
    """The time ``ChildState.deadline`` has come. Too early is harmless."""


Event: TypeAlias = (
    "StartAsked | ChildStarted | StartRefused | ChildReady | BootProgressed | BootBroken | ChildExited | StopAsked | RestartAsked"
    " | DeadlinePassed"
)
EVENTS: tuple[type, ...] = (
    StartAsked,
    ChildStarted,
    StartRefused,
    ChildReady,
    BootProgressed,
    BootBroken,
    ChildExited,
    StopAsked,
    RestartAsked,
    DeadlinePassed,
)


# ── commands ─────────────────────────────────────────────────────────────────


@record
class StartChild:
    """Make a process; answer with ``ChildStarted`` or ``StartRefused``."""

    life: int


@record
class AskChild:
    """Ask it to end within ``grace_s`` seconds."""

    life: int
    grace_s: float


@record
class AbortChild:
    """Make it end showing where it hangs."""

    life: int


@record
class TerminateChild:
    """Tell it to end at once, politely."""

    life: int


@record
class KillChild:
    """End it, whatever it does. It may be a process of an earlier life that came too late."""

    life: int


@record
class ReportDown:
    """Tell that a process ended, and how."""

    life: int
    word: ExitWord


@record
class ReportFailed:
    """Tell that the first start failed; nothing is tried again."""

    life: int
    word: ExitWord


@record
class ReportDegraded:
    """Tell that the restart budget is spent."""

    n_deaths: int
    period_s: float


@record
class ReportAbandoned:
    """Tell that a process outlived SIGKILL (the kernel holds it) and is no longer waited for."""

    life: int


@record
class ReportEnded:
    """Tell that the child is stopped for good."""


Command: TypeAlias = (
    "StartChild | AskChild | AbortChild | TerminateChild | KillChild"
    " | ReportDown | ReportFailed | ReportDegraded | ReportAbandoned | ReportEnded"
)
Commands: TypeAlias = "list[Command]"


# ── moves ────────────────────────────────────────────────────────────────────
# One function for each thing that can be decided. They take the child, the event and
# the time, change the child, and return what is to be done.


def _enter(child: ChildState, phase: Phase, deadline: float | None = None) -> None:
    child.phase = phase
    child.deadline = deadline


def _start(child: ChildState, event: Event, now: float) -> Commands:
    child.life += 1
    child.ready_since = None
    child.rung = Rung.ASKED
    _enter(child, Phase.STARTING, now + child.limits.boot_limit_s)
    return [StartChild(child.life)]


def _start_afresh(child: ChildState, event: Event, now: float) -> Commands:
    child.charged.clear()
    return _start(child, event, now)


def _boot(child: ChildState, event: Event, now: float) -> Commands:
    _enter(child, Phase.BOOTING, child.deadline)
    return []


def _boot_on(child: ChildState, event: Event, now: float) -> Commands:
    assert isinstance(event, BootProgressed) and child.deadline is not None
    child.deadline = max(child.deadline, now + event.limit_s + child.limits.boot_step_margin_s)
    return []


def _become_ready(child: ChildState, event: Event, now: float) -> Commands:
    child.was_ready = True
    child.ready_since = now
    _enter(child, Phase.RUNNING)
    return []


def _refill(child: ChildState, event: Event, now: float) -> Commands:
    # The life that is being started began no earlier than the request, in effect.
    child.charged.clear()
    return []


def _abort(child: ChildState, event: Event, now: float) -> Commands:
    assert isinstance(event, StopAsked)
    _enter(child, Phase.ABORTING, now + event.grace_s + child.limits.margin_s)
    return []


def _abort_sooner(child: ChildState, event: Event, now: float) -> Commands:
    assert isinstance(event, StopAsked)
    _shorten(child, now + event.grace_s + child.limits.margin_s)
    return []


def _stop_newborn(child: ChildState, event: Event, now: float) -> Commands:
    deadline = child.deadline if child.deadline is not None else now
    _enter(child, Phase.STOPPING, deadline)
    return [AskChild(child.life, max(0.0, deadline - now - child.limits.margin_s))]


def _end(child: ChildState, event: Event, now: float) -> Commands:
    _enter(child, Phase.ENDED)
    return [ReportEnded()]


def _kill_stray(child: ChildState, event: Event, now: float) -> Commands:
    # Its start was given up before the process was known: nobody waits for it.
    return [KillChild(child.life)]


def _ask(child: ChildState, event: Event, phase: Phase, now: float) -> Commands:
    assert isinstance(event, StopAsked | RestartAsked)
    # A child that boots has no work to finish and may not listen before it is done.
    grace_s = min(event.grace_s, child.limits.boot_grace_s) if child.phase is Phase.BOOTING else event.grace_s
    child.rung = Rung.ASKED
    _enter(child, phase, now + grace_s + child.limits.margin_s)
    return [AskChild(child.life, grace_s)]


def _stop(child: ChildState, event: Event, now: float) -> Commands:
    return _ask(child, event, Phase.STOPPING, now)


def _replace(child: ChildState, event: Event, now: float) -> Commands:
    child.charged.clear()
    return _ask(child, event, Phase.REPLACING, now)


def _shorten(child: ChildState, deadline: float) -> None:
    if child.deadline is None or deadline < child.deadline:
        child.deadline = deadline


def _press_to_stop(child: ChildState, event: Event, now: float) -> Commands:
    # It is being ended already: keep the rung, and never give it more time than it had.
    assert isinstance(event, StopAsked)
    _enter(child, Phase.STOPPING, child.deadline)
    if child.rung is Rung.ASKED:
        _shorten(child, now + event.grace_s + child.limits.margin_s)
    return []


def _press_to_replace(child: ChildState, event: Event, now: float) -> Commands:
    assert isinstance(event, RestartAsked)
    child.charged.clear()
    _enter(child, Phase.REPLACING, child.deadline)
    if child.rung is Rung.ASKED:
        _shorten(child, now + event.grace_s + child.limits.margin_s)
    return []


def _climb(child: ChildState, event: Event, now: float) -> Commands:
    if child.rung is Rung.ASKED:
        child.rung = Rung.TERMINATED
        child.deadline = now + child.limits.terminate_wait_s
        return [TerminateChild(child.life)]
    child.rung = Rung.KILLED
    child.deadline = now + child.limits.kill_wait_s
    return [KillChild(child.life)]


def _climb_or_abandon(child: ChildState, event: Event, now: float) -> Commands:
    if child.rung is not Rung.KILLED:
        return _climb(child, event, now)
    _enter(child, Phase.ENDED)
    return [ReportAbandoned(child.life), ReportEnded()]


def _kill(child: ChildState, event: Event, now: float) -> Commands:
    child.rung = Rung.KILLED
    child.deadline = now + child.limits.kill_wait_s
    return [KillChild(child.life)]


def _fail_boot(child: ChildState, event: Event, now: float) -> Commands:
    child.failing_word = ExitWord.BOOT_FAILED
    _enter(child, Phase.FAILING, now + child.limits.fail_wait_s)
    return []


def _overdue(child: ChildState, event: Event, now: float) -> Commands:
    child.failing_word = ExitWord.HUNG
    _enter(child, Phase.FAILING, now + child.limits.fail_wait_s)
    return [AbortChild(child.life)]


def _give_up_start(child: ChildState, event: Event, now: float) -> Commands:
    # There is no process, or none that anybody knows of.
    word = ExitWord.HUNG if isinstance(event, DeadlinePassed) else ExitWord.BOOT_FAILED
    return _after_boot(child, word, now)


def _lose_boot(child: ChildState, event: Event, now: float) -> Commands:
    word = child.failing_word if child.phase is Phase.FAILING else ExitWord.BOOT_FAILED
    return _after_boot(child, word, now)


def _after_boot(child: ChildState, word: ExitWord, now: float) -> Commands:
    if child.was_ready:
        return [ReportDown(child.life, word), *_charge(child, now)]
    _enter(child, Phase.FAILED)
    return [ReportDown(child.life, word), ReportFailed(child.life, word)]


def _lose(child: ChildState, event: Event, now: float) -> Commands:
    assert isinstance(event, ChildExited)
    down = ReportDown(child.life, event.word)
    is_healthy = child.ready_since is not None and now - child.ready_since >= child.limits.healthy_s
    if event.blameless or is_healthy:
        child.n_restarts += 1
        return [down, *_start(child, event, now)]
    return [down, *_charge(child, now)]


def _charge(child: ChildState, now: float) -> Commands:
    """Charge a death to the budget: start again, pause first, or give up."""
    limits = child.limits
    # Boots that fail one after another never lapse: each may hang for longer than the period.
    while child.ready_since is not None and child.charged and child.charged[0] <= now - limits.period_s:
        child.charged.popleft()
    child.charged.append(now)
    n_deaths = len(child.charged)
    if n_deaths > limits.n_restarts_max:
        _enter(child, Phase.DEGRADED)
        return [ReportDegraded(n_deaths, limits.period_s)]
    child.n_restarts += 1
    if n_deaths == 1:
        return _start(child, StartAsked(), now)
    pause_s = min(limits.pause_max_s, limits.first_pause_s * 2.0 ** (n_deaths - 2))
    _enter(child, Phase.WAITING, now + pause_s)
    return []


def _finish_stop(child: ChildState, event: Event, now: float) -> Commands:
    _enter(child, Phase.ENDED)
    return [ReportDown(child.life, ExitWord.ASKED), ReportEnded()]


def _finish_replace(child: ChildState, event: Event, now: float) -> Commands:
    child.n_restarts += 1
    return [ReportDown(child.life, ExitWord.ASKED), *_start(child, event, now)]


# ── the table ────────────────────────────────────────────────────────────────

Act: TypeAlias = Callable[[ChildState, Event, float], "list[Command]"]


@record(frozen=True)
class Cell:
    """What one event does in one phase: the move, and every phase that it may lead to; none when it stays."""

    act: Act
    targets: tuple[Phase, ...] = ()


def _nothing(child: ChildState, event: Event, now: float) -> Commands:
    return []


IGNORE = Cell(_nothing)
#: Only a fault of the caller brings this event here; ``step`` raises.
IMPOSSIBLE = Cell(_nothing)

_LOST = (Phase.STARTING, Phase.WAITING, Phase.DEGRADED)
_BOOT_LOST = (Phase.FAILED, *_LOST)
_CELLS = {
    "·": IGNORE,
    "✗": IMPOSSIBLE,
    "start": Cell(_start, (Phase.STARTING,)),
    "afresh": Cell(_start_afresh, (Phase.STARTING,)),
    "boot": Cell(_boot, (Phase.BOOTING,)),
    "go-on": Cell(_boot_on),
    "ready": Cell(_become_ready, (Phase.RUNNING,)),
    "refill": Cell(_refill),
    "give-up": Cell(_give_up_start, _BOOT_LOST),
    "abort": Cell(_abort, (Phase.ABORTING,)),
    "sooner": Cell(_abort_sooner),
    "stop-born": Cell(_stop_newborn, (Phase.STOPPING,)),
    "fail": Cell(_fail_boot, (Phase.FAILING,)),
    "overdue": Cell(_overdue, (Phase.FAILING,)),
    "lose-boot": Cell(_lose_boot, _BOOT_LOST),
    "lose": Cell(_lose, _LOST),
    "stop": Cell(_stop, (Phase.STOPPING,)),
    "replace": Cell(_replace, (Phase.REPLACING,)),
    "press": Cell(_press_to_stop, (Phase.STOPPING,)),
    "swap": Cell(_press_to_replace, (Phase.REPLACING,)),
    "kill": Cell(_kill),
    "climb": Cell(_climb),
    "abandon": Cell(_climb_or_abandon, (Phase.STOPPING, Phase.ENDED)),
    "stopped": Cell(_finish_stop, (Phase.ENDED,)),
    "replaced": Cell(_finish_replace, (Phase.STARTING,)),
    "stray": Cell(_kill_stray),
    "end": Cell(_end, (Phase.ENDED,)),
}
_ROWS = """
          StartAsked ChildStarted StartRefused ChildReady BootProgressed BootBroken ChildExited StopAsked RestartAsked DeadlinePassed
idle      start      ✗            ✗            ✗          ✗              ✗          ✗           end       start        ·
starting  ✗          boot         give-up      ✗          ✗              ✗          ✗           abort     refill       give-up
aborting  ✗          stop-born    end          ✗          ✗              ✗          ✗           sooner    ·            end
booting   ✗          ✗            ✗            ready      go-on          fail       lose-boot   stop      replace      overdue
running   ✗          ✗            ✗            ·          ·              ·          lose        stop      replace      ·
failing   ✗          ✗            ✗            ·          ·              ·          lose-boot   press     swap         kill
stopping  ✗          ✗            ✗            ·          ·              ·          stopped     press     ·            abandon
replacing ✗          ✗            ✗            ·          ·              ·          replaced    press     swap         climb
waiting   ✗          stray        ·            ·          ·              ·          ·           end       afresh       start
degraded  ✗          stray        ·            ·          ·              ·          ·           end       afresh       ·
failed    ✗          stray        ·            ·          ·              ·          ·           end       afresh       ·
ended     ✗          stray        ·            ·          ·              ·          ·           ·         ·            ·
"""


def _read_table(text: str) -> dict[tuple[Phase, type], Cell]:
    header, *rows = (line.split() for line in text.strip("\n").splitlines())
    assert header == [kind.__name__ for kind in EVENTS]
    return {(Phase(row[0]), kind): _CELLS[word] for row in rows for kind, word in zip(EVENTS, row[1:], strict=True)}


TABLE = _read_table(_ROWS)


def step(child: ChildState, event: Event, now: float) -> Commands:
    """Take one event in; return the commands it calls for, in order.

    Raises
    ------
    AssertionError
        The event cannot happen in this phase: the caller has a fault.
    """
    life = getattr(event, "life", child.life)
    if life != child.life:
        # News of an earlier life. Nothing of it matters any more, save a process that came too late.
        return [KillChild(life)] if isinstance(event, ChildStarted) else []
    if isinstance(event, DeadlinePassed) and (child.deadline is None or now < child.deadline):
        return []
    phase = child.phase
    cell = TABLE[phase, type(event)]
    if cell is IMPOSSIBLE:
        raise AssertionError(f"{event} cannot happen to a child that is {phase.value}; its keeper has a fault")
    commands = cell.act(child, event, now)
    assert child.phase in (cell.targets or (phase,)), (
        f"{event} led from {phase.value} to {child.phase.value}, which the table does not have"
    )
    return commands


def transition_table() -> str:
    """Return the table as Markdown, for the documentation: a row for each phase, a column for each event."""
    lines = ["| | " + " | ".join(kind.__name__ for kind in EVENTS) + " |", "|---" * (len(EVENTS) + 1) + "|"]
    for phase in Phase:
        texts = []
        for kind in EVENTS:
            cell = TABLE[phase, kind]
            if cell is IGNORE:
                texts.append("·")
            elif cell is IMPOSSIBLE:
                texts.append("✗")
            else:
                texts.append(" or ".join(target.value for target in cell.targets or (phase,)))
        lines.append(f"| **{phase.value}** | " + " | ".join(texts) + " |")
    return "\n".join([*lines, "", "· ignored   ✗ impossible (the keeper has a fault)", ""])
