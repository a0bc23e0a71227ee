"""Whose is each word of a command line: localdask's, a preload's, or the script's."""

from __future__ import annotations

import pytest

from localdask.cli.arguments import Words, split_words
from localdask.cli.options import give_extra
from localdask.errors import UsageError

OPTIONS = {"-n": True, "--workers": True, "--preload": True, "--lifetime-restart": False, "-h": False, "--help": False}


@pytest.mark.parametrize(
    ("words", "known", "extra"),
    [
        ("-n 4 --preload x.py", "-n 4 --preload x.py", ""),
        ("-n4 --workers=4 -h", "-n4 --workers=4 -h", ""),
        ("-n -1", "-n -1", ""),
        ("--print-count -n 4", "-n 4", "--print-count"),
        ("--depth 3 -n 4 word", "-n 4", "--depth 3 word"),
        ("-x -n 4 -- -n 5 --help", "-n 4", "-x -n 5 --help"),
        ("--lifetime-restart word", "--lifetime-restart", "word"),
        ("--workersx 3", "", "--workersx 3"),
        ("-", "", "-"),
        ("-n", "-n", ""),
        ("-5", "", "-5"),
    ],
)
def test_words_that_are_not_localdasks_are_a_preloads_in_their_order(words: str, known: str, extra: str) -> None:
    assert split_words(words.split(), OPTIONS, with_script=False) == Words(known.split(), extra.split(), [])


@pytest.mark.parametrize(
    ("words", "known", "extra", "script"),
    [
        ("script.py -n 4 --help", "", "", "script.py -n 4 --help"),
        ("-n 4 script.py a b", "-n 4", "", "script.py a b"),
        ("-n 4 tool a", "-n 4", "", "tool a"),
        ("--depth 3 script.py a", "", "--depth 3", "script.py a"),
        ("--depth=3 -n 4 script.py a", "-n 4", "--depth=3", "script.py a"),
        ("--depth 3 -n 4 script.py a.py", "-n 4", "--depth 3", "script.py a.py"),
        ("--rules rules.py -- script.py a", "", "--rules", "rules.py -- script.py a"),
        ("--rules=rules.py -- tool a", "", "--rules=rules.py", "tool a"),
        ("--depth 3 tool", "", "--depth 3 tool", ""),
        ("-n 4 -m package --flag -n 2", "-n 4", "", "-m package --flag -n 2"),
        ("-mpackage a", "", "", "-m package a"),
        ("-c code -h", "", "", "-c code -h"),
        ("-n 4 - a", "-n 4", "", "- a"),
        ("-n 4 -- -odd.py", "-n 4", "", "-odd.py"),
        ("-n 4", "-n 4", "", ""),
    ],
)
def test_the_scripts_words_begin_at_the_script(words: str, known: str, extra: str, script: str) -> None:
    assert split_words(words.split(), OPTIONS, with_script=True) == Words(known.split(), extra.split(), script.split())


def test_extra_words_go_to_the_one_preload_that_takes_options() -> None:
    assert give_extra(["--x"], [("worker", "a.py", 1)], OPTIONS) == ("worker", 1)
    assert give_extra(["--x"], [("scheduler", "a.py", 0)], OPTIONS) == ("scheduler", 0)
    assert give_extra([], [("worker", "a.py", 1), ("worker", "b.py", 2)], OPTIONS) is None


def test_several_takers_are_named_and_none_is_told_with_a_guess() -> None:
    with pytest.raises(UsageError, match=r"a\.py \(worker\) and b\.py \(scheduler\)"):
        give_extra(["--x"], [("worker", "a.py", 0), ("scheduler", "b.py", 0)], OPTIONS)
    with pytest.raises(UsageError, match="there is no option --workres; did you mean --workers?"):
        give_extra(["word", "--workres=3"], [], OPTIONS)
    with pytest.raises(UsageError, match="there is no argument word; only a preload"):
        give_extra(["word"], [], OPTIONS)
