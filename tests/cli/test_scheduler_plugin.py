"""The example of Dask's documentation: a preload of the scheduler that registers a plugin, and has an option."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.cli.terminal import running

EXAMPLE = """\
import click

from distributed.diagnostics.plugin import SchedulerPlugin

class MyPlugin(SchedulerPlugin):
    def __init__(self, print_count):
      self.print_count = print_count

    def add_worker(self, scheduler=None, worker=None, **kwargs):
        print("Added a new worker at:", worker)
        if self.print_count and scheduler is not None:
            print("Total workers:", len(scheduler.workers))

{command}@click.option("--print-count/--no-print-count", default=False)
def dask_setup(scheduler, print_count):
    plugin = MyPlugin(print_count)
    scheduler.add_plugin(plugin)
"""


@pytest.mark.parametrize("command", ["@click.command()\n", ""])
def test_the_example_of_dasks_documentation_runs_unchanged(tmp_path: Path, command: str) -> None:
    """Also as it is printed in some places: with options, and without the decorator that makes a command of it."""
    (tmp_path / "x.py").write_text(EXAMPLE.format(command=command))
    with running("up", "-n", "2", "--name", "lab", "--preload-scheduler", "x.py", "--print-count", cwd=tmp_path, terminal=True) as up:
        up.wait_for("Ctrl-C stops")
        up.wait_for("Total workers: 2")
        up.send(signal.SIGINT)
        assert up.end() == 0
    lines = [line for line in up.text.splitlines() if line.startswith(("Added", "Total"))]
    assert sorted(lines[::2]) == ["Added a new worker at: local://lab/w0", "Added a new worker at: local://lab/w1"]
    assert lines[1::2] == ["Total workers: 1", "Total workers: 2"]


def test_without_the_option_it_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(EXAMPLE.format(command="@click.command()\n"))
    with running("up", "-n", "1", "--preload-scheduler", "x.py", cwd=tmp_path, terminal=True) as up:
        up.wait_for("Ctrl-C stops")
        up.wait_for("Added a new worker at:")
        up.send(signal.SIGINT)
        assert up.end() == 0
    assert "Total" not in up.text
