"""The page of all public names says what the code has."""

from __future__ import annotations

from tests.house import reference


def test_the_page_of_public_names_is_fresh() -> None:
    text = reference.PAGE.read_text()
    assert reference.renew(text) == text, "run: python -m tests.house.reference"


def test_every_public_name_is_described() -> None:
    rows = [line for line in reference.render().splitlines() if line.startswith("| `")]
    assert rows
    assert not [line for line in rows if line.endswith("|  |")]


def test_a_stale_page_is_noticed() -> None:
    stale = "<!-- reference -->\nold\n<!-- end of reference -->"
    assert "LocalCluster" in reference.renew(stale)
