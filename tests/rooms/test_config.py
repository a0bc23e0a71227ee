"""Configuration comes in layers, each over the last, and every value knows who said it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from localdask import config
from localdask.errors import ConfigError
from tests.conftest import write


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own for each test, without anybody's settings."""
    for name in list(os.environ):
        if name.startswith(("LOCALDASK_", "DASK_")) or name == "XDG_CONFIG_HOME":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DASK_ROOT_CONFIG", str(tmp_path / "nowhere"))
    config.refresh()
    yield tmp_path
    monkeypatch.undo()
    config.refresh()


def test_a_key_that_nobody_set_has_its_default() -> None:
    assert config.get("worker.memory.target") == 0.6
    assert config.origin("worker.memory.target") == "defaults"


def test_a_key_that_does_not_exist_is_a_key_error_or_the_default_given() -> None:
    with pytest.raises(KeyError, match=r"worker\.preloda"):
        config.get("worker.preloda")
    assert config.get("worker.preloda", 3) == 3
    assert config.get("worker.preloda", None) is None


def test_an_argument_goes_before_configuration() -> None:
    assert config.get("worker.memory.target", override_with=0.1) == 0.1
    assert config.get("worker.memory.target", override_with=None) == 0.6


def test_layers_lie_over_each_other_user_file_then_named_file_then_environment_then_code(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = write(home / ".config/localdask.yaml", "worker:\n  memory: {target: 0.11, spill: 0.12, pause: 0.13, terminate: 0.14}\n")
    named = write(home / "named.yaml", "worker: {memory: {spill: 0.22, pause: 0.23, terminate: 0.24}}\n")
    flag = write(home / "flag.yaml", "worker: {memory: {pause: 0.33, terminate: 0.34}}\n")
    monkeypatch.setenv("LOCALDASK_CONFIG", str(named))
    monkeypatch.setenv("LOCALDASK__WORKER__MEMORY__TERMINATE", "0.44")
    config.refresh([str(flag)])
    assert config.get("worker.memory") == {"target": 0.11, "spill": 0.22, "pause": 0.33, "terminate": 0.44, "max-spill": False}
    origins = [config.origin(f"worker.memory.{name}") for name in ("target", "spill", "pause", "terminate")]
    assert origins == [str(user), str(named), str(flag), "LOCALDASK__WORKER__MEMORY__TERMINATE"]
    with config.set({"worker.memory.terminate": 0.55}):
        assert config.get("worker.memory.terminate") == 0.55
        assert config.origin("worker.memory.terminate") == "config.set"
    assert config.get("worker.memory.terminate") == 0.44


def test_a_folder_of_files_is_read_in_the_order_of_names(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / "xdg/localdask/20.yaml", "a: 2\nb: 2\n")
    write(home / "xdg/localdask/10.yml", "a: 1\nc: 1\n")
    write(home / "xdg/localdask/.hidden.yaml", "a: 9\n")
    write(home / "xdg/localdask/readme.txt", "a: 9\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "xdg"))
    config.refresh()
    assert [config.get(key) for key in "abc"] == [2, 2, 1]


def test_dash_and_underscore_are_the_same_in_every_place(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / ".config/localdask.yaml", "scheduler: {allowed_failures: 7}\nnanny: {pre_spawn_environ: {OMP_NUM_THREADS: 5}}\n")
    monkeypatch.setenv("LOCALDASK__WORKER__PRELOAD_ARGV", "['--x']")
    config.refresh()
    assert config.get("scheduler.allowed-failures") == config.get("scheduler.allowed_failures") == 7
    assert config.get("worker.preload-argv") == config.get("worker.preload_argv") == ["--x"]
    assert config.get("nanny.pre-spawn-environ")["OMP_NUM_THREADS"] == 5
    assert len(config.get("nanny.pre-spawn-environ")) == 5
    with config.set({"scheduler.allowed-failures": 1}):
        assert config.get("scheduler") == {**config.DEFAULTS["scheduler"], "allowed-failures": 1}


def test_environment_values_are_python_or_text(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "A": "['a.py', 'b.py']",
        "B": "a.py",
        "C": "import os; os.nice(5)",
        "D": "{'x': 1}",
        "E": "true",
        "F": "null",
        "G": "[[], ['--foo']]",
        "H": "3",
    }
    for name, text in values.items():
        monkeypatch.setenv(f"LOCALDASK__TEST__{name}", text)
    monkeypatch.setenv("LOCALDASK__TEST__I", "(" * 10_000)
    config.refresh()
    found = [config.get(f"test.{name}") for name in "abcdefgh"]
    assert found == [["a.py", "b.py"], "a.py", "import os; os.nice(5)", {"x": 1}, True, None, [[], ["--foo"]], 3]
    assert config.get("test.i") == "(" * 10_000


def test_variables_of_the_command_line_are_no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALDASK_UP_WORKERS", "4")
    config.refresh()
    assert not [key for key, _, _ in config.items() if "up" in key.split(".")]


def test_set_outside_of_a_context_stays_until_it_is_told_otherwise() -> None:
    kept = config.set({"worker.memory.target": 0.2}, worker__memory__spill=0.3)
    try:
        assert config.get("worker.memory.target") == 0.2
        assert config.get("worker.memory.spill") == 0.3
        assert config.get("worker.memory.pause") == 0.8
    finally:
        kept.__exit__(None, None, None)
    assert config.get("worker.memory.target") == 0.6


def test_contexts_may_end_in_any_order() -> None:
    first = config.set({"x.y": 1})
    second = config.set({"x.y": 2})
    first.__exit__(None, None, None)
    assert config.get("x.y") == 2
    second.__exit__(None, None, None)
    assert config.get("x.y", None) is None


def test_a_context_ends_when_its_body_raises() -> None:
    with pytest.raises(ZeroDivisionError), config.set({"x": 1}):
        raise ZeroDivisionError
    assert config.get("x", None) is None


def test_what_code_sets_replaces_all_that_stood_under_its_key() -> None:
    with config.set({"nanny.pre-spawn-environ": {}}):
        assert config.get("nanny.pre-spawn-environ") == {}
        assert config.get("nanny.pre-spawn-environ.OMP_NUM_THREADS", "gone") == "gone"
        with config.set({"nanny.pre-spawn-environ.OMP_NUM_THREADS": 2}):
            assert config.get("nanny.pre-spawn-environ") == {"OMP_NUM_THREADS": 2}
    assert config.DEFAULTS["nanny"]["pre-spawn-environ"]["OMP_NUM_THREADS"] == 1


def test_dasks_name_of_the_root_is_understood_in_code() -> None:
    assert config.get("distributed.worker.memory.target") == 0.6
    with config.set({"distributed.worker.memory.target": 0.3}):
        assert config.get("worker.memory.target") == 0.3


def test_two_threads_may_set_at_once() -> None:
    def work(name: str) -> None:
        for number in range(200):
            with config.set({name: number}):
                assert config.get(name) == number

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not [key for key, _, _ in config.items() if key.startswith("t") and key != "temporary-directory"]


def test_a_heading_without_lines_takes_nothing_away(home: Path) -> None:
    write(home / ".config/localdask.yaml", "worker:\n  # preload: x.py\nscheduler:\n")
    config.refresh()
    assert config.get("worker.memory.target") == 0.6
    assert config.get("worker")["memory"]["spill"] == 0.7
    assert config.get("scheduler.allowed-failures") == 3


def test_yaml_text_may_name_variables(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/data")
    write(home / ".config/localdask.yaml", "temporary-directory: $PLACE/tmp\n")
    config.refresh()
    assert config.get("temporary-directory") == "/data/tmp"


def test_items_names_every_value_with_its_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALDASK__WORKER__PRELOAD", "x.py")
    config.refresh()
    found = {key: (value, who) for key, value, who in config.items()}
    assert found["worker.preload"] == ("x.py", "LOCALDASK__WORKER__PRELOAD")
    assert found["worker.memory.pause"] == (0.8, "defaults")
    assert found["nanny.environ"] == ({}, "defaults")


def test_a_damaged_file_is_told_with_its_line_and_a_mend(home: Path) -> None:
    path = write(home / ".config/localdask.yaml", "worker:\n  preload: [a.py\nscheduler: 3\n")
    with pytest.raises(ConfigError, match=rf"{path}:3:10: this is not yaml: .*move the file away"):
        config.refresh()


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "3\n"])
def test_a_file_that_holds_no_keys_is_told(home: Path, text: str) -> None:
    write(home / ".config/localdask.yaml", text)
    with pytest.raises(ConfigError, match="not keys with values"):
        config.refresh()


def test_an_object_in_yaml_is_never_made(home: Path) -> None:
    write(home / ".config/localdask.yaml", "worker: !!python/object/apply:os.mkdir ['%s']\n" % (home / "made"))
    with pytest.raises(ConfigError, match="not yaml"):
        config.refresh()
    assert not (home / "made").exists()


@pytest.mark.parametrize("mode", [0o602, 0o622])
def test_a_file_that_others_can_write_is_refused_with_the_mend(home: Path, mode: int) -> None:
    path = write(home / ".config/localdask.yaml", "worker: {preload: evil.py}\n")
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"written by other users.*chmod go-w {path}"):
        config.refresh()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_a_file_of_another_user_is_refused(home: Path) -> None:
    path = write(home / ".config/localdask.yaml", "worker: {preload: evil.py}\n")
    os.chown(path, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to another user"):
        config.refresh()


def test_a_named_file_that_is_not_there_is_told_with_who_named_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--config-file names .*gone\.yaml, which does not exist"):
        config.refresh([str(home / "gone.yaml")])
    monkeypatch.setenv("LOCALDASK_CONFIG", str(home / "gone"))
    with pytest.raises(ConfigError, match=r"LOCALDASK_CONFIG names .*gone, which does not exist"):
        config.refresh()


def test_nothing_in_the_working_directory_is_read_unless_it_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / "work/localdask.yaml", "worker: {preload: evil.py}\n")
    monkeypatch.chdir(home / "work")
    config.refresh()
    assert config.preloads("worker").specs == []
    config.refresh(["localdask.yaml"])
    assert config.preloads("worker").specs == [str(home / "work/evil.py")]


def test_yaml_is_not_imported_unless_there_is_a_file(home: Path) -> None:
    code = "import sys; from localdask import config; config.get('worker.preload'); print('yaml' in sys.modules)"
    environ = {"HOME": str(home), "PATH": os.environ["PATH"], "DASK_ROOT_CONFIG": str(home / "no")}
    root = Path(config.__file__).parent.parent

    def run() -> str:
        return subprocess.run(
            [sys.executable, "-c", code], env=environ, cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert run() == "False"
    write(home / ".config/localdask.yaml", "a: 1\n")
    assert run() == "True"


# ── preloads of a role ───────────────────────────────────────────────────────


def test_preloads_come_in_every_shape(home: Path) -> None:
    write(
        home / ".config/localdask.yaml",
        "worker: {preload: my.module}\n"
        "nanny: {preload: [/abs/a.py, 'import os; os.nice(5)'], preload-argv: [[--x], []]}\n"
        "scheduler: {preload: [{script: /abs/s.py, argv: [--print-count]}, my.other]}\n",
    )
    config.refresh()
    who = str(home / ".config/localdask.yaml")
    assert config.preloads("worker") == (["my.module"], [], who)
    assert config.preloads("nanny") == (["/abs/a.py", "import os; os.nice(5)"], [["--x"], []], who)
    assert config.preloads("scheduler") == (["/abs/s.py", "my.other"], [["--print-count"], []], who)
    assert config.preloads("client") == ([], [], "defaults")


def test_a_relative_file_lies_beside_the_yaml_that_names_it(home: Path) -> None:
    write(home / ".config/localdask/a.yaml", "worker: {preload: [setup.py, ../b.py, ~/c.py, a.module]}\n")
    config.refresh()
    folder = home / ".config/localdask"
    assert config.preloads("worker").specs == [str(folder / "setup.py"), str(folder / "../b.py"), str(home / "c.py"), "a.module"]


def test_arguments_belong_to_the_preloads_beside_which_they_stand(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / ".config/localdask.yaml", "worker: {preload: [m.a, m.b], preload-argv: [[--one], []]}\n")
    monkeypatch.setenv("LOCALDASK__WORKER__PRELOAD", "m.c")
    config.refresh()
    assert config.preloads("worker") == (["m.c"], [], "LOCALDASK__WORKER__PRELOAD")
    monkeypatch.setenv("LOCALDASK__WORKER__PRELOAD_ARGV", "['--two']")
    config.refresh()
    assert config.preloads("worker") == (["m.c"], ["--two"], "LOCALDASK__WORKER__PRELOAD")
    monkeypatch.delenv("LOCALDASK__WORKER__PRELOAD")
    config.refresh()
    assert config.preloads("worker").argv == ["--two"]
    with config.set({"worker.preload": Path("/p.py")}):
        assert config.preloads("worker") == ([Path("/p.py")], [], "config.set")


@pytest.mark.parametrize("entry", ["{argv: [--x]}", "{script: a.py, args: [--x]}", "3", "[a.py]"])
def test_an_entry_that_is_no_preload_is_told_with_its_place(home: Path, entry: str) -> None:
    path = write(home / ".config/localdask.yaml", f"worker: {{preload: [{entry}]}}\n")
    config.refresh()
    with pytest.raises(ConfigError, match=rf"worker\.preload in {path} has the entry"):
        config.preloads("worker")


def test_a_preload_that_is_a_number_is_told() -> None:
    with config.set({"worker.preload": 3}), pytest.raises(ConfigError, match=r"worker.preload in config.set is 3"):
        config.preloads("worker")


def test_arguments_in_two_places_are_refused(home: Path) -> None:
    write(home / ".config/localdask.yaml", "worker: {preload: [{script: /a.py, argv: [-x]}], preload-argv: [-y]}\n")
    config.refresh()
    with pytest.raises(ConfigError, match="keep one of the two"):
        config.preloads("worker")
