"""What a client shows of its cluster: to a notebook, to a terminal, to who asks."""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import re
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from localdask import Client, LocalCluster, MemorySampler, get_task_metadata, get_task_stream, performance_report, progress, wait
from localdask.api import seeing
from localdask.api.futures import FutureState
from localdask.api.memory_sampler import cluster_nbytes
from localdask.api.portraits import client_html
from localdask.api.profiling import tree_of
from localdask.api.progress import Tally, line_of
from localdask.api.task_stream import stream_of
from localdask.errors import UsageError, WorkerNotFoundError
from localdask.messages import Function, SubmitTasks, TaskSpec
from localdask.processes.hints import Hints
from localdask.state import scheduler as decisions
from localdask.state.tasks import SchedulerState, WorkerState
from localdask.system.keys import group_of
from tests.conftest import wait_until
from tests.tasks import wait_for_file

pytestmark = pytest.mark.shared

VOID = {"br", "meta", "img", "input", "hr", "link"}


class Checked(HTMLParser):
    """Sees that every tag is closed by its own, and gathers the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(thing: object) -> str:
    """Return the text of a notebook's view of something, which is self-contained and small."""
    text = thing._repr_html_()  # type: ignore[attr-defined]
    assert len(text) < 6000
    assert not re.search(r"https?://|<script|<style|src=|class=", text)
    return Checked(text).text


def inc(x: int) -> int:
    return x + 1


# ── in a notebook ────────────────────────────────────────────────────────────


def test_a_client_and_its_cluster_show_their_workers(client: Client, shared_cluster: LocalCluster) -> None:
    for text in (shown(client), shown(shared_cluster)):
        assert "w0" in text and "w1" in text
        assert shared_cluster.scheduler_address in text
    with Client(shared_cluster.scheduler_address, set_as_default=False) as other:
        assert "w1" in shown(other)
    assert "No scheduler connected" in shown(other)


def test_a_client_of_many_workers_shows_the_first_of_them() -> None:
    worker = {"pid": 4_000_000, "nthreads": 16, "memory_limit": 2**36, "metrics": {"memory": 2**34}, "processing": 1000, "done": 10**9}
    workers = {f"local://c/w{n}": {**worker, "name": f"w{n}", "status": "closing_gracefully"} for n in range(200)}
    info = {"address": "unix:///run/user/1000/localdask/c.sock", "n_workers": 200, "total_threads": 3200, "total_memory": 2**44}
    asked = SimpleNamespace(status="running", name="c", _ask=lambda what, timeout: {**info, "workers": workers})
    text = shown(SimpleNamespace(_repr_html_=lambda: client_html(asked)))
    assert "w23 " in text and "w24 " not in text and "… and 176 more" in text


def test_a_future_shows_its_type_and_escapes_its_key(client: Client) -> None:
    future = client.submit(inc, 1, key="<b>&inc</b>")
    assert future.result() == 2
    text = shown(future)
    assert "finished" in text and "int" in text and "<b>&inc</b>" in text
    assert "<b>&inc" not in future._repr_html_()


# ── progress ─────────────────────────────────────────────────────────────────


def tally_of(*statuses: str) -> Tally:
    states = [FutureState(f"inc-{'0' * 30}{n:02}", lambda key: None) for n in range(len(statuses))]
    for state, status in zip(states, statuses, strict=True):
        state.status = status
    return Tally(states)


def test_a_tally_counts_what_is_done_and_what_failed() -> None:
    tally = tally_of("pending", "finished", "error", "pending")
    assert (tally.n_all, tally.n_done, tally.n_failed, tally.groups) == (4, 2, 1, {"inc": [4, 2, 1]})
    state = tally.pending[0]
    state.status = "cancelled"
    tally.look()
    tally.look()
    assert (tally.n_done, tally.n_failed, len(tally.pending)) == (3, 2, 1)


@pytest.mark.parametrize(
    ("key", "group"),
    [
        ("inc-0123456789abcdef0123456789abcdef", "inc"),
        ("inc-0a1b2c3d4e5f-17-89abcdef", "inc"),
        ("('sum-aggregate-0123456789abcdef', 0, 1)", "sum-aggregate"),
        ("load-face", "load-face"),
        ("-12", "-12"),
    ],
)
def test_a_group_is_named_for_its_function(key: str, group: str) -> None:
    assert group_of(key) == group


def test_the_line_tells_the_time_that_is_left() -> None:
    assert line_of(tally_of("pending", "finished"), 3.0, 80) == "████████████░░░░░░░░░░░░ 1 of 2 · 3.0 s left"
    assert line_of(tally_of("error"), 100.0, 80).endswith(" 1 of 1 · 1 failed · in 1:40 min")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_in_a_terminal_is_one_line_that_ends(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    futures = client.map(inc, range(20))
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        progress(futures, [client.submit(inc, "no number")])
        text = stream.getvalue()
        assert "21 of 21 · 1 failed · in " in text
        assert text.count("\n") == 1 and text.endswith("\n")
        assert ("\r" in text) == stream.isatty()
    assert all(future.done() for future in futures)


def test_progress_in_a_narrow_or_dumb_terminal_writes_no_line_that_wraps(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    for n_columns in (100, 40, 20, 8):
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr("localdask.api.progress._columns_of", lambda stream, n=n_columns: n)
        progress(client.map(inc, range(20)))
        lines = stream.getvalue().replace("\x1b[K", "").rstrip("\n").split("\r")[1:]
        assert max(map(len, lines)) < n_columns
        assert ("█" in lines[-1]) == (n_columns >= 40)
        assert "20 of 20 · in".startswith(lines[-1].lstrip("█ ")[: min(n_columns, 13)].rstrip())
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    progress(client.map(inc, range(20)))
    assert re.fullmatch(r"20 of 20 · in .*\n", stream.getvalue())


def test_map_shows_progress_unless_the_keyword_is_the_function_s(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    def plain(x: int) -> int:
        return x

    def own(x: int, progress: bool = False) -> bool:
        return progress

    def anything(x: int, **kwargs: Any) -> Any:
        return kwargs

    assert client.gather(client.map(plain, range(3), progress=True)) == [0, 1, 2]
    assert re.fullmatch(r"3 of 3 · in .*\n", capsys.readouterr().err)
    assert client.gather(client.map(plain, range(3, 6), progress=False)) == [3, 4, 5]
    assert client.gather(client.map(own, [1], progress=True)) == [True]
    assert client.gather(client.map(anything, [1], progress=True)) == [{"progress": True}]
    assert capsys.readouterr().err == ""


def test_progress_in_a_notebook_returns_at_once_and_follows(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def display(text: str, display_id: bool) -> SimpleNamespace:
        shown.append(text)
        return SimpleNamespace(update=shown.append)

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=display))
    gate = client.submit(time.sleep, 0.2)
    progress(client.submit(inc, gate, key="<inc>-1"), gate, notebook=True)
    wait_until(lambda: shown and "1 of 1 · 1 failed" in shown[-1], what=repr(shown))
    assert all("<inc>" in Checked(text).text for text in shown)
    assert all(one != other for one, other in itertools.pairwise(shown))


# ── processes ────────────────────────────────────────────────────────────────


def hold(path: str) -> str:
    """Wait for a file, in a function of this name."""
    while not os.path.exists(path):
        time.sleep(0.01)
    return path


def hold_interpreter(path: str) -> None:
    """Keep the interpreter to itself in C code for a second or two: a regular expression that goes astray."""
    Path(path).touch()
    re.match(r"(a+)+$", "a" * 24 + "b")


def test_a_call_stack_shows_where_a_task_is(client: Client, tmp_path: Path) -> None:
    path = str(tmp_path / "go")
    one, two = client.submit(hold, path, key="one", workers="w0"), client.submit(hold, path, key="two", workers="w1")

    def there() -> set[str]:
        stacks = [row for there in client.call_stack().values() for row in there.items()]
        return {key for key, stack in stacks if any("in hold\n    " in call for call in stack)}

    wait_until(lambda: there() == {"one", "two"})
    stacks = client.call_stack(two)
    assert [*stacks] == [address for address in client.nthreads() if address.endswith("/w1")]
    assert [*[*stacks.values()][0]] == ["two"]
    assert client.call_stack(keys=["three"]) == {}
    Path(path).touch()
    assert client.gather([one, two]) == [path, path]
    assert client.call_stack() == {}


def test_a_call_stack_shows_a_worker_that_c_code_holds(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeing, "ANSWER_S", 0.2)
    future = client.submit(hold_interpreter, str(tmp_path / "begun"), key="stuck", workers="w0")
    wait_until((tmp_path / "begun").exists)
    stacks = client.call_stack([future])
    assert any("in hold_interpreter" in line for line in [*stacks.values()][0]["stuck"])
    future.result()


def test_versions_are_told_and_compared(client: Client) -> None:
    found = client.get_versions(check=True, packages=["pytest"])
    assert len(found["workers"]) == 2
    assert found["client"]["packages"] == found["scheduler"]["packages"]
    assert found["client"]["packages"]["pytest"] == pytest.__version__
    found["scheduler"]["packages"]["numpy"] = "0.1"
    with pytest.raises(ValueError, match=r"numpy \(client: .*scheduler: 0.1"):
        seeing._check_versions(found)


def test_logs_are_told_newest_first(client: Client) -> None:
    def speak() -> None:
        print("first words")
        print("last words", file=sys.stderr, flush=True)

    address = [*client.nthreads()][0]
    client.run(speak, workers=[address])
    wait_until(lambda: ("ERROR", "last words") in client.get_worker_logs(n=5, workers=[address])[address])
    (lines,) = client.get_worker_logs(workers=[address]).values()
    assert ("INFO", "first words") in lines
    assert len(client.get_worker_logs(n=1)) == 2
    assert client.get_worker_logs(nanny=True).keys() == client.get_worker_logs().keys()
    assert any("worker-joined" in text for level, text in client.get_scheduler_logs())


def test_workers_are_restarted_by_name(client: Client) -> None:
    pids = client.run(os.getpid)
    address = [*pids][0]
    assert client.restart_workers([address], timeout=30) == {address: "OK"}
    now = client.run(os.getpid)
    assert [name for name in pids if pids[name] != now[name]] == [address]
    with pytest.raises(WorkerNotFoundError, match="w77"):
        client.restart_workers(["w77"])


# ── events and hints ─────────────────────────────────────────────────────────


def test_the_last_events_of_a_topic_are_kept(client: Client) -> None:
    client.log_event("fruit", "apple")
    client.log_event(["fruit", "trees"], {"name": "pear"})
    assert [message for _, message in client.get_events("fruit")] == ["apple", {"name": "pear"}]
    ((at, message),) = client.get_events()["trees"]
    assert at > 0 and message == {"name": "pear"}
    assert client.get_events("nothing") == ()


def test_a_task_that_nobody_can_run_is_told_of_once() -> None:
    state = SchedulerState()
    lines: list[str] = []
    calls: list[Callable[[], None]] = []
    loop = SimpleNamespace(call_soon_threadsafe=lambda call: call(), call_at=lambda at, call: calls.append(call))
    scheduler: Any = SimpleNamespace(state=state, loop=loop, decide=lambda decision: decision(state))
    Hints(scheduler, lambda source, stream, line: lines.append(line))

    def submit(key: str, workers: tuple[str, ...] = (), resources: tuple[tuple[str, float], ...] = ()) -> None:
        function = Function("f", "f", b"")
        spec = TaskSpec(key, function, b"", (), 0, 0, workers, False, resources)
        decisions.client_said(state, [SubmitTasks("c", [spec])], 0.0)

    decisions.connect_client(state, "c")
    submit("early", ("w0",))
    calls.pop()()
    assert not lines, "there are no workers yet"
    decisions.worker_joined(state, WorkerState("w0", 1, 1, 1, (("GPU", 1.0),)), 0.0)
    calls.pop()()
    assert not lines and not calls, "it was only early"
    submit("one", ("nope", "nobody"))
    submit("two", ("nope", "nobody"))
    submit("three", (), (("TPU", 2.0),))
    calls.pop()()
    assert lines == [
        "task one (and 1 more) waits for worker nobody or nope, and no worker is that; there are w0 GPU=1",
        "task three waits for resources TPU=2, and no worker is that; there are w0 GPU=1",
    ]
    submit("four", ("nope", "nobody"))
    assert not calls, "it was told"


# ── the task stream ──────────────────────────────────────────────────────────


def test_tasks_of_a_thread_are_laid_out_backwards_from_what_came_last() -> None:
    rows = [("a-1", "w", 1, 10.0, 0.1, True, 1, "int"), ("b-1", "w", 1, 10.0, 0.125, False, 0, ""), ("c-1", "v", 2, 10.0, 1.0, True, 0, "")]
    a, b, c = stream_of(rows)
    assert [row["startstops"][0] for row in (a, b, c)] == [
        {"action": "compute", "start": 9.775, "stop": 9.875},
        {"action": "compute", "start": 9.875, "stop": 10.0},
        {"action": "compute", "start": 9.0, "stop": 10.0},
    ]
    assert (a["status"], b["status"], a["name"]) == ("OK", "error", "a")


def test_the_task_stream_tells_when_and_where_tasks_ran(client: Client) -> None:
    client.gather(client.map(inc, range(3), pure=False))
    with get_task_stream(client) as stream, get_task_metadata() as tasks:
        began = time.time()
        done = client.submit(time.sleep, 0.05, key="sleep-1")
        wait([done, client.submit(inc, "x", key="bad-1")])
    rows = {row["key"]: row for row in stream.data}
    assert rows.keys() == {"sleep-1", "bad-1"} == tasks.state.keys()
    (times,) = rows["sleep-1"]["startstops"]
    assert times["stop"] - times["start"] > 0.049 and began - 1 <= times["start"] <= time.time()
    assert rows["sleep-1"]["worker"] in client.nthreads()
    assert tasks.state == {"sleep-1": "memory", "bad-1": "erred"}
    assert tasks.metadata["sleep-1"]["stop"] == times["stop"]
    assert [row["key"] for row in client.get_task_stream(start="1 min", count=1)] == [stream.data[-1]["key"]]
    assert client.get_task_stream(stop=began - 60) == []


# ── profiles and reports ─────────────────────────────────────────────────────


def spin(seconds: float) -> None:
    """Be busy, in a function of this name."""
    deadline = time.thread_time() + seconds
    while time.thread_time() < deadline:
        sum(range(100))


def test_stacks_become_a_tree_of_calls() -> None:
    tree = tree_of([([("a.py", "f", 1), ("a.py", "g", 2)], 3), ([("a.py", "f", 1)], 2), ([("a.py", "h", 5)], 1)])
    assert tree["count"] == 6
    f = tree["children"]["f;a.py;1"]
    assert (f["count"], f["children"]["g;a.py;2"]["count"]) == (5, 3)
    assert f["description"] == {"filename": "a.py", "name": "f", "line_number": 1}


def test_a_report_that_cannot_be_written_is_refused_before_its_block(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), performance_report(tmp_path / "missing" / "report.html"):
        pytest.fail("the block began")


def test_a_report_is_one_page_with_all_that_a_block_did(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "report.html"

    def names(tree: dict[str, Any]) -> set[str]:
        return {child["description"]["name"] for child in tree["children"].values()}

    with performance_report(path):
        began = time.time()
        wait([client.submit(spin, 0.2, key="<spin>-1"), client.submit(inc, "x", key="bad-2")])
    text = path.read_text()
    page = Checked(text)
    assert not re.search(r"https?://|<script|src=|href=|@import|url\(", text)
    for words in ("Performance report", "2, 1 failed", "<spin>-1", "bad", "samples, outermost call on top", "spin  ", "/w0"):
        assert words in page.text, words
    assert "spin" in names(client.profile(start=began))
    assert "spin" in names(client.profile("<spin>", filename=tmp_path / "profile.html"))
    assert Checked((tmp_path / "profile.html").read_text()).text.count("samples") == 1
    assert client.profile("other")["count"] == 0
    trees = client.profile(merge_workers=False)
    assert trees.keys() == client.nthreads().keys()


def test_a_report_covers_what_coroutines_submit(shared_cluster: LocalCluster, tmp_path: Path) -> None:
    path = tmp_path / "report.html"

    async def work() -> None:
        kind: Any = Client
        async with kind(shared_cluster, asynchronous=True) as client, performance_report(path):
            await client.submit(inc, 1, key="inc-77")

    asyncio.run(work())
    assert "inc-77" in Checked(path.read_text()).text


# ── memory ───────────────────────────────────────────────────────────────────


def test_memory_is_sampled_while_a_block_runs(client: Client) -> None:
    sampler = MemorySampler()
    sampling = sampler.sample("held", measure="managed", interval="5 ms")
    with sampling:
        held = client.submit(bytes, 3_000_000)
        wait(held)
        wait_until(lambda: len(sampling._taken) > 2)
    samples = sampler.samples["held"]
    assert len(samples) > 2
    assert samples == sorted(samples, key=lambda sample: sample[0])
    assert samples[-1][1] - samples[0][1] >= 3_000_000
    with sampler.sample():
        pass
    (first, last) = sampler.samples["sample-1"]
    assert first[1] > 1_000_000 and last[0] >= first[0]


def test_samples_become_a_frame(client: Client) -> None:
    sampler = MemorySampler()
    sampler.samples = {"one": [(100.0, 1), (101.0, 2), (102.0, 3)], "two": [(201.5, 10), (202.5, 20)]}
    frame = sampler.to_pandas()
    assert list(frame["one"].dropna()) == [1, 2, 3] and list(frame["two"].dropna()) == [10, 20]
    aligned = sampler.to_pandas(align=True)
    assert [time.total_seconds() for time in aligned.index] == [0, 1, 2]
    assert list(aligned["one"]) == [1, 2, 3] and list(aligned["two"].dropna()) == [10, 20]


def test_memory_is_sampled_in_coroutines(shared_cluster: LocalCluster) -> None:
    async def body() -> None:
        sampler = MemorySampler()
        async with Client(shared_cluster, asynchronous=True) as client:
            async with sampler.sample("soon", interval=0.01):
                await client.submit(abs, -1)
            assert len(sampler.samples["soon"]) >= 2

    asyncio.run(body())


def test_a_cluster_that_closes_ends_the_sampling_and_nothing_else() -> None:
    sampler = MemorySampler()
    with LocalCluster(n_workers=1) as cluster, cluster.get_client() as client, sampler.sample("closed", client=client, interval=0.01):
        cluster.close()
    assert sampler.samples["closed"]


def test_memory_of_workers_that_share_a_process_counts_once() -> None:
    metrics = {"memory": 10, "managed_bytes": 3, "spilled_bytes": {"memory": 2, "disk": 1}}
    workers = [{"pid": 1, "metrics": metrics}, {"pid": 1, "metrics": metrics}, {"pid": 2, "metrics": metrics}]
    assert [cluster_nbytes(workers, measure) for measure in ("process", "managed", "spilled")] == [20, 9, 3]


def test_a_measure_and_an_interval_that_make_no_sense_are_named(client: Client) -> None:
    with pytest.raises(UsageError, match="measure='unmanaged'; it is 'process', 'managed', 'spilled'"):
        MemorySampler().sample(measure="unmanaged")
    with pytest.raises(UsageError, match="interval=0; it is a time"):
        MemorySampler().sample(interval=0)


# ── all of it ────────────────────────────────────────────────────────────────


def wait_with(path: str, value: bytes) -> str:
    return wait_for_file(path)


def test_all_that_is_known_of_a_cluster_is_written_to_a_file(client: Client, tmp_path: Path) -> None:
    one = client.submit(bytes, 1000, key="dumped")
    wait(one)
    two = client.submit(wait_with, str(tmp_path / "go"), one, key=("dumped", 2), retries=2)
    parked = client.submit(abs, -1, key="parked", resources={"GPU": 1})
    wait_until(lambda: "wait_for_file" in str(client.call_stack(two)))
    client.dump_cluster_state(tmp_path / "dump")
    told = yaml.safe_load((tmp_path / "dump.yaml").read_text())
    assert set(told) == {"scheduler", "workers", "versions"}
    assert told["versions"]["client"]["packages"]["localdask"] == told["versions"]["scheduler"]["packages"]["localdask"]
    tasks = told["scheduler"]["tasks"]
    (holder,) = tasks["dumped"]["who_has"]
    assert tasks["dumped"]["state"] == "memory" and tasks["dumped"]["type"] == "bytes"
    running = tasks[str(two.key)]
    assert running["state"] == "processing" and running["dependencies"] == ["dumped"] and running["retries"] == 2
    worker = told["workers"][running["processing_on"]]
    assert str(two.key) in worker["processing"] and any("wait_for_file" in line for line in worker["call_stack"][str(two.key)])
    assert worker["metrics"]["memory"] > 0 and worker["pid"] != os.getpid()
    assert "dumped" in told["workers"][holder]["has_what"]
    assert tasks["parked"]["resource_restrictions"] == {"GPU": 1}
    assert ["parked", "released", "waiting"] in [row[:3] for row in told["scheduler"]["transition_log"]]
    assert "parked" in told["scheduler"]["clients"][client.id]["wants_what"]
    parked.cancel()
    (tmp_path / "go").touch()
    two.result()


def test_what_is_not_to_be_written_is_left_out(client: Client, tmp_path: Path) -> None:
    client.submit(abs, -7).result()
    client.dump_cluster_state(str(tmp_path / "short.yaml"), exclude=("logs", "transition_log", "call_stack"))
    text = (tmp_path / "short.yaml").read_text()
    assert not {"logs:", "transition_log:", "call_stack:"} & set(text.split())
    assert list(tmp_path.iterdir()) == [tmp_path / "short.yaml"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"format": "msgpack"}, "format='msgpack'; it is 'yaml'"),
        ({"filename": "s3://bucket/dump"}, "it is a path on this machine"),
        ({"filename": 3}, "filename=3"),
        ({"exclude": 3}, "exclude=3; it is a list of names"),
    ],
)
def test_a_dump_names_what_it_cannot_take_before_it_writes(client: Client, words: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        client.dump_cluster_state(**words)
