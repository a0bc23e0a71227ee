"""What the scheduler's shell does with the data pipe of a worker: here the test is the worker."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from localdask.messages import FromClient, FunctionRan, ReleaseKeys, ToClient, WorkerUp, to_wire
from localdask.processes.scheduler import Scheduler
from localdask.system.transport import Channel
from tests.conftest import wait_until


@contextmanager
def attached() -> Iterator[tuple[Scheduler, Channel]]:
    """Give a scheduler and the far end of its one worker's pipe."""
    with ExitStack() as stack:
        near, far = map(Channel, socket.socketpair())
        stack.callback(far.close)
        scheduler = Scheduler("here")
        stack.callback(scheduler.close)
        scheduler.start()
        scheduler.attach_channel("w0", 0, os.getpid(), near)
        far.send([WorkerUp("w0", 0, os.getpid(), 1)])
        wait_until(lambda: "w0" in scheduler.workers)
        yield scheduler, far


def test_a_client_in_a_task_is_told_what_its_full_pipe_did_not_take_at_first() -> None:
    with attached() as (scheduler, far):
        far.send([FromClient("c1", [to_wire(ReleaseKeys("c1", []))])])
        wait_until(lambda: "c1" in scheduler._delivers)
        n = 100
        for number in range(n):
            scheduler.tell_client("c1", "topic", (number, b"x" * 20_000))
        heard: list[Any] = []
        deadline = time.monotonic() + 10
        while len(heard) < n and time.monotonic() < deadline:
            heard += [word for word in far.wait_for_message(0.5) if type(word) is ToClient]
        assert len(heard) == n


def test_all_that_a_worker_said_before_it_ended_is_heard_also_when_a_waiting_thread_read_the_first_of_it() -> None:
    with attached() as (scheduler, far):
        answers: list[tuple[str, bytes | None]] = []
        for _ in range(2):
            scheduler.run_function(b"", ["w0"], lambda name, outcome: answers.append((name, outcome)))
        requests = [word.request for word in far.wait_for_message(5.0)]
        link = scheduler.link_of("w0", 0)
        assert link is not None and len(requests) == 2
        with scheduler.pipes.claimed():  # the I/O thread reads nothing meanwhile, as while another leads
            far.send([FunctionRan(requests[0], b"first")])
            assert not scheduler._try_read(link)
            far.send([FunctionRan(requests[1], b"second")])
            scheduler.detach("w0", 0, is_expected=False)
        wait_until(lambda: len(answers) == 2)
        assert [outcome for _, outcome in answers] == [b"first", b"second"]
