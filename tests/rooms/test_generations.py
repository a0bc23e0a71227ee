"""Loading, setting up, swapping, rolling back and tearing down preloads, in this process, with real files."""

from __future__ import annotations

import dataclasses
import inspect
import linecache
import pickle
import sys
import textwrap
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click  # noqa: F401 - imported before it is hidden with the rest of what is installed
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localdask.errors import PreloadError
from localdask.preloads.generations import Preloads, ReloadPhase
from localdask.preloads.loading import import_graph
from localdask.preloads.sources import Source, hash_code, read_sources, renew_source


@pytest.fixture(autouse=True)
def clean_interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules, paths and what is known of imports are afterwards as they were."""
    modules = dict(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(import_graph, "edges", {})
    monkeypatch.setattr(import_graph, "helpers", {})
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    meta_path = list(sys.meta_path)
    importing = __import__
    yield
    assert sys.meta_path == meta_path
    assert __import__ is importing
    for name in sys.modules.keys() - modules.keys():
        if getattr(getattr(sys.modules[name].__spec__, "loader", None), "is_preload", False):
            del sys.modules[name]


class House:
    """A folder of preloads, a service that is a list of what happened, and their manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log: list[Any] = []
        self.preloads = Preloads(self.log, "worker", "w0", setup_s=10, teardown_s=10)
        self.sources: list[Source] = []

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def write_hooks(self, name: str, version: Any, extra: str = "") -> None:
        text = (
            f"VERSION = {version!r}\n"
            f"def dask_setup(log): log.append(('setup', {name!r}, VERSION))\n"
            f"def dask_teardown(log): log.append(('teardown', {name!r}, VERSION))\n"
        )
        self.write(f"{name}.py", text + textwrap.dedent(extra))

    def load(self, *specs: Any, argv: Any = ()) -> None:
        self.sources = read_sources([str(self.folder / spec) if str(spec).endswith(".py") else spec for spec in specs], argv)
        self.preloads.load(self.sources)

    def start(self, *specs: Any, argv: Any = ()) -> None:
        self.load(*specs, argv=argv)
        self.preloads.setup()

    def newer(self, index: int = 0, **changed_helpers: str) -> Source:
        """The preload as its file is now, with what a cluster would ship of its helpers."""
        running = self.preloads[index].source
        helpers = list(self.preloads.helpers_of(running))
        for name, code in changed_helpers.items():
            name = name.replace("__", ".")
            old = next(helper for helper in helpers if helper.module_name == name)
            helpers.remove(old)
            helpers.append(dataclasses.replace(old, code=code.encode(), hash=hash_code(code.encode())))
        return dataclasses.replace(renew_source(running), generation=running.generation + 1, helpers=tuple(helpers))

    def prepare(self, *indices: int, **changed_helpers: str) -> None:
        self.preloads.prepare({index: self.newer(index, **changed_helpers) for index in indices or (0,)})

    def reload(self, *indices: int, **changed_helpers: str) -> None:
        self.prepare(*indices, **changed_helpers)
        self.preloads.swap()
        self.preloads.commit()

    def said(self) -> list[Any]:
        said, self.log[:] = list(self.log), []
        return said


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.chdir(tmp_path)
    house = House(tmp_path)
    yield house
    house.preloads.teardown()


def failing(call: Any, *arguments: Any) -> PreloadError:
    with pytest.raises(PreloadError) as caught:
        call(*arguments)
    return caught.value


# ── the first load ───────────────────────────────────────────────────────────


def test_setups_run_in_order_and_teardowns_in_reverse_once(house: House) -> None:
    for name in ("one_p", "two_p"):
        house.write_hooks(name, 1)
    house.load("one_p.py", "two_p.py")
    assert house.said() == []
    assert house.preloads.setup() == []
    assert house.said() == [("setup", "one_p", 1), ("setup", "two_p", 1)]
    assert house.preloads.teardown() == []
    assert house.said() == [("teardown", "two_p", 1), ("teardown", "one_p", 1)]
    assert house.preloads.teardown() == [] and house.said() == []


def test_the_body_runs_once_under_its_own_name_and_path(house: House) -> None:
    path = house.write(
        "ran_once.py",
        """
        import sys
        sys.loads = getattr(sys, "loads", 0) + 1
        me = sys.modules[__name__]
        if __name__ == "__main__":
            raise SystemExit
        """,
    )
    house.start("ran_once.py")
    module = house.preloads[0].module
    assert sys.loads == 1  # type: ignore[attr-defined]
    del sys.loads  # type: ignore[attr-defined]
    assert module is sys.modules["ran_once"] is module.me
    assert (module.__name__, module.__file__, module.__package__) == ("ran_once", str(path), "")
    assert module.__doc__ is None


def test_siblings_import_and_the_folder_is_on_the_path_once(house: House) -> None:
    house.write("sibling_a.py", "X = 7")
    house.write("imports_a.py", "import sibling_a")
    house.write("imports_too.py", "from sibling_a import X")
    house.start("imports_a.py", "imports_too.py")
    assert house.preloads[1].module.X == 7
    assert sys.path.count(str(house.folder)) == 1


def test_nothing_is_ever_written_beside_a_preload(house: House) -> None:
    house.write("sibling_b.py", "X = 1")
    house.write("imports_b.py", "import sibling_b\ndef dask_setup(log):\n    import late_b")
    house.write("late_b.py", "")
    house.start("imports_b.py")
    house.reload()
    assert sorted(path.name for path in house.folder.iterdir()) == ["imports_b.py", "late_b.py", "sibling_b.py"]


def test_dataclasses_pickle_and_annotations_work_inside_the_body(house: House) -> None:
    text = """
    from __future__ import annotations
    import dataclasses, pickle, typing
    @dataclasses.dataclass
    class Point:
        n: typing.ClassVar[int] = {0}
        x: int = 3
        other: Point{0} | None = None
    class Point{0}: pass
    hints = typing.get_type_hints(Point.__init__) if {0} > 9 else Point.__init__.__annotations__
    again = pickle.loads(pickle.dumps(Point(4)))
    assert [field.name for field in dataclasses.fields(Point)] == ["x", "other"]
    """
    house.write("with_data.py", text.format(1))
    house.start("with_data.py")
    first = house.preloads[0].module
    house.write("with_data.py", text.format(2))
    house.reload()
    second = house.preloads[0].module
    assert type(second.again) is second.Point is not first.Point
    assert pickle.loads(pickle.dumps(second.again)).x == 4


def test_a_body_is_compiled_as_it_is_written_without_a_future_of_ours(house: House) -> None:
    house.load("x: int = 1\nassert __annotations__ == {'x': int}")


def test_a_text_runs_with_its_own_lines_in_tracebacks(house: House) -> None:
    house.load("x = 1\ndef f():\n    raise KeyError(x)", "y=2")
    module = house.preloads[0].module
    assert module.__name__.startswith("localdask_text_preload_")
    assert not hasattr(module, "__file__")
    with pytest.raises(KeyError) as caught:
        module.f()
    assert "raise KeyError(x)" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert inspect.getsource(module.f).startswith("def f():")
    assert house.preloads[1].module.y == 2


def test_a_helper_that_is_taken_from_its_package_is_the_new_one_and_the_old_stays_there_until_the_swap(house: House) -> None:
    house.write("taken_pkg/__init__.py", "")
    house.write("taken_pkg/near.py", "X = 1")
    house.write(
        "taken_pkg/start.py", "from . import near\nfrom taken_pkg import near as again\ndef dask_setup(log): log.append((near.X, again.X))"
    )
    sys.path.insert(0, str(house.folder))
    house.start("taken_pkg.start")
    house.prepare(taken_pkg__near="X = 2")
    assert sys.modules["taken_pkg"].near.X == sys.modules["taken_pkg.near"].X == 1
    house.preloads.swap()
    house.preloads.commit()
    assert house.said() == [(1, 1), (2, 2)]
    assert sys.modules["taken_pkg"].near is sys.modules["taken_pkg.near"]


def test_a_module_preload_runs_under_its_dotted_name_inside_its_package(house: House) -> None:
    house.write("user_pkg/__init__.py", "import sys\nsys.n_parents = getattr(sys, 'n_parents', 0) + 1")
    house.write("user_pkg/sub/__init__.py", "")
    house.write("user_pkg/sub/start.py", "from ..near import X\nfrom . import here\ndef dask_setup(log): log.append(X)")
    house.write("user_pkg/sub/here.py", "")
    house.write("user_pkg/near.py", "X = 5")
    sys.path.insert(0, str(house.folder))
    house.start("user_pkg.sub.start")
    assert house.said() == [5]
    assert sys.modules["user_pkg.sub"].start is sys.modules["user_pkg.sub.start"] is house.preloads[0].module
    house.write("user_pkg/sub/start.py", "def dask_setup(log): log.append('new')")
    house.reload()
    assert house.said() == ["new"]
    assert sys.modules["user_pkg.sub"].start is sys.modules["user_pkg.sub.start"] is house.preloads[0].module
    assert sys.n_parents == 1  # type: ignore[attr-defined]
    del sys.n_parents  # type: ignore[attr-defined]
    assert set(house.preloads.helpers) == {"user_pkg", "user_pkg.sub", "user_pkg.near", "user_pkg.sub.here"}


def test_a_package_may_be_a_preload(house: House) -> None:
    house.write("whole_pkg/__init__.py", "from . import part\nV = 1")
    house.write("whole_pkg/part.py", "")
    sys.path.insert(0, str(house.folder))
    house.start("whole_pkg")
    house.write("whole_pkg/__init__.py", "V = 2\nfrom . import part")
    house.reload()
    import whole_pkg  # type: ignore[import-not-found]

    assert whole_pkg.V == 2 and whole_pkg.part is sys.modules["whole_pkg.part"]


def test_an_installed_module_is_imported_not_run_again(house: House) -> None:
    import json.tool

    house.start("json.tool")
    assert house.preloads[0].module is json.tool
    house.reload()
    assert house.preloads[0].module is json.tool


def test_a_module_that_the_user_imported_already_is_used_as_it_is_until_a_reload(house: House) -> None:
    house.write("mine_already.py", "class A: pass")
    sys.path.insert(0, str(house.folder))
    import mine_already  # type: ignore[import-not-found]

    house.start("mine_already")
    assert house.preloads[0].module is mine_already
    house.reload()
    assert sys.modules["mine_already"] is house.preloads[0].module is not mine_already
    del sys.modules["mine_already"]


def test_a_preload_that_imports_a_later_one_gets_it_and_it_runs_once(house: House) -> None:
    house.write("needs_later.py", "import later_one\nX = later_one")
    house.write("later_one.py", "import sys\nsys.n_later = getattr(sys, 'n_later', 0) + 1\ndef dask_setup(log): log.append('later')")
    house.start("needs_later.py", "later_one.py")
    assert sys.n_later == 1  # type: ignore[attr-defined]
    del sys.n_later  # type: ignore[attr-defined]
    assert house.preloads[0].module.X is house.preloads[1].module
    assert house.said() == ["later"]
    assert house.preloads.helpers == {}


# ── failures at the start ────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("1 / 0", "its body raised ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(3)", "its body called sys.exit(3)"),
        ("raise KeyboardInterrupt", "its body raised KeyboardInterrupt"),
        ("raise GeneratorExit", "its body raised GeneratorExit"),
        ("import not_installed_anywhere", "install not_installed_anywhere, or put not_installed_anywhere.py beside"),
        ("from sys import no_such_name", "its body raised ImportError"),
    ],
)
def test_a_body_that_fails_is_told_with_preload_process_file_and_line(house: House, line: str, words: str) -> None:
    path = house.write("failing_body.py", f"x = 1\ndef f():\n    {line}\nf()\n")
    error = failing(house.load, "failing_body.py")
    assert words in error.args[0] and "in w0" in error.args[0]
    assert (error.process, error.where, error.preload) == ("w0", f"{path}:3", str(path))
    assert "localdask/preloads" not in error.detail and "importlib" not in error.detail
    assert "failing_body" not in sys.modules


def test_when_a_body_fails_no_module_of_the_list_stays(house: House) -> None:
    house.write("good_one.py", "import good_sibling")
    house.write("good_sibling.py", "")
    house.write("bad_one.py", "1/0")
    path = list(sys.path)
    failing(house.load, "good_one.py", "bad_one.py")
    assert not {"good_one", "good_sibling", "bad_one"} & sys.modules.keys()
    assert sys.path == path and len(house.preloads) == 0


def test_a_body_past_its_limit_is_told_with_its_stack(house: House) -> None:
    house.preloads.setup_s = 0.1
    path = house.write("endless_body.py", "while True:\n    pass\n")
    error = failing(house.load, "endless_body.py")
    assert "its body was still running after 0.1 s" in error.args[0]
    assert error.where.startswith(f"{path}:") and "endless_body.py" in error.detail


def test_a_setup_that_fails_is_torn_down_and_then_the_earlier_ones_in_reverse(house: House) -> None:
    for name in ("one_f", "two_f"):
        house.write_hooks(name, 1)
    house.write_hooks("bad_f", 1, "def dask_setup(log): log.append('bad setup'); raise ConnectionError('refused')")
    house.write_hooks("never_f", 1)
    house.load("one_f.py", "two_f.py", "bad_f.py", "never_f.py")
    error = failing(house.preloads.setup)
    assert "dask_setup raised ConnectionError: refused at" in error.args[0]
    downs = [("teardown", name, 1) for name in ("bad_f", "two_f", "one_f")]
    assert house.said() == [("setup", "one_f", 1), ("setup", "two_f", 1), "bad setup", *downs]
    assert house.preloads.teardown() == [] and house.said() == []


def test_what_teardowns_raise_after_a_failed_setup_is_told_with_it(house: House) -> None:
    house.write("worse_f.py", "def dask_setup(log): raise ValueError('first')\ndef dask_teardown(log): raise ValueError('second')")
    house.load("worse_f.py")
    error = failing(house.preloads.setup)
    assert "first" in error.args[0] and "dask_teardown raised ValueError: second" in error.detail


def test_an_optional_preload_may_fail_to_set_up(house: House) -> None:
    house.preloads.is_optional = True
    house.write_hooks("bad_o", 1, "def dask_setup(log): raise ConnectionError('refused')")
    house.write_hooks("good_o", 1)
    house.load("bad_o.py", "good_o.py")
    assert ["refused" in str(error) for error in house.preloads.setup()] == [True]
    assert house.said() == [("setup", "good_o", 1)]


def test_teardowns_that_fail_or_hang_do_not_keep_the_others_from_running(house: House) -> None:
    house.write_hooks("one_t", 1)
    house.write_hooks("bad_t", 1, "def dask_teardown(log): raise SystemExit(2)")
    house.write_hooks("hung_t", 1, "def dask_teardown(log):\n    while True: pass")
    house.start("one_t.py", "bad_t.py", "hung_t.py")
    house.said()
    house.preloads.teardown_s = 0.1
    told = [str(error) for error in house.preloads.teardown()]
    assert "dask_teardown was still running after 0.1 s" in told[0] and "called sys.exit(2)" in told[1] and len(told) == 2
    assert house.said() == [("teardown", "one_t", 1)]


def test_all_teardowns_together_are_bounded_and_each_still_gets_a_moment(house: House) -> None:
    for name in ("hung_1", "hung_2"):
        house.write(f"{name}.py", "def dask_teardown(log):\n    while True: pass")
    house.write_hooks("first_b", 1)
    house.start("first_b.py", "hung_1.py", "hung_2.py")
    house.said()
    house.preloads.teardowns_s = 0.15
    assert len(house.preloads.teardown()) == 2
    assert house.said() == [("teardown", "first_b", 1)]


def test_a_hook_that_is_no_function_is_told(house: House) -> None:
    house.write("odd_hook.py", "dask_setup = 3")
    house.load("odd_hook.py")
    assert "dask_setup is 3, and not a function" in str(failing(house.preloads.setup))


def test_an_interrupt_belongs_to_the_user_in_their_own_process(house: House) -> None:
    house.preloads.role = "scheduler"
    house.write_hooks("first_i", 1)
    house.write_hooks("second_i", 1, "def dask_setup(log): raise KeyboardInterrupt")
    house.load("first_i.py", "second_i.py")
    with pytest.raises(KeyboardInterrupt):
        house.preloads.setup()
    assert house.said()[-2:] == [("teardown", "second_i", 1), ("teardown", "first_i", 1)]


def test_a_helper_that_fails_is_named_for_the_watcher(house: House) -> None:
    helper = house.write("broken_helper.py", "def f(:")
    house.write("uses_broken.py", "import broken_helper")
    error = failing(house.load, "uses_broken.py")
    assert error.helpers == (str(helper),)
    assert "broken_helper.py" in error.detail and "SyntaxError" in error.args[0]
    house.write("uses_absent.py", "import absent_helper")
    assert failing(house.load, "uses_absent.py").helpers == (str(house.folder / "absent_helper.py"),)


# ── hooks of the seed ────────────────────────────────────────────────────────

SEED = """
import click

from distributed.diagnostics.plugin import SchedulerPlugin

class MyPlugin(SchedulerPlugin):
    def __init__(self, print_count):
      self.print_count = print_count

    def add_worker(self, scheduler=None, worker=None, **kwargs):
        print("Added a new worker at:", worker)
        if self.print_count and scheduler is not None:
            print("Total workers:", len(scheduler.workers))

{command}
@click.option("--print-count/--no-print-count", default=False)
def dask_setup(scheduler, print_count):
    plugin = MyPlugin(print_count)
    scheduler.append(plugin)
"""


@pytest.fixture
def without_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in ("dask", "distributed"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not (Path(place) / "distributed").exists()])


@pytest.mark.parametrize("command", ["@click.command()", ""])
@pytest.mark.parametrize(("argv", "expected"), [("--print-count", True), ("", False)])
@pytest.mark.usefixtures("without_distributed")
def test_the_seeds_scheduler_plugin_runs_where_distributed_is_not_installed(
    house: House, command: str, argv: str, expected: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    house.write("seed_example.py", SEED.format(command=command))
    house.start("seed_example.py", argv=argv)
    house.reload()
    plugins = house.said()
    assert [plugin.print_count for plugin in plugins] == [expected, expected]
    plugins[0].add_worker(worker="local://x", scheduler=type("S", (), {"workers": {1: 2}})())
    assert capsys.readouterr().out == "Added a new worker at: local://x\n" + ("Total workers: 1\n" if expected else "")
    assert "distributed" not in sys.modules


@pytest.mark.usefixtures("without_distributed")
def test_standing_in_is_for_users_code_and_not_for_libraries_that_probe(house: House) -> None:
    house.write("probes.py", "import importlib.util\nfound = importlib.util.find_spec('distributed')\nfrom distributed import WorkerPlugin")
    library = house.write(
        "site-packages/library_that_probes.py", "try:\n    import distributed as found\nexcept ImportError:\n    found = None"
    )
    sys.path.insert(0, str(library.parent))
    house.write("uses_library.py", "import library_that_probes")
    house.start("uses_library.py", "probes.py")
    assert sys.modules["library_that_probes"].found is None
    assert house.preloads[1].module.WorkerPlugin.__module__ == "localdask.preloads.plugins"
    del sys.modules["library_that_probes"]


def test_an_asynchronous_preload_keeps_its_event_loop_from_setup_to_teardown(house: House) -> None:
    house.write(
        "async_hooks.py",
        """
        import asyncio
        async def dask_setup(log):
            global session
            session = asyncio.ensure_future(asyncio.sleep(1000))
            await asyncio.sleep(0)
        async def dask_teardown(log):
            session.cancel()
            try:
                await session
            except asyncio.CancelledError:
                log.append("ended")
        """,
    )
    house.start("async_hooks.py")
    assert house.preloads.teardown() == []
    assert house.said() == ["ended"]


# ── a reload ─────────────────────────────────────────────────────────────────


def test_a_load_runs_beside_the_old_and_changes_nothing_until_the_swap(house: House) -> None:
    house.write_hooks("beside", 1)
    house.start("beside.py")
    house.said()
    old = sys.modules["beside"]
    house.write_hooks("beside", 2)
    house.prepare()
    assert sys.modules["beside"] is old and house.said() == []
    assert linecache.getline(old.__file__ or "", 1) == "VERSION = 1\n"
    assert house.preloads.swap() == []
    assert house.said() == [("teardown", "beside", 1), ("setup", "beside", 2)]
    assert sys.modules["beside"].VERSION == 2
    assert linecache.getline(old.__file__ or "", 1) == "VERSION = 2\n"
    assert house.preloads[0].number == 1, "a generation rises when every process swapped"
    house.preloads.commit()
    assert (house.preloads[0].number, house.preloads.phase) == (2, ReloadPhase.IDLE)


def test_a_load_that_fails_leaves_everything_as_it_was(house: House) -> None:
    house.write_hooks("stays", 1)
    house.start("stays.py")
    house.said()
    before = sys.modules["stays"]
    house.write("stays.py", "import new_helper_x\n1/0")
    house.write("new_helper_x.py", "")
    error = failing(house.prepare)
    assert error.where.endswith("stays.py:2") and "1/0" in error.detail
    assert sys.modules["stays"] is before and "new_helper_x" not in sys.modules
    assert house.said() == [] and house.preloads.phase is ReloadPhase.IDLE
    assert linecache.getline(before.__file__ or "", 1) == "VERSION = 1\n"


def test_a_discarded_load_leaves_no_trace(house: House) -> None:
    house.write_hooks("dropped", 1)
    house.start("dropped.py")
    house.said()
    before = dict(sys.modules)
    house.write("fresh_helper.py", "")
    house.write_hooks("dropped", 2, "import fresh_helper")
    house.prepare()
    house.preloads.discard()
    assert {name for name in sys.modules if sys.modules[name] is not before.get(name)} == set()
    house.preloads.teardown()
    assert house.said() == [("teardown", "dropped", 1)]


def test_a_setup_that_fails_is_rolled_back_to_the_old_generation(house: House) -> None:
    house.write_hooks("rolls", 1)
    house.start("rolls.py")
    old = sys.modules["rolls"]
    house.said()
    house.write_hooks("rolls", 2, "def dask_setup(log): raise ConnectionError('refused')")
    house.prepare()
    assert "refused" in str(failing(house.preloads.swap))
    assert house.preloads.phase is ReloadPhase.FAILED
    assert house.preloads.roll_back() == []
    assert house.said() == [("teardown", "rolls", 1), ("teardown", "rolls", 2), ("setup", "rolls", 1)]
    assert sys.modules["rolls"] is old and house.preloads.phase is ReloadPhase.IDLE


def test_a_swap_that_worked_here_can_be_rolled_back_because_of_others(house: House) -> None:
    house.write_hooks("others", 1)
    house.start("others.py")
    house.write_hooks("others", 2)
    house.prepare()
    house.preloads.swap()
    house.said()
    house.preloads.roll_back()
    assert house.said() == [("teardown", "others", 2), ("setup", "others", 1)]
    assert sys.modules["others"].VERSION == 1
    house.preloads.teardown()
    assert house.said() == [("teardown", "others", 1)]


def test_a_roll_back_whose_old_setup_fails_is_told_after_all_the_others_ran(house: House) -> None:
    house.write_hooks("once_only", 1, "n = 0\ndef dask_setup(log):\n    global n\n    n += 1\n    if n > 1: raise OSError('port taken')")
    house.write_hooks("fine_one", 1)
    house.start("once_only.py", "fine_one.py")
    house.write_hooks("once_only", 2)
    house.write_hooks("fine_one", 2)
    house.prepare(0, 1)
    house.preloads.swap()
    house.said()
    assert "port taken" in str(failing(house.preloads.roll_back))
    assert house.said() == [("teardown", "fine_one", 2), ("teardown", "once_only", 2), ("setup", "fine_one", 1)]


def test_an_old_teardown_that_raises_is_told_and_does_not_stop_the_swap(house: House) -> None:
    house.write_hooks("grumbles", 1, "def dask_teardown(log): raise OSError('busy')")
    house.start("grumbles.py")
    house.write_hooks("grumbles", 2)
    house.said()
    house.prepare()
    assert ["busy" in str(error) for error in house.preloads.swap()] == [True]
    assert house.said() == [("setup", "grumbles", 2)]


def test_editing_the_second_of_three_reruns_only_the_second(house: House) -> None:
    for name in ("p_a", "p_b", "p_c"):
        house.write_hooks(name, 1)
    house.start("p_a.py", "p_b.py", "p_c.py")
    modules = [generation.module for generation in house.preloads]
    house.said()
    house.write_hooks("p_b", 2)
    house.reload(1)
    assert house.said() == [("teardown", "p_b", 1), ("setup", "p_b", 2)]
    assert [generation.module is module for generation, module in zip(house.preloads, modules, strict=True)] == [True, False, True]
    house.preloads.teardown()
    assert [entry[1] for entry in house.said()] == ["p_c", "p_b", "p_a"]


def test_several_are_swapped_together_in_reverse_and_in_order(house: House) -> None:
    for name in ("p_d", "p_e"):
        house.write_hooks(name, 1)
    house.start("p_d.py", "p_e.py")
    house.said()
    house.reload(0, 1)
    assert [entry[:2] for entry in house.said()] == [("teardown", "p_e"), ("teardown", "p_d"), ("setup", "p_d"), ("setup", "p_e")]


def test_an_emptied_file_is_a_generation_without_hooks(house: House) -> None:
    house.write_hooks("emptied", 1)
    house.start("emptied.py")
    house.said()
    house.write("emptied.py", "")
    house.reload()
    assert house.said() == [("teardown", "emptied", 1)]
    assert not hasattr(sys.modules["emptied"], "VERSION")


def test_a_wrong_option_of_its_own_runs_no_teardown_of_a_preload_but_those_of_the_earlier_ones(house: House) -> None:
    house.write("before.py", "def dask_setup(log): log.append('setup')\ndef dask_teardown(log): log.append('teardown')")
    clicked = "import click\n@click.command()\n@click.option('--n', type=int)\ndef dask_setup(log, n): log.append(n)\n"
    house.write("clicked.py", clicked + "def dask_teardown(log): log.append('teardown of what was never set up')")
    with pytest.raises(PreloadError, match="no such option|No such option") as raised:
        house.start("before.py", "clicked.py", argv=[[], ["--m", "3"]])
    assert raised.value.exit_code == 2 and house.log == ["setup", "teardown"]


def test_click_hooks_get_the_arguments_of_the_start_again(house: House) -> None:
    house.write("clicked.py", "import click\n@click.command()\n@click.option('--n', type=int)\ndef dask_setup(log, n): log.append(n)")
    house.start("clicked.py", argv="--n 3")
    house.reload()
    assert house.said() == [3, 3]


def test_names_in_keep_are_carried_over_before_the_setup(house: House) -> None:
    text = "KEEP = ('model', 'absent')\nmodel = None\n"
    text += "def dask_setup(log):\n    global model\n    model = model or object()\n    log.append(model)"
    house.write("keeps.py", text)
    house.start("keeps.py")
    house.write("keeps.py", text + "\n# edited")
    house.reload()
    first, second = house.said()
    assert first is second is sys.modules["keeps"].model


def test_a_keep_that_is_no_tuple_of_names_is_a_load_that_failed(house: House) -> None:
    house.write("keeps_wrong.py", "")
    house.start("keeps_wrong.py")
    house.write("keeps_wrong.py", "KEEP = 'model'")
    assert "KEEP = ('model',)" in str(failing(house.prepare))
    assert house.preloads.phase is ReloadPhase.IDLE


RELOADS = """
def dask_reload(log, old):
    log.append(('reload', old.VERSION, VERSION))
    {then}
"""


def test_dask_reload_runs_in_place_of_teardown_and_setup(house: House) -> None:
    house.write_hooks("hands", 1)
    house.start("hands.py")
    house.said()
    house.write_hooks("hands", 2, RELOADS.format(then=""))
    house.reload()
    assert house.said() == [("reload", 1, 2)]
    house.preloads.teardown()
    assert house.said() == [("teardown", "hands", 2)]


def test_a_dask_reload_that_raises_leaves_the_old_set_up(house: House) -> None:
    house.write_hooks("hands_no", 1)
    house.start("hands_no.py")
    house.said()
    house.write_hooks("hands_no", 2, RELOADS.format(then="raise ValueError('no')"))
    house.prepare()
    failing(house.preloads.swap)
    house.preloads.roll_back()
    assert house.said() == [("reload", 1, 2)]
    house.preloads.teardown()
    assert house.said() == [("teardown", "hands_no", 1)]


@pytest.mark.parametrize("old_can", [True, False])
def test_a_hand_over_is_rolled_back_by_the_old_ones_dask_reload_or_by_its_setup(house: House, old_can: bool) -> None:
    house.write_hooks("hands_back", 1, RELOADS.format(then="") if old_can else "")
    house.start("hands_back.py")
    house.write_hooks("hands_back", 2, RELOADS.format(then=""))
    house.prepare()
    house.preloads.swap()
    house.said()
    assert house.preloads.roll_back() == []
    plain = [("teardown", "hands_back", 2), ("setup", "hands_back", 1)]
    assert house.said() == ([("reload", 2, 1)] if old_can else plain)
    house.preloads.teardown()
    assert house.said() == [("teardown", "hands_back", 1)]


def test_a_hand_over_that_fails_on_the_way_back_is_told_and_the_old_one_set_up_anew(house: House) -> None:
    house.write_hooks("hands_badly", 1, RELOADS.format(then="raise ValueError('not back')"))
    house.start("hands_badly.py")
    house.write_hooks("hands_badly", 2, RELOADS.format(then=""))
    house.prepare()
    house.preloads.swap()
    house.said()
    assert ["not back" in str(error) for error in house.preloads.roll_back()] == [True]
    assert house.said() == [("reload", 2, 1), ("teardown", "hands_badly", 2), ("setup", "hands_badly", 1)]


def test_closing_in_the_middle_of_a_reload_tears_down_what_is_set_up(house: House) -> None:
    house.write_hooks("closing", 1)
    house.start("closing.py")
    house.write_hooks("closing", 2)
    house.prepare()
    house.preloads.swap()
    house.said()
    house.preloads.teardown()
    assert house.said() == [("teardown", "closing", 2)]
    assert (house.preloads[0].number, house.preloads.phase) == (2, ReloadPhase.IDLE)


def test_source_and_tracebacks_show_the_code_that_runs_whatever_the_file_holds(house: House) -> None:
    path = house.write("shows.py", "def f():\n    return 1 / 0  # first\n")
    house.start("shows.py")
    house.write("shows.py", "# nothing here any more\n" * 5)
    with pytest.raises(ZeroDivisionError) as caught:
        sys.modules["shows"].f()
    assert "# first" in "".join(traceback.format_tb(caught.value.__traceback__))
    assert "# first" in inspect.getsource(sys.modules["shows"].f)
    assert inspect.getfile(sys.modules["shows"].f) == str(path)


def test_a_task_in_another_thread_never_meets_a_half_made_module(house: House) -> None:
    house.write("half_made.py", "VERSION = 1")
    house.start("half_made.py")
    old = sys.modules["half_made"]
    meeting = threading.Barrier(2)
    seen: list[ModuleType] = []

    def task() -> None:
        meeting.wait(30)
        import half_made  # type: ignore[import-not-found]

        seen.append(half_made)

    sys.meeting = meeting  # type: ignore[attr-defined]
    house.write("half_made.py", "import sys, time\nsys.meeting.wait(30)\nfor _ in range(20): time.sleep(0.002)\nVERSION = 2")
    thread = threading.Thread(target=task)
    thread.start()
    house.prepare()
    thread.join()
    del sys.meeting  # type: ignore[attr-defined]
    assert seen == [old]


def test_a_manager_in_a_thread_other_than_the_main_one_works_alike(house: House) -> None:
    house.write("sibling_t.py", "X = 1")
    house.write_hooks("threaded", 1, "import sibling_t")
    outcomes: list[Any] = []

    def run() -> None:
        try:
            house.start("threaded.py")
            house.write_hooks("threaded", 2, "import sibling_t")
            house.reload(0, sibling_t="X = 2")
            outcomes.append(house.preloads.teardown())
        except BaseException as error:
            outcomes.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert outcomes == [[]]
    assert [entry[::2] for entry in house.said()] == [("setup", 1), ("teardown", 1), ("setup", 2), ("teardown", 2)]
    assert sys.modules["sibling_t"].X == 2


# ── helpers ──────────────────────────────────────────────────────────────────


def test_helpers_are_the_users_own_modules_however_deep_and_no_others(house: House) -> None:
    house.write("h_deep.py", "import json")
    house.write("h_pkg/__init__.py", "")
    house.write("h_pkg/inner.py", "from h_deep import json")
    house.write("h_late.py", "")
    house.write("h_unused.py", "")
    house.write("site-packages/h_lib.py", "")
    sys.path.append(str(house.folder / "site-packages"))
    house.write("h_main.py", "import h_pkg.inner, json, h_lib\ndef dask_setup(log):\n    import h_late")
    house.start("h_main.py")
    expected = {"h_deep": "h_deep.py", "h_pkg": "h_pkg/__init__.py", "h_pkg.inner": "h_pkg/inner.py", "h_late": "h_late.py"}
    assert house.preloads.helpers == {name: str(house.folder / path) for name, path in expected.items()}
    del sys.modules["h_lib"]


def test_a_changed_helper_is_run_afresh_with_all_that_stands_between_and_nothing_else(house: House) -> None:
    house.write("g_leaf.py", "V = 1")
    house.write("g_aside.py", "V = 1")
    house.write("g_between.py", "import g_leaf, g_aside\nSEEN = g_leaf.V")
    house.write_hooks("g_top", 1, "import g_between\nSEEN = g_between.SEEN")
    house.write_hooks("g_other", 1)
    house.start("g_top.py", "g_other.py")
    before = {name: sys.modules[name] for name in ("g_leaf", "g_aside", "g_between", "g_top", "g_other")}
    house.said()
    house.write("g_leaf.py", "the file is not what is run")
    house.prepare(0, g_leaf="V = 2")
    assert all(sys.modules[name] is module for name, module in before.items())
    house.preloads.swap()
    house.preloads.commit()
    changed = {name for name, module in before.items() if sys.modules[name] is not module}
    assert changed == {"g_leaf", "g_between", "g_top"}
    assert sys.modules["g_top"].SEEN == 2
    assert house.said() == [("teardown", "g_top", 1), ("setup", "g_top", 1)]


def test_a_helper_of_two_preloads_is_one_module_for_both(house: House) -> None:
    house.write("s_both.py", "V = 1")
    for name in ("s_one", "s_two"):
        house.write_hooks(name, 1, "import s_both")
    house.start("s_one.py", "s_two.py")
    house.reload(0, 1, s_both="V = 2")
    one, two = (generation.module for generation in house.preloads)
    assert one.s_both is two.s_both is sys.modules["s_both"] and one.s_both.V == 2


def test_a_swap_with_helpers_is_rolled_back_with_them(house: House) -> None:
    house.write("b_leaf.py", "V = 1")
    house.write_hooks("b_top", 1, "import b_leaf")
    house.start("b_top.py")
    leaf = sys.modules["b_leaf"]
    house.prepare(0, b_leaf="V = 2")
    house.preloads.swap()
    assert sys.modules["b_leaf"].V == 2
    house.preloads.roll_back()
    assert sys.modules["b_leaf"] is leaf is house.preloads[0].module.b_leaf
    assert [helper.code for helper in house.preloads.helpers_of(house.sources[0])] == [b"V = 1"]


def test_a_changed_module_of_a_package_is_the_packages_attribute_only_after_the_swap(house: House) -> None:
    house.write("k_pkg/__init__.py", "")
    house.write("k_pkg/part.py", "V = 1")
    house.write("k_top.py", "import k_pkg.part\nfrom k_pkg import part")
    house.start("k_top.py")
    package, part = sys.modules["k_pkg"], sys.modules["k_pkg.part"]
    house.prepare(0, k_pkg__part="V = 2")
    assert sys.modules["k_pkg"].part is part
    house.preloads.swap()
    house.preloads.commit()
    assert sys.modules["k_pkg"] is package and package.part.V == 2 and package.part is sys.modules["k_pkg.part"]
    house.reload(0, k_pkg="NEW = True")
    assert sys.modules["k_pkg"].NEW and sys.modules["k_pkg"].part is sys.modules["k_pkg.part"]


def test_same_second_same_size_edits_of_a_helper_are_never_stale(house: House) -> None:
    house.write("stale_h.py", "V = 10")
    house.write_hooks("stale_p", 1, "import stale_h")
    house.start("stale_p.py")
    for version in range(11, 31):
        house.reload(0, stale_h=f"V = {version}")
        assert sys.modules["stale_p"].stale_h.V == version  # noqa: SIM300


def test_a_process_that_starts_later_runs_the_shipped_helpers_and_not_the_files(house: House) -> None:
    house.write("late_h.py", "V = 1")
    house.write_hooks("late_p", 1, "import late_h")
    house.start("late_p.py")
    good = dataclasses.replace(house.preloads[0].source, helpers=house.preloads.helpers_of(house.preloads[0].source))
    house.write("late_h.py", "a broken edit")
    for name in ("late_p", "late_h"):
        del sys.modules[name]
    newborn = Preloads(house.log, "worker", "w1")
    newborn.load([Source.from_wire(good.to_wire())])
    assert newborn[0].module.late_h.V == 1
    assert "late_h" in newborn.helpers


def test_a_process_that_inherited_another_version_of_a_helper_runs_the_shipped_one(house: House) -> None:
    house.write("fork_h.py", "V = 1")
    house.write("fork_mid.py", "import fork_h")
    house.write_hooks("fork_nanny", 1, "import fork_mid")
    house.start("fork_nanny.py")
    house.write("fork_h.py", "V = 2")
    house.write_hooks("fork_worker", 1, "import fork_mid")
    [source] = read_sources(str(house.folder / "fork_worker.py"))
    inherited = {helper.module_name: helper for helper in house.preloads.helpers_of(house.preloads[0].source)}
    shipped = dataclasses.replace(inherited["fork_h"], code=b"V = 2", hash=hash_code(b"V = 2"))
    worker = Preloads([], "worker", "w0")
    worker.load([dataclasses.replace(source, helpers=(shipped, inherited["fork_mid"]))])
    assert worker[0].module.fork_mid.fork_h.V == 2


# ── whatever happens when ────────────────────────────────────────────────────

VERSION = """
log = __import__("tests.rooms.test_generations", fromlist=["TRUTH"]).TRUTH
{body}
def dask_setup(service):
    log.append(("up", {key!r}))
    {setup}
def dask_teardown(service):
    log.append(("down", {key!r}))
    {teardown}
{reload}
"""
RELOAD = """
def dask_reload(service, old):
    {then}
    log.append(("over", old.KEY, KEY))
"""
TRUTH: list[Any] = []
FAULTS = ("", "body", "setup", "teardown", "reload", "reload fails")


def version(name: str, number: int, fault: str) -> bytes:
    key = (name, number)
    fails = "raise ValueError('planted')"
    text = VERSION.format(
        key=key,
        body=f"KEY = {key!r}\n" + (fails if fault == "body" else ""),
        setup=fails if fault == "setup" else "",
        teardown=fails if fault == "teardown" else "",
        reload=RELOAD.format(then=fails if fault == "reload fails" else "") if fault.startswith("reload") else "",
    )
    return text.encode()


def owed(log: list[Any]) -> dict[Any, int]:
    """What is set up after all this, and whether anything was ever torn down that was not."""
    count: dict[Any, int] = {}
    for what, *keys in log:
        if what == "up":
            count[keys[0]] = count.get(keys[0], 0) + 1
        elif what == "down":
            count[keys[0]] = count.get(keys[0], 0) - 1
        else:
            count[keys[0]] = count.get(keys[0], 0) - 1
            count[keys[1]] = count.get(keys[1], 0) + 1
        assert set(count.values()) <= {0, 1}, f"{keys} {what}: {log}"
    return {key: 1 for key, value in count.items() if value}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    faults=st.lists(st.sampled_from(FAULTS), min_size=2, max_size=2),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("prepare"), st.dictionaries(st.integers(0, 1), st.sampled_from(FAULTS), min_size=1)),
            st.tuples(st.sampled_from(["swap", "roll_back", "discard", "commit"]), st.none()),
        ),
        max_size=14,
    ),
)
def test_what_was_set_up_is_torn_down_exactly_once_whatever_fails_when(faults: list[str], steps: list[tuple[str, Any]]) -> None:
    TRUTH.clear()
    names = ["truth_one", "truth_two"]
    number = 1

    def source(index: int, fault: str) -> Source:
        code = version(names[index], number, fault)
        return Source(names[index], "url", f"https://truth/{names[index]}", names[index], code, (), hash_code(code), number)

    preloads = Preloads(None, "worker", "w0")
    try:
        preloads.load([source(index, fault) for index, fault in enumerate(faults)])
        preloads.setup()
    except PreloadError:
        assert owed(TRUTH) == {}
        preloads.teardown()
        assert owed(TRUTH) == {}
        return
    for step, planted in steps:
        published = [sys.modules[name] for name in names]
        try:
            if step == "prepare" and preloads.phase is not ReloadPhase.FAILED:
                number += 1
                preloads.prepare({index: source(index, fault) for index, fault in planted.items()})
            elif step == "swap" and preloads.phase is ReloadPhase.LOADED:
                preloads.swap()
            elif step == "roll_back":
                preloads.roll_back()
                assert len(owed(TRUTH)) == 2
            elif step in ("discard", "commit"):
                getattr(preloads, step)()
        except PreloadError:
            assert step == "roll_back" or preloads.phase in (ReloadPhase.IDLE, ReloadPhase.FAILED)
        if step not in ("swap", "roll_back"):
            assert [sys.modules[name] for name in names] == published
        if preloads.phase in (ReloadPhase.IDLE, ReloadPhase.LOADED):
            running = {generation.module.KEY: 1 for generation in preloads if generation.is_set_up}
            assert owed(TRUTH) == running
            assert [generation.module for generation in preloads] == [sys.modules[name] for name in names]
    preloads.teardown()
    assert owed(TRUTH) == {}
    preloads.teardown()
    assert owed(TRUTH) == {}


@pytest.mark.parametrize(("inside", "name"), [(("pkg/__init__.py", "pkg/sub/__init__.py"), "pkg.sub.init"), ((), "sub.init")])
def test_a_file_that_wants_to_be_in_its_package_is_told_the_modules_name(house: House, inside: tuple[str, ...], name: str) -> None:
    for path in inside:
        house.write(path, "")
    house.write("pkg/sub/init.py", "\nfrom . import helper\n")
    with pytest.raises(
        PreloadError, match=rf"(?m)no known parent package at .*init\.py:2; as a file it is in no package: name the module {name}$"
    ):
        house.load("pkg/sub/init.py")


def test_a_helper_that_wants_to_be_in_a_package_is_not_taken_for_the_preload(house: House) -> None:
    house.write("helper.py", "from . import other\n")
    house.write("init.py", "import helper\n")
    with pytest.raises(PreloadError, match=r"(?m)no known parent package at .*helper\.py:1$"):
        house.load("init.py")
