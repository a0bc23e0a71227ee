"""Words on the command line: which are localdask's, which are a preload's, which are the script's.

Pure; called by the verbs that start clusters, before anything is started. It never
looks whether a file exists, so the same words always mean the same.

A word that localdask does not know belongs to a preload. Under ``run`` the script's
own words begin at the script: the first plain word, or, when unknown options come
before it, the first word that ends in ``.py``, since a plain word may then be the
value of such an option. ``--`` settles every doubt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

__all__ = ["Words", "split_words"]


class Words(NamedTuple):
    """``known`` is localdask's, ``extra`` a preload's, ``script`` the script with its arguments (``-m`` and ``-c`` included)."""

    known: list[str]
    extra: list[str]
    script: list[str]


def split_words(words: Sequence[str], options: Mapping[str, bool], *, with_script: bool) -> Words:
    """Deal out the words of a command line. ``options`` says of each option that localdask knows whether it takes a value."""
    known: list[str] = []
    extra: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return Words(known, extra, rest) if with_script else Words(known, [*extra, *rest], [])
        if with_script and word[:2] in ("-m", "-c") and word[:2] not in options:
            return Words(known, extra, [word[:2], *([word[2:]] if word[2:] else []), *rest])
        if not word.startswith("-") or word == "-":
            if with_script and (not extra or word.endswith(".py")):
                return Words(known, extra, [word, *rest])
            extra.append(word)
            continue
        name = _option(word, options)
        if name is None:
            extra.append(word)
            continue
        known.append(word)
        if options[name] and word == name and rest:
            known.append(rest.pop(0))
    return Words(known, extra, [])


def _option(word: str, options: Mapping[str, bool]) -> str | None:
    """Return the known option that a word is or starts with (``--workers=4``, ``-n4``)."""
    name = word.partition("=")[0]
    if name in options:
        return name
    if not word.startswith("--") and options.get(word[:2]):
        return word[:2]
    return None
