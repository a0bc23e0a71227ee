"""Misspelt words: what somebody may have meant by a keyword, an option or a name that is not there.

Called in the user's process by whatever refuses a word, once it is refused. It never
decides that a word is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["mend_of", "nearest"]


def nearest(word: str, words: Iterable[str]) -> str | None:
    """Return the known word that a misspelt one most resembles."""
    import difflib  # noqa: PLC0415 - only a misspelt word needs it

    found = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return found[0] if found else None


def mend_of(word: str, words: Iterable[str], otherwise: str) -> str:
    """Return the end of an error's text: the known word that was probably meant, or what to do when there is none."""
    hint = nearest(word, words)
    return f"did you mean {hint}?" if hint else otherwise
