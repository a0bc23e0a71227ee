"""The arithmetic of workers, threads and memory is Dask's, and the machine is read by what this process may use."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from localdask import sizing
from localdask.errors import UsageError
from localdask.sizing import Machine

GIB = 2**30


@pytest.mark.parametrize(
    ("n_cpus", "plan"),
    [
        (1, (1, 1)),
        (2, (2, 1)),
        (4, (4, 1)),
        (5, (5, 1)),
        (6, (3, 2)),
        (8, (4, 2)),
        (12, (4, 3)),
        (16, (4, 4)),
        (24, (6, 4)),
        (32, (8, 4)),
        (64, (8, 8)),
    ],
)
def test_nothing_said_deals_the_cpus_as_dask_does(n_cpus: int, plan: tuple[int, int]) -> None:
    assert sizing.plan_workers(None, None, n_cpus) == sizing.WorkerPlan(*plan)


@pytest.mark.parametrize(
    ("n_workers", "threads", "plan"),
    [
        (3, None, (3, 3)),
        (8, None, (8, 1)),
        (20, None, (20, 1)),
        (None, 2, (4, 2)),
        (None, 3, (2, 3)),
        (None, 99, (1, 99)),
        (5, 7, (5, 7)),
        (0, None, (0, 1)),
    ],
)
def test_what_is_said_is_kept_and_the_rest_follows(n_workers: int | None, threads: int | None, plan: tuple[int, int]) -> None:
    assert sizing.plan_workers(n_workers, threads, 8) == sizing.WorkerPlan(*plan)


def test_without_processes_there_is_one_worker_with_all_threads() -> None:
    assert sizing.plan_workers(None, None, 8, processes=False) == sizing.WorkerPlan(1, 8)
    assert sizing.plan_workers(None, 3, 8, processes=False) == sizing.WorkerPlan(1, 3)


def test_a_worker_without_threads_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one thread"):
        sizing.plan_workers(2, 0, 8)
    with pytest.raises(UsageError, match="negative"):
        sizing.plan_workers(-1, None, 8)


def test_a_negative_number_on_the_command_line_counts_from_all_cpus() -> None:
    assert sizing.parse_workers("-1", 8) == 8
    assert sizing.parse_workers("-8", 8) == 1
    assert sizing.parse_workers("3", 8) == 3
    assert sizing.parse_workers("auto", 8) is None
    with pytest.raises(UsageError, match="leaves none"):
        sizing.parse_workers("-9", 8)
    with pytest.raises(UsageError, match="'four' is no number"):
        sizing.parse_workers("four", 8)


@pytest.mark.parametrize(
    "text",
    [
        "100",
        "100 MB",
        "100M",
        "5kB",
        "5.4 kB",
        "1kiB",
        "1Ki",
        "1e6",
        "1e6 kB",
        "MB",
        "2GiB",
        "500e6",
        "4GB",
        "3 tib",
        "0",
        "7 B",
        "12.5mib",
    ],
)
def test_sizes_read_as_dask_reads_them(text: str) -> None:
    dask_utils = pytest.importorskip("dask.utils")
    assert sizing.parse_bytes(text) == dask_utils.parse_bytes(text)


@pytest.mark.parametrize("text", ["3s", "3.5 seconds", "300ms", "2 hours", "1m", "5", "1 day", "10us"])
def test_durations_read_as_dask_reads_them(text: str) -> None:
    dask_utils = pytest.importorskip("dask.utils")
    assert sizing.parse_duration(text) == pytest.approx(dask_utils.parse_timedelta(text))


def test_durations_may_be_numbers_timedeltas_or_none() -> None:
    assert sizing.parse_duration(3) == 3
    assert sizing.parse_duration(timedelta(minutes=2)) == 120
    assert sizing.parse_duration(None) is None


@pytest.mark.parametrize("text", ["5 foos", "", "-3", "1.2.3", "nan", "inf", "4GB4", "0x10"])
def test_what_is_no_size_is_told_with_what_would_be_one(text: str) -> None:
    with pytest.raises(UsageError, match=r"is no size: .*(like 500MB|GiB|from 0 up)"):
        sizing.parse_bytes(text)


@pytest.mark.parametrize("text", ["5 foos", "", "-3", "soon"])
def test_what_is_no_duration_is_told_with_what_would_be_one(text: str) -> None:
    with pytest.raises(UsageError, match="is no duration: write seconds"):
        sizing.parse_duration(text)


def test_resources_are_named_amounts_with_blanks_or_commas_between() -> None:
    assert sizing.parse_resources("GPU=1 MEM=2e9") == {"GPU": 1.0, "MEM": 2e9}
    assert sizing.parse_resources("GPU=1, SLOTS=4") == {"GPU": 1.0, "SLOTS": 4.0}
    assert sizing.parse_resources("") == {}
    for wrong in ("GPU", "=3", "GPU=many", "GPU=-1", "GPU=nan"):
        with pytest.raises(UsageError, match="is no resource"):
            sizing.parse_resources(wrong)


@pytest.mark.parametrize(
    ("limit", "nbytes"),
    [
        ("auto", 4 * GIB),
        (None, 0),
        (0, 0),
        ("0", 0),
        (0.5, 8 * GIB),
        ("0.5", 8 * GIB),
        (1, 16 * GIB),
        (1.0, 16 * GIB),
        ("4GB", 4 * 10**9),
        ("2GiB", 2 * GIB),
        ("500e6", 500_000_000),
        (12345, 12345),
        (12345.6, 12345),
    ],
)
def test_every_form_of_memory_limit_means_what_it_means_in_dask(limit: str | float | None, nbytes: int) -> None:
    machine = Machine(n_cpus=8, memory_nbytes=16 * GIB)
    assert sizing.worker_memory(limit, machine, n_workers=4, nthreads=2) == nbytes


def test_nothing_said_gives_each_worker_an_equal_part() -> None:
    machine = Machine(n_cpus=8, memory_nbytes=16 * GIB)
    assert sizing.worker_memory(None, machine, n_workers=3, nthreads=1, given=False) == 16 * GIB // 3
    assert sizing.worker_memory(None, machine, n_workers=0, nthreads=1, given=False) == 16 * GIB


def test_more_memory_than_there_is_is_cut_with_a_warning() -> None:
    machine = Machine(n_cpus=8, memory_nbytes=16 * GIB)
    with pytest.warns(UserWarning, match=r"64.00 GiB is more than the 16.00 GiB"):
        assert sizing.worker_memory("64GiB", machine, n_workers=1, nthreads=8) == 16 * GIB


def _write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_a_version_2_group_is_bound_by_the_groups_above_it(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    _write(root, cpu__max="max 100000\n")
    _write(root / "slice", cpu__max="150000 100000\n", memory__max="max\n", memory__high="2000000\n")
    _write(root / "slice" / "job", cpu__max="400000 100000\n", memory__max="3000000\n")
    (tmp_path / "own").write_text("0::/slice/job\n")
    assert sizing.read_cgroup_limits(str(root), str(tmp_path / "own")) == (1.5, 2_000_000)


def test_a_version_1_group_is_read_by_controller(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    _write(root / "cpu,cpuacct" / "docker", cpu__cfs_quota_us="250000\n", cpu__cfs_period_us="100000\n")
    _write(root / "memory", memory__limit_in_bytes="9223372036854771712\n")
    _write(root / "memory" / "docker", memory__limit_in_bytes="5000000\n")
    (tmp_path / "own").write_text("12:cpu,cpuacct:/docker\n5:memory:/docker\n3:pids:/docker\n1:name=systemd:/x\n")
    assert sizing.read_cgroup_limits(str(root), str(tmp_path / "own")) == (2.5, 5_000_000)


def test_a_container_whose_own_path_is_not_mounted_is_read_at_the_root(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    _write(root, cpu__max="50000 100000\n", memory__max="7000000\n")
    (tmp_path / "own").write_text("0::/system.slice/docker-abc.scope\n")
    assert sizing.read_cgroup_limits(str(root), str(tmp_path / "own")) == (0.5, 7_000_000)


def test_no_groups_no_limits_and_garbage_is_no_limit(tmp_path: Path) -> None:
    assert sizing.read_cgroup_limits(str(tmp_path / "none"), str(tmp_path / "none")) == (None, None)
    _write(tmp_path / "cgroup", cpu__max="a lot\n", memory__max="-1\n")
    assert sizing.read_cgroup_limits(str(tmp_path / "cgroup"), str(tmp_path / "none")) == (None, None)


def test_the_machine_is_what_the_groups_leave_of_it(tmp_path: Path) -> None:
    _write(tmp_path / "cgroup", cpu__max="10000 100000\n", memory__max="64000000\n")
    (tmp_path / "own").write_text("0::/\n")
    machine = sizing.read_machine(str(tmp_path / "cgroup"), str(tmp_path / "own"))
    assert machine == Machine(n_cpus=1, memory_nbytes=64_000_000, n_cores=os.cpu_count() or 1, limited_by="cgroup")


def test_this_machine_has_a_cpu_and_memory() -> None:
    machine = sizing.read_machine()
    assert 1 <= machine.n_cpus <= machine.n_cores
    assert machine.memory_nbytes > 2**20


@pytest.mark.parametrize(
    ("group", "file", "text", "n_kills"),
    [
        ("0::/job/step", "job/step/memory.events", "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\n", 2),
        ("0::/outside/of/the/container", "memory.events", "oom 1\noom_kill 1\noom_group_kill 0\n", 1),
        ("4:memory:/job", "memory/job/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n", 5),
        ("4:memory:/job", "memory/job/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\n", None),
        ("0::/", "cpu.max", "max 100000\n", None),
    ],
)
def test_the_kernels_kills_are_those_of_the_nearest_group_that_tells(
    tmp_path: Path, group: str, file: str, text: str, n_kills: int | None
) -> None:
    told = tmp_path / "cgroup" / file
    told.parent.mkdir(parents=True)
    told.write_text(text)
    own = tmp_path / "own"
    own.write_text(group + "\n")
    assert sizing.read_oom_kills(str(tmp_path / "cgroup"), str(own)) == n_kills


@pytest.mark.parametrize("value", [2.5, "two", [2]])
def test_a_number_of_workers_or_threads_is_whole(value: Any) -> None:
    with pytest.raises(UsageError, match="n_workers=.*whole number"):
        sizing.plan_workers(value, None, 4)
    with pytest.raises(UsageError, match="threads_per_worker=.*whole number"):
        sizing.plan_workers(None, value, 4)


@pytest.mark.parametrize("wrong", [3, "GPU=1", {"GPU": "one"}, {"GPU": None}, {"GPU": -1}, {"GPU": float("nan")}])
def test_resources_in_python_are_amounts_by_name(wrong: Any) -> None:
    assert sizing.check_resources(None) == ()
    assert sizing.check_resources({"B": 1, "A": 2.5}) == (("A", 2.5), ("B", 1.0))
    with pytest.raises(UsageError, match="resources="):
        sizing.check_resources(wrong)
