"""What the options of ``up`` and ``run`` come to: the arguments of a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from localdask import config, sizing
from localdask.cli.main import root
from localdask.cli.options import Plan, plan_cluster
from localdask.errors import UsageError

CLICK = "import click\n@click.command()\n@click.option('--depth', default=1)\ndef dask_setup(service, depth):\n    pass\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in list(os.environ):
        if name.startswith(("LOCALDASK", "DASK_")) or name == "XDG_CONFIG_HOME":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DASK_ROOT_CONFIG", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sizing, "read_machine", lambda: sizing.Machine(8, 16 * 2**30, 8))
    (tmp_path / "plain.py").write_text("def dask_setup(worker): pass\n")
    (tmp_path / "clicked.py").write_text(CLICK)
    config.refresh()
    yield tmp_path
    monkeypatch.undo()
    config.refresh()


def plan(*words: str) -> Plan:
    """Return what ``localdask up words…`` would start."""
    found: list[Plan] = []
    with root.make_context("localdask", ["up", *words]) as group:
        command: Any = root.get_command(group, "up")
        with command.make_context("up", list(words), parent=group) as context:
            options = dict(context.params)
            found.append(plan_cluster(options, options.pop("extra"), options.pop("known_options")))
    return found[0]


def test_nothing_said_deals_out_the_machine() -> None:
    assert plan().arguments == {
        "n_workers": 4,
        "threads_per_worker": 2,
        "memory_limit": 4 * 2**30,
        "preload": [],
        "preload_argv": [],
        "preload_nanny": [],
        "preload_nanny_argv": [],
        "preload_scheduler": [],
        "preload_scheduler_argv": [],
    }


@pytest.mark.parametrize("option", ["-n", "--workers", "--nworkers"])
def test_workers_have_dasks_name_too(option: str) -> None:
    assert plan(option, "3").n_workers == 3
    assert plan(option, "auto").n_workers == 4
    assert plan(option, "-2").n_workers == 7


def test_every_option_becomes_an_argument(folder: Path) -> None:
    words = "--nthreads 3 --memory-limit 0 --name mine --local-directory scratch --death-timeout 1.5s"
    lifetime = "--lifetime 2h --lifetime-stagger 5m --lifetime-restart --lifetime-tasks 1000 --lifetime-memory 2GB"
    arguments = plan(*words.split(), *lifetime.split(), "--start-method", "spawn", "--resources", "GPU=1 A=2").arguments
    arguments = {name: value for name, value in arguments.items() if not name.startswith("preload")}
    assert arguments == {
        "n_workers": 2,
        "threads_per_worker": 3,
        "memory_limit": 0,
        "name": "mine",
        "local_directory": str(folder / "scratch"),
        "lifetime": 7200.0,
        "lifetime_stagger": 300.0,
        "lifetime_restart": True,
        "lifetime_tasks": 1000,
        "lifetime_memory": 2_000_000_000,
        "death_timeout": 1.5,
        "start_method": "spawn",
        "resources": {"GPU": 1.0, "A": 2.0},
    }


def test_variables_stand_for_options_and_options_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALDASK_UP_WORKERS", "5")
    monkeypatch.setenv("LOCALDASK_UP_PRELOAD", "import os; os.nice(0)")
    monkeypatch.setenv("LOCALDASK_UP_PRELOAD_NANNY", "['plain.py', 'clicked.py']")
    found = plan()
    assert found.n_workers == 5
    assert found.arguments["preload"] == ["import os; os.nice(0)"]
    assert found.arguments["preload_nanny"] == ["plain.py", "clicked.py"]
    assert plan("-n", "2").n_workers == 2


def test_extra_words_go_whole_to_the_preload_with_options() -> None:
    arguments = plan("--preload", "plain.py", "--depth", "3", "--preload", "clicked.py", "-n", "2", "word").arguments
    assert arguments["preload"] == ["plain.py", "clicked.py"]
    assert arguments["preload_argv"] == [[], ["--depth", "3", "word"]]
    arguments = plan("--preload", "plain.py", "--preload-scheduler", "clicked.py", "--", "--name", "x").arguments
    assert arguments["preload_scheduler_argv"] == [["--name", "x"]]
    assert "name" not in arguments


def test_configuration_names_preloads_for_every_role_and_the_command_line_replaces_them(folder: Path) -> None:
    (folder / "my.yaml").write_text("worker: {preload: [{script: clicked.py, argv: [--depth, 4]}]}\nnanny: {preload: plain.py}\n")
    (folder / "my.yaml").chmod(0o600)
    arguments = plan("-f", "my.yaml").arguments
    assert arguments["preload"] == [str(folder / "clicked.py")]
    assert arguments["preload_argv"] == [["--depth", "4"]]
    assert arguments["preload_nanny"] == [str(folder / "plain.py")]
    assert plan("-f", "my.yaml", "--depth", "9").arguments["preload_argv"] == [["--depth", "9"]]
    arguments = plan("-f", "my.yaml", "--preload", "plain.py").arguments
    assert (arguments["preload"], arguments["preload_argv"]) == (["plain.py"], [[]])


def test_dasks_variables_are_honoured_for_nannies_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__NANNY__PRELOAD", "plain.py")
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", "['clicked.py']")
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD_ARGV", "['--depth', '2']")
    config.refresh()
    arguments = plan().arguments
    assert arguments["preload_nanny"] == ["plain.py"]
    assert arguments["preload_argv"] == [["--depth", "2"]]


def test_a_preload_that_is_wrong_is_told_before_anything_starts(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.py"):
        plan("--preload", "gone.py")
    with pytest.raises(click.UsageError):
        plan("--nthreads", "x")
