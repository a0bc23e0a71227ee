"""Plugins in real processes: present, replaced and future ones have them, in order, before their first task, or not at all."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from localdask import Client, LocalCluster, NannyPlugin, SchedulerPlugin, WorkerPlugin, get_client, get_worker
from localdask.errors import PreloadError, UsageError
from tests.conftest import wait_until


class Notes(WorkerPlugin):
    """Notes what happens to it on the worker."""

    def __init__(self, who: str) -> None:
        self.who = who

    def setup(self, worker: Any) -> None:
        worker.notes = [*getattr(worker, "notes", ()), f"+{self.who}"]

    def teardown(self, worker: Any) -> None:
        worker.notes.append(f"-{self.who}")


class FailsOn(Notes):
    """Cannot be set up on one worker."""

    def __init__(self, who: str, worker: str) -> None:
        super().__init__(who)
        self.worker = worker

    def setup(self, worker: Any) -> None:
        if worker.name == self.worker:
            raise LookupError("no licence")
        super().setup(worker)


def notes(client: Client) -> list[list[str]]:
    """Return the notes of w0, w1, …"""
    return [found for _, found in sorted(client.run(lambda dask_worker: getattr(dask_worker, "notes", [])).items())]


def ok(cluster: LocalCluster) -> dict[str, Any]:
    return {cluster.worker_address(name): {"status": "OK"} for name in cluster.workers}


def own_notes() -> list[str]:
    return list(get_worker().notes)


# ── workers' plugins ─────────────────────────────────────────────────────────


def test_a_killed_workers_successor_has_all_plugins_in_order_before_its_first_task(cluster: LocalCluster, client: Client) -> None:
    for who in "abc":
        assert client.register_plugin(Notes(who), name=who) == ok(cluster)
    client.register_plugin(Notes("b2"), name="b")
    pid = client.submit(os.getpid, workers="w0").result()
    os.kill(pid, signal.SIGKILL)
    first = client.submit(own_notes, workers="w0", pure=False).result()
    assert first == ["+a", "+c", "+b2"], "what was replaced is set up where it was set up last"
    assert client.submit(own_notes, workers="w1", pure=False).result() == ["+a", "+b", "+c", "-b", "+b2"]
    cluster.scale(3)
    client.wait_for_workers(3)
    assert client.submit(own_notes, workers="w2").result() == ["+a", "+c", "+b2"]


def test_a_plugin_is_found_by_its_name_in_a_task(client: Client) -> None:
    client.register_worker_plugin(Notes("x"), name="my-plugin")
    assert client.submit(lambda: get_worker().plugins["my-plugin"].who).result() == "x"


def test_a_setup_that_fails_anywhere_leaves_everything_as_it_was(cluster: LocalCluster, client: Client) -> None:
    client.register_plugin(Notes("old"), name="x")
    with pytest.raises(LookupError, match="no licence") as raised:
        client.register_plugin(FailsOn("new", "w1"), name="x")
    (note,) = raised.value.__notes__  # type: ignore[attr-defined]
    assert cluster.worker_address("w1") in note and "all is as before" in note
    assert notes(client) == [["+old", "-old", "+new", "-new", "+old"], ["+old", "-old", "+old"]]
    with pytest.raises(LookupError):
        client.register_plugin(FailsOn("other", "w0"), name="y")
    assert [list(names) for names in client.run(lambda dask_worker: list(dask_worker.plugins)).values()] == [["x"], ["x"]]


def test_names_control_idempotency_as_dask_and_as_it_was(cluster: LocalCluster, client: Client) -> None:
    class Named(Notes):
        name = "named"

    class Once(Named):
        idempotent = True

    assert client.register_plugin(Named("1")) == ok(cluster)
    assert client.register_plugin(Once("2")) == {}
    assert client.register_plugin(Named("3"), idempotent=True) == {}
    assert client.register_worker_plugin(Named, who="4") == {}
    assert client.register_plugin(Named("5")) == ok(cluster)
    assert notes(client)[0] == ["+1", "-1", "+5"]
    assert client.register_worker_plugin(Named, name="other", who="6") == ok(cluster)


def test_unregistering_ends_it_everywhere_and_says_what_its_end_raised(cluster: LocalCluster, client: Client) -> None:
    class Unwilling(Notes):
        def teardown(self, worker: Any) -> None:
            super().teardown(worker)
            raise OSError("busy")

    client.register_plugin(Notes("a"), name="a")
    client.register_plugin(Unwilling("b"), name="b")
    assert client.unregister_worker_plugin("a") == ok(cluster)
    with pytest.raises(OSError, match="busy"):
        client.unregister_plugin("b")
    assert client.run(lambda dask_worker: len(dask_worker.plugins)) == dict.fromkeys(ok(cluster), 0)
    assert notes(client)[1] == ["+a", "+b", "-a", "-b"]
    for call in (client.unregister_worker_plugin, client.unregister_nanny_plugin, client.unregister_plugin):
        with pytest.raises(ValueError, match="plugin b does not exist"):
            call("b")
    with pytest.raises(ValueError, match="Could not find plugin 'b' among the current scheduler plugins"):
        client.unregister_scheduler_plugin("b")


def test_what_is_no_plugin_is_refused(client: Client) -> None:
    with pytest.raises(TypeError, match=r"Please provide an instance of a plugin, not a type\."):
        client.register_plugin(Notes)
    with pytest.raises(ValueError, match="none of the hooks"):
        client.register_plugin(object())
    with pytest.raises(TypeError, match="who: keywords go with a class"):
        client.register_worker_plugin(Notes("a"), who="b")
    with pytest.raises(TypeError, match="needs a plugin"):
        client.register_worker_plugin()


def test_async_hooks_are_awaited(client: Client) -> None:
    class Waits:
        async def setup(self, worker: Any) -> None:
            await asyncio.sleep(0)
            worker.waited = True

        async def teardown(self, worker: Any) -> None:
            await asyncio.sleep(0)
            worker.waited = False

    client.register_plugin(Waits(), name="waits")
    assert set(client.run(lambda dask_worker: dask_worker.waited).values()) == {True}
    client.unregister_plugin("waits")
    assert set(client.run(lambda dask_worker: dask_worker.waited).values()) == {False}


def test_a_worker_callback_runs_in_every_worker_with_it_or_without(cluster: LocalCluster, client: Client) -> None:
    def with_worker(dask_worker: Any) -> None:
        dask_worker.called = True

    assert client.register_worker_callbacks(with_worker) == ok(cluster)
    assert client.register_worker_callbacks(lambda: setattr(get_worker(), "bare", True)) == ok(cluster)
    assert client.register_worker_callbacks(dict) == ok(cluster)  # C code that does not tell its parameters
    assert set(client.run(lambda dask_worker: dask_worker.called and dask_worker.bare).values()) == {True}


def test_a_task_can_register_while_another_runs(cluster: LocalCluster, client: Client) -> None:
    def register() -> Any:
        return get_client().register_plugin(Notes("inner"), name="inner")

    assert client.submit(register).result() == ok(cluster)
    assert notes(client) == [["+inner"], ["+inner"]]


def test_one_that_kills_the_worker_is_told_and_does_not_kill_the_next(client: Client) -> None:
    class Kills:
        def setup(self, worker: Any) -> None:
            if worker.name == "w0":
                os._exit(3)

    with pytest.raises(RuntimeError, match=r"w0 died while it set up the worker plugin deadly"):
        client.register_plugin(Kills(), name="deadly")
    assert client.submit(lambda: len(get_worker().plugins), workers="w0").result() == 0


@pytest.mark.usefixtures("by_reference")
def test_plugins_of_the_cluster_are_set_up_during_the_start_and_a_failing_one_fails_it() -> None:
    with LocalCluster(n_workers=1, plugins=[Notes("a"), Notes("b")]) as cluster, Client(cluster) as client:
        assert notes(client) == [["+a", "+b"]]
    with pytest.raises(
        PreloadError, match=r"the plugin FailsOn-\w+ failed in w0: setup raised LookupError: no licence at .*test_plugins_live"
    ):
        LocalCluster(n_workers=1, plugins=[FailsOn("a", "w0")])


def test_a_worker_that_cannot_set_up_what_is_registered_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()  # not capfd: what is written while that is read is lost
    monkeypatch.setattr(sys, "stderr", said)

    class SecondTimeNot(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            if worker.life > 1:
                raise LookupError("sold out")

    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        client.register_plugin(SecondTimeNot(), name="scarce")
        os.kill(client.submit(os.getpid, workers="w0").result(), signal.SIGKILL)
        wait_until(lambda: "the plugin scarce failed in w0: setup raised LookupError: sold out" in said.getvalue())
        assert [worker.name for worker in cluster.scheduler.workers.values()] == ["w1"]


class SlowToBegin(WorkerPlugin):
    """Takes more than two seconds, as it says."""

    setup_timeout = 30

    def setup(self, worker: Any) -> None:
        time.sleep(2.2)


def test_a_start_may_take_as_long_as_its_hooks_may(tmp_path: Path) -> None:
    """What waits for a process's start is told of each hook: together they take longer than one may."""
    slow = [tmp_path / "slow_first.py", tmp_path / "slow_second.py", tmp_path / "slow_third.py"]
    for path in slow:
        path.write_text("import time\ndef dask_setup(service): time.sleep(2.2)\n")
    with LocalCluster(n_workers=1, preload=list(map(str, slow)), setup_timeout=2.5, plugins=[SlowToBegin()]) as cluster:
        assert len(cluster.workers) == 1
        with Client(cluster) as client:
            assert client.submit(int, 1).result() == 1


def test_workers_in_threads_have_plugins_too() -> None:
    with LocalCluster(n_workers=1, processes=False, plugins=[Notes("a")]) as cluster, Client(cluster) as client:
        assert client.register_plugin(Notes("b"), name="b") == ok(cluster)
        assert client.submit(own_notes).result() == ["+a", "+b"]
        with pytest.raises(ValueError, match="have no nannies"):
            client.register_plugin(Variable("1"))


class Watches(WorkerPlugin):
    """Keeps what it is told of each task."""

    def setup(self, worker: Any) -> None:
        self.worker = worker
        self.told: list[Any] = []

    def transition(self, key: str, start: str, finish: str, **kwargs: Any) -> None:
        self.told.append((key, start, finish))
        if finish == "memory":
            assert key in self.worker.data

    def release_key(self, key: str, state: str, cause: Any, reason: None, report: bool) -> None:
        self.told.append(("release_key", key, state))

    def release_dep(self, dep: str, state: str, report: bool) -> None:
        self.told.append(("release_dep", dep, state))


def watched(client: Client, worker: str) -> list[Any]:
    found = client.run(lambda dask_worker: list(dask_worker.plugins["watch"].told), workers=[worker])
    return next(iter(found.values()))


def moves_of(client: Client, worker: str, key: str) -> list[str]:
    """Return the states that a key went through on a worker, which must be a chain."""
    moves = [move for move in watched(client, worker) if move[0] == key]
    assert all(before[2] == after[1] for before, after in zip(moves, moves[1:], strict=False)), moves
    return [moves[0][1], *(move[2] for move in moves)] if moves else []


@pytest.mark.parametrize("threads", [1, 2])
def test_a_worker_plugin_sees_each_task_in_dasks_words(threads: int) -> None:
    def fail() -> None:
        raise ValueError

    def nested() -> int:
        return get_client().submit(abs, -2, key="inner").result()

    with LocalCluster(n_workers=2, threads_per_worker=threads) as cluster, Client(cluster) as client:
        client.register_plugin(Watches(), name="watch")
        future = client.submit(bytes, 10, key="plain", workers="w0")
        user = client.submit(len, future, key="user", workers="w1")
        assert user.result() == 10
        assert client.submit(fail, key="bad", workers="w0").exception() is not None
        assert client.submit(nested, key="outer", workers="w0").result() == 2
        chain = ["released", "waiting", "ready", "executing"]
        wait_until(lambda: moves_of(client, "w0", "bad")[-1:] == ["forgotten"])
        assert moves_of(client, "w0", "bad") == [*chain, "error", "released", "forgotten"]
        assert moves_of(client, "w0", "outer")[:7] == [*chain, "long-running", "executing", "memory"]
        assert moves_of(client, "w1", "user")[:5] == [*chain, "memory"]
        assert ("release_dep", "plain", "memory") in watched(client, "w1")
        del future, user
        wait_until(lambda: moves_of(client, "w0", "plain")[-1:] == ["forgotten"])
        assert moves_of(client, "w0", "plain") == [*chain, "memory", "released", "forgotten"]
        assert ("release_key", "plain", "memory") in watched(client, "w0")
        client.unregister_plugin("watch")
        assert client.submit(abs, -3).result() == 3


# ── nannies' plugins ─────────────────────────────────────────────────────────


class Variable(NannyPlugin):
    """Sets an environment variable, which a process reads at its start."""

    restart = True
    name = "variable"

    def __init__(self, value: str) -> None:
        self.value = value

    def setup(self, nanny: Any) -> None:
        nanny.env["OF_PLUGIN"] = self.value

    def teardown(self, nanny: Any) -> None:
        nanny.env["OF_PLUGIN"] = f"after {self.value}"


def test_a_nannys_plugin_comes_before_its_worker_and_may_replace_it(cluster: LocalCluster, client: Client) -> None:
    before = client.run(os.getpid)
    assert client.register_plugin(Variable("1")) == ok(cluster)
    assert set(client.run(os.getenv, "OF_PLUGIN").values()) == {"1"}
    assert not set(before.values()) & set(client.run(os.getpid).values())
    cluster.scale(3)
    client.wait_for_workers(3)
    assert set(client.run(os.getenv, "OF_PLUGIN").values()) == {"1"}
    nanny = cluster.workers["w0"]
    old, old_pid = client.run(os.getpid, workers=["w0"]), nanny.pid
    assert old_pid is not None
    os.kill(old_pid, signal.SIGKILL)
    wait_until(lambda: nanny.pid not in (None, old_pid) and "w0" in cluster.scheduler.workers)
    assert client.submit(os.getpid, workers="w0", pure=False).result() not in old.values()
    assert client.submit(os.getenv, "OF_PLUGIN", workers="w0", pure=False).result() == "1", "a new nanny has the plugin too"


def test_a_nannys_plugin_is_replaced_and_removed_with_its_end_first(cluster: LocalCluster, client: Client) -> None:
    client.register_nanny_plugin(Variable("1"))
    client.register_nanny_plugin(Variable("2"))
    assert set(client.run(os.getenv, "OF_PLUGIN").values()) == {"2"}
    assert client.unregister_nanny_plugin("variable") == ok(cluster)
    client.restart()
    assert set(client.run(os.getenv, "OF_PLUGIN").values()) == {"after 2"}


def test_a_nannys_plugin_that_fails_leaves_all_as_it_was(cluster: LocalCluster, client: Client) -> None:
    class Refuses(Variable):
        def setup(self, nanny: Any) -> None:
            raise PermissionError("not here")

    pids = client.run(os.getpid)
    with pytest.raises(PermissionError, match="not here"):
        client.register_worker_plugin(Refuses("1"), nanny=True)
    assert client.run(os.getpid) == pids


# ── the scheduler's plugins ──────────────────────────────────────────────────


class Recorder(SchedulerPlugin):
    """Records each call with its arguments, in the module's list: it runs in this process."""

    name = "recorder"

    def __getattribute__(self, hook: str) -> Any:
        if hook.startswith("_") or hook in ("name", "idempotent"):
            return super().__getattribute__(hook)

        def record(*args: Any, **kwargs: Any) -> Any:
            calls.append((hook, args, kwargs))
            return args[1] if hook == "valid_workers_downscaling" else None

        return record


calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []


def called(hook: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    return [(args, kwargs) for name, args, kwargs in calls if name == hook]


class LooksAtWorkers(SchedulerPlugin):
    """Finds workers as plugins written for Dask do: by the address that they are told of."""

    name = "looks"

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def add_worker(self, scheduler: Any, worker: str) -> None:
        self.seen[worker] = scheduler.workers[worker].nthreads
        assert worker in scheduler.workers and "local://elsewhere/w0" not in scheduler.workers


def test_schedulers_words_of_dask_name_preloads_and_plugins_that_find_workers_by_address(tmp_path: Path) -> None:
    (tmp_path / "counted_preload.py").write_text("def dask_setup(scheduler):\n    scheduler.n_at_start = len(scheduler.workers)\n")
    looks = LooksAtWorkers()
    words = {"preload": str(tmp_path / "counted_preload.py"), "plugins": [looks], "dashboard_address": None}
    with LocalCluster(n_workers=1, threads_per_worker=2, scheduler_kwargs=words) as cluster:
        address = cluster.worker_address("w0")
        assert looks.seen == {address: 2} and list(cluster.scheduler.workers) == [address]
        assert cluster.scheduler.workers["w0"] is cluster.scheduler.workers[address]
        assert cluster.scheduler.n_at_start == 0  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="takes preload, preload_argv, plugins"):
        LocalCluster(n_workers=1, scheduler_kwargs={"preloads": "x.py"})


def test_every_hook_of_a_scheduler_plugin_is_called_with_dasks_arguments() -> None:
    calls.clear()
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        scheduler = cluster.scheduler
        scheduler.add_plugin(Recorder())
        assert called("start") == [((scheduler,), {})] and list(scheduler.plugins) == ["recorder"]
        with Client(cluster) as client:
            future = client.submit(sum, [1, 2], key="three", priority=2)
            assert future.result() == 3
            del future
            wait_until(lambda: any(args[2] == "forgotten" for args, _ in called("transition")))
            client.restart()
            cluster.scale(2)
            client.wait_for_workers(2)
            cluster.scale(1)
            wait_until(lambda: len(called("remove_worker")) == 2)
            client_id = client.id
        wait_until(lambda: called("remove_client"))
        address = cluster.worker_address("w0")
    assert called("add_client")[0] == ((), {"scheduler": scheduler, "client": client_id})
    assert called("remove_client") == [((), {"scheduler": scheduler, "client": client_id})]
    ((args, graph),) = called("update_graph")
    assert args == (scheduler,) and graph["client"] == client_id and graph["keys"] == {"three"} and graph["tasks"] == ["three"]
    assert graph["annotations"] == {"priority": {"three": 2}} and graph["priority"]["three"][0] == -2 and graph["stimulus_id"]
    moves = [args for args, _ in called("transition")]
    states = ["released", "waiting", "processing", "memory", "released", "forgotten"]
    assert moves == [("three", start, finish) for start, finish in zip(states, states[1:], strict=False)]
    assert all(kwargs["stimulus_id"] for _, kwargs in called("transition"))
    assert [kwargs.get("worker") for _, kwargs in called("transition")][1:3] == [address, address]
    assert called("restart") == [((scheduler,), {})]
    assert [kwargs["worker"].rpartition("/")[2] for _, kwargs in called("add_worker")] == ["w0", "w1"]
    (args, kwargs), *_ = called("remove_worker")
    assert args == () and kwargs["scheduler"] is scheduler and kwargs["worker"] == address and kwargs["stimulus_id"]
    ((args, _),) = called("valid_workers_downscaling")
    assert args[0] is scheduler and [worker.name for worker in args[1]] == ["w0", "w1"]
    assert "worker-joined" in {args[0] for args, _ in called("log_event")}
    assert called("before_close") == called("close") == [((), {})]
    names = [name for name, *_ in calls]
    assert names.index("before_close") < names.index("close") and names[-1] == "close"


def test_a_hook_may_wait_for_results_of_the_cluster_that_calls_it(cluster: LocalCluster) -> None:
    class Asks(SchedulerPlugin):
        def add_worker(self, scheduler: Any, worker: str) -> None:
            with Client(cluster, set_as_default=False) as client:
                results.append(client.submit(abs, -1, pure=False).result())

    results: list[int] = []
    cluster.scheduler.add_plugin(Asks())
    cluster.scale(3)
    wait_until(lambda: results == [1])


@pytest.mark.usefixtures("by_reference")
def test_a_scheduler_plugin_is_replaced_kept_or_refused(cluster: LocalCluster, client: Client) -> None:
    calls.clear()
    client.register_scheduler_plugin(Recorder())
    client.register_plugin(Recorder(), idempotent=True)
    assert [name for name, *_ in calls if name in ("start", "close")] == ["start"]
    assert client.register_plugin(Recorder()) is None
    client.unregister_plugin("recorder")
    assert [name for name, *_ in calls if name in ("start", "close")] == ["start", "close", "start", "close"]

    class Fails(SchedulerPlugin):
        async def start(self, scheduler: Any) -> None:
            raise ConnectionError("no database")

    with pytest.raises(ConnectionError, match="no database"):
        client.register_plugin(Fails(), name="fails")
    assert "fails" not in cluster.scheduler.plugins
