"""The public face is what it says it is, and costs nothing that was not asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import localdask
from tests.house import floors

#: What `import localdask` leaves for the verb, hook or function that needs it.
HEAVY = ("asyncio", "click", "cloudpickle", "dask", "distributed", "joblib", "multiprocessing", "numpy", "psutil", "watchfiles", "yaml")


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_the_face_is_sorted() -> None:
    def as_ruff_sorts(name: str) -> tuple[bool, bool, str]:
        return not name.isupper(), not name[0].isupper(), name

    assert list(localdask.__all__) == sorted(localdask.__all__, key=as_ruff_sorts)


def test_every_name_of_the_face_exists_and_is_listed() -> None:
    missing = [name for name in localdask.__all__ if not hasattr(localdask, name)]
    unlisted = [name for name in localdask.__all__ if name not in dir(localdask)]
    assert not missing
    assert not unlisted


def test_the_face_shows_nothing_that_it_does_not_list() -> None:
    code = "import localdask; print(*(name for name in vars(localdask) if not name.startswith('_')))"
    names = set(run_python(code).split())
    ours = {name for name in names if str(getattr(vars(localdask).get(name), "__module__", "")).startswith("localdask")}
    extra = ours - set(localdask.__all__)
    assert not extra


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, localdask; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    assert run_python(code).split() == []


def test_importing_client_and_cluster_imports_nothing_that_is_dear() -> None:
    needed = {"importlib", "threading"}  # by the face itself, and by whoever has a client
    dear = sorted({f"localdask.{room}" for room in floors.DEAR_ROOMS} | floors.LATE_MODULES.keys() - needed)
    dear_here = f"{{name for name in {dear!r} if name in sys.modules}}"  # Python 3.13 has linecache for what -c runs
    code = f"import sys; before = {dear_here}; from localdask import Client, LocalCluster; print(*{dear_here} - before)"
    assert run_python(code).split() == []


@pytest.mark.parametrize("imports", ["from localdask import Client, LocalCluster", "import localdask.processes.launcher"])
def test_no_text_is_compiled_where_cluster_client_or_launcher_are_imported(imports: str) -> None:
    """The first ``compile`` of a process takes a millisecond: Python makes the classes of its syntax trees. Named tuples ask for it too."""
    watch = """
import builtins
compile = builtins.compile
def note(source, filename, *rest, **more):
    if not str(filename).endswith(".py"):
        print(source)
    return compile(source, filename, *rest, **more)
builtins.compile = note
"""
    assert run_python(watch + imports) == ""


def test_a_star_import_brings_the_whole_face() -> None:
    code = "from localdask import *; import localdask; print(*(name for name in localdask.__all__ if name not in globals()))"
    assert run_python(code).split() == []
