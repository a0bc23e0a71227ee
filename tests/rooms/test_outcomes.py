"""Whatever a call raised arrives: its type, its parts, its chain, and the frames it went through."""

from __future__ import annotations

import io
import linecache
import os
import pickle
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from localdask.errors import KilledWorker, PreloadError, RemoteError, SerializationError
from localdask.system import codec, outcomes
from localdask.system.outcomes import Err, Ok, dumps_error, dumps_outcome, loads_error, loads_outcome
from tests.live import bestiary

needs_groups = pytest.mark.skipif(not bestiary.HAS_GROUPS, reason="exception groups and notes came with Python 3.11")


def raised(function: Callable[..., Any], *args: Any) -> BaseException:
    try:
        function(*args)
    except BaseException as error:
        return error
    raise AssertionError(f"{function} raised nothing")


def travelled(error: BaseException, skip: int = 0) -> Any:
    """Return an exception as it arrives."""
    return loads_error(dumps_error(error, skip)).exception


def printed(error: BaseException) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


# ── the bestiary, in a worker of a few lines ─────────────────────────────────

WORKER = """
import struct, sys
from localdask.system import codec, outcomes
pipe = sys.stdout.buffer
sys.stdout = sys.stderr
def receive():
    (n,) = struct.unpack("<Q", sys.stdin.buffer.read(8))
    return sys.stdin.buffer.read(n)
while True:
    try:
        try:
            function, arguments = receive(), receive()
        except struct.error:
            break
        args, kwargs = codec.loads_arguments(arguments, {})
        data = outcomes.dumps_outcome(outcomes.Ok(codec.loads(function, "the function")(*args, **kwargs)))
    except BaseException as error:
        data = outcomes.dumps_outcome(outcomes.Err(error), skip=1)
    function = args = kwargs = None
    pipe.write(struct.pack("<Q", len(data)) + data)
    pipe.flush()
"""


class Worker:
    """Another process that runs one call after another."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def run(self, function: Any, *args: Any) -> Any:
        """Call in the worker; return its outcome. Raises what pickling the call raises here."""
        calls, answers = self.process.stdin, self.process.stdout
        assert calls and answers
        for part in (codec.dumps_function(function).pickled, codec.dumps_arguments(args, {})[0]):
            calls.write(struct.pack("<Q", len(part)) + part)
        calls.flush()
        (n,) = struct.unpack("<Q", answers.read(8))
        return loads_outcome(answers.read(n))


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.process.communicate()
    assert made.process.returncode == 0


@pytest.mark.parametrize("name", bestiary.GENTLE)
def test_each_bad_object_comes_to_what_the_bestiary_says(worker: Worker, name: str) -> None:
    case = bestiary.CASES[name]
    if case.call == "submit":
        assert case.error is not None
        with pytest.raises(case.error) as caught:
            worker.run(*case.submission())
        assert case.text in str(caught.value)
    else:
        outcome = worker.run(*case.submission())
        if case.error is None:
            assert isinstance(outcome, Ok)
        else:
            assert type(outcome.exception) is case.error
            assert outcome.traceback_text
            if case.text:
                assert case.text in str(outcome.exception)
    assert worker.run(len, "the next task runs").unwrap() == 18


def test_a_bad_object_at_gc_was_one(worker: Worker) -> None:
    """The cases that end in nothing must not do so because nothing happened."""
    made = bestiary.BadAtGc("nothing", "away")
    made.home = -1
    made.way = "error"
    with pytest.raises(RuntimeError):
        made.act()
    made.way = "nothing"


# ── one exception ────────────────────────────────────────────────────────────


def test_type_args_and_attributes_are_kept() -> None:
    error = bestiary.TwoArguments(5, "why")
    error.extra = {"a": [1]}  # type: ignore[attr-defined]
    found = travelled(error)
    assert type(found) is bestiary.TwoArguments
    assert found.args == ("5: why",)
    assert (found.code, found.reason, found.extra) == (5, "why", {"a": [1]})


def test_slots_are_kept_also_private_and_inherited_ones() -> None:
    found = travelled(_Deep("text"))
    assert (found.code, found.secret(), found.args) == (5, 6, ("text", 5))
    assert not hasattr(found, "never_filled")


class _Deep(bestiary.Slotted):
    __slots__ = ("__secret", "never_filled")

    def __init__(self, text: str) -> None:
        Exception.__init__(self, text, 5)
        self.code = 5
        self.__secret = 6

    def secret(self) -> int:
        return self.__secret


def test_what_only_the_builtin_keeps_is_kept() -> None:
    assert travelled(OSError(2, "no", "file", None, "other")).filename2 == "other"
    assert type(travelled(OSError(2, "no", "file"))) is FileNotFoundError
    assert travelled(SystemExit(3)).code == 3
    assert travelled(StopIteration(4)).value == 4
    assert travelled(ImportError("x", name="n", path="p")).name == "n"
    assert travelled(UnicodeDecodeError("utf-8", b"a", 0, 1, "r")).object == b"a"
    found = travelled(bestiary.OwnOsError("/nowhere"))
    assert (found.errno, found.filename, found.path, found.args) == (2, "/nowhere", "/nowhere", (2, "not there"))


def test_an_init_that_formats_is_not_called_again() -> None:
    assert travelled(travelled(bestiary.FormatsTwice("a"))).args == ("<a>",)


def test_parts_that_cannot_travel_arrive_as_text_and_the_rest_as_it_is() -> None:
    found = travelled(bestiary.HoldsLock())
    assert type(found) is bestiary.HoldsLock
    assert found.args[0] == "holds"
    assert "_thread.lock" in found.args[1]
    assert "_thread.lock" in found.lock
    assert found.code == 5
    if bestiary.HAS_GROUPS:
        assert any("args[1] (TypeError: cannot pickle '_thread.lock' object)" in note for note in found.__notes__)


def test_pickling_code_of_its_own_is_used() -> None:
    class Own(Exception):
        def __reduce__(self) -> Any:
            return (_own, ("made by its own code",))

    def _own(text: str) -> Exception:
        return Own(text)

    assert travelled(Own("raised")).args == ("made by its own code",)


def test_an_exception_that_cannot_travel_has_a_stand_in_that_says_so() -> None:
    found = travelled(bestiary.untravelled())
    assert type(found) is RemoteError
    assert found.type_name.endswith("untravelled.<locals>.Untravelled")
    assert found.text == "has a lock in its class"
    assert "_thread.lock" in found.why
    assert "has a lock in its class" in str(found)
    assert "could not travel" in str(found)


def test_an_exception_whose_class_is_not_known_here_has_a_stand_in() -> None:
    data = dumps_error(bestiary.TwoArguments(5, "why")).replace(b"bestiary", b"yraitseb")
    found = loads_error(data).exception
    assert isinstance(found, RemoteError)
    assert "5: why" in str(found)
    assert "ModuleNotFoundError" in found.why


def test_localdasks_own_errors_keep_their_fields() -> None:
    killed = travelled(KilledWorker("task", "w0", 3, "SIGKILL", 5, ("line",)))
    assert (type(killed), killed.task, killed.last_lines) == (KilledWorker, "task", ("line",))
    failed = travelled(PreloadError("no", preload="x.py", process="w0", where="x.py:3", detail="tail"))
    assert (failed.preload, failed.where) == ("x.py", "x.py:3")
    stand_in = travelled(RemoteError("Name", "text", "why"))
    assert (stand_in.type_name, stand_in.text, stand_in.why) == ("Name", "text", "why")


@pytest.mark.parametrize("failing", ["_links", "_traceback_text"])
@pytest.mark.parametrize("kind", [MemoryError, RecursionError, KeyboardInterrupt, ValueError])
def test_when_describing_fails_too_something_still_arrives(monkeypatch: pytest.MonkeyPatch, failing: str, kind: Any) -> None:
    def fail(*_args: Any) -> Any:
        raise kind("none left")

    monkeypatch.setattr(outcomes, failing, fail)
    found = travelled(bestiary.TwoArguments(5, "why"))
    assert isinstance(found, RemoteError)
    assert found.type_name == "TwoArguments"
    assert kind.__name__ in found.why


def test_a_huge_message_is_kept_in_the_exception_and_cut_in_the_text() -> None:
    error = loads_error(dumps_error(raised(_raise, ValueError("x" * 5_000_000))))
    assert len(error.exception.args[0]) == 5_000_000
    assert len(error.traceback_text) < 150_000
    assert "characters left out" in error.traceback_text


def _raise(error: BaseException) -> None:
    raise error


# ── chains, groups, notes ────────────────────────────────────────────────────


def test_cause_and_context_are_kept_each_with_its_traceback() -> None:
    found = travelled(bestiary.CASES["raised cause and context"].make())
    assert isinstance(found.__cause__, bestiary.TwoArguments)
    assert isinstance(found.__cause__.__context__, KeyError)
    assert found.__suppress_context__
    assert not found.__cause__.__suppress_context__
    text = printed(found)
    assert text.index("KeyError: 'first'") < text.index("During handling") < text.index("direct cause") < text.index("ValueError: third")
    assert text.count("in fail") == 3


def test_a_suppressed_context_stays_suppressed() -> None:
    def fail() -> None:
        try:
            raise KeyError("hidden")
        except KeyError:
            raise ValueError("shown") from None

    found = travelled(raised(fail))
    assert found.__suppress_context__
    assert "hidden" not in printed(found)


def test_a_cause_that_cannot_travel_spoils_only_itself() -> None:
    found = travelled(bestiary.CASES["raised unpicklable cause"].make())
    assert type(found) is ValueError
    assert isinstance(found.__cause__, RemoteError)


def test_a_circle_of_contexts_stays_one() -> None:
    found = travelled(bestiary.CASES["raised circle of contexts"].make())
    assert type(found.__context__) is KeyError
    assert found.__context__.__context__ is found
    assert printed(found)


def test_a_chain_without_end_is_cut() -> None:
    error = first = ValueError(0)
    for number in range(1, 5000):
        error.__cause__ = error = ValueError(number)
    found, length = travelled(first), 0
    while found is not None:
        found, length = found.__cause__, length + 1
    assert length == outcomes.MAX_EXCEPTIONS


@needs_groups
def test_a_groups_members_are_kept_with_their_own_chains() -> None:
    member = bestiary.CASES["raised cause and context"].make()
    group = raised(_raise, ExceptionGroup("several", [member, ExceptionGroup("inner", [bestiary.TwoArguments(1, "a")])]))  # noqa: F821
    found = travelled(group)
    assert type(found) is ExceptionGroup  # noqa: F821
    assert found.message == "several"
    assert isinstance(found.exceptions[0].__cause__, bestiary.TwoArguments)
    assert found.exceptions[1].exceptions[0].reason == "a"
    assert "in fail" in printed(found)
    assert found.split(bestiary.TwoArguments)[0] is not None


@needs_groups
def test_a_group_of_ones_own_keeps_its_class_and_fields() -> None:
    found = travelled(bestiary.CASES["raised own group"].make())
    assert type(found) is bestiary.OwnGroup
    assert found.code == 5
    assert found.derive([ValueError()]).code == 5


@needs_groups
def test_a_group_with_a_member_that_cannot_travel_has_a_stand_in_for_it() -> None:
    found = travelled(ExceptionGroup("several", [bestiary.untravelled(), ValueError("a")]))  # noqa: F821
    assert [type(member) for member in found.exceptions] == [RemoteError, ValueError]


@needs_groups
def test_a_group_of_a_thousand_keeps_what_the_bound_allows() -> None:
    found = travelled(ExceptionGroup("many", [ValueError(number) for number in range(1000)]))  # noqa: F821
    assert len(found.exceptions) == outcomes.MAX_EXCEPTIONS - 1


@needs_groups
def test_notes_are_kept() -> None:
    assert travelled(bestiary.CASES["raised notes"].make()).__notes__ == ["a note of the user's"]
    assert "a note of the user's" in loads_error(dumps_error(bestiary.CASES["raised notes"].make())).traceback_text


# ── tracebacks ───────────────────────────────────────────────────────────────


def outer(depth: int) -> None:
    inner(depth)


def inner(depth: int) -> None:
    if depth:
        inner(depth - 1)
    raise ValueError("deep")


def test_the_traceback_has_the_remote_frames_with_their_lines() -> None:
    error = loads_error(dumps_error(raised(outer, 1), skip=1))
    assert [frame[2] for frame in error.frames] == ["outer", "inner", "inner"]
    assert error.frames[0][0] == __file__
    assert error.frames[0][3] == "inner(depth)"
    local = raised(error.unwrap)
    text = printed(local)
    assert f'File "{__file__}", line {error.frames[2][1]}, in inner' in text
    assert 'raise ValueError("deep")' in text
    assert "in raised" in text.split("in outer")[0], "the caller's frames stand above the remote ones"


def test_frames_are_real_to_those_who_walk_them() -> None:
    frames = list(traceback.walk_tb(loads_error(dumps_error(raised(outer, 0))).remote_traceback))
    assert [frame.f_code.co_name for frame, _lineno in frames] == ["raised", "outer", "inner"]
    assert all(frame.f_code.co_filename == __file__ and frame.f_lineno == lineno for frame, lineno in frames)


def test_no_marks_are_put_under_words_that_are_not_the_remote_ones() -> None:
    text = printed(raised(loads_error(dumps_error(raised(outer, 0), skip=1)).unwrap))
    remote = text[text.index("in outer") :]
    assert "^" not in remote
    assert "~" not in remote


def test_the_interpreters_own_printing_shows_the_remote_frames(tmp_path: Any) -> None:
    script = f"""if 1:
        import sys
        from localdask.system import outcomes
        outcomes.loads_error({dumps_error(raised(outer, 0), 1)!r}).unwrap()
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    lines = done.stderr.splitlines()
    start = next(number for number, line in enumerate(lines) if line.endswith("in outer"))
    assert lines[start + 1 :] == [
        "    inner(depth)",
        f'  File "{__file__}", line {lines[start + 2].split("line ")[1].split(",")[0]}, in inner',
        '    raise ValueError("deep")',
        "ValueError: deep",
    ]


def test_raising_again_does_not_lengthen_the_traceback() -> None:
    error = loads_error(dumps_error(raised(outer, 0)))
    lengths = [len(list(traceback.walk_tb(raised(error.unwrap).__traceback__))) for _ in range(3)]
    assert len(set(lengths)) == 1


def test_endless_recursion_is_cut_at_both_ends() -> None:
    error = loads_error(dumps_error(raised(bestiary.too_deep), skip=1))
    assert len(error.frames) == outcomes.MAX_FRAMES
    assert type(error.exception) is RecursionError
    assert len(error.traceback_text) < 5000


def test_lines_of_a_file_that_is_not_here_are_shown() -> None:
    name = "<cell 17 of the test>"
    lines = ["def cell():\n", "    raise ValueError('in a cell')\n"]
    linecache.cache[name] = (1, None, lines, name)
    namespace: dict[str, Any] = {}
    exec(compile("".join(lines), name, "exec"), namespace)
    data = dumps_error(raised(namespace["cell"]), skip=1)
    del linecache.cache[name]
    found = loads_error(data)
    assert found.frames == ((name, 2, "cell", "raise ValueError('in a cell')"),)
    assert "raise ValueError('in a cell')" in printed(found.exception)


def test_remembered_lines_of_absent_files_are_bounded() -> None:
    for number in range(outcomes.MAX_REMEMBERED_FILES + 20):
        outcomes._remember_lines(((f"<absent {number}>", 5, "f", "line"),))
    assert len(outcomes._remembered) == outcomes.MAX_REMEMBERED_FILES
    assert linecache.getline(f"<absent {number}>", 5) == "line\n"
    assert linecache.getline("<absent 0>", 5) == ""
    outcomes._remember_lines((("<absent far>", 10**9, "f", "line"),))
    assert "<absent far>" not in linecache.cache


def test_lines_of_a_file_that_is_here_are_read_from_it() -> None:
    outcomes._remember_lines(((__file__, 1, "f", "not what it says"),))
    assert linecache.getline(__file__, 1).startswith('"""Whatever')


def test_an_exception_that_was_never_raised_has_no_frames() -> None:
    error = loads_error(dumps_error(ValueError("calm"), skip=5))
    assert (error.frames, error.remote_traceback) == ((), None)
    assert error.traceback_text == "ValueError: calm\n"
    assert str(raised(error.unwrap)) == "calm"


def test_skipping_more_frames_than_there_are_leaves_none() -> None:
    assert loads_error(dumps_error(raised(outer, 0), skip=50)).frames == ()


def test_a_travelled_error_travels_on() -> None:
    once = loads_error(dumps_error(raised(outer, 1), skip=1))
    twice = loads_error(dumps_error(once.exception))
    assert twice.frames == once.frames


# ── outcomes ─────────────────────────────────────────────────────────────────


def test_a_value_and_an_error_come_out_as_they_went_in() -> None:
    assert loads_outcome(dumps_outcome(Ok([1, "a"]))) == Ok([1, "a"])
    assert loads_outcome(dumps_outcome(Ok(5))).unwrap() == 5
    found = loads_outcome(dumps_outcome(Err(raised(outer, 0)), skip=1))
    assert isinstance(found, Err)
    assert [frame[2] for frame in found.frames] == ["outer", "inner"]


def test_a_value_that_cannot_be_pickled_is_the_error_that_says_so() -> None:
    found = loads_outcome(dumps_outcome(Ok({"lock": threading.Lock()})))
    assert isinstance(found, Err)
    with pytest.raises(SerializationError, match=r"result\['lock'\] is a _thread\.lock"):
        found.unwrap()


def test_a_value_that_cannot_be_loaded_here_is_an_error_too() -> None:
    data = dumps_outcome(Ok(bestiary.BadAtUnpickle("error", "anywhere")))
    found = loads_outcome(data)
    with pytest.raises(SerializationError, match=f"cannot unpickle the result: RuntimeError: {bestiary.TEXT_OF_ERROR}"):
        found.unwrap()


def test_an_errors_bytes_name_nothing_of_the_users_in_the_outer_layer() -> None:
    class Plain(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            raise AssertionError(f"{module}.{name} was named")

    text, links = Plain(io.BytesIO(dumps_error(bestiary.CASES["raised cause and context"].make()))).load()
    assert len(links) == 3
    assert "ValueError: third" in text
