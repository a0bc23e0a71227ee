"""Which processes a word means."""

from __future__ import annotations

import pytest

from localdask.cli.targets import choose
from localdask.errors import UsageError, WorkerNotFoundError

ROWS = [{"name": "scheduler", "role": "scheduler", "pid": 1}] + [
    {"name": f"{kind}{number}", "role": role, "pid": base + number}
    for kind, role, base in (("n", "nanny", 100), ("w", "worker", 200))
    for number in range(12)
]


def names(*words: str) -> str:
    return " ".join(row["name"] for row in choose(words, ROWS))


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("w0",), "w0"),
        (("w9-w11",), "w9 w10 w11"),
        (("w1-3",), "w1 w2 w3"),
        (("w1*",), "w1 w10 w11"),
        (("n0", "w0", "w0"), "n0 w0"),
        (("203",), "w3"),
        (("104",), "n4"),
        (("[nw]0",), "n0 w0"),
        (("w10-w999",), "w10 w11"),
        (("all",), " ".join(f"w{number}" for number in range(12))),
        ((), " ".join(f"w{number}" for number in range(12))),
    ],
    ids=str,
)
def test_words_mean_processes(words: tuple[str, ...], meant: str) -> None:
    assert names(*words) == meant


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("w12", "no worker or nanny is called 'w12'; did you mean w\\d+"),
        ("W0", "no worker or nanny is called 'W0'; did you mean w0?"),
        ("77", "no process has the number '77'; there are: n0, "),
        ("x\x1b[2J", "no worker or nanny is called 'x.x1b"),
    ],
)
def test_a_word_that_means_none_names_the_nearest(word: str, text: str) -> None:
    with pytest.raises(WorkerNotFoundError, match=text):
        names(word)


def test_what_cannot_be_used_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="n0 is no worker"):
        choose(("n0",), ROWS, roles=("worker",))
    with pytest.raises(UsageError, match="write for example w1-w3"):
        names("w3-w1")
    assert choose(("all",), ROWS[:1]) == []
