"""How localdask talks: whole lines, escaped, coloured where that is wanted, and never in anybody's way."""

from __future__ import annotations

import contextlib
import io
import os
import threading

import pytest

from localdask.cli.talk import PENDING_LINES_MAX, Talker, escape, log_line, table, wants_colour


def test_control_characters_are_shown_and_plain_text_is_left_alone() -> None:
    assert escape("a\tb ✓ é 数 🎉") == "a\tb ✓ é 数 🎉"
    assert escape("\x1b[31mred\x07\r\n\x00\x7f\x9b") == "\\x1b[31mred\\x07\\x0d\\x0a\\x00\\x7f\\x9b"
    assert escape("user\u202egnp.exe\u2028") == "user\\u202egnp.exe\\u2028"
    assert escape("\udcff").encode() == b"\\udcff"


def test_a_log_line_has_its_process_in_front() -> None:
    assert log_line("w0", "ready\x1b[2J", coloured=False) == "w0 │ ready\\x1b[2J"
    coloured = [log_line(f"w{number}", "x", coloured=True) for number in range(3)]
    assert all(line.startswith("\x1b[") and line.endswith("\x1b[0m x") for line in coloured)
    assert len({line.replace("w0", "w").replace("w1", "w").replace("w2", "w") for line in coloured}) == 3
    assert log_line("w1", "x", coloured=True) == coloured[1]


def test_a_line_without_end_is_cut_and_says_so() -> None:
    assert len(log_line("w0", "x" * 10_000_000, coloured=False)) < 5_000
    assert log_line("w0", "x" * 5_000, coloured=False).endswith("… (1000 more characters)")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environ", "wanted"),
    [
        (Terminal(), {}, True),
        (io.StringIO(), {}, False),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {"FORCE_COLOR": "1"}, True),
        (Terminal(), {"FORCE_COLOR": "0"}, False),
        (io.StringIO(), {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colours_are_for_terminals_unless_the_environment_says_otherwise(
    stream: io.StringIO, environ: dict[str, str], wanted: bool
) -> None:
    assert wants_colour(stream, environ) is wanted


def test_lines_come_out_whole_and_in_order() -> None:
    stream = io.StringIO()
    talker = Talker(stream, {})
    for number in range(1000):
        talker.say(f"line {number}")
    talker.close()
    assert stream.getvalue().splitlines() == [f"line {number}" for number in range(1000)]


class Stuck(io.StringIO):
    """A terminal that was stopped with Ctrl-S."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()
        self.is_waiting = threading.Event()

    def write(self, text: str) -> int:
        self.is_waiting.set()
        self.goes_on.wait()
        return super().write(text)


def test_a_terminal_that_stands_still_stops_nobody_and_what_is_dropped_is_counted() -> None:
    stream = Stuck()
    talker = Talker(stream, {})
    talker.say("first")
    stream.is_waiting.wait()
    for number in range(PENDING_LINES_MAX + 7):
        talker.say(f"line {number}")
    stream.goes_on.set()
    talker.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == PENDING_LINES_MAX + 2
    assert lines[-2:] == [f"line {PENDING_LINES_MAX - 1}", "(7 lines were dropped: the terminal or pipe was too slow)"]


def test_a_pipe_that_nobody_reads_silences_the_talker_and_nothing_else() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), open(writer, "w", buffering=1) as stream:
        talker = Talker(stream, {})
        talker.say("to nobody")
        talker.say("to nobody still")
        talker.close()
        assert not talker._thread.is_alive()


def test_columns_are_aligned() -> None:
    assert table([("preload", "x.py", "dask_setup"), ("nanny", "longer.py", "")]) == [
        "preload  x.py       dask_setup",
        "nanny    longer.py",
    ]
