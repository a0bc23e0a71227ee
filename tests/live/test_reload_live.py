"""Saving a preload's file changes every worker of a real cluster, or none of them."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from localdask import Client, LocalCluster
from localdask.errors import UsageError
from localdask.processes.reloading import ReloadRecord, reload_settings
from localdask.state.attempts import MemberAccount
from tests.conftest import wait_until

WAIT_S = 30.0

#: Tells the truth about its hooks: a line in a file for each, written in one piece.
HONEST = """
import os
VALUE = {value!r}
def note(text):
    fd = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, (text + "\\n").encode())
    os.close(fd)
def dask_setup(worker):
    worker.value = VALUE
    note(f"setup {{worker.name}} {{VALUE}}")
    {extra}
def dask_teardown(worker):
    note(f"teardown {{worker.name}} {{VALUE}}")
"""


class Preload:
    """A preload's file and the log that it writes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "honest_preload.py"
        self.log = folder / "truth.log"
        self.save(1)

    def text(self, value: Any, extra: str = "pass") -> str:
        return HONEST.format(value=value, log=str(self.log), extra=extra)

    def save(self, value: Any, extra: str = "pass") -> None:
        self.path.write_text(self.text(value, extra))

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def preload(tmp_path: Path) -> Preload:
    return Preload(tmp_path)


def quiet(kind: str, **fields: Any) -> None:
    """Show nothing."""


@contextmanager
def running(preload: Preload | House | None = None, **arguments: Any) -> Iterator[tuple[LocalCluster, Client]]:
    if preload is not None:
        arguments["preload"] = preload.path
    arguments = {"n_workers": 2, "threads_per_worker": 1, "on_event": quiet, **arguments}
    with LocalCluster(**arguments) as cluster, Client(cluster) as client:
        yield cluster, client


def value_here() -> Any:
    from localdask import get_worker

    return get_worker().value


def is_held_here() -> bool:
    from localdask import get_worker

    return get_worker()._crew.is_held


def values(client: Client) -> list[Any]:
    return sorted(client.run(value_here).values())


def wait_for_record(cluster: LocalCluster, outcome: str) -> Any:
    wait_until(lambda: any(record.outcome == outcome for record in cluster.reloads), what=f"a record of {outcome}")
    return next(record for record in cluster.reloads if record.outcome == outcome)


def in_place(path: Path, text: str) -> None:
    path.write_text(text)


def by_rename(path: Path, text: str) -> None:
    beside = path.with_suffix(".tmp")
    beside.write_text(text)
    beside.replace(path)


def by_backup(path: Path, text: str) -> None:
    path.rename(path.with_suffix(".py~"))
    path.write_text(text)


@pytest.mark.parametrize("save", [in_place, by_rename, by_backup], ids=lambda save: save.__name__)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_save_gives_every_worker_the_new_code(preload: Preload, save: Callable[[Path, str], None], threads: int) -> None:
    with running(preload, threads_per_worker=threads) as (cluster, client):
        assert values(client) == [1, 1]
        for n in (2, 3):
            save(preload.path, preload.text(n))
            cluster.wait_for_generation(n, timeout=WAIT_S)
            assert values(client) == [n, n]
        (status,) = cluster.preloads
        assert status.generation == 3
        assert status.status == {"w0": "ok", "w1": "ok"}


def test_a_syntax_error_is_told_with_its_place_and_changes_nothing(preload: Preload, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()  # not capfd: what is written while that is read is lost
    monkeypatch.setattr(sys, "stderr", said)
    with running(preload, on_event=None) as (cluster, client):
        preload.path.write_text("x = 1\nx = (\n")
        record = wait_for_record(cluster, "failed-to-compile")
        assert f"{preload.path}:2:5" in record.detail
        wait_until(lambda: f"{preload.path}:2:5" in said.getvalue())
        assert values(client) == [1, 1]
        assert preload.lines().count("teardown w0 1") == 0
        preload.save(2)
        cluster.wait_for_generation(2, timeout=WAIT_S)
        assert values(client) == [2, 2]


def test_a_body_that_raises_in_one_worker_is_discarded_everywhere(preload: Preload) -> None:
    broken = "from localdask import get_worker\nif get_worker().name == 'w1': 1 / 0\n"
    with running(preload) as (cluster, client):
        preload.path.write_text(broken + preload.text(2))
        record = wait_for_record(cluster, "failed-to-load")
        assert record.processes["w1"].vote == "load failed"
        assert "ZeroDivisionError" in record.processes["w1"].detail
        assert values(client) == [1, 1]
        assert sorted(preload.lines()) == ["setup w0 1", "setup w1 1"]
        assert cluster.preloads[0].generation == 1


def test_a_setup_that_fails_in_one_worker_is_rolled_back_in_all(preload: Preload) -> None:
    with running(preload) as (cluster, client):
        preload.save(2, "if worker.name == 'w1': raise ConnectionError('refused')")
        record = wait_for_record(cluster, "rolled-back")
        assert "ConnectionError: refused" in record.detail
        assert values(client) == [1, 1]
        assert cluster.preloads[0].generation == 1
        for name in ("w0", "w1"):
            mine = [line for line in preload.lines() if f" {name} " in line]
            # A sister that was not asked to swap before the failure came keeps what it had.
            whole = [f"setup {name} 1", f"teardown {name} 1", f"setup {name} 2", f"teardown {name} 2", f"setup {name} 1"]
            assert mine == whole or (name == "w0" and mine == whole[:1])


def test_what_failed_in_a_reload_is_told_once_with_its_traceback(preload: Preload) -> None:
    with running(preload) as (cluster, _):
        preload.save(2, "{}['absent']")
        first, *rest = str(wait_for_record(cluster, "rolled-back")).splitlines()
        assert re.fullmatch(
            rf"reload failed  w\d swap failed: dask_setup raised KeyError: 'absent' at {preload.path}:11   "
            r"rolled back to generation 1 on 2/2",
            first,
        )
        assert rest[0] == "Traceback (most recent call last):"
        assert f'File "{preload.path}", line 11, in dask_setup' in rest[1]
        assert rest[-1] == "KeyError: 'absent'"


def test_a_reload_gives_every_hook_the_time_that_it_was_given() -> None:
    settings = reload_settings("atomic", 10.0, "wait", (100.0, 20.0), 3)
    assert settings.load_limit_s > 3 * 100
    assert settings.swap_limit_s > 3 * (100 + 20)
    assert settings.start_limit_s > 3 * 2 * 100


def test_a_worker_that_came_during_a_reload_is_told_of_in_plain_words() -> None:
    account = MemberAccount("w1", 1, "worker", vote="swapped", ended="committed")
    record = ReloadRecord(3, "brought-along", (), "w1 started during a reload", "", 0.0, 0.003, {"w1": account})
    assert str(record) == "reload  w1 started during a reload   brought to the running code 1/1 · 3 ms"


def test_an_option_that_the_new_code_does_not_have_is_told_first(preload: Preload) -> None:
    text = "import click\n@click.command()\n@click.option('--{0}')\ndef dask_setup(worker, {0}): worker.value = {0}\n"
    preload.path.write_text(text.format("database"))
    with running(preload, preload_argv=["--database", "rows.db"]) as (cluster, client):
        preload.path.write_text(text.format("databases"))
        first, *rest = wait_for_record(cluster, "rolled-back").detail.splitlines()
        assert re.fullmatch(rf"w\d swap failed: {preload.path}: No such option '?--database'?.*", first)
        assert rest[0].startswith("Usage: ")
        assert values(client) == ["rows.db"] * 2


def test_an_old_teardown_that_fails_in_a_reload_is_told(preload: Preload) -> None:
    preload.path.write_text(preload.text(1) + "    raise OSError('cannot close')\n")
    with running(preload) as (cluster, client):
        preload.save(2)
        line, told = str(wait_for_record(cluster, "swapped")).splitlines()
        assert line.startswith("reload 2  ")
        assert told == f"    w0, w1: dask_teardown raised OSError: cannot close at {preload.path}:14"
        assert values(client) == [2, 2]


def test_each_generation_is_torn_down_exactly_once(preload: Preload) -> None:
    n_saves = 8
    with running(preload) as (cluster, _):
        for n in range(2, n_saves + 2):
            preload.save(n)
            cluster.wait_for_generation(n, timeout=WAIT_S)
    counts = Counter(preload.lines())
    expected = {f"{hook} {name} {n}" for hook in ("setup", "teardown") for name in ("w0", "w1") for n in range(1, n_saves + 2)}
    assert counts == dict.fromkeys(expected, 1)


@pytest.mark.parametrize("threads", [1, 3])
def test_twenty_saves_under_a_running_map_lose_no_task_and_run_none_twice(preload: Preload, tmp_path: Path, threads: int) -> None:
    ran = str(tmp_path / "ran.log")

    def work(number: int) -> tuple[int, int]:
        import time

        from localdask import get_worker

        before = get_worker().value
        time.sleep(0.002)
        fd = os.open(ran, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, f"{number}\n".encode())
        os.close(fd)
        assert get_worker().value == before, "the generation changed under a running task"
        return number, before

    with running(preload, threads_per_worker=threads) as (cluster, client):
        futures = client.map(work, range(500))
        for n in range(2, 22):
            preload.save(n)
            cluster.wait_for_generation(n, timeout=WAIT_S)
        results = client.gather(futures)
        assert [number for number, _ in results] == list(range(500))
        assert Counter(Path(ran).read_text().split()) == dict.fromkeys(map(str, range(500)), 1)
        assert values(client) == [21, 21]
        assert len({generation for _, generation in results}) > 1, "no save fell among the tasks"
        told = {row[0]: row[5] for row in client.story(*futures) if row[2] == "memory"}
        assert told == {future.key: (value,) for future, (_, value) in zip(futures, results, strict=True)}


def test_a_killed_worker_starts_from_the_last_good_generation_and_not_from_the_broken_file(preload: Preload) -> None:
    with running(preload) as (cluster, client):
        preload.save(2)
        cluster.wait_for_generation(2, timeout=WAIT_S)
        preload.path.write_text("x = (\n")
        wait_for_record(cluster, "failed-to-compile")
        pid = cluster.workers["w0"].worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "w0" in cluster.scheduler.workers and cluster.scheduler.workers["w0"].pid != pid)
        assert values(client) == [2, 2]


def test_a_worker_that_is_added_later_starts_from_the_last_good_generation(preload: Preload) -> None:
    with running(preload) as (cluster, client):
        preload.save(2)
        cluster.wait_for_generation(2, timeout=WAIT_S)
        preload.path.write_text("x = (\n")
        wait_for_record(cluster, "failed-to-compile")
        cluster.scale(3)
        cluster.wait_for_workers(3, timeout=WAIT_S)
        assert values(client) == [2, 2, 2]


def test_a_nanny_preload_that_changes_the_environment_has_the_workers_replaced(tmp_path: Path) -> None:
    path = tmp_path / "nanny_preload.py"
    text = "import os\ndef dask_setup(nanny):\n    os.environ['LD_TEST_COLOUR'] = {!r}\n"
    path.write_text(text.format("red"))

    def colour() -> tuple[str | None, int]:
        return os.environ.get("LD_TEST_COLOUR"), os.getpid()

    with running(preload_nanny=path) as (cluster, client):
        before = {handle.worker_pid for handle in cluster.workers.values()}
        assert {found for found, _ in client.run(colour).values()} == {"red"}
        path.write_text(text.format("blue"))
        cluster.wait_for_generation(2, timeout=WAIT_S)
        workers = cluster.scheduler.workers
        wait_until(lambda: len(workers) == 2 and not before & {worker.pid for worker in list(workers.values())})
        assert {found for found, _ in client.run(colour).values()} == {"blue"}


def test_a_nanny_preload_that_leaves_the_environment_alone_keeps_its_worker(tmp_path: Path) -> None:
    path = tmp_path / "nanny_preload.py"
    path.write_text("def dask_setup(nanny):\n    nanny.value = 1\n")
    with running(preload_nanny=path) as (cluster, client):
        before = sorted(client.run(os.getpid).values())
        path.write_text("def dask_setup(nanny):\n    nanny.value = 2\n")
        cluster.wait_for_generation(2, timeout=WAIT_S)
        assert sorted(client.run(os.getpid).values()) == before


def test_waiting_for_a_generation_that_does_not_come_ends_in_a_timeout_that_says_where_it_stands(preload: Preload) -> None:
    with running(preload) as (cluster, _):
        with pytest.raises(TimeoutError, match="generation 1"):
            cluster.wait_for_generation(2, timeout=0.01)
        with pytest.raises(UsageError, match=r"honest_preload\.py"):
            cluster.wait_for_generation(1, "another.py", timeout=0.01)


def test_with_the_policy_off_a_save_changes_nothing_until_somebody_asks(preload: Preload) -> None:
    with running(preload, reload_policy="off") as (cluster, client):
        preload.save(2)
        with pytest.raises(TimeoutError):
            cluster.wait_for_generation(2, timeout=0.2)
        assert values(client) == [1, 1]
        record = cluster.reload()
        assert record is not None and record.outcome == "swapped"
        assert values(client) == [2, 2]


@pytest.mark.parametrize("policy", ["rolling", "restart"])
def test_the_other_policies_bring_every_worker_to_the_new_code_too(preload: Preload, policy: str) -> None:
    with running(preload, reload_policy=policy) as (cluster, client):
        before = sorted(client.run(os.getpid).values())
        preload.save(2)
        cluster.wait_for_generation(2, timeout=WAIT_S)
        wait_until(lambda: len(cluster.scheduler.workers) == 2)
        assert values(client) == [2, 2]
        assert (sorted(client.run(os.getpid).values()) == before) is (policy == "rolling")


def test_asking_for_a_reload_runs_unchanged_code_again_and_its_callback_is_told(preload: Preload) -> None:
    told: list[Any] = []
    with running(preload, on_reload=told.append) as (cluster, _):
        record = cluster.reload(preload.path)
        assert record is not None and record.outcome == "swapped"
        assert told == [record] == cluster.reloads
        assert preload.lines().count("setup w0 1") == 2


@pytest.mark.parametrize("policy", ["atomic", "restart"])
def test_workers_in_threads_swap_too_or_go_back_together(preload: Preload, policy: str) -> None:
    with running(preload, processes=False, reload_policy=policy) as (cluster, client):
        assert values(client) == [1, 1]
        preload.save(2)
        cluster.wait_for_generation(2, timeout=WAIT_S)
        assert values(client) == [2, 2]
        future = client.submit(value_here)
        assert future.result() == 2 and client.story(future)[-1][5] == (2,)
        preload.save(3, extra="1 / (worker.name == 'w0')")
        assert "w1" in wait_for_record(cluster, "rolled-back").detail
        wait_until(lambda: values(client) == [2, 2])
        cluster.scale(3)
        cluster.wait_for_workers(3, timeout=WAIT_S)
        wait_until(lambda: values(client) == [2, 2, 2])
    assert sorted(line.split()[::2] for line in preload.lines() if line.endswith(" 1")) == [["setup", "1"]] * 2 + [["teardown", "1"]] * 2


def test_a_swap_waits_for_the_running_task_and_the_queue_for_the_swap(preload: Preload, tmp_path: Path) -> None:
    gate, started = tmp_path / "gate", tmp_path / "started"

    def hold() -> Any:
        import time

        started.touch()
        while not gate.exists():
            time.sleep(0.001)
        return value_here()

    with running(preload, n_workers=1, threads_per_worker=2) as (cluster, client):
        long = client.submit(hold)
        wait_until(started.exists)
        preload.save(2)
        wait_until(lambda: [status.status for status in cluster.preloads] == [{"w0": "waiting"}])
        wait_until(lambda: all(client.run(is_held_here).values()), what="the word to swap, which comes by another pipe than tasks")
        later = client.submit(value_here, pure=False)
        gate.touch()
        assert long.result() == 1
        assert later.result() == 2


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("overrun", ["interrupt", "restart-worker"])
def test_a_task_that_holds_up_a_reload_too_long_runs_again_on_the_new_code(
    preload: Preload, tmp_path: Path, overrun: str, threads: int
) -> None:
    runs = tmp_path / "runs"

    def hang_on_old_code() -> Any:
        import time

        with open(runs, "a") as file:
            file.write("x")
        if value_here() == 1:
            time.sleep(1000)
        return value_here()

    arguments = {"reload_grace": 0.1, "reload_overrun": overrun}
    with running(preload, n_workers=1, threads_per_worker=threads, **arguments) as (cluster, client):
        before = client.run(os.getpid)
        future = client.submit(hang_on_old_code)
        wait_until(runs.exists)
        preload.save(2)
        assert future.result(WAIT_S) == 2
        assert wait_for_record(cluster, "swapped").processes["w0"].ended == "committed"
        assert runs.read_text() == "xx"
        assert (client.run(os.getpid) == before) == (overrun == "interrupt" and threads == 1)


# ── helpers ──────────────────────────────────────────────────────────────────


class House:
    """A preload that imports a helper, which imports another."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "helped_preload.py"
        self.helper, self.deeper = folder / "first_helper.py", folder / "second_helper.py"
        self.path.write_text("import first_helper\ndef dask_setup(worker): worker.value = first_helper.value()\n")
        self.helper.write_text("import second_helper\ndef value(): return second_helper.VALUE\n")
        self.deeper.write_text("VALUE = 1\n")


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_a_helper_that_is_saved_reloads_the_preloads_above_it(house: House) -> None:
    with running(house) as (cluster, client):
        assert values(client) == [1, 1]
        house.deeper.write_text("VALUE = 2\n")
        cluster.wait_for_generation(2, timeout=WAIT_S)
        assert values(client) == [2, 2]
        assert cluster.reloads[-1].cause == "second_helper.py changed (+1 −1) → helped_preload.py"
        house.helper.write_text("import second_helper\ndef value(): return second_helper.VALUE * 10\n")
        cluster.wait_for_generation(3, timeout=WAIT_S)
        assert values(client) == [20, 20]
        assert client.submit(value_in_task).result() == 20


def value_in_task() -> Any:
    import first_helper

    return first_helper.value()


def test_a_worker_that_comes_later_has_the_helpers_of_the_last_good_generation(house: House) -> None:
    with running(house, n_workers=1) as (cluster, client):
        house.deeper.write_text("VALUE = 2\n")
        cluster.wait_for_generation(2, timeout=WAIT_S)
        house.deeper.write_text("VALUE = (\n")
        wait_for_record(cluster, "failed-to-compile")
        cluster.scale(2)
        client.wait_for_workers(2)
        assert values(client) == [2, 2]


def test_a_worker_that_comes_later_does_not_read_a_helper_that_was_broken_since_the_start(house: House) -> None:
    with running(house, n_workers=1) as (cluster, client):
        before = values(client)
        house.deeper.write_text("VALUE = (\n")
        wait_for_record(cluster, "failed-to-compile")
        pid = client.submit(os.getpid, pure=False).result()
        os.kill(pid, signal.SIGKILL)
        cluster.scale(2)
        wait_until(lambda: [worker.pid != pid for worker in cluster.scheduler.workers.values()] == [True, True])
        assert values(client) == before * 2


def test_an_error_in_a_helper_is_told_with_its_place_in_the_helper(house: House) -> None:
    with running(house) as (cluster, _):
        house.helper.write_text("VALUE = 2\n\nraise ValueError('not like this')\n")
        record = wait_for_record(cluster, "failed-to-load")
        assert f"ValueError: not like this at {house.helper}:3" in record.detail.splitlines()[0]


def test_a_helper_with_an_error_is_told_with_its_place_and_changes_nothing(house: House) -> None:
    with running(house) as (cluster, client):
        house.deeper.write_text("VALUE = 1 +\n")
        assert "second_helper.py:1" in wait_for_record(cluster, "failed-to-compile").detail
        house.deeper.write_text("VALUE = 1 / 0\n")
        assert "ZeroDivisionError" in wait_for_record(cluster, "failed-to-load").detail
        assert values(client) == [1, 1]
        house.deeper.write_text("VALUE = 3\n")
        cluster.wait_for_generation(2, timeout=WAIT_S)
        assert values(client) == [3, 3]


def test_a_helper_that_a_new_generation_imports_is_watched_from_then_on(house: House) -> None:
    third = house.path.with_name("third_helper.py")
    with running(house) as (cluster, client):
        third.write_text("VALUE = 5\n")
        house.path.write_text("import third_helper\ndef dask_setup(worker): worker.value = third_helper.VALUE\n")
        cluster.wait_for_generation(2, timeout=WAIT_S)
        assert values(client) == [5, 5]
        third.write_text("VALUE = 6\n")
        cluster.wait_for_generation(3, timeout=WAIT_S)
        assert values(client) == [6, 6]


def test_a_helper_that_was_missing_mends_the_reload_when_it_comes(house: House) -> None:
    with running(house) as (cluster, client):
        house.path.write_text("import absent_helper\ndef dask_setup(worker): worker.value = absent_helper.VALUE\n")
        assert "absent_helper" in wait_for_record(cluster, "failed-to-load").detail
        assert values(client) == [1, 1]
        house.path.with_name("absent_helper.py").write_text("VALUE = 7\n")
        cluster.wait_for_generation(2, timeout=WAIT_S)
        assert values(client) == [7, 7]


# ── the scheduler's, and what is asked from elsewhere ────────────────────────


def scheduler_value(dask_scheduler: Any = None) -> Any:
    return dask_scheduler.value


SCHEDULERS = "VALUE = {value}\ndef dask_setup(scheduler): scheduler.value = VALUE{extra}\n"


def test_a_scheduler_preload_is_reloaded_together_with_the_workers(tmp_path: Path, preload: Preload) -> None:
    path = tmp_path / "scheduler_preload.py"
    path.write_text(SCHEDULERS.format(value=1, extra=""))
    with running(preload, preload_scheduler=path) as (cluster, client):
        assert client.run_on_scheduler(scheduler_value) == 1
        path.write_text(SCHEDULERS.format(value=2, extra=""))
        cluster.wait_for_generation(2, path, timeout=WAIT_S)
        assert client.run_on_scheduler(scheduler_value) == 2
        path.write_text(SCHEDULERS.format(value=3, extra=" / 0"))
        record = wait_for_record(cluster, "rolled-back")
        assert "ZeroDivisionError" in record.detail and client.run_on_scheduler(scheduler_value) == 2
        assert (record.role, record.path, record.generation) == ("scheduler", str(path), 2)
        assert set(record.durations) == {"scheduler"} and values(client) == [1, 1]
        statuses = {status.role: status for status in cluster.preloads}
        assert statuses["scheduler"].status == {"scheduler": "ok"} and statuses["scheduler"].generation == 2


def test_a_module_that_two_roles_import_reloads_both_or_none(tmp_path: Path) -> None:
    shared = tmp_path / "shared_by_two.py"
    shared.write_text("VALUE = 1\n")
    body = "import shared_by_two\ndef dask_setup(service): service.value = shared_by_two.VALUE\n"
    (tmp_path / "of_scheduler.py").write_text(body)
    (tmp_path / "of_workers.py").write_text(body)
    arguments = {"preload_scheduler": tmp_path / "of_scheduler.py", "n_workers": 1, "on_event": quiet}
    with LocalCluster(preload=tmp_path / "of_workers.py", **arguments) as cluster, Client(cluster) as client:
        shared.write_text("VALUE = 2\n")
        cluster.wait_for_generation(2, tmp_path / "of_workers.py", timeout=WAIT_S)
        cluster.wait_for_generation(2, tmp_path / "of_scheduler.py", timeout=WAIT_S)
        assert values(client) == [2] and client.run_on_scheduler(scheduler_value) == 2


def test_clients_ask_for_reloads_and_look_at_them(preload: Preload) -> None:
    with running(preload) as (cluster, client):
        assert [status["generation"] for status in client._ask("preloads")] == [1]
        checked = client._ask("reload", None, True)
        assert checked["outcome"] == "checked" and checked["preloads"][0][2] == 1
        answer = client._ask("reload", str(preload.path), False)
        assert answer["outcome"] == "swapped" and not answer["has_failed"] and answer["text"].startswith("reload 2")
        assert [record["outcome"] for record in client._ask("reloads")] == ["checked", "swapped"]
        with pytest.raises(UsageError, match="no preload is called nowhere.py"):
            client._ask("reload", "nowhere.py", False)


def test_a_check_runs_the_new_bodies_and_no_hook(preload: Preload) -> None:
    with running(preload, reload_policy="off") as (cluster, client):
        preload.path.write_text("raise ValueError('no')")
        record = cluster.reload(check=True)
        assert record is not None and record.outcome == "failed-to-load" and "ValueError" in record.detail
        assert values(client) == [1, 1] and sorted(preload.lines()) == ["setup w0 1", "setup w1 1"]
