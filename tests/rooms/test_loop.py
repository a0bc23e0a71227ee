"""The loop waits in one place, loses no wake-up, and outlives what its callbacks do."""

from __future__ import annotations

import array
import fcntl
import os
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from localdask.system.loop import Loop
from tests.conftest import wait_until

LIMIT_S = 20.0


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    # A loop that lost a wake-up ends here, and the test fails instead of hanging.
    made.call_at(time.monotonic() + LIMIT_S, made.stop)
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    yield left, right
    left.close()
    right.close()


def wake_bytes(loop: Loop) -> int:
    """Return how many bytes lie in the self-pipe."""
    count = array.array("i", [0])
    fcntl.ioctl(loop._wake_reader, termios.FIONREAD, count)
    return count[0]


# ── descriptors ──────────────────────────────────────────────────────────────


def test_a_reader_is_called_while_there_is_something_to_read(loop, pair):
    left, right = pair
    got = []
    loop.add_reader(left.fileno(), lambda: got.append(left.recv(1)))
    right.send(b"ab")
    loop.run_once(LIMIT_S)
    loop.run_once(LIMIT_S)
    loop.run_once(0)
    assert got == [b"a", b"b"]


def test_a_reader_and_a_writer_of_one_descriptor_come_and_go_apart(loop, pair):
    left, right = pair
    calls = []
    loop.add_reader(left.fileno(), lambda: calls.append("read"))
    loop.add_writer(left.fileno(), lambda: calls.append("write"))
    right.send(b"a")
    loop.run_once(LIMIT_S)
    assert calls == ["read", "write"]
    loop.remove_writer(left.fileno())
    loop.run_once(LIMIT_S)
    assert calls == ["read", "write", "read"]
    loop.remove_reader(left.fileno())
    loop.run_once(0)
    assert calls == ["read", "write", "read"]


def test_a_second_reader_replaces_the_first(loop, pair):
    left, right = pair
    calls = []
    loop.add_reader(left.fileno(), lambda: calls.append(1))
    loop.add_reader(left.fileno(), lambda: calls.append(2))
    right.send(b"a")
    loop.run_once(LIMIT_S)
    assert calls == [2]


def test_a_reader_that_another_callback_removed_is_not_called_any_more(loop, pair):
    left, right = pair
    calls = []

    def read(own: socket.socket, other: socket.socket) -> None:
        calls.append(own)
        loop.remove_reader(other.fileno())

    loop.add_reader(left.fileno(), lambda: read(left, right))
    loop.add_reader(right.fileno(), lambda: read(right, left))
    left.send(b"a")
    right.send(b"a")
    loop.run_once(LIMIT_S)
    assert len(calls) == 1


def test_a_number_that_is_given_to_a_new_descriptor_calls_the_new_reader(loop, pair):
    left, right = pair
    calls = []
    fd = os.dup(left.fileno())
    loop.add_reader(fd, lambda: calls.append("old"))
    loop.remove_reader(fd)
    os.close(fd)
    assert os.dup(right.fileno()) == fd
    loop.add_reader(fd, lambda: calls.append("new"))
    left.send(b"a")
    loop.run_once(LIMIT_S)
    loop.remove_reader(fd)
    os.close(fd)
    assert calls == ["new"]


def test_end_of_file_calls_the_reader(loop, pair):
    left, right = pair
    got = []
    loop.add_reader(left.fileno(), lambda: got.append(left.recv(1)))
    right.close()
    loop.run_once(LIMIT_S)
    assert got == [b""]


def test_a_bad_descriptor_is_refused_and_forgotten(loop):
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    with pytest.raises((OSError, ValueError)):
        loop.add_reader(write, lambda: None)
    loop.remove_reader(write)


# ── timers ───────────────────────────────────────────────────────────────────


def test_timers_go_by_their_time_and_then_by_their_order(loop):
    now = time.monotonic()
    calls = []
    for name, when in (("c", now + 0.002), ("a", now - 1), ("d", now + 0.002), ("b", now)):
        loop.call_at(when, lambda name=name: calls.append(name))
    loop.call_at(now + 0.003, loop.stop)
    loop.run()
    assert calls == ["a", "b", "c", "d"]


def test_a_timer_never_comes_early(loop):
    when = time.monotonic() + 0.02
    came = []
    loop.call_at(when, lambda: came.append(time.monotonic()))
    while not came:
        loop.run_once(None)
    assert came[0] >= when


def test_a_cancelled_timer_does_not_come_even_when_it_was_due_in_the_same_round(loop):
    calls = []
    second = []
    loop.call_at(0, lambda: (calls.append(1), second[0].cancel()))
    second.append(loop.call_at(0, lambda: calls.append(2)))
    loop.run_once(0)
    loop.run_once(0)
    second[0].cancel()
    assert calls == [1]
    assert second[0].is_cancelled


def test_a_timer_that_sets_itself_for_now_starves_nobody(loop):
    calls = []

    def again() -> None:
        calls.append("again")
        loop.call_at(0, again)

    loop.call_at(0, again)
    loop.call_at(1, lambda: calls.append("other"))
    loop.run_once(0)
    assert calls == ["again", "other"]
    loop.run_once(0)
    assert calls == ["again", "other", "again"]


def test_cancelled_timers_do_not_pile_up(loop):
    for _ in range(10_000):
        loop.call_at(time.monotonic() + 3600, lambda: None).cancel()
    assert len(loop._timers) < 1000


def test_an_idle_loop_goes_around_no_more_often_than_something_happens(loop):
    rounds = []
    loop.before_wait.append(lambda: rounds.append(1))
    loop.call_at(time.monotonic() + 0.2, loop.stop)
    loop.run()
    assert len(rounds) <= 4


# ── words from elsewhere ─────────────────────────────────────────────────────


def test_a_thousand_wakes_write_one_byte(loop):
    for _ in range(1000):
        loop.wake()
    assert wake_bytes(loop) == 1
    loop.run_once(LIMIT_S)
    assert wake_bytes(loop) == 0
    loop.wake()
    assert wake_bytes(loop) == 1


def test_no_word_of_many_threads_is_lost_and_each_thread_keeps_its_order(loop):
    n_threads, n_words = 4, 3000
    got: list[tuple[int, int]] = []

    def talk(number: int) -> None:
        for word in range(n_words):
            loop.call_soon_threadsafe(lambda word=word: got.append((number, word)))

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(n_threads)]
    loop.before_wait.append(lambda: len(got) == n_threads * n_words and loop.stop())
    for thread in threads:
        thread.start()
    loop.run()
    for thread in threads:
        thread.join()
    for number in range(n_threads):
        assert [word for who, word in got if who == number] == list(range(n_words))


def test_single_words_with_pauses_between_them_each_wake_the_loop(loop):
    heard = threading.Semaphore(0)
    answers = []

    def talk() -> None:
        for _ in range(500):
            loop.call_soon_threadsafe(heard.release)
            answers.append(heard.acquire(timeout=LIMIT_S))
        loop.stop()

    thread = threading.Thread(target=talk)
    thread.start()
    loop.run()
    thread.join()
    assert answers == [True] * 500


def test_a_callback_that_calls_for_itself_again_starves_nobody(loop, pair):
    left, right = pair
    calls = []

    def again() -> None:
        loop.call_soon_threadsafe(again)

    loop.add_reader(left.fileno(), lambda: (calls.append("read"), left.recv(1)))
    again()
    right.send(b"a")
    loop.run_once(LIMIT_S)
    loop.run_once(LIMIT_S)
    assert calls == ["read"]


def test_a_finalizer_may_call_the_loop(loop):
    class Finalized:
        def __del__(self) -> None:
            loop.call_soon_threadsafe(loop.stop)

    thing = Finalized()
    loop.call_soon_threadsafe(lambda: None)
    del thing
    loop.run()
    assert time.monotonic() < loop._timers[0][0]


def test_an_interrupt_between_flag_and_byte_does_not_deafen_the_loop(loop, monkeypatch):
    def interrupted(fd: int, data: bytes) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            loop.wake()
    loop.wake()
    assert wake_bytes(loop) == 1


def test_a_full_pipe_wakes_without_an_error(loop):
    with pytest.raises(BlockingIOError):
        while True:
            os.write(loop._wake_end.fd, b"\0" * 65536)
    called = []
    loop.call_soon_threadsafe(lambda: called.append(1))
    loop.run_once(LIMIT_S)
    assert called == [1]


def test_words_after_close_are_dropped():
    loop = Loop()
    loop.close()
    loop.close()
    loop.call_soon_threadsafe(pytest.fail)
    loop.wake()
    loop.stop()


def test_a_thread_that_wakes_while_the_loop_is_closed_writes_to_nobody_else(monkeypatch):
    loop = Loop()
    real_write = os.write
    closed = []

    def write(fd: int, data: bytes) -> int:
        loop.close()
        closed.append(os.fstat(fd).st_ino)  # raises if close() closed the number under the writer
        return real_write(fd, data)

    inode = os.fstat(loop._wake_end.fd).st_ino
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(BrokenPipeError):
        loop.wake()
    assert closed == [inode]


# ── running ──────────────────────────────────────────────────────────────────


def test_a_stop_that_came_before_run_counts(loop):
    loop.before_wait.append(pytest.fail)
    loop.stop()
    loop.run()


def test_hooks_run_before_each_wait_in_order(loop):
    calls = []
    loop.before_wait += [lambda: calls.append(1), lambda: calls.append(2)]
    loop.run_once(0)
    loop.run_once(0)
    assert calls == [1, 2, 1, 2]


def test_what_a_hook_asks_for_is_not_slept_over(loop):
    calls = []
    loop.before_wait.append(lambda: loop.call_soon_threadsafe(lambda: calls.append(1)))
    loop.run_once(LIMIT_S)
    assert calls == [1]


def test_a_callback_that_raises_is_told_and_the_loop_goes_on(loop, capfd):
    calls = []
    loop.call_at(0, lambda: 1 / 0)
    loop.call_at(0, lambda: calls.append(1))
    loop.run_once(0)
    assert calls == [1]
    error = capfd.readouterr().err
    assert "ZeroDivisionError" in error
    assert "test_loop.py" in error


def test_an_error_handler_hears_of_errors_from_every_kind_of_callback(pair):
    heard: list[BaseException] = []
    loop = Loop(on_error=heard.append)

    def fail(word: str) -> None:
        raise LookupError(word)

    loop.before_wait.append(lambda: fail("hook"))
    loop.add_writer(pair[0].fileno(), lambda: fail("writer"))
    loop.call_soon_threadsafe(lambda: fail("soon"))
    loop.call_at(0, lambda: fail("timer"))
    loop.run_once(0)
    loop.close()
    assert [error.args[0] for error in heard] == ["hook", "writer", "soon", "timer"]


def test_an_error_handler_that_raises_ends_the_run_and_loses_nothing():
    def give_up(error: BaseException) -> None:
        raise error

    loop = Loop(on_error=give_up)
    calls = []
    loop.call_soon_threadsafe(lambda: 1 / 0)
    loop.call_soon_threadsafe(lambda: calls.append("soon"))
    loop.call_at(0, lambda: 1 / 0)
    loop.call_at(0, lambda: calls.append("timer"))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            loop.run()
    loop.run_once(0)
    loop.close()
    assert calls == ["soon", "timer"]


def test_by_default_what_means_to_end_the_process_ends_the_run(loop):
    loop.call_soon_threadsafe(lambda: exit(3))
    with pytest.raises(SystemExit):
        loop.run()


# ── signals ──────────────────────────────────────────────────────────────────


def test_a_signal_calls_back_in_the_loop_and_not_in_the_handler(loop):
    calls = []
    loop.on_signal(signal.SIGUSR1, lambda: calls.append(1))
    os.kill(os.getpid(), signal.SIGUSR1)
    assert calls == []
    loop.run_once(LIMIT_S)
    assert calls == [1]


def test_a_signal_wakes_a_loop_that_waits(loop):
    loop.on_signal(signal.SIGALRM, loop.stop)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    loop.run()
    assert not loop._timers[0][2].is_cancelled


def test_no_signal_of_a_storm_deafens_the_loop(loop):
    heard = []
    loop.on_signal(signal.SIGALRM, lambda: heard.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    said = []
    try:
        while len(heard) < 200:
            loop.call_soon_threadsafe(lambda: said.append(1))
            loop.run_once(LIMIT_S)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert len(said) >= 100
    loop.call_soon_threadsafe(loop.stop)
    loop.run()


def test_close_restores_the_handlers_and_the_wakeup_descriptor():
    def mine(signum: int, frame: object) -> None: ...

    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.signal(signal.SIGUSR1, mine)
    replaced = signal.set_wakeup_fd(write)
    try:
        loop = Loop()
        loop.on_signal(signal.SIGUSR1, pytest.fail)
        loop.on_signal(signal.SIGUSR1, pytest.fail)
        loop.on_signal(signal.SIGUSR2, pytest.fail)
        loop.close()
        assert signal.getsignal(signal.SIGUSR1) is mine
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
        assert signal.set_wakeup_fd(-1) == write
    finally:
        signal.set_wakeup_fd(replaced)
        signal.signal(signal.SIGUSR1, before)
        os.close(read)
        os.close(write)


def test_a_signal_reaches_a_loop_that_runs_in_another_thread(loop):
    calls = []
    loop.on_signal(signal.SIGUSR1, lambda: (calls.append(threading.current_thread()), loop.stop()))
    thread = threading.Thread(target=loop.run)
    thread.start()
    os.kill(os.getpid(), signal.SIGUSR1)
    wait_until(lambda: not thread.is_alive(), what="the loop to stop")
    assert calls == [thread]


def test_signals_are_for_the_main_thread_and_the_error_says_so(loop):
    errors = []

    def attempt(action) -> None:
        try:
            action()
        except RuntimeError as error:
            errors.append(str(error))

    loop.on_signal(signal.SIGUSR1, lambda: None)
    for action in (lambda: loop.on_signal(signal.SIGUSR2, lambda: None), loop.close):
        thread = threading.Thread(target=attempt, args=(action,))
        thread.start()
        thread.join()
    assert len(errors) == 2
    assert all("main thread" in error for error in errors)


def test_a_forked_child_that_closes_its_copy_leaves_the_loop_of_its_parent_alone():
    # In an interpreter of its own, because the one that runs the tests may have threads.
    program = """
import os, socket, sys
from localdask.system.loop import Loop
loop = Loop()
left, right = socket.socketpair()
calls = []
loop.add_reader(left.fileno(), lambda: calls.append(left.recv(1)))
pid = os.fork()
if pid == 0:
    loop.close()
    os._exit(0)
os.waitpid(pid, 0)
right.send(b"a")
loop.run_once(20)
loop.call_soon_threadsafe(lambda: calls.append("soon"))
loop.run_once(20)
sys.exit(calls != [b"a", "soon"])
"""
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, timeout=LIMIT_S).returncode == 0
