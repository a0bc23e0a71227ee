"""What plugins are told of a worker's tasks: whole chains, in order, by one thread at a time."""

from __future__ import annotations

import threading
from typing import Any

from localdask.messages import RunTask, TaskDone, TaskErred, TaskRescheduled
from localdask.processes.moves import Moves

told: list[tuple[Any, ...]]


def make() -> Moves:
    global told
    told = []
    return Moves(lambda *call: told.append(call))


def task(key: str, inputs: tuple[tuple[str, Any], ...] = ()) -> RunTask:
    return RunTask(1, key, "f", b"", inputs)


def chain(key: str) -> list[str]:
    moves = [call[1:] for call in told if call[0] == "transition" and call[1] == key]
    assert all(before[2] == after[1] for before, after in zip(moves, moves[1:], strict=False)), moves
    return [moves[0][1], *(move[2] for move in moves)]


def test_a_task_that_waits_for_an_input_is_ready_only_when_it_begins() -> None:
    moves = make()
    moves.came(task("x"), is_whole=False)
    moves.tell()
    assert chain("x") == ["released", "waiting"]
    moves.began(task("x"))
    moves.ended(task("x", (("here", None), ("there", b"1"))), TaskDone(1, b"", 0, 0.0))
    moves.tell()
    assert chain("x") == ["released", "waiting", "ready", "executing", "memory"]
    assert told[-1] == ("release_dep", "there", "memory", False)


def test_one_that_ends_without_a_value_is_let_go_at_once() -> None:
    for word, state in ((TaskErred(1, b"", 0.0), "error"), (TaskRescheduled(1), "rescheduled")):
        moves = make()
        moves.came(task("x"), is_whole=True)
        moves.began(task("x"))
        moves.ended(task("x"), word)
        moves.dropped(task("x"))
        moves.tell()
        assert chain("x")[-3:] == [state, "released", "forgotten"]
        assert told[-1] == ("release_key", "x", state, None, None, False)


def test_one_that_is_made_again_goes_through_released() -> None:
    moves = make()
    for _ in range(2):
        moves.came(task("x"), is_whole=True)
        moves.began(task("x"))
        moves.ended(task("x"), TaskDone(1, b"", 0, 0.0))
    moves.tell()
    assert chain("x") == [*("released", "waiting", "ready", "executing", "memory") * 2]


def test_what_was_there_before_somebody_watched_is_told_from_where_it_stands() -> None:
    moves = make()
    moves.forgot(["old"])
    moves.ended(task("running"), TaskDone(1, b"", 0, 0.0))
    moves.dropped(task("queued"))
    moves.tell()
    assert chain("old") == ["memory", "released", "forgotten"]
    assert chain("running") == ["executing", "memory"] and chain("queued") == ["ready", "released", "forgotten"]


def test_a_hook_that_is_slow_holds_up_no_other_thread_and_keeps_the_order() -> None:
    entered, release = threading.Event(), threading.Event()
    seen: list[Any] = []

    def hook(*call: Any) -> None:
        if not seen:
            entered.set()
            assert release.wait(10)
        seen.append(call[1:4])

    moves = Moves(hook)
    moves.came(task("a"), is_whole=False)
    teller = threading.Thread(target=moves.tell)
    teller.start()
    assert entered.wait(10)
    moves.came(task("b"), is_whole=True)
    moves.tell()  # returns at once: the other thread is at it
    assert seen == []
    release.set()
    teller.join(10)
    assert seen == [("a", "released", "waiting"), ("b", "released", "waiting"), ("b", "waiting", "ready")]
