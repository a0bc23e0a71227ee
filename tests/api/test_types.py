"""What type checkers make of submit, map and gather: the function's own types, and an error where a result is taken for something else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
from localdask import Client, Future, LocalCluster, as_completed, get_worker


def shout(text: str, times: int = 1) -> bytes:
    return (text * times).encode()


async def later(x: int) -> float:
    return x / 2


with LocalCluster(n_workers=1) as cluster, Client(cluster) as client:
    reveal_type(client.submit(shout, "a"))
    reveal_type(client.submit(shout, "a", times=2).result())
    reveal_type(client.submit(shout, "a", workers="w0", retries=2, priority=1).result())
    reveal_type(client.submit(later, 1).result())
    reveal_type(client.submit(later, client.submit(abs, 1), key="k").result())
    reveal_type(client.map(shout, ["a", "b"]))
    reveal_type([future.result() for future in client.map(shout, ["a", "b"])])
    wanted: Future[bytes] = client.submit(shout, "a")
    number: int = client.submit(later, 1).result()  # wrong: a float
    length: int = client.submit(shout, "a").result()  # wrong: bytes
    client.submit("shout")  # wrong: no function
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What mypy says of the program, a line each, without the paths."""
    program = tmp_path_factory.mktemp("types") / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", str(program)]
    ended = subprocess.run([*command, "--cache-dir", str(ROOT / ".mypy_cache")], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert not ended.stderr, ended.stderr
    return [line.partition("program.py:")[2] for line in ended.stdout.splitlines()]


def test_the_types_of_results_are_the_functions_own(told: list[str]) -> None:
    revealed = [match[1] for line in told if (match := re.search(r'Revealed type is "(.*)"', line))]
    shown = [kind.replace("builtins.", "").replace("localdask.api.futures.", "") for kind in revealed]
    assert shown == ["Future[bytes]", "bytes", "bytes", "float", "float", "list[Future[bytes]]", "list[bytes]"]


def test_results_that_are_taken_for_something_else_are_errors_and_nothing_else_is(told: list[str]) -> None:
    wrong = [number for number, line in enumerate(PROGRAM.splitlines(), 1) if "# wrong" in line]
    assert sorted({int(line.split(":")[0]) for line in told if " error: " in line}) == wrong
