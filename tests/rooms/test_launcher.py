"""The launcher's own room: what becomes of a nanny that cannot be made, and of a pipe that says no word."""

from __future__ import annotations

import socket

import pytest

from localdask.errors import StartError
from localdask.messages import ForkNanny
from localdask.processes.launcher import Launcher
from localdask.system import process
from localdask.system.transport import Channel


def test_who_waits_for_a_nanny_that_cannot_be_forked_sees_its_pipe_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(child: object) -> int:
        raise StartError("no process could be forked: raise the process limit (`ulimit -u`)")

    upper, lower = socket.socketpair()
    upper_channel, launcher = Channel(upper, passes_fds=True), Launcher(lower.detach())
    try:
        monkeypatch.setattr(process, "fork", refuse)
        for _ in range(2):
            ours, its = socket.socketpair()
            with ours:
                with its:
                    upper_channel.send([ForkNanny("fork")], fds=[its.fileno()])
                launcher._read()
                ours.settimeout(10)
                assert ours.recv(1) == b""
        assert capsys.readouterr().err == "localdask: no process could be forked: raise the process limit (`ulimit -u`)\n" * 2
    finally:
        upper_channel.close()
        launcher._channel.close()
        launcher._loop.close()


def test_a_pipe_that_says_no_word_is_read_no_more() -> None:
    upper, lower = socket.socketpair()
    launcher = Launcher(lower.detach())
    try:
        with upper:
            upper.sendall(b"<!DOCTYPE html>" * 10)
            launcher._loop.add_reader(launcher._channel.fileno(), launcher._read)
            launcher._read()
            assert launcher._is_alone
    finally:
        launcher._channel.close()
        launcher._loop.close()
