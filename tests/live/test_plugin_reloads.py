"""A plugin registered with ``reload=True`` is replaced when the file of its class is saved, in every process or in none."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localdask import Client, LocalCluster, SchedulerPlugin
from localdask.errors import UsageError
from tests.conftest import wait_until

TEXT = """
import {helper}
from localdask import WorkerPlugin
class Recorder(WorkerPlugin):
    name = "recorder"
    def __init__(self, place):
        self.place = place
    def setup(self, worker):
        self.note(worker, "setup")
        {extra}
    def teardown(self, worker):
        self.note(worker, "teardown")
    def note(self, worker, what):
        with open(self.place, "a") as file:
            file.write(f"{{what}} {{worker.name}} {value} {{{helper}.FACTOR}}\\n")
"""


class House:
    """A module with a plugin, its helper, and what the plugin writes down."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path, self.log = folder / f"{name}.py", folder / "log"
        self.helper = folder / f"{name}_helper.py"
        self.helper.write_text("FACTOR = 1\n")
        self.save(1)
        self.module = importlib.import_module(name)

    def save(self, value: int, extra: str = "pass") -> None:
        self.path.write_text(TEXT.format(helper=self.helper.stem, value=value, extra=extra))

    def lines(self, *values: int) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if tuple(map(int, line.split()[2:])) == values]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[House]:
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"reloaded_{abs(hash(request.node.name))}"
    yield House(tmp_path, name)
    for known in (name, f"{name}_helper"):
        sys.modules.pop(known, None)


def test_a_save_replaces_the_plugin_everywhere_and_a_broken_one_nowhere(
    cluster: LocalCluster, house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    n = len(cluster.workers)
    told: list[str] = []

    def say(text: str) -> None:
        def is_said() -> bool:
            told.append(capsys.readouterr().err)
            return text in "".join(told)

        wait_until(is_said, what=f"{text!r}")
        told.clear()

    with Client(cluster, set_as_default=False) as client:
        client.register_plugin(house.module.Recorder(str(house.log)), reload=True)
        assert len(house.lines(1, 1)) == n
        house.save(2)
        say(f"changed (+1 −1)   set up in {n}")
        assert sorted(line.split()[0] for line in house.lines(1, 1)) == ["setup"] * n + ["teardown"] * n
        assert [line.split()[0] for line in house.lines(2, 1)] == ["setup"] * n
        house.save(3, "(")
        say("SyntaxError")
        house.save(3, "1 / 0")
        say("the plugin recorder stays as it was")
        assert [line.split()[0] for line in house.lines(2, 1)][-1] == "setup", "the former one is set up again"
        house.helper.write_text("FACTOR = 2\n")
        house.save(4)
        say("reload of plugin")
        assert house.lines(4, 2), house.log.read_text()
        house.helper.write_text("FACTOR = 3\n")
        say("_helper.py changed (+1 −1) → ")
        assert [line.split()[0] for line in house.lines(4, 3)] == ["setup"] * n
        client.unregister_plugin("recorder")
        assert sorted(line.split()[0] for line in house.lines(4, 3)) == ["setup"] * n + ["teardown"] * n


def test_a_scheduler_plugin_is_reloaded_too_and_what_has_no_file_is_refused(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "from localdask import SchedulerPlugin\nclass Counts(SchedulerPlugin):\n    value = {}\n    def start(self, scheduler): pass\n"
    path = tmp_path / "reloaded_counts.py"
    path.write_text(text.format(1))
    module: Any = importlib.import_module("reloaded_counts")

    class Local(SchedulerPlugin):
        name = "local"

    with Client(cluster, set_as_default=False) as client:
        plugin = module.Counts()
        plugin.kept = "state"
        client.register_plugin(plugin, name="counts", reload=True)
        assert cluster.scheduler.plugins["counts"].value == 1
        path.write_text(text.format(2))
        wait_until(lambda: "counts" in cluster.scheduler.plugins and cluster.scheduler.plugins["counts"].value == 2)
        assert cluster.scheduler.plugins["counts"].kept == "state"
        with pytest.raises(UsageError, match="put it at the top of its module"):
            client.register_plugin(Local(), reload=True)
        client.unregister_plugin("counts")
    sys.modules.pop("reloaded_counts")
