"""What a reload remembers, hears and says: versions, members, attempts, their events, commands and reports.

Plain data for ``state/reload.py``, which alone changes it. The cluster's process makes the
events, carries out the commands and shows the reports; nothing here decides anything,
and nothing looks into a source.

The states of a member:

    absent         no process of that name
    starting       being born on the committed versions
    running        up, and part of no attempt
    called         told to load; the body has not begun
    loading        the new body runs
    discarding     told to forget what it was called to load, and not known to be out of its body
    loaded         voted for the load (under the policy "restart": is to be replaced)
    waiting        told to swap; its tasks are not done
    swapping       old teardown and new setup run
    swapped        voted for the swap
    standing_down  told to roll back; its swap had not begun, or is over and it runs tasks
    rolling_back   new teardown and old setup run
    replacing      to make way for a process on the new versions
    vacant         made way; the next process is not born yet
    trial          being born on the new versions
    proven         born on the new versions, and up
    restarting     to make way for a process on the committed versions
    broken         in doubt, and cannot be replaced (the scheduler): said so; tries again at the next reload

``TABLE_TEXT`` says what each event does to a member in each of them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias

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
from localdask.records import field, record

#: A preload: the role that it is for, and its place among that role's preloads.
Key: TypeAlias = "tuple[str, int]"
#: What a member starts from or loads: rows of (index, generation, version, source).
Sources: TypeAlias = "tuple[tuple[int, int, int, Any], ...]"

MemberState: TypeAlias = Literal[
    "starting",
    "running",
    "called",
    "loading",
    "discarding",
    "loaded",
    "waiting",
    "swapping",
    "swapped",
    "standing_down",
    "rolling_back",
    "replacing",
    "vacant",
    "trial",
    "proven",
    "restarting",
    "broken",
]

#: The version that a preload runs when nobody can tell.
UNKNOWN = -1


class ReloadPolicy(str, enum.Enum):
    """All at once, one at a time, by new processes, or only when asked."""

    ATOMIC = "atomic"
    ROLLING = "rolling"
    RESTART = "restart"
    OFF = "off"


class Overrun(str, enum.Enum):
    """What is done about tasks that outlast the grace time."""

    WAIT = "wait"
    INTERRUPT = "interrupt"
    RESTART_WORKER = "restart-worker"


class ReloadOutcome(str, enum.Enum):
    """How an attempt, or an edit that led to none, ended."""

    SWAPPED = "swapped"
    BROUGHT_ALONG = "brought-along"
    CHECKED = "checked"
    UNCHANGED = "unchanged"
    OFF = "off"
    FAILED_TO_COMPILE = "failed-to-compile"
    FAILED_TO_LOAD = "failed-to-load"
    ROLLED_BACK = "rolled-back"


class AttemptKind(enum.Enum):
    """What an attempt is for: new bytes, a look whether they load, or processes that stayed behind."""

    RELOAD = enum.auto()
    CHECK = enum.auto()
    CATCH_UP = enum.auto()


class AttemptPhase(enum.Enum):
    """How far an attempt is."""

    LOADING = enum.auto()
    SWAPPING = enum.auto()
    ROLLING_BACK = enum.auto()


# ── what is remembered ───────────────────────────────────────────────────────


@record(frozen=True)
class ReloadSettings:
    """Policy and times. The limits are for a member that begun and does not answer; hooks have closer ones of their own."""

    policy: ReloadPolicy = ReloadPolicy.ATOMIC
    overrun: Overrun = Overrun.WAIT
    grace_s: float = 10.0
    load_limit_s: float = 30.0
    swap_limit_s: float = 40.0
    start_limit_s: float = 60.0


@record(frozen=True)
class PreloadVersion:
    """Bytes that were proposed, by the attempt of that number; the first load has number 0."""

    number: int
    hash: str
    source: Any


@record(frozen=True)
class CommittedPreload:
    """The last good version of a preload. Generation 0 was never loaded."""

    generation: int
    version: PreloadVersion


@record
class ReloadMember:
    """One process: ``on`` is what it runs of each preload, ``candidate`` what it was told to load, in which ``attempt``."""

    name: str
    life: int
    role: str
    is_replaceable: bool
    state: MemberState
    on: dict[Key, int]
    candidate: dict[Key, PreloadVersion] = field(default_factory=dict)
    attempt: int | None = None
    deadline: float | None = None
    told_at: float = 0.0


@record
class MemberAccount:
    """What one process did in one attempt: how it voted, and how it ended."""

    member: str
    life: int
    role: str
    vote: str = ""
    ended: str = ""
    load_s: float = 0.0
    swap_s: float = 0.0
    roll_back_s: float = 0.0
    detail: str = ""
    traceback_text: str = ""


@record(frozen=True)
class PreloadAccount:
    """A preload in a report: ``hash`` is that of the bytes tried, ``generation`` the one that holds now."""

    role: str
    index: int
    generation: int
    hash: str


@record(frozen=True)
class ReloadReport:
    """The one record of an attempt. ``began`` and ``ended`` are in the caller's ``now``."""

    attempt: int
    outcome: ReloadOutcome
    cause: str
    detail: str
    began: float
    ended: float
    preloads: tuple[PreloadAccount, ...]
    members: tuple[MemberAccount, ...] = ()
    requests: tuple[int, ...] = ()


@record
class ReloadAttempt:
    """The attempt that runs. ``outcome`` is set as soon as it is being undone."""

    number: int
    kind: AttemptKind
    policy: ReloadPolicy
    cause: str
    began: float
    requests: tuple[int, ...] = ()
    candidates: dict[Key, PreloadVersion] = field(default_factory=dict)
    phase: AttemptPhase = AttemptPhase.LOADING
    waves: list[list[str]] = field(default_factory=list)
    has_replaced: bool = False
    accounts: dict[tuple[str, int], MemberAccount] = field(default_factory=dict)
    outcome: ReloadOutcome | None = None
    detail: str = ""


@record
class WantedReload:
    """An attempt that is to follow: the newest bytes of what changed since the running one began."""

    is_check: bool
    sources: dict[Key, tuple[str, Any]] = field(default_factory=dict)
    forced: set[Key] = field(default_factory=set)
    causes: list[str] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)

    def add(self, sources: Mapping[Key, tuple[str, Any]], cause: str, request: int | None) -> None:
        """The newest bytes of each preload win; what somebody asked for runs even if it is unchanged."""
        self.sources.update(sources)
        if cause not in self.causes:
            self.causes.append(cause)
        if request is not None:
            self.requests.append(request)
            self.forced.update(sources)


@record
class ReloadState:
    """Everything that is known; only ``step`` changes it. ``lives`` holds the last life of every name."""

    committed: dict[Key, CommittedPreload]
    settings: ReloadSettings = field(default_factory=ReloadSettings)
    number: int = 0
    members: dict[str, ReloadMember] = field(default_factory=dict)
    lives: dict[str, int] = field(default_factory=dict)
    attempt: ReloadAttempt | None = None
    wanted: list[WantedReload] = field(default_factory=list)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is going on: no attempt, none to follow, nobody being born or replaced."""
        return self.attempt is None and not self.wanted and all(m.state in ("running", "broken") for m in self.members.values())

    def is_stale(self, event: ReloadEvent) -> bool:
        """Return whether a life or an attempt that is over says this."""
        if isinstance(event, MemberJoined):
            return event.life <= self.lives.get(event.member, -1)
        if isinstance(event, (MemberStarted, MemberLeft, *VOTES)):
            member = self.members.get(event.member)
            return member is None or member.life != event.life or getattr(event, "attempt", member.attempt) != member.attempt
        return False

    def members_in(self, *states: MemberState) -> list[ReloadMember]:
        """Return the members in these states, in the order in which they joined."""
        return [member for member in self.members.values() if member.state in states]

    def sources(self, role: str, instead: Mapping[Key, PreloadVersion] | None = None) -> Sources:
        """Return the last good sources of a role, which a newborn starts from; or others in the place of some."""
        rows = []
        for key, committed in self.committed.items():
            if key[0] == role:
                version = committed.version if instead is None else instead.get(key, committed.version)
                is_new = version.number != committed.version.number
                rows.append((key[1], committed.generation + is_new, version.number, version.source))
        return tuple(rows)

    def accounts_of(self, tried: Mapping[Key, PreloadVersion]) -> tuple[PreloadAccount, ...]:
        """Return what a report says of the preloads of which these versions were tried."""
        return tuple(PreloadAccount(*key, self.committed[key].generation, version.hash) for key, version in tried.items())

    def behind(self, member: ReloadMember) -> list[Key]:
        """Return the preloads of which a member does not run what is committed."""
        rows = self.committed.items()
        return [key for key, preload in rows if key[0] == member.role and member.on.get(key) != preload.version.number]


# ── events ───────────────────────────────────────────────────────────────────
# … and the votes of the members, which travel: Begun, Loaded, LoadFailed, Swapped, SwapFailed, RolledBack, RollBackFailed.


@record
class SourceChanged:
    """These preloads have new bytes, which compile: key → (hash, source)."""

    sources: Mapping[Key, tuple[str, Any]]
    cause: str


@record
class CompileFailed:
    """These preloads have new bytes, which do not compile."""

    hashes: Mapping[Key, str]
    cause: str
    detail: str
    requests: tuple[int, ...] = ()


@record
class ReloadAsked:
    """Somebody asked for a reload, changed or not; ``is_check`` only loads. The report names the request."""

    request: int
    sources: Mapping[Key, tuple[str, Any]]
    cause: str
    is_check: bool = False


@record
class MemberJoined:
    """A process is being born. ``versions`` (index → version) when whoever made it chose them; else ``StartMember`` does."""

    member: str
    life: int
    role: str
    versions: Mapping[int, int] | None = None
    is_replaceable: bool = True


@record
class MemberStarted:
    """Its preloads are set up."""

    member: str
    life: int


@record
class MemberLeft:
    """The process is gone; ``is_retired`` when none of that name will follow."""

    member: str
    life: int
    word: ExitWord = ExitWord.CRASHED
    is_retired: bool = False


@record
class ReloadDeadlinePassed:
    """The time of ``next_deadline`` has come. Too early is harmless."""


ReloadEvent: TypeAlias = (
    "SourceChanged | CompileFailed | ReloadAsked | MemberJoined | MemberStarted | MemberLeft | ReloadDeadlinePassed"
    " | Begun | Loaded | LoadFailed | Swapped | SwapFailed | RolledBack | RollBackFailed"
)

# ── commands ─────────────────────────────────────────────────────────────────
# … and those that travel: LoadGeneration, SwapGeneration, RollBack, Discard, Commit, InterruptTasks.


@record
class StartMember:
    """Let this newborn start from these sources."""

    member: str
    life: int
    sources: Sources


@record
class RestartMember:
    """Replace the process, or start one where it is gone, on these sources; ``grace_s`` is None when its tasks may take what they take."""

    member: str
    life: int
    attempt: int
    grace_s: float | None
    sources: Sources


@record
class KeepSources:
    """Whoever starts processes of this role by itself starts them from these sources, from now on."""

    role: str
    sources: Sources


@record
class Tell:
    """Tell the user how an attempt ended."""

    report: ReloadReport


@record
class TellWaiting:
    """Tell the user that a process holds an attempt up."""

    attempt: int
    member: str
    waited_s: float


ReloadCommand: TypeAlias = (
    "StartMember | RestartMember | KeepSources | Tell | TellWaiting"
    " | LoadGeneration | SwapGeneration | RollBack | Discard | Commit | InterruptTasks"
)

# ── which event moves a member in which state ────────────────────────────────

#: What each event does to a member in each state: the name of a move, "-" when it is
#: ignored (words that crossed on the pipe, or stale ones), "!" when nobody can say it.
TABLE_TEXT: Final = """
·             joined started left     begun      loaded load_failed swapped swap_failed rolled_back roll_back_failed deadline
absent        join   -       -        -          -      -           -       -           -           -                !
starting      rejoin start   leave    !          !      !           !       !           !           !                !
running       rejoin !       leave    !          !      !           !       !           !           !                !
called        rejoin !       leave    begin_load load   fail_load   !       !           !           !                overrun
loading       rejoin !       die      !          load   fail_load   !       !           !           !                hang
discarding    rejoin !       leave    begin_end  settle settle      !       !           !           !                hang_back
loaded        rejoin !       leave    !          !      !           !       !           !           !                !
waiting       rejoin !       leave    begin_swap !      !           swap    fail_swap   !           !                overrun
swapping      rejoin !       die      !          !      !           swap    fail_swap   !           !                hang
swapped       rejoin !       leave    !          !      !           !       !           !           !                !
standing_down rejoin !       leave    begin_back !      !           -       -           roll_back   fail_back        wait_longer
rolling_back  rejoin !       leave    -          !      !           -       -           roll_back   fail_back        hang_back
replacing     reborn !       make_way -          -      refuse      -       refuse      !           !                delay
vacant        reborn -       make_way -          -      -           -       -           -           -                fail_trial
trial         rejoin prove   die      !          !      !           !       !           !           !                fail_trial
proven        rejoin !       leave    !          !      !           !       !           !           !                !
restarting    rejoin -       leave    -          -      -           -       -           -           -                !
broken        rejoin !       leave    -          -      -           -       -           -           -                !
"""
#: The columns of the table, by the classes of their events.
COLUMNS: Final[dict[type, str]] = {
    MemberJoined: "joined",
    MemberStarted: "started",
    MemberLeft: "left",
    Begun: "begun",
    Loaded: "loaded",
    LoadFailed: "load_failed",
    Swapped: "swapped",
    SwapFailed: "swap_failed",
    RolledBack: "rolled_back",
    RollBackFailed: "roll_back_failed",
    ReloadDeadlinePassed: "deadline",
}
#: What a member says in an attempt.
VOTES: Final = (Begun, Loaded, LoadFailed, Swapped, SwapFailed, RolledBack, RollBackFailed)


def _read_table() -> dict[tuple[str, str], str]:
    header, *rows = (line.split() for line in TABLE_TEXT.strip().splitlines())
    return {(row[0], column): move for row in rows for column, move in zip(header[1:], row[1:], strict=True)}


TABLE: Final[Mapping[tuple[str, str], str]] = _read_table()
