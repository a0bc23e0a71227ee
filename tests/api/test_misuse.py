"""What a call that makes no sense is told, before anything of it is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from localdask import (
    Client,
    Future,
    LocalCluster,
    Lock,
    MultiLock,
    Queue,
    Semaphore,
    UploadDirectory,
    annotate,
    as_completed,
    config,
    fire_and_forget,
    get_worker,
    performance_report,
    wait,
)
from localdask.api import cluster as cluster_room
from localdask.errors import ClosedClientError, ClosedClusterError, UsageError

pytestmark = pytest.mark.shared


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda client: client.submit(abs, -1, priority="high"), UsageError, "priority='high'; it is a number"),
        (lambda client: client.submit(abs, -1, retries="x"), UsageError, "retries='x'; it is a whole number"),
        (lambda client: client.submit(abs, -1, workers=1.5), TypeError, "workers=1.5; give a worker's name"),
        (lambda client: client.submit(abs, -1, key=object()), TypeError, "a key is a text, a number or bytes"),
        (lambda client: client.map(abs, 3), TypeError, "map runs over iterables, and 3 is none"),
        (lambda client: client.map(abs), TypeError, "map takes an iterable"),
        (lambda client: client.map(abs, [1, 2], key=["a"]), ValueError, "2 calls and 1 keys"),
        (lambda client: client.map(abs, [1], key=3), TypeError, "key=3; give a text"),
        (lambda client: as_completed([3]), TypeError, "as_completed yields futures, and 3 is none"),
        (lambda client: client.who_has([object]), TypeError, "is no future and no key"),
        (lambda client: client.get({"a": 1}, "b"), KeyError, "'b' is no key of the graph"),
        (lambda client: LocalCluster(n_workers=1, env={3: "A"}), UsageError, "3 cannot be set in an environment"),
        (lambda client: LocalCluster(n_workers=1, env={"A=B": "C"}), UsageError, "'A=B' cannot be set"),
        (lambda client: LocalCluster(n_workers=1, env=3), UsageError, "env=3; it is a mapping"),  # type: ignore[arg-type]
        (lambda client: as_completed(3), TypeError, "as_completed takes an iterable of futures, and 3 is none"),
        (lambda client: wait([3]), TypeError, "wait takes futures, and 3 is none"),
        (lambda client: client.cancel("key"), TypeError, "cancel takes futures, and 'key' is none"),
        (lambda client: client.retry([{"a": 3}]), TypeError, "retry takes futures, and 3 is none"),
        (lambda client: fire_and_forget(3), TypeError, "fire_and_forget takes futures, and 3 is none"),
        (lambda client: client.submit(abs, -1).add_done_callback(3), UsageError, r"fn=3; it is a function, called as fn\(future\)"),  # type: ignore[arg-type]
        (lambda client: client.submit(abs, -1).result(timeout=[]), UsageError, r"timeout: \[\] is no duration"),  # type: ignore[arg-type]
        (lambda client: Semaphore("x"), UsageError, "max_leases='x'; it is a whole number"),  # type: ignore[arg-type]
        (lambda client: Lock(["a"]), UsageError, r"Lock\(name=\['a'\]\); it is a text"),  # type: ignore[arg-type]
        (lambda client: Queue("q", client=3), UsageError, "Queue works on clusters of localdask, and client=3 is no Client"),  # type: ignore[arg-type]
        (lambda client: MultiLock(3), UsageError, "names=3; it is a list"),  # type: ignore[arg-type]
        (lambda client: MultiLock(["a"]).acquire(num_locks="x"), UsageError, "num_locks='x'; it is a whole number"),  # type: ignore[arg-type]
        (lambda client: client.log_event(3, 4), UsageError, "topic=3; it is a text, or a list"),  # type: ignore[arg-type]
        (lambda client: client.subscribe_topic("a", 3), UsageError, "handler=3; it is a function"),  # type: ignore[arg-type]
        (lambda client: client.retire_workers("w7", grace="x"), UsageError, "grace: 'x' is no duration"),
        (lambda client: client.cluster.scale(cores="x"), UsageError, "cores='x'; it is a number of threads"),
        (lambda client: client.cluster.adapt(minimum="x"), UsageError, "minimum='x'; it is a number of workers"),
        (lambda client: client.cluster.adapt(maximum_memory=[]), UsageError, r"maximum_memory: \[\] is no size"),
        (lambda client: client.restart_workers(3.5), UsageError, "workers=3.5; it is a list of names"),
        (lambda client: client.subscribe_topic(["a"], print), UsageError, r"topic=\['a'\]; it is a text"),  # type: ignore[arg-type]
        (lambda client: client.get_events(["a"]), UsageError, r"topic=\['a'\]; it is a text"),  # type: ignore[arg-type]
        (lambda client: client.profile(filename=3), UsageError, "filename=3; it is a file's path"),
        (lambda client: performance_report(3), UsageError, "filename=3; it is a file's path"),  # type: ignore[arg-type]
        (lambda client: client.write_scheduler_file(3), UsageError, "scheduler_file=3; it is a file's path"),  # type: ignore[arg-type]
        (lambda client: Client(scheduler_file=3), UsageError, "scheduler_file=3; it is a file's path"),
        (lambda client: client.run(3), TypeError, "run calls a function, and 3 is none"),  # type: ignore[arg-type]
        (lambda client: client.run_on_scheduler(3), TypeError, "run_on_scheduler calls a function, and 3 is none"),  # type: ignore[arg-type]
        (lambda client: client.get_worker_logs("x"), UsageError, "n='x'; it is a whole number of lines"),  # type: ignore[arg-type]
        (lambda client: client.get_scheduler_logs("x"), UsageError, "n='x'; it is a whole number of lines"),  # type: ignore[arg-type]
        (lambda client: client.cluster.restart(timeout="x"), UsageError, "timeout: 'x' is no duration"),
        (lambda client: client.cluster.wait_for_generation(1), UsageError, "this cluster has no preloads"),
        (lambda client: client.cluster.adapt(interval="x"), UsageError, "interval: 'x' is no duration"),
        (lambda client: client.log_event("a", object()), TypeError, "the message of an event is plain data"),
        (
            lambda client: client.submit(lambda: get_worker().log_event("a", object())).result(),
            TypeError,
            "the message of an event is plain data",
        ),
        (lambda client: Future(["a"]), TypeError, "a key is a text, a number or bytes"),  # type: ignore[arg-type]
        (lambda client: Client(client.cluster, name=3), UsageError, "name=3; it is a text"),  # type: ignore[arg-type]
        (lambda client: client.submit(abs, -1).result(timeout=float("nan")), UsageError, "timeout: nan is no duration"),
        (lambda client: client.get_versions(packages=3), UsageError, "packages=3; it is a list of names"),  # type: ignore[arg-type]
        (lambda client: client.upload_file(3), UsageError, "filepath=3; it is a file's path"),
        (lambda client: client.register_plugin(UploadDirectory(3)), UsageError, "path=3; it is a folder's path"),  # type: ignore[arg-type]
        (lambda client: client.cluster.reload(3), UsageError, "path=3; it is a preload's path"),  # type: ignore[arg-type]
        (lambda client: client.cluster.wait_for_generation(1, 3), UsageError, "path=3; it is a preload's path"),  # type: ignore[arg-type]
        (lambda client: config.get(3), UsageError, "key=3; it is a name with dots"),  # type: ignore[arg-type]
        (lambda client: client.get(3, "a"), UsageError, "dsk=3; it is a graph"),
        (lambda client: client.map(abs, [1], batch_size="x"), UsageError, "batch_size='x'; it is a whole number"),  # type: ignore[call-overload]
    ],
)
def test_it_names_the_argument_and_the_mend(client: Client, call: Callable[[Client], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call(client)
    assert client.submit(abs, -3).result(timeout=20) == 3


def test_blocks_are_judged_each_for_itself(client: Client) -> None:
    with annotate(allow_other_workers=True):
        with annotate(retries=1):
            assert client.submit(abs, -4, workers="w0").result(timeout=20) == 4
        with annotate(workers="w0"):
            assert client.submit(abs, -5).result(timeout=20) == 5
        with pytest.raises(ValueError, match="goes with workers"):
            client.submit(abs, -6)
    with pytest.raises(UsageError, match="retries='x'"), annotate(retries="x"):
        pass


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"memory_limit": []}, r"memory_limit: \[\] is no size: write a number of bytes"),
        ({"plugins": 3}, "plugins=3; it is a list of plugins"),
        ({"preload_argv": 3}, "preload_argv=3; it is one text, a list"),
        ({"local_directory": 3}, "local_directory=3; it is a folder's path"),
        ({"reload_grace": "x"}, "reload_grace: 'x' is no duration: write seconds"),
        ({"reload_grace": -1}, "reload_grace: -1 is no duration"),
        ({"death_timeout": []}, r"death_timeout: \[\] is no duration"),
        ({"setup_timeout": None}, "setup_timeout=None; it is seconds"),
        ({"lifetime_memory": []}, r"lifetime_memory: \[\] is no size"),
        ({"allowed_failures": "x"}, "allowed_failures='x'; it is a whole number of deaths"),
        ({"on_event": 3}, r"on_event=3; it is a function, called as f\(kind"),
        ({"on_log": 3}, r"on_log=3; it is a function, called as f\(source"),
        ({"on_reload": 3}, r"on_reload=3; it is a function, called as f\(record\)"),
    ],
)
def test_a_cluster_names_the_argument_before_it_starts_anything(words: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_room, "begin_launcher", lambda: pytest.fail("a process was started"))
    with pytest.raises(UsageError, match=text):
        LocalCluster(n_workers=1, **words)


def test_metadata_go_by_any_plain_name(client: Client) -> None:
    client.set_metadata(3, 4)
    assert client.get_metadata(3) == 4
    with pytest.raises(TypeError, match="metadata are plain data"):
        client.set_metadata(object(), 4)


def test_one_worker_is_retired_by_its_name_alone() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        retired = cluster.retire_workers("w1")
        assert [worker["name"] for worker in retired.values()] == ["w1"]
        assert list(cluster.workers) == ["w0"]


def test_adapting_goes_on_as_it_was_after_a_call_that_was_refused() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        adaptive = cluster.adapt(minimum=1, maximum=2)
        with pytest.raises(UsageError, match="no range"):
            cluster.adapt(minimum=3)
        assert "adapting" in repr(adaptive)
        assert "1 to 3" in repr(cluster.adapt(maximum=3)) and "stopped" in repr(adaptive)


def test_what_is_closed_says_so() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        pass
    with pytest.raises(ClosedClientError):
        client.run_on_scheduler(abs, -1)
    with pytest.raises(ClosedClusterError):
        cluster.wait_for_workers(1)
