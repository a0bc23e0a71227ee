"""Every example does what its README shows. Numbers and names differ from one Python to the next; the shape does not."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
CENSUS = EXAMPLES / "census"
PROMISE = re.compile(r"<!-- output -->\n```console\n\$ (.+?)\n(.*?)```\n<!-- end of output -->", re.DOTALL)
PROMISES = [
    pytest.param(readme.parent, *promise, id=f"{readme.parent.name}-{number}")
    for readme in sorted(EXAMPLES.glob("*/README.md"))
    for number, promise in enumerate(PROMISE.findall(readme.read_text()))
]


def run(command: list[str], folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command of a README: what it calls python and localdask are those of this test."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path, **environ}, capture_output=True, text=True, timeout=120)


def shape(output: str) -> str:
    """Return an output without its numbers, and without the names that belong to them."""
    nameless = re.sub(r"\S+\.py: \S+|\b\w+ (?=\d)", "NAME ", output)
    return re.sub(r"\d[\d,.]*", "#", nameless)


def test_every_example_has_a_readme_that_shows_its_output() -> None:
    silent = [folder.name for folder in EXAMPLES.iterdir() if folder.is_dir() and not PROMISE.search((folder / "README.md").read_text())]
    assert not silent


def test_every_script_of_an_example_is_short() -> None:
    long = [path.name for path in EXAMPLES.glob("*/*.py") if len(path.read_text().splitlines()) > 60]
    assert not long


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "command", "promised"), PROMISES)
def test_an_example_prints_what_its_readme_shows(folder: Path, command: str, promised: str) -> None:
    result = run(shlex.split(command), folder, CENSUS_ROOT=os.path.dirname(asyncio.__file__))  # all of the library takes half a minute
    assert result.returncode == 0, result.stderr
    assert shape(result.stdout) == shape(promised)


@pytest.fixture
def small_root(tmp_path: Path) -> Path:
    """A library of three modules, one of them broken."""
    root = tmp_path / "library"
    root.mkdir()
    (root / "one.py").write_text('"""One."""\n\n\ndef first():\n    """Do."""\n    return 1\n')
    (root / "two.py").write_text("class Two:\n    def second(self):\n        return self\n")
    (root / "broken.py").write_text("def (:\n")
    return root


def test_the_census_counts_right_on_a_cluster_of_its_own(small_root: Path) -> None:
    result = run([sys.executable, "census.py"], CENSUS, CENSUS_ROOT=str(small_root))
    assert result.returncode == 0, result.stderr
    assert "3 (1 are no Python" in result.stdout
    assert "2 (50% with a docstring)" in result.stdout.split("functions")[1].splitlines()[0]
    assert "one.py: first (3 lines)" in result.stdout
    assert "self 1" in result.stdout
    assert "parsed 3 of 3 files" in result.stderr


def test_a_preloads_own_option_says_where_its_rows_are_kept(small_root: Path, tmp_path: Path) -> None:
    command = ["localdask", "run", "-n", "2", "--preload", "visitors.py", "--preload-nanny", "pin.py", "--database"]
    result = run([*command, str(tmp_path), "--", "census.py"], CENSUS, CENSUS_ROOT=str(small_root))
    assert result.returncode == 0, result.stderr
    files = set()
    for name in ("w0", "w1"):
        connection = sqlite3.connect(tmp_path / f"{name}.sqlite")
        files |= {file for (file,) in connection.execute("select file from files")}
        connection.close()
    assert files == {"one.py", "two.py", "broken.py"}


def test_an_output_of_another_shape_is_noticed() -> None:
    assert shape("  lines  858,237\n") == shape("  lines  1,2\n")
    assert shape("  lines  858,237\n") != shape("  rows  858,237\n")
