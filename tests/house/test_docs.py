"""What the documents say about commands, files and states is true of this checkout."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house import tables

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/*.md", "tests/**/*.md") for path in ROOT.glob(pattern)
)
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PATH = re.compile(r"(?<![\w/.~$-])((?:localdask|tests|docs|examples|benchmarks|\.ci)/[\w./-]*[\w/])")

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def code_of(text: str) -> str:
    """Return what stands in code: blocks and spans."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))


@each_document
def test_every_make_command_that_a_document_names_exists(document: Path) -> None:
    named = set(re.findall(r"\bmake ((?:[a-z][\w-]*[ \t]*)+)", code_of(document.read_text())))
    words = {word for words in named for word in words.split()}
    assert words <= TARGETS


@each_document
def test_every_path_that_a_document_names_exists(document: Path) -> None:
    named = set(PATH.findall(code_of(document.read_text())))
    missing = {path for path in named if not (ROOT / path).exists() and not (document.parent / path).exists()}
    assert not {path for path in missing if not path.startswith("benchmarks/results")}


@each_document
def test_every_link_to_a_file_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text())
    assert not {link for link in links if "://" not in link and not (document.parent / link).exists()}


@each_document
def test_every_table_made_from_code_is_fresh(document: Path) -> None:
    text = document.read_text()
    assert tables.renew(text) == text, f"run: python -m tests.house.tables {document.relative_to(ROOT)}"


def test_a_stale_table_is_noticed() -> None:
    stale = "<!-- table: localdask.state.tasks.MOVES -->\nold\n<!-- end of table -->"
    assert "released" in tables.renew(stale)
    assert tables.renew(tables.renew(stale)) == tables.renew(stale)
