"""Dask's own places and keys are heard where localdask's are silent."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from localdask import config
from localdask.errors import ConfigError
from localdask.layers import interpret
from tests.conftest import write


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in list(os.environ):
        if name.startswith(("LOCALDASK_", "DASK_")) or name == "XDG_CONFIG_HOME":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DASK_ROOT_CONFIG", str(tmp_path / "etc"))
    if "dask" in sys.modules:
        monkeypatch.setattr(sys.modules["dask"], "config", sys.modules["dask"].config)  # which another import would replace
    monkeypatch.delitem(sys.modules, "dask.config", raising=False)
    config.refresh()
    yield tmp_path
    monkeypatch.undo()
    config.refresh()


def test_dasks_folders_are_read_in_dasks_order(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / "etc/a.yaml", "distributed: {worker: {preload: [etc], memory: {target: 0.1, spill: 0.1, pause: 0.1}}}\n")
    user = write(home / ".config/dask/distributed.yaml", "distributed: {worker: {preload: [user], memory: {spill: 0.2, pause: 0.2}}}\n")
    named = write(home / "named.yaml", "distributed: {worker: {memory: {pause: 0.3}}}\n")
    monkeypatch.setenv("DASK_CONFIG", str(named))
    config.refresh()
    assert config.preloads("worker") == (["user"], [], str(user))
    assert [config.get(f"worker.memory.{name}") for name in ("target", "spill", "pause", "terminate")] == [0.1, 0.2, 0.3, 0.95]


@pytest.mark.parametrize("role", ["scheduler", "nanny", "worker", "client"])
def test_dasks_variables_are_read_for_every_role(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"DASK_DISTRIBUTED__{role.upper()}__PRELOAD", "['a.py', 'b.py']")
    monkeypatch.setenv(f"DASK_DISTRIBUTED__{role.upper()}__PRELOAD_ARGV", "[[], ['--foo', 'x']]")
    config.refresh()
    assert config.preloads(role) == (["a.py", "b.py"], [[], ["--foo", "x"]], f"DASK_DISTRIBUTED__{role.upper()}__PRELOAD")


def test_localdasks_own_key_goes_before_dasks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", "dask.module")
    monkeypatch.setenv("DASK_DISTRIBUTED__NANNY__PRELOAD", "dask.nanny")
    write(home / ".config/localdask.yaml", "worker: {preload: own.module}\n")
    config.refresh()
    assert config.preloads("worker").specs == ["own.module"]
    assert config.preloads("nanny").specs == ["dask.nanny"]


def test_dasks_arguments_are_not_given_to_localdasks_preloads(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", "['a', 'b']")
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD_ARGV", "[['--x'], []]")
    write(home / ".config/localdask.yaml", "worker: {preload: own.module}\n")
    config.refresh()
    assert config.preloads("worker").argv == []


def test_a_relative_file_in_dasks_yaml_starts_in_the_working_directory(home: Path) -> None:
    write(home / ".config/dask/d.yaml", "distributed: {worker: {preload: [setup.py]}}\n")
    config.refresh()
    assert config.preloads("worker").specs == ["setup.py"]


def test_dasks_other_keys_do_not_leak_in(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://elsewhere:8786")
    monkeypatch.setenv("DASK_TEMPORARY_DIRECTORY", "/scratch")
    write(home / ".config/dask/d.yaml", "array: {chunk-size: 3}\nscheduler-address: tcp://x:1\n")
    config.refresh()
    assert config.get("scheduler-address") is None
    assert config.get("temporary-directory") == "/scratch"
    assert config.get("array", None) is None


def test_a_dask_file_that_others_can_write_is_refused_too(home: Path) -> None:
    path = write(home / ".config/dask/d.yaml", "distributed: {worker: {preload: evil}}\n")
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="written by other users"):
        config.refresh()


@pytest.mark.parametrize(
    "text",
    [
        "x.py",
        "['a', 'b']",
        "3",
        "1.5",
        "none",
        "None",
        "Null",
        "TRUE",
        "false",
        "{'a': [1]}",
        "import os; os.nice(5)",
        "",
        "a,b",
        "'x.py'",
        "[",
        "b'x'",
    ],
)
def test_values_of_variables_mean_what_dask_means(text: str) -> None:
    dask_config = pytest.importorskip("dask.config")
    assert interpret(text) == dask_config.interpret_value(text)


def _dask_module(defaults: dict, said: dict) -> types.ModuleType:
    module = types.ModuleType("dask.config")
    module.defaults = [defaults]  # type: ignore[attr-defined]
    module.config = said  # type: ignore[attr-defined]
    return module


def test_what_dask_config_was_told_in_this_process_is_heard_and_its_defaults_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = {"distributed": {"worker": {"preload": [], "memory": {"target": 0.77}}, "scheduler": {"allowed-failures": 9}}}
    said = {"distributed": {"worker": {"preload": ["told.module"], "memory": {"target": 0.77}}, "scheduler": {"allowed-failures": 9}}}
    monkeypatch.setitem(sys.modules, "dask.config", _dask_module(defaults, said))
    assert config.preloads("worker") == (["told.module"], [], "dask.config")
    assert config.get("worker.memory.target") == 0.6
    assert config.get("scheduler.allowed-failures") == 3
    assert config.get("worker")["preload"] == ["told.module"]


def test_the_real_dask_config_set_is_heard_in_a_process_of_its_own(home: Path) -> None:
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("distributed is not installed")
    code = (
        "import dask.config, distributed\n"
        "from localdask import config\n"
        "assert config.origin('worker.memory.target') == 'defaults', config.origin('worker.memory.target')\n"
        "with dask.config.set({'distributed.worker.preload': ['a.b'], 'distributed.nanny.environ.X': 1}):\n"
        "    assert config.preloads('worker') == (['a.b'], [], 'dask.config')\n"
        "    assert config.get('nanny.environ') == {'X': 1}\n"
        "    with config.set({'worker.preload': 'mine'}):\n"
        "        assert config.preloads('worker').specs == ['mine']\n"
        "assert config.preloads('worker').specs == []\n"
        "print('heard')\n"
    )
    environ = {**os.environ, "HOME": str(home)}
    root = Path(config.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], env=environ, cwd=root, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("heard\n", "")


def test_dask_is_never_imported(home: Path) -> None:
    code = (
        "import sys; from localdask import config; list(config.items());"
        "print(sorted(name for name in sys.modules if name.partition('.')[0] in ('dask', 'distributed')))"
    )
    root = Path(config.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
