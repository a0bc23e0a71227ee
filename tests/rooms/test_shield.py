"""An interrupt is held back while it would tear something, and never lost."""

from __future__ import annotations

import signal
import threading

import pytest

from localdask.system.shield import Deferral, ShieldedLock
from tests.conftest import wait_until


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_under_the_lock_is_raised_when_it_is_let_go() -> None:
    lock, done = ShieldedLock(), []
    with pytest.raises(KeyboardInterrupt), lock:
        interrupt()
        done.append(1)
    assert done and not lock.owner


def test_an_interrupt_that_comes_while_another_thread_holds_the_lock_is_not_lost() -> None:
    lock, is_held, main = ShieldedLock(), threading.Event(), threading.main_thread().ident
    assert main is not None

    def hold() -> None:
        with lock:
            is_held.set()
            wait_until(lambda: signal.getsignal(signal.SIGINT) is not signal.default_int_handler)
            signal.pthread_kill(main, signal.SIGINT)
            wait_until(lambda: lock._is_interrupted)

    holder = threading.Thread(target=hold)
    holder.start()
    is_held.wait()
    with pytest.raises(KeyboardInterrupt), lock:
        pass
    holder.join()


def test_a_deferred_interrupt_calls_for_attention_and_is_raised_at_the_end() -> None:
    noted: list[int] = []
    deferral = Deferral(lambda: noted.append(1))
    assert deferral.begin()
    interrupt()
    assert noted and deferral.is_noted
    with pytest.raises(KeyboardInterrupt):
        deferral.end()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_is_deferred_where_a_handler_of_the_users_could_raise() -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        assert not Deferral(lambda: None).begin()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
