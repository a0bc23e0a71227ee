"""What the pages show in Python runs as it stands there."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest

from tests.live.scripts import running

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^ *```python\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
#: A block that begins so is a file of the reader's.
FILE_NAME = re.compile(r"# (\w+\.py)\n")
#: What a page takes for granted: files beside the script, by their name.
BESIDE = {
    "README.md": {"setup.py": ""},
    "docs/plugins.md": {"my_plugins.py": "class Database:\n    def __init__(self, path): ...\n    def setup(self, worker): ...\n"},
}
#: A real Dask cluster that is somewhere else.
ELSEWHERE = "tcp://10.0.0.5:8786"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if BLOCK.search(path.read_text())
}
READER = """
import json
import click
from localdask import Client, LocalCluster

def load(path=None):
    return path

names = {"__name__": "__main__", "click": click, "load": load, "paths": ["a", "b"], "fit": abs, "parts": [1, -2]}
with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
    for place, block in json.load(open("blocks.json")):
        names["Client"] = Client
        if "client" not in names or names["client"].status != "running":
            names["client"] = client
        exec(compile(block, place, "exec"), names)
"""


def blocks_of(text: str) -> list[tuple[int, str]]:
    """Return a page's Python, block by block, and the line at which each begins."""
    return [(text.count("\n", 0, found.start()) + 2, textwrap.dedent(found[1])) for found in BLOCK.finditer(text)]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs(page: str, tmp_path: Path) -> None:
    for name, content in BESIDE.get(page, {}).items():
        (tmp_path / name).write_text(content)
    script = []
    for line, block in blocks_of(PAGES[page]):
        if named := FILE_NAME.match(block):
            (tmp_path / named[1]).write_text(block)
        elif ELSEWHERE not in block:
            script.append((page, "\n" * (line - 1) + block))
    (tmp_path / "blocks.json").write_text(json.dumps(script))
    with running(READER, folder=tmp_path) as reader:
        assert reader.end() == 0, reader.text
