"""Clients in other processes: they find the cluster, share its data, die without harm, and can do it no harm."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localdask import Client, LocalCluster, config
from localdask.api import socket_link
from localdask.errors import ClosedClientError, ClusterNotFoundError, FutureCancelledError, UsageError, WorkerStartTimeoutError
from localdask.messages import Hello, Refused, ReleaseKeys, Welcome
from localdask.system.transport import Channel
from localdask.version import __version__
from tests.conftest import wait_until
from tests.live.scripts import running


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(name="shared", n_workers=2, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster.scheduler_address) as client:
        yield client


def visit(cluster: LocalCluster) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(20)
    sock.connect(cluster.scheduler_address.removeprefix("unix://"))
    return sock


def say_hello(cluster: LocalCluster, name: str, version: str = __version__) -> tuple[Channel, Any]:
    channel = Channel(visit(cluster))
    channel.send([Hello(version, name, {})])
    try:
        return channel, channel.wait_for_message(20)[0]
    except EOFError:
        channel.close()
        raise


def inc(x: int) -> int:
    return x + 1


# ── finding ──────────────────────────────────────────────────────────────────


@pytest.mark.shared
@pytest.mark.parametrize("how", ["name", "auto", "address", "path", "local", "environment", "configuration"])
def test_a_cluster_is_found(cluster: LocalCluster, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cluster.scheduler_address.removeprefix("unix://")
    if how == "environment":
        monkeypatch.setenv("LOCALDASK_ADDRESS", "shared")
    configured = {"scheduler-address": "shared"} if how == "configuration" else {}
    address = {"name": "shared", "auto": "auto", "address": f"unix://{path}", "path": path, "local": "local://shared/w0"}.get(how)
    with config.set(configured), Client(address) as client:
        assert client.submit(inc, 1).result() == 2
        assert repr(client) == f"<Client: 'unix://{path}'>" and client.cluster is None


@pytest.mark.shared
def test_what_is_not_found_lists_what_runs(cluster: LocalCluster) -> None:
    with pytest.raises(ClusterNotFoundError, match=r"no cluster called 'shred' runs; there is:\n  shared  pid \d+, up \d+ s, unix://"):
        Client("shred")
    with LocalCluster(name="second", n_workers=0), LocalCluster(n_workers=0) as unnamed:
        with pytest.raises(ClusterNotFoundError, match=r"(?s)2 clusters run: say which.*shared.*second") as caught:
            Client("auto")
        assert unnamed.name not in str(caught.value)
        Client(unnamed.name).close()
    with pytest.raises(ClusterNotFoundError, match="there is no cluster at"):
        Client(unnamed.scheduler_address)
    with pytest.raises(UsageError, match=r"localdask.connect\('tcp://x:1'\)"):
        Client("tcp://x:1")
    with pytest.raises(ValueError, match="Unexpected keyword"):
        Client("shared", n_workers=2)
    with pytest.raises(UsageError, match="'shared' runs already"):
        LocalCluster(name="shared", n_workers=1)


@pytest.mark.shared
def test_a_cluster_without_processes_has_no_door() -> None:
    with LocalCluster(n_workers=1, processes=False) as cluster:
        assert cluster.scheduler_address == f"local://{cluster.name}"


# ── using ────────────────────────────────────────────────────────────────────


@pytest.mark.shared
def test_it_is_a_whole_client(client: Client) -> None:
    futures = client.map(inc, range(1000))
    assert sum(client.gather(futures)) == sum(range(1001))
    assert client.submit(sum, futures[:3]).result() == 6
    (large,) = client.scatter([np.arange(100_000)])
    assert client.submit(np.sum, large).result() == sum(range(100_000))
    assert client.submit(np.ones, 100_000).result().sum() == 100_000
    with pytest.raises(ZeroDivisionError):
        client.submit(lambda: 1 // 0).result()
    future = client.submit(time.sleep, 30)
    future.cancel()
    with pytest.raises(FutureCancelledError):
        future.result()


@pytest.mark.shared
@pytest.mark.parametrize("key", ["text", 3, 2.5, b"bytes", ("part", 0, ("deep", 1))], ids=str)
def test_each_kind_of_key_travels(client: Client, key: Any) -> None:
    future = client.submit(inc, 1, key=key)
    assert future.key == key and client.submit(inc, future).result() == 3
    assert list(client.who_has([future])) == [key]
    client.cancel(future)
    wait_until(lambda: future.status == "cancelled")


def test_it_controls_as_one_beside_the_cluster(cluster: LocalCluster, client: Client) -> None:
    workers = {address: worker.pid for address, worker in cluster.scheduler.workers.items()}
    assert client.run(os.getpid) == workers
    assert client.nthreads() == dict.fromkeys(workers, 1)
    assert client.scheduler_info()["address"] == cluster.scheduler_address
    assert client.run_on_scheduler(lambda n, dask_scheduler: (os.getpid(), dask_scheduler.name, n), 5) == (os.getpid(), "shared", 5)
    with pytest.raises(KeyError):
        client.run_on_scheduler({}.__getitem__, "x")
    client.wait_for_workers(2, timeout=20)
    with pytest.raises(WorkerStartTimeoutError):
        client.wait_for_workers(3, timeout=0.01)
    with pytest.raises(ValueError, match="no worker is called w9; there are w0, w1"):
        client.run(os.getpid, workers=["w9"])


@pytest.mark.shared
def test_it_controls_from_within_a_task(client: Client) -> None:
    def ask() -> Any:
        from localdask import get_client

        inner = get_client()
        return inner.scheduler_info()["n_workers"], len(inner.run(os.getpid)), inner.run_on_scheduler(lambda: 5)

    assert client.submit(ask).result(timeout=20) == (2, 2, 5)


def test_scaling_and_restarting_from_elsewhere() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster.scheduler_address) as client:
        assert client._ask("scale", 1, True) == 2
        client.wait_for_workers(2, timeout=20)
        before = set(client.run(os.getpid).values())
        future = client.submit(inc, 1)
        assert future.result() == 2
        client.restart(timeout=20)
        assert not before & set(client.run(os.getpid).values())
        assert future.status == "cancelled"


@pytest.mark.shared
def test_two_clients_in_two_processes_share_data(cluster: LocalCluster, client: Client) -> None:
    code = """if True:
        import sys, numpy
        from localdask import Client, Future
        with Client("shared") as client:
            assert int(client.submit(numpy.sum, Future("given")).result()) == 4950
            future = client.submit(pow, 2, 10, key="made")
            assert future.result() == 1024
            print("there", flush=True)
            sys.stdin.read()
    """
    given = client.submit(np.arange, 100, key="given")
    given.result()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == b"there\n"
        from localdask import Future

        made = Future("made", client)
        assert made.result(timeout=20) == 1024
        other.stdin.close()
    assert other.returncode == 0
    assert made.result() == 1024  # it outlives the client that made it, while this one holds it


@pytest.mark.shared
def test_a_large_value_of_a_client_is_swept_with_the_cluster(cluster: LocalCluster, client: Client) -> None:
    assert cluster.segments is not None
    before = len(os.listdir(cluster.segments.path))
    future = client.scatter(np.ones(100_000), hash=False)
    assert len(os.listdir(cluster.segments.path)) == before + 1
    del future
    wait_until(lambda: len(os.listdir(cluster.segments.path)) == before)


# ── deaths ───────────────────────────────────────────────────────────────────

CRASHER = """\
import time
from localdask import Client, fire_and_forget
client = Client("shared")
futures = client.map(lambda x: x, range(100), key="mine")
stuck = client.submit(time.sleep, 0.3, key="stuck")
kept = client.submit(pow, 7, 2, key="kept")
client.gather(futures)
fire_and_forget(client.submit(lambda path: (time.sleep(0.5), open(path, "w").close()), PATH, key="fire"))
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.shared
def test_a_killed_client_takes_its_futures_and_nothing_else(cluster: LocalCluster, client: Client, tmp_path: Path) -> None:
    before = set(cluster.scheduler.state.clients)
    with running(CRASHER.replace("PATH", repr(str(tmp_path / "fired"))), folder=tmp_path) as script:
        script.wait_for("ready")
        from localdask import Future

        kept = Future("kept", client)
        assert kept.result(timeout=20) == 49
        script.process.kill()
        wait_until(lambda: not [key for key in list(cluster.scheduler.state.tasks) if key.startswith(("mine", "stuck"))])
    wait_until((tmp_path / "fired").exists)
    assert kept.result() == 49 and client.submit(inc, 1).result() == 2
    wait_until(lambda: set(cluster.scheduler.state.clients) == before)


def test_a_cluster_that_closes_ends_its_clients() -> None:
    cluster = LocalCluster(n_workers=1, threads_per_worker=1)
    client = Client(cluster.scheduler_address)
    future, answer = client.submit(time.sleep, 60), client._ask_nowait("wait_for_workers", 5, None)
    inner = Client(cluster)
    inner_future = inner.submit(time.sleep, 61)
    cluster.close()
    for one in (future, inner_future):
        with pytest.raises(FutureCancelledError, match="connection-lost"):
            one.result(timeout=20)
    with pytest.raises((ClosedClientError, RuntimeError), match="closed"):
        answer.wait(20)
        answer.value()
    assert client.status == inner.status == "closed"
    with pytest.raises(ClosedClientError):
        client.submit(inc, 1)
    client.close()
    inner.close()


HOST = """\
import sys, time
from localdask import LocalCluster
if __name__ == "__main__":
    cluster = LocalCluster(name="host", n_workers=1, threads_per_worker=1)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_cluster_that_is_killed_ends_its_clients_and_leaves_a_stale_door(tmp_path: Path) -> None:
    with running(HOST, folder=tmp_path) as script:
        script.wait_for("ready")
        client = Client("host")
        future = client.submit(time.sleep, 60)
        script.process.kill()
        with pytest.raises(FutureCancelledError, match="scheduler-connection-lost"):
            future.result(timeout=20)
        client.close()
    with pytest.raises(ClusterNotFoundError):
        Client("host")
    with LocalCluster(name="host", n_workers=0) as cluster:
        Client(cluster.scheduler_address).close()


def test_a_stopped_cluster_is_told_and_not_waited_for(tmp_path: Path) -> None:
    with running(HOST, folder=tmp_path) as script:
        script.wait_for("ready")
        script.family()
        script.process.send_signal(signal.SIGSTOP)
        with pytest.raises(TimeoutError, match="did not answer within 0.2 s; its process may be stopped"):
            Client("host", timeout=0.2)
        script.process.send_signal(signal.SIGCONT)
        Client("host").close()
        script.process.kill()
        wait_until(lambda: not script.left())
    with LocalCluster(n_workers=0):
        pass  # sweeps


@pytest.mark.shared
def test_a_forked_child_does_not_hold_its_parents_connection(cluster: LocalCluster, client: Client) -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    try:
        assert client.submit(inc, 2).result() == 3
        client.close()
        wait_until(lambda: client.id not in cluster.scheduler.state.clients)
    finally:
        os.close(writer)
        os.waitpid(pid, 0)
        os.close(reader)


# ── threats ──────────────────────────────────────────────────────────────────

GARBAGE = {
    "noise": os.urandom(4096),
    "4 GiB": struct.pack("<Q", 2**32) + b"x",
    "2**56 bytes": struct.pack("<Q", 2**56 - 1),
    "descriptors": struct.pack("<Q", 1 << 56 | 3) + b"abc",
    "a class": struct.pack("<Q", 22) + b"cos\nsystem\n(S'true'\ntR.",
    "an empty frame": struct.pack("<Q", 0),
    "http": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 4,
}


@pytest.mark.shared
@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_closes_that_connection_and_nothing_else(cluster: LocalCluster, client: Client, what: str) -> None:
    with visit(cluster) as sock:
        sock.sendall(GARBAGE[what])
        with contextlib.suppress(ConnectionResetError):  # closed with bytes unread
            assert sock.recv(1) == b""
    assert client.submit(inc, 3, pure=False).result() == 4


@pytest.mark.shared
@pytest.mark.parametrize(
    "word",
    [
        ReleaseKeys("another", ["k"]),
        ReleaseKeys("me", 5),  # type: ignore[arg-type]
        ReleaseKeys("me", [["k"]]),  # type: ignore[list-item]
        Welcome("", {}),
        Hello(__version__, "me", {}),
    ],
    ids=repr,
)
def test_a_word_out_of_shape_closes_that_connection_and_nothing_else(cluster: LocalCluster, client: Client, word: Any) -> None:
    channel, answer = say_hello(cluster, "me")
    assert isinstance(answer, Welcome)
    channel.send([word])
    with pytest.raises(EOFError):
        channel.wait_for_message(20)
    channel.close()
    assert client.submit(inc, 4, pure=False).result() == 5
    wait_until(lambda: "me" not in cluster.scheduler.state.clients)


@pytest.mark.shared
def test_half_a_frame_and_silence_harm_nobody(cluster: LocalCluster, client: Client) -> None:
    with visit(cluster) as silent, visit(cluster) as half:
        half.sendall(struct.pack("<Q", 1000) + b"half")
        assert client.submit(inc, 5, pure=False).result() == 6
        half.shutdown(socket.SHUT_WR)
        assert half.recv(1) == b""
        silent.shutdown(socket.SHUT_WR)
        assert silent.recv(1) == b""


@pytest.mark.shared
def test_another_version_is_refused_with_a_clear_word(cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    channel, answer = say_hello(cluster, "old", "0.0.1")
    assert isinstance(answer, Refused)
    assert answer.reason == (
        f"cluster 'shared' runs localdask {__version__} and this client '0.0.1': use the same version, or start the cluster again"
    )
    channel.close()
    monkeypatch.setattr(socket_link, "__version__", "9.9")
    with pytest.raises(ClusterNotFoundError, match="runs localdask .* and this client '9.9'"):
        Client("shared")
    monkeypatch.undo()
    monkeypatch.setattr(socket_link, "PYTHON", "2.7")
    with pytest.raises(ClusterNotFoundError, match="this client 2.7: functions cannot travel"):
        Client("shared")


@pytest.mark.shared
def test_a_second_client_of_the_same_name_is_sent_away(cluster: LocalCluster) -> None:
    first, answer = say_hello(cluster, "twin")
    assert isinstance(answer, Welcome)
    with pytest.raises(EOFError):
        say_hello(cluster, "twin")
    first.send([])
    assert "twin" in cluster.scheduler.state.clients
    first.close()
    wait_until(lambda: "twin" not in cluster.scheduler.state.clients)


def test_a_clients_preloads_are_torn_down_also_when_its_cluster_went_first(tmp_path: Path) -> None:
    preload, mark = tmp_path / "left_behind.py", tmp_path / "torn-down"
    preload.write_text(f"import pathlib\ndef dask_teardown(client): pathlib.Path({str(mark)!r}).touch()\n")
    with LocalCluster(n_workers=0) as cluster, config.set({"client.preload": [str(preload)]}):
        client = Client(cluster.scheduler_address)
    wait_until(lambda: client.status == "closed")
    assert not mark.exists()
    client.close()
    assert mark.exists()
