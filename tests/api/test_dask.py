"""Dask's collections on a client: what is computed, what is kept, how tasks run, and how Dask comes to use it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

from localdask import Client, Future, LocalCluster, annotate, futures_of, get_task_stream, get_worker, wait
from tests.conftest import wait_until

pytestmark = pytest.mark.shared


def increase(x: int) -> int:
    return x + 1


def pid_of(x: object) -> int:
    return os.getpid()


@pytest.fixture
def frame() -> pd.DataFrame:
    random = np.random.default_rng(1)
    return pd.DataFrame({"a": random.integers(0, 10, 1000), "b": random.random(1000)})


# ── what is computed ─────────────────────────────────────────────────────────


def test_delayed_calls_run_on_workers(client: Client) -> None:
    assert dask.delayed(sum)([dask.delayed(increase)(i) for i in range(50)]).compute() == 1275
    pids = dask.compute(*[dask.delayed(pid_of)(i) for i in range(4)])
    assert set(pids) <= set(client.run(os.getpid).values())


def test_delayed_calls_nest_in_every_container(client: Client) -> None:
    one, two = dask.delayed(increase)(0), dask.delayed(increase)(1)

    @dask.delayed
    def shapes(a: Any, b: Any, *, c: Any) -> tuple[Any, ...]:
        return a, b, c

    assert shapes([one, [two, 5]], {"k": (one, two)}, c={"set": [one]}).compute() == ([1, [2, 5]], {"k": (1, 2)}, {"set": [1]})
    assert dask.delayed({"a": one, "b": [two]}).compute() == {"a": 1, "b": [2]}


def test_arrays_are_what_numpy_says(client: Client) -> None:
    known = np.random.default_rng(1).random((200, 200))
    x = da.from_array(known, chunks=50)
    np.testing.assert_allclose((x + x.T).sum(axis=0).compute(), (known + known.T).sum(axis=0))
    np.testing.assert_allclose(x.dot(x.T)[::3, 5].compute(), known.dot(known.T)[::3, 5])
    np.testing.assert_allclose(x.rechunk((200, 10)).mean().compute(), known.mean())


def test_large_chunks_travel_between_workers(client: Client) -> None:
    x = da.ones((1000, 1000), chunks=(500, 500))
    assert (x + x.T).sum().compute() == 2_000_000


def test_frames_are_what_pandas_says(client: Client, frame: pd.DataFrame) -> None:
    parts = dd.from_pandas(frame, npartitions=4)
    pd.testing.assert_series_equal(parts.groupby("a").b.mean().compute().sort_index(), frame.groupby("a").b.mean())
    assert parts[parts.a > 5].b.sum().compute() == pytest.approx(frame[frame.a > 5].b.sum())
    assert len(parts.shuffle("a")) == len(frame)
    merged = parts.merge(parts.groupby("a").b.max().reset_index(), on="a").compute()
    assert len(merged) == len(frame)


def test_steps_of_a_frame_that_only_continue_each_other_are_one_task(client: Client, frame: pd.DataFrame) -> None:
    means = dd.from_pandas(frame, npartitions=4).groupby("a").b.mean(split_out=2)
    nodes = means.optimize(fuse=False).__dask_graph__()
    with get_task_stream(client) as stream:
        pd.testing.assert_series_equal(means.compute().sort_index(), frame.groupby("a").b.mean())
    assert len(stream.data) < len(nodes) / 2
    assert any("mean_chunk" in row["key"] and "reset_index" in row["key"] for row in stream.data)


def test_steps_that_are_asked_for_stay_apart(client: Client) -> None:
    steps = [dask.delayed(increase)(1)]
    steps += [dask.delayed(increase)(steps[0])]
    with get_task_stream(client) as stream:
        assert dask.compute(steps[-1]) == (3,)
    assert len(stream.data) == 2


def test_bags_fold_and_group(client: Client) -> None:
    bag = db.from_sequence(range(100), npartitions=5)
    assert bag.map(increase).filter(lambda x: x % 2).sum().compute() == 2500
    assert dict(bag.foldby(lambda x: x % 3, lambda total, x: total + x, 0).compute()) == {0: 1683, 1: 1617, 2: 1650}


def test_collections_of_several_kinds_are_computed_at_once(client: Client) -> None:
    array, call = da.arange(10, chunks=5), dask.delayed(increase)(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dask warns of mixtures
        assert dask.compute({"a": array.sum(), "b": [call, 7]}) == ({"a": 45, "b": [2, 7]},)


def test_an_error_in_a_chunk_is_the_computations(client: Client) -> None:
    def fail(block: Any) -> Any:
        raise KeyError("in a chunk")

    with pytest.raises(KeyError, match="in a chunk"):
        da.ones(10, chunks=5).map_blocks(fail, dtype=float).compute()


# ── graphs as they are ───────────────────────────────────────────────────────


def test_get_takes_a_plain_graph_and_keys_in_any_nesting(client: Client) -> None:
    graph = {"a": 1, "b": (increase, "a"), ("c", 0): (sum, ["a", "b"]), "d": "b", "e": [("c", 0), "d"]}
    assert client.get(graph, "b") == 2
    assert client.get(graph, [["b", ("c", 0)], "d", "e", "a"]) == [[2, 3], 2, [3, 2], 1]
    futures = client.get(graph, ["b", ("c", 0)], sync=False)
    assert all(isinstance(future, Future) for future in futures)
    assert client.gather(futures) == [2, 3]


def test_a_key_is_the_same_however_its_numbers_are_typed(client: Client) -> None:
    graph = {("x", np.int64(0)): (increase, 1), "y": (increase, ("x", 0))}
    assert client.get(graph, [("x", 0), "y"]) == [2, 3]


def test_calls_within_calls_run_as_one_task(client: Client) -> None:
    assert client.get({"a": 1, "b": (sum, [(increase, (increase, "a")), "a"])}, "b") == 4


def test_what_nobody_asks_for_does_not_run(client: Client, tmp_path: Path) -> None:
    assert client.get({"a": (increase, 1), "b": ((tmp_path / "ran").touch,), "c": (increase, "b")}, "a") == 2
    assert not (tmp_path / "ran").exists()


def test_a_graph_that_goes_in_a_circle_is_refused(client: Client) -> None:
    with pytest.raises(RuntimeError, match="[Cc]ycle"):
        client.get({"a": (increase, "b"), "b": (increase, "a")}, "a")
    with pytest.raises(RuntimeError, match="[Cc]ycle"):
        client.get({"a": (increase, "a")}, "a")


def test_only_results_are_kept_and_only_as_long_as_their_futures(client: Client) -> None:
    state = client.scheduler.state
    future = client.compute(dask.delayed(sum)([dask.delayed(increase)(i) for i in range(20)]))
    assert future.result() == 210
    key = future.key
    wait_until(lambda: [known for known, task in state.tasks.items() if task.state == "memory"] == [key])
    del future
    gc.collect()
    wait_until(lambda: not state.tasks)


# ── futures ──────────────────────────────────────────────────────────────────


def test_a_computation_that_failed_goes_on_for_nobody_who_keeps_its_error(client: Client, tmp_path: Path) -> None:
    def divide(x: int) -> float:
        return 1 / x

    def note(number: int) -> None:
        time.sleep(0.01)
        (tmp_path / str(number)).touch()

    with dask.annotate(priority=1):
        failing = dask.delayed(divide)(0)
    slow = [dask.delayed(note)(number) for number in range(500)]
    with pytest.raises(ZeroDivisionError) as caught:
        dask.compute(failing, dask.delayed(len)(slow))
    wait_until(lambda: all(task.state == "erred" for task in list(client.scheduler.state.tasks.values())))
    assert caught.value.__traceback__ is not None  # as a notebook keeps it, with the variables of each frame
    assert len(list(tmp_path.iterdir())) < 500


def test_compute_gives_a_future_for_each_collection(client: Client) -> None:
    call, array = dask.delayed(increase)(1), da.arange(10, chunks=5)
    assert client.compute(call).result() == 2
    first, second, third = client.compute([call, array, "other"])
    assert first.result() == 2
    assert list(second.result()) == list(range(10))
    assert third == "other"
    assert client.compute([call, "other"], sync=True) == [2, "other"]
    assert client.compute(call, sync=True) == 2


def test_persisted_collections_hold_their_chunks_on_the_cluster(client: Client, frame: pd.DataFrame) -> None:
    x = client.persist(da.arange(100, chunks=10) + 1)
    assert isinstance(x, da.Array)
    assert len(futures_of(x)) == 10
    assert not wait(futures_of(x)).not_done
    assert (x * 2).sum().compute() == 10100
    parts = dd.from_pandas(frame, npartitions=4).persist()
    assert len(futures_of(parts)) == 4
    assert parts.b.sum().compute() == pytest.approx(frame.b.sum())
    call = dask.delayed(increase)(1).persist()
    assert dask.delayed(increase)(call).compute() == 3
    bag, other = client.persist([db.from_sequence(range(10), npartitions=2), call])
    assert bag.sum().compute() == 45
    assert other.compute() == 2


def test_what_is_persisted_is_not_run_again(client: Client, tmp_path: Path) -> None:
    def note(path: str) -> int:
        with open(path, "a") as file:
            return file.write(".")

    call = client.persist(dask.delayed(note)(str(tmp_path / "runs")))
    assert dask.delayed(increase)(call).compute() == 2
    assert call.compute() == 1
    assert (tmp_path / "runs").read_text() == "."


def held_back(path: str) -> int:
    while not os.path.exists(path):
        time.sleep(0.01)
    return 1


def test_persisted_collections_are_waited_for_looked_up_and_cancelled(client: Client, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    call = client.persist(dask.delayed(held_back)(str(gate)))
    with pytest.raises(TimeoutError):
        wait([call], timeout=0.05)
    gate.touch()
    assert wait(call).done == set(futures_of(call)) and call.compute() == 1
    x = client.persist(da.ones(4, chunks=2))
    assert len(wait({"a": [x, call]}).done) == 3
    assert sorted(client.who_has(x)) == sorted(str(future.key) for future in futures_of(x))
    client.cancel(x)
    assert {future.status for future in futures_of(x)} == {"cancelled"}
    assert wait(da.ones(4, chunks=2)).done == set(), "nothing of it was begun"


def test_futures_of_a_client_go_into_delayed_calls(client: Client) -> None:
    future = client.submit(increase, 1)
    assert dask.delayed(increase)(future).compute() == 3
    assert dask.delayed(sum)([future, future, 1]).compute() == 5


def test_arrays_bags_and_frames_are_made_of_futures(client: Client) -> None:
    future = client.submit(np.arange, 4)
    array = da.from_delayed(future, shape=(4,), dtype=int)
    assert array.compute().tolist() == [0, 1, 2, 3]
    assert array.sum().compute() == 6
    assert da.concatenate([array + 1, da.from_delayed(dask.delayed(future), shape=(4,), dtype=int)]).sum().compute() == 16
    assert client.compute((array * 2).max()).result() == 6
    assert db.from_delayed([future, future]).map(increase).sum().compute() == 20
    part = client.submit(pd.DataFrame, {"a": [1, 2]})
    assert dd.from_delayed([part, part]).a.sum().compute() == 6


def test_compute_takes_what_a_container_holds_as_one_thing(client: Client) -> None:
    call, array = dask.delayed(increase)(1), da.arange(4, chunks=2)
    future = client.compute({"a": call, "b": [array.sum(), 5]})
    assert isinstance(future, Future) and future.result() == {"a": 2, "b": [6, 5]}
    first, second = client.compute([[call, call], call])
    assert first.result() == [2, 2] and second.result() == 2
    assert client.compute([[call]], traverse=False) == [[call]]
    assert client.compute([(call, 1), {"x": call}], sync=True) == [(2, 1), {"x": 2}]


def test_compute_and_persist_name_an_argument_that_they_have_not(client: Client) -> None:
    with pytest.raises(TypeError, match=r"compute\(\) has no argument 'retires'; did you mean retries"):
        client.compute(dask.delayed(increase)(1), retires=2)
    with pytest.raises(TypeError, match=r"persist\(\) has no argument 'zzz'; it takes workers, "):
        client.persist(dask.delayed(increase)(1), zzz=2)
    assert client.compute(dask.delayed(increase)(1), fifo_timeout="1s", actors=None, sync=True) == 2


def test_futures_of_finds_each_future_once(client: Client) -> None:
    one, two = client.map(increase, range(2))
    assert set(futures_of([one, {"a": (two, one)}])) == {one, two}
    assert futures_of(5) == []
    assert len(futures_of([client.persist(da.ones(4, chunks=2)), one])) == 3


# ── how tasks run ────────────────────────────────────────────────────────────


def where(x: Any = None) -> str:
    return str(get_worker().name)


def fails_twice(path: str) -> int:
    with open(path, "a") as file:
        file.write(".")
    if os.path.getsize(path) < 3:
        raise OSError("not yet")
    return os.path.getsize(path)


def test_options_of_a_call_hold_for_all_its_tasks(client: Client, tmp_path: Path) -> None:
    calls = [dask.delayed(where)(i) for i in range(4)]
    assert set(client.compute(calls, sync=True, workers="w1")) == {"w1"}
    assert set(dask.compute(*[dask.delayed(where)(i) for i in range(4)], workers=["w0"])) == {"w0"}
    assert dask.delayed(fails_twice)(str(tmp_path / "a")).compute(retries=2) == 3
    with annotate(retries=2):
        assert dask.delayed(fails_twice)(str(tmp_path / "b")).compute() == 3


def test_annotations_of_dasks_hold_for_what_is_submitted_and_computed_within(client: Client, tmp_path: Path) -> None:
    call = dask.delayed(fails_twice)(str(tmp_path / "c"))
    with dask.annotate(retries=2, workers="w1", color="blue", priority=lambda key: 1):
        assert client.submit(fails_twice, str(tmp_path / "a")).result() == 3
        assert client.gather(client.map(fails_twice, [str(tmp_path / "b")])) == [3]
        assert call.compute() == 3
        assert client.get_executor().submit(fails_twice, str(tmp_path / "d")).result() == 3
        assert client.submit(where, 1).result() == "w1"
        assert client.submit(where, 2, workers="w0").result() == "w0"
        with annotate(workers="w0"):
            assert client.submit(where, 3).result() == "w0"


def test_annotations_of_dasks_hold_for_their_tasks_alone(client: Client, tmp_path: Path) -> None:
    with dask.annotate(workers=["w1"], retries=2):
        there = [dask.delayed(where)(i) for i in range(3)]
        third_time = dask.delayed(fails_twice)(str(tmp_path / "a"))
    anywhere = dask.delayed(fails_twice)(str(tmp_path / "b"))
    assert dask.compute(*there) == ("w1", "w1", "w1")
    assert third_time.compute() == 3
    with pytest.raises(OSError, match="not yet"):
        anywhere.compute()


# ── how Dask comes to use it ─────────────────────────────────────────────────


def test_the_newest_client_is_dasks_scheduler_until_it_is_closed(shared_cluster: LocalCluster) -> None:
    assert dask.config.get("scheduler", None) is None
    with dask.config.set(scheduler="sync"):
        with Client(shared_cluster) as first:
            assert dask.config.get("scheduler") is first
            second = Client(shared_cluster)
            assert dask.config.get("scheduler") is second
            second.close()
            assert dask.config.get("scheduler") is first
            with Client(shared_cluster, set_as_default=False):
                assert dask.config.get("scheduler") is first
        assert dask.config.get("scheduler") == "sync"
    with Client(shared_cluster), dask.config.set(scheduler="sync"):
        assert dask.delayed(pid_of)(1).compute() == os.getpid()
    assert dask.config.get("scheduler", None) is None


@pytest.mark.parametrize("name", ["distributed", "dask.distributed"])
def test_dasks_own_name_of_it_means_the_newest_client_until_all_are_closed(shared_cluster: LocalCluster, name: str) -> None:
    pid = dask.delayed(pid_of)(0, dask_key_name=f"named-{name}")
    with Client(shared_cluster) as client:
        with Client(shared_cluster):
            assert pid.compute(scheduler=name) != os.getpid()
        with dask.config.set(scheduler=name):
            assert pid.compute() != os.getpid()
            assert len(futures_of(pid.persist())) == 1
        assert client.submit(abs, -1).result() == 1
    with pytest.raises(RuntimeError, match="no Client active"):
        pid.compute(scheduler=name)


def test_a_client_closed_out_of_turn_leaves_the_other(shared_cluster: LocalCluster) -> None:
    first, second = Client(shared_cluster), Client(shared_cluster)
    first.close()
    assert dask.config.get("scheduler") is second
    second.close()
    assert dask.config.get("scheduler", None) is None


@pytest.mark.parametrize("order", ["before", "after"])
def test_dask_may_be_imported_before_the_client_or_after(order: str) -> None:
    code = f"""
import os, sys
if {order!r} == "before": import dask
from localdask import Client
assert ("dask" in sys.modules) is ({order!r} == "before")
finders = list(sys.meta_path)
with Client(n_workers=1) as client:
    import dask
    assert dask.config.get("scheduler") is client
    assert dask.__spec__.loader is dask.__loader__ and "localdask" not in type(dask.__loader__).__module__
    assert dask.delayed(os.getpid)().compute() in client.run(os.getpid).values()
assert dask.config.get("scheduler", None) is None
assert all("localdask" not in type(finder).__module__ for finder in sys.meta_path)
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_a_client_costs_no_import_of_dask() -> None:
    code = "import sys; from localdask import Client\nwith Client(n_workers=1): print('dask' in sys.modules, 'joblib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False False\n"


def test_who_imports_dask_first_keeps_nothing_of_what_it_made() -> None:
    code = """
import gc, sys
sys.modules["jinja2"] = None  # without it Dask keeps an error, and with that the frames of who imported it
from localdask import Client
with Client(n_workers=1) as client:
    assert "dask" not in sys.modules and client.get({"x": (abs, -1)}, "x") == 1
    gc.collect()
    client.submit(abs, -2).result()
    print("x" in client.who_has())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_dask_may_be_imported_while_another_thread_makes_a_client() -> None:
    code = """
import importlib.abc, sys, threading, time
from localdask import Client, LocalCluster

class Pause(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "dask.widgets":
            is_begun.set()
            for _ in range(100):  # the room that waits for Dask, and that Dask's loader is about to wait for
                if "localdask.integrations.dask" in sys.modules:
                    break
                time.sleep(0.005)

def make():
    is_begun.wait()
    with Client(cluster) as client:
        is_made.set()
        is_seen.wait()

is_begun, is_made, is_seen = threading.Event(), threading.Event(), threading.Event()
with LocalCluster(n_workers=1) as cluster, Client(cluster):
    sys.meta_path.insert(0, Pause())
    thread = threading.Thread(target=make)
    thread.start()
    import dask
    is_made.wait()
    print(len(sys.modules["localdask.integrations.dask"]._clients))
    is_seen.set()
    thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("2\n", "")
