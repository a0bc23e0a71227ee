"""Both kinds of channel keep one promise; the one over a socket also meets whatever bytes come."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import resource
import select
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localdask.errors import ProtocolError, UsageError
from localdask.messages import ForgetKeys, TaskDone, WorkerBorn, pack, to_wire
from localdask.system.memory_channel import AnyChannel, MemoryChannel, memory_pair
from localdask.system.transport import Channel, channel_pair

LIMIT_S = 20.0
Pair: TypeAlias = tuple[AnyChannel, AnyChannel]


def word(number: int, size: int = 4) -> TaskDone:
    return TaskDone(number, b"x" * size, size, 0.5, "bytes")


def framed(body: bytes, n_fds: int = 0) -> bytes:
    return struct.pack("<Q", len(body) | n_fds << 56) + body


def is_readable(channel: AnyChannel, timeout_s: float = 0) -> bool:
    return bool(select.select([channel], [], [], timeout_s)[0])


def collect(channel: AnyChannel, n_messages: int) -> list[object]:
    got: list[object] = []
    while len(got) < n_messages:
        arrived = channel.wait_for_message(LIMIT_S)
        assert arrived, f"{len(got)} of {n_messages} messages came in {LIMIT_S} s"
        got += arrived
    return got


@pytest.fixture(params=["socket", "memory"])
def pair(request) -> Iterator[Pair]:
    left, right = channel_pair(passes_fds=True) if request.param == "socket" else memory_pair()
    yield left, right
    left.close()
    right.close()


@pytest.fixture
def raw() -> Iterator[tuple[socket.socket, Channel]]:
    """A bare socket, and the channel that hears it."""
    talker, listener = socket.socketpair()
    channel = Channel(listener, max_frame=2**22)
    yield talker, channel
    talker.close()
    channel.close()


# ── the promise of both ──────────────────────────────────────────────────────


def test_messages_arrive_as_they_were_sent(pair):
    left, right = pair
    left.send([word(1), ForgetKeys(("a", "b"))])
    left.send([word(2)])
    assert collect(right, 3) == [word(1), ForgetKeys(("a", "b")), word(2)]
    right.send([word(3)])
    assert collect(left, 1) == [word(3)]


def test_ten_thousand_messages_keep_their_order(pair):
    left, right = pair
    got: list[TaskDone] = []
    for number in range(10_000):
        (left.post if number % 7 else lambda message: left.send([message]))(word(number))
        if number % 100 == 0:
            left.flush()
            got += right.receive()
    while not left.flush() or len(got) < 10_000:
        got += right.wait_for_message(0)
    assert [message.attempt for message in got] == list(range(10_000))


def test_a_posted_message_goes_with_the_next_flush(pair):
    left, right = pair
    left.post(word(1))
    left.post(word(2))
    assert left.has_unsent
    assert right.receive() == []
    assert left.flush()
    assert not left.has_unsent
    assert right.receive() == [word(1), word(2)]


def test_a_posted_message_goes_before_what_is_sent_later(pair):
    left, right = pair
    left.post(word(1))
    left.send([word(2)])
    assert collect(right, 2) == [word(1), word(2)]
    assert not left.has_unsent


def test_nothing_is_received_when_nothing_was_sent(pair):
    left, right = pair
    assert left.receive() == right.receive() == []
    assert left.flush()


def test_an_end_is_readable_exactly_while_there_is_something_to_receive(pair):
    left, right = pair
    assert not is_readable(right)
    for number in range(3):
        left.send([word(number)])
        left.send([word(number)])
        assert is_readable(right)
        assert len(right.receive()) == 2
        assert not is_readable(right)


def test_the_end_of_file_comes_after_all_messages_and_stays(pair):
    left, right = pair
    left.send([word(1)])
    left.close()
    assert is_readable(right)
    assert right.receive() == [word(1)]
    for _ in range(2):
        assert is_readable(right)
        with pytest.raises(EOFError, match="other end"):
            right.receive()
        with pytest.raises(EOFError, match="other end"):
            right.wait_for_message(LIMIT_S)


def test_sending_to_a_closed_end_is_no_error_and_the_reader_learns_of_it(pair):
    left, right = pair
    right.send([word(1)])
    right.close()
    for _ in range(3):
        left.send([word(2, 10_000)])
        left.post(word(3))
        assert left.flush()
    assert not left.has_unsent
    assert left.receive() == [word(1)]
    with pytest.raises(EOFError):
        left.receive()


def test_unread_messages_at_the_closing_end_do_not_turn_its_end_into_an_error(pair):
    left, right = pair
    left.send([word(1)])
    right.close()  # the kernel says ECONNRESET for this
    with pytest.raises(EOFError):
        left.wait_for_message(LIMIT_S)


def test_a_closed_end_says_so_and_closes_twice(pair):
    left, _ = pair
    left.close()
    left.close()
    assert left.fileno() == -1
    left.send([word(1)])
    left.post(word(2))
    assert left.flush()
    with pytest.raises(EOFError, match="this end"):
        left.receive()


def test_a_wait_ends_with_nothing_when_its_time_is_up(pair):
    assert pair[0].wait_for_message(0) == []
    assert pair[0].wait_for_message(0.01) == []


def test_a_wait_lets_other_threads_run_and_ends_by_their_message(pair):
    left, right = pair
    is_waiting = threading.Event()

    def answer() -> None:
        assert is_waiting.wait(LIMIT_S)
        right.send([word(1)])

    thread = threading.Thread(target=answer)
    thread.start()
    is_waiting.set()
    assert left.wait_for_message() == [word(1)]
    thread.join()


def test_two_threads_play_ping_pong_without_losing_a_wake_up(pair):
    left, right = pair

    def echo() -> None:
        try:
            while True:
                right.send(right.wait_for_message())
        except EOFError:
            return

    thread = threading.Thread(target=echo)
    thread.start()
    for number in range(1000):
        left.send([word(number)])
        assert left.wait_for_message(LIMIT_S) == [word(number)]
    left.close()
    thread.join()


def test_a_wait_ends_when_the_other_end_closes(pair):
    left, right = pair
    thread = threading.Thread(target=right.close)
    thread.start()
    with pytest.raises(EOFError):
        left.wait_for_message()
    thread.join()


def test_a_wait_sends_what_was_posted_first(pair):
    left, right = pair
    left.post(word(1))
    left.wait_for_message(0)
    assert right.receive() == [word(1)]


def test_both_sides_may_send_fifty_megabytes_at_once(pair):
    left, right = pair
    big = word(1, 50_000_000)
    for end in pair:
        end.send([big])
        end.post(word(2))
        end.flush()
    got: dict[AnyChannel, list[object]] = {left: [], right: []}
    deadline = time.monotonic() + 2 * LIMIT_S
    while any(len(messages) < 2 for messages in got.values()):
        assert time.monotonic() < deadline
        for end in pair:
            end.flush()
            got[end] += end.receive()
    assert got[left] == got[right] == [big, word(2)]
    assert not left.has_unsent


def test_a_waiting_end_sends_and_receives_much_at_once(pair):
    got = {}

    def exchange(end: AnyChannel) -> None:
        end.send([word(1, 5_000_000)])
        got[end] = collect(end, 1)
        while not end.flush():  # whoever had everything first may still hold what the other waits for
            end.wait_for_message(0.01)

    threads = [threading.Thread(target=exchange, args=(end,)) for end in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[end] for end in pair] == [[word(1, 5_000_000)]] * 2


# ── descriptors ──────────────────────────────────────────────────────────────


def inode(fd: int) -> int:
    return os.fstat(fd).st_ino


def test_descriptors_arrive_with_their_own_frames_in_order(pair):
    left, right = pair
    inodes = []
    for life in range(20):
        fds = os.pipe() if life % 3 else ()
        inodes += [inode(fd) for fd in fds[:1] for _ in range(2)]
        left.send([WorkerBorn(life, 0)], fds)
        for fd in fds:
            os.close(fd)  # the channel has its own copies
    assert [message.life for message in collect(right, 20)] == list(range(20))
    arrived = right.take_fds()
    assert [inode(fd) for fd in arrived] == inodes
    assert not any(os.get_inheritable(fd) for fd in arrived)
    assert right.take_fds() == []
    for fd in arrived:
        os.close(fd)


def test_a_passed_descriptor_works(pair):
    left, right = pair
    read, write = os.pipe()
    left.send([WorkerBorn(1, 0)], [write])
    os.close(write)
    collect(right, 1)
    (fd,) = right.take_fds()
    os.write(fd, b"hello")
    os.close(fd)
    assert os.read(read, 10) == b"hello"
    assert os.read(read, 10) == b""
    os.close(read)


def test_descriptors_nobody_took_are_closed_with_the_channel(pair):
    left, right = pair
    read, write = os.pipe()
    left.send([WorkerBorn(1, 0)], [write])
    collect(right, 1)
    left.send([WorkerBorn(2, 0)], [write])
    os.close(write)
    right.close()
    left.close()
    assert os.read(read, 1) == b""
    os.close(read)


def test_descriptors_for_a_closed_end_are_closed(pair):
    left, right = pair
    read, write = os.pipe()
    right.close()
    left.send([WorkerBorn(1, 0)], [write])
    os.close(write)
    assert os.read(read, 1) == b""
    os.close(read)


def test_more_descriptors_than_the_kernel_passes_are_refused(pair):
    left, right = pair
    with pytest.raises(UsageError, match="254 descriptors"):
        left.send([word(1)], [0] * 254)
    left.send([word(2)])
    assert right.receive() == [word(2)]


def test_descriptors_wait_behind_a_full_pipe_in_their_place():
    left, right = channel_pair(passes_fds=True)
    read, write = os.pipe()
    for life in range(5):
        left.send([word(life, 300_000)])
        left.send([WorkerBorn(life, 0)], [read if life % 2 else write])
    assert left.has_unsent
    expected = [inode(read) for _ in range(5)]
    os.close(read)
    os.close(write)
    got: list[object] = []
    n_fds = []
    fds = []
    while len(got) < 10:
        left.flush()
        arrived = right.receive()
        got += arrived
        fds += (now := right.take_fds())
        n_fds.append((sum(isinstance(message, WorkerBorn) for message in arrived), len(now)))
    assert got == [message for life in range(5) for message in (word(life, 300_000), WorkerBorn(life, 0))]
    assert [inode(fd) for fd in fds] == expected
    assert all(n_births == n_arrived for n_births, n_arrived in n_fds)
    for fd in fds:
        os.close(fd)
    left.close()
    right.close()


def test_an_end_that_may_not_receive_descriptors_takes_none():
    left, right = channel_pair()
    read, write = os.pipe()
    left.send([WorkerBorn(1, 0)], [write])
    os.close(write)
    with pytest.raises(ProtocolError, match="1 descriptors"):
        right.receive()
    right.close()
    assert os.read(read, 1) == b""
    os.close(read)
    left.close()


def test_a_frame_whose_descriptors_are_missing_is_no_message():
    talker, listener = socket.socketpair()
    channel = Channel(listener, passes_fds=True)
    talker.sendall(framed(pack([word(1)])) + framed(pack([word(2)]), n_fds=1))
    assert channel.receive()[:1] == [word(1)]
    with pytest.raises(ProtocolError, match="without 1 of its 1"):
        channel.receive()
    talker.close()
    channel.close()


def test_descriptors_lost_for_want_of_room_are_told_with_the_mend():
    left, right = channel_pair(passes_fds=True)
    left.send([WorkerBorn(1, 0)], [0] * 50)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + 5, limits[1]))
    try:
        with pytest.raises(ProtocolError, match="ulimit -n"):
            right.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        left.close()
        right.close()


# ── over a socket: frames ────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [0, 262_000, 262_079, 262_143, 262_144, 262_145, 300_000, 1_048_577, 3_000_000])
@pytest.mark.parametrize("passes_fds", [False, True])
def test_a_frame_of_any_size_arrives_whole_between_small_ones(size, passes_fds):
    left, right = channel_pair(passes_fds=passes_fds)
    sent = [word(1), word(2, size), word(3), word(4, size), word(5)]
    for message in sent:
        left.send([message])
    got: list[object] = []
    while len(got) < len(sent):
        left.flush()
        got += right.receive()
    assert got == sent
    left.close()
    right.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.sampled_from([0, 1, 100, 5_000, 262_080, 262_100, 400_000]), min_size=1, max_size=6),
    cuts=st.lists(st.integers(min_value=1, max_value=300_000) | st.integers(min_value=1, max_value=12), max_size=30),
)
def test_however_the_stream_is_cut_the_messages_are_the_same(sizes, cuts):
    talker, listener = socket.socketpair()
    talker.setblocking(False)
    channel = Channel(listener)
    sent = [word(number, size) for number, size in enumerate(sizes)]
    stream = b"".join(framed(pack([message])) for message in sent)
    got: list[object] = []
    for cut in [*cuts, len(stream)]:
        piece, stream = stream[:cut], stream[cut:]
        while piece:
            with contextlib.suppress(BlockingIOError):
                piece = piece[talker.send(piece) :]
            got += channel.receive()
    talker.close()
    with pytest.raises(EOFError):
        while True:
            got += channel.receive()
    channel.close()
    assert got == sent


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stream=st.binary(max_size=64)
    | st.binary(max_size=64).map(framed)
    | st.recursive(st.none() | st.integers() | st.text() | st.binary(), lambda inner: st.lists(inner) | st.tuples(inner, inner)).map(
        lambda thing: framed(pickle.dumps(thing, 5))
    )
    | st.tuples(st.just(pack([word(1)])), st.integers(0, 60), st.integers(0, 255)).map(
        lambda spoilt: framed(spoilt[0][: spoilt[1]] + bytes([spoilt[2]]) + spoilt[0][spoilt[1] + 1 :])
    ),
    passes_fds=st.booleans(),
)
def test_whatever_arrives_ends_in_messages_end_of_file_or_a_protocol_error(stream, passes_fds):
    talker, listener = socket.socketpair()
    channel = Channel(listener, passes_fds=passes_fds)
    talker.sendall(framed(pack([word(7)])) + stream)
    talker.close()
    got: list[object] = []
    with pytest.raises((EOFError, ProtocolError)):
        while True:
            got += channel.receive()
    channel.close()
    assert got[0] == word(7)


@pytest.mark.parametrize("length", [2**22 + 1, 2**32, 2**55, 2**56 - 1, 2**64 - 1])
def test_a_length_beyond_the_cap_is_refused_without_taking_memory(raw, length):
    talker, channel = raw
    talker.sendall(struct.pack("<Q", length))
    with pytest.raises(ProtocolError, match="carries 4194304 at most"):
        channel.receive()


def test_four_gibibytes_are_garbage_by_default():
    talker, listener = socket.socketpair()
    channel = Channel(listener)
    talker.sendall(struct.pack("<Q", 2**32))
    with pytest.raises(ProtocolError):
        channel.receive()
    talker.close()
    channel.close()


def test_a_long_frame_takes_memory_only_as_it_arrives():
    talker, listener = socket.socketpair()
    channel = Channel(listener)
    talker.sendall(struct.pack("<Q", 2**31) + b"x" * 1000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert channel.receive() == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kilobytes on Linux, bytes on macOS
    talker.close()
    with pytest.raises(EOFError, match="1000 bytes into a frame"):
        channel.receive()
    channel.close()


@pytest.mark.parametrize(
    "body", [b"", b"nonsense", pickle.dumps({}), pickle.dumps([(9999,)]), pickle.dumps([(61,)]), pickle.dumps(Channel)]
)
def test_a_frame_that_holds_no_messages_is_a_protocol_error_after_what_came_before(raw, body):
    talker, channel = raw
    talker.sendall(framed(pack([word(1)])) + framed(body) + framed(pack([word(2)])))
    assert channel.receive() == [word(1)]
    for _ in range(2):
        assert is_readable(channel), "a loop must come back for the error"
        with pytest.raises(ProtocolError):
            channel.receive()
        with pytest.raises(ProtocolError):
            channel.wait_for_message(LIMIT_S)


def test_after_a_protocol_error_both_sides_are_at_their_end(raw):
    talker, channel = raw
    talker.sendall(framed(b"nonsense"))
    with pytest.raises(ProtocolError):
        channel.receive()
    channel.send([word(1)])
    assert not channel.has_unsent
    assert talker.recv(10) == b""


def test_death_in_the_middle_of_a_frame_is_death(raw):
    talker, channel = raw
    talker.sendall(framed(pack([word(1)])) + framed(pack([word(2)]))[:20])
    talker.close()
    assert channel.receive() == [word(1)]
    with pytest.raises(EOFError, match="20 bytes into a frame"):
        channel.receive()


def test_a_batch_too_long_for_one_frame_travels_in_several():
    left, right = channel_pair(max_frame=1000, passes_fds=True)
    read, write = os.pipe()
    for number in range(99):
        left.post(word(number, 100))
    left.send([WorkerBorn(1, 0)], [write])
    assert collect(right, 100) == [*(word(number, 100) for number in range(99)), WorkerBorn(1, 0)]
    for fd in (read, write, *right.take_fds()):
        os.close(fd)
    left.close()
    right.close()


def test_a_message_too_long_for_any_frame_is_refused_and_the_others_go():
    left, right = channel_pair(max_frame=1000)
    for number in range(9):
        left.post(word(number, 2000 if number == 4 else 10))
    with pytest.raises(ProtocolError, match="a TaskDone takes .* scatter"):
        left.flush()
    assert [message.attempt for message in collect(right, 8)] == [0, 1, 2, 3, 5, 6, 7, 8]
    left.close()
    right.close()


def test_what_a_full_pipe_refuses_is_kept_until_it_drains():
    left, right = channel_pair()
    sent = 0
    while left.flush():
        left.post(word(sent, 1000))
        left.flush()
        sent += 1
    assert left.has_unsent
    assert not select.select([], [left], [], 0)[1]
    got: list[object] = []
    while len(got) < sent:
        got += right.receive()
        left.flush()
    assert [message.attempt for message in got] == list(range(sent))  # type: ignore[attr-defined]
    assert left.flush()
    left.close()
    right.close()


# ── over a socket: processes ─────────────────────────────────────────────────


def run_alone(program: str) -> None:
    """Run a program that forks in an interpreter of its own: the one that runs the tests may have threads."""
    prelude = """
import os, signal
from localdask.messages import TaskDone
from localdask.system.memory_channel import memory_pair
from localdask.system.transport import channel_pair
def word(number, size=4):
    return TaskDone(number, b"x" * size, size, 0.5, "bytes")
left, right = channel_pair()
"""
    text = prelude + textwrap.dedent(program)
    done = subprocess.run([sys.executable, "-c", text], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=2 * LIMIT_S)
    assert done.returncode == 0, done.stderr


def test_a_forked_child_that_closes_its_copies_leaves_its_parents_alone():
    run_alone("""
        pid = os.fork()
        if pid == 0:
            left.close()
            right.close()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        left.send([word(1)])
        right.send([word(2)])
        assert (right.receive(), left.receive()) == ([word(1)], [word(2)])
    """)


def test_what_a_killed_process_sent_arrives_before_the_end_of_file():
    run_alone("""
        pid = os.fork()
        if pid == 0:
            right.close()
            left.send([word(1)])
            os.kill(os.getpid(), signal.SIGKILL)
        left.close()
        assert right.wait_for_message(20) == [word(1)]
        try:
            right.wait_for_message(20)
        except EOFError:
            right.close()
        assert right.fileno() == -1
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    """)


def test_a_broken_pipe_kills_nobody_even_where_sigpipe_is_deadly():
    run_alone("""
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        for left, right in ((left, right), memory_pair()):
            right.close()
            left.send([word(1)])
            left.send([word(1, 100_000)])
    """)


def test_a_program_that_is_executed_inherits_no_end(pair):
    assert not any(os.get_inheritable(end.fileno()) for end in pair)


def test_the_twin_delivers_the_very_objects():
    left, right = memory_pair()
    message = word(1)
    left.send([message])
    assert right.receive()[0] is message
    left.close()
    right.close()


def test_both_kinds_have_the_same_face():
    assert {name for name in dir(MemoryChannel) if not name.startswith("_")} == {name for name in dir(Channel) if not name.startswith("_")}


def test_the_wire_is_eight_bytes_of_length_and_the_packed_messages(raw):
    talker, channel = raw
    channel.send([word(1), word(2)])
    data = talker.recv(10_000)
    assert struct.unpack("<Q", data[:8]) == (len(data) - 8,)
    assert pickle.loads(data[8:]) == [to_wire(word(1)), to_wire(word(2))]


def test_an_end_that_is_told_again_and_again_keeps_no_frame_of_who_heard(pair):
    """A caller's frame holds its results; an error that is kept must not hold the frame."""

    class Result:
        pass

    def hear(channel):
        result = Result()
        try:
            channel.receive()
        except EOFError:
            return weakref.ref(result)
        raise AssertionError("it is not told")

    one, other = pair
    other.close()
    gc.disable()
    try:
        assert [hear(one)() for _ in range(3)] == [None] * 3
    finally:
        gc.enable()
