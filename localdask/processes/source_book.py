"""What each preload is made of: its source and its helpers, as they were read last.

Runs in the cluster's process, for the reloads. Which modules of the user's a preload imports
is found out by the processes that run it, and told here; a change of one of them is a
change of every preload above it. It reads and compiles files, and runs nothing of them.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from localdask.errors import LocaldaskError
from localdask.preloads.sources import Helper, Source, compile_source, hash_code, read_helper, renew_source
from localdask.records import replace

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Key", "Renewal", "SourceBook", "version_hash"]

#: How many names of changed files a reload's line may have: a checkout changes hundreds.
N_FILES_SHOWN = 4

#: A preload: its role, and its place among that role's preloads.
Key: TypeAlias = "tuple[str, int]"


class Renewal(NamedTuple):
    """What a look at changed files came to: new sources, hashes of those that do not compile and why, and what changed."""

    renewed: dict[Key, Source]
    broken: dict[Key, str]
    detail: str
    cause: str


def version_hash(source: Source) -> str:
    """Return what a version of a preload is compared by: its code and that of its helpers."""
    if not source.helpers:
        return source.hash
    return hash_code("\n".join([source.hash, *(f"{helper.module_name} {helper.hash}" for helper in source.helpers)]).encode())


class SourceBook:
    """The preloads of a cluster by role and place. From any thread.

    Parameters
    ----------
    sources : mapping of role to list of Source
        As they were read at the start.
    trust : bool
        Whether files may be such that other users can write them.
    """

    def __init__(self, sources: Mapping[str, list[Source]], *, trust: bool = False) -> None:
        self.sources = {(role, index): source for role in ("scheduler", "nanny", "worker") for index, source in enumerate(sources[role])}
        self._trust = trust
        self._lock = threading.Lock()
        self._helpers: dict[Key, dict[str, str]] = {key: {} for key in self.sources}
        #: Helpers whose file is not what the processes imported at their start, by path.
        self._changed: dict[str, bytes] = {}
        self._imported: dict[str, str] = {}
        #: The bytes of helpers that run, by path, as far as they were seen.
        self._seen: dict[str, bytes] = {}

    def note_helpers(self, role: str, rows: Iterable[tuple[int, str, str, str]]) -> bool:
        """Take in what a process says that its preloads import: (index, module, path, hash). Whether any of it is new."""
        is_new = False
        with self._lock:
            for index, module_name, path, digest in rows:
                known = self._helpers.get((role, index))
                if known is not None and known.get(module_name) != path:
                    known[module_name] = path
                    self._imported.setdefault(path, digest)
                    is_new = True
        return is_new

    def helpers_of(self, key: Key) -> list[str]:
        """Return the paths of the helpers of a preload."""
        with self._lock:
            return sorted(self._helpers[key].values())

    def with_helpers(self, key: Key, source: Source) -> Source:
        """Return a preload's source with the helpers that run beside it, for a process that starts later: files may be broken then."""
        with self._lock:
            shipped = {helper.module_name for helper in source.helpers}
            more = [
                Helper(name, path, self._seen[path], self._imported[path])
                for name, path in sorted(self._helpers[key].items())
                if name not in shipped and path in self._seen
            ]
        return replace(source, helpers=(*source.helpers, *more)) if more else source

    def watched(self) -> dict[Path, bytes | None]:
        """Return every file to watch, with the bytes that are in use, where they are known."""
        if not self.sources:
            return {}
        from pathlib import Path  # noqa: PLC0415 - 4 ms, and most clusters watch no file

        found: dict[Path, bytes | None] = {Path(source.path): source.code for source in self.sources.values() if source.is_watched}
        with self._lock:
            for path in dict.fromkeys(path for known in self._helpers.values() for path in known.values()):
                found.setdefault(Path(path), self._in_use(path))
        return found

    def _in_use(self, path: str) -> bytes | None:
        """Return the bytes of a helper that run, or others (none) where it was saved since; None while it is missing."""
        if not self._imported[path]:
            return None
        helper = read_helper("", path)
        if helper.hash == self._imported[path]:
            self._seen[path] = helper.code
        return helper.code if helper.hash == self._imported[path] or path in self._changed else b""

    def take_saved(self, saved: Mapping[Path, bytes]) -> Renewal:
        """Take in new bytes of files, and return what they make of the preloads."""
        from pathlib import Path  # noqa: PLC0415 - 4 ms, and most clusters watch no file

        with self._lock:
            above = [key for key, known in self._helpers.items() if any(Path(path) in saved for path in known.values())]
            names = {Path(path): path for known in self._helpers.values() for path in known.values()}
            before = {path: self._changed.get(name, self._seen.get(name)) for path, name in names.items()}
            self._changed |= {names[path]: code for path, code in saved.items() if path in names}
        own = {key: saved[Path(source.path)] for key, source in self.sources.items() if Path(source.path) in saved}
        before |= {Path(self.sources[key].path): self.sources[key].code for key in own}
        keys = dict.fromkeys([*own, *above])
        cause = self._explain(saved, keys, _count_lines((before.get(path), code) for path, code in saved.items()))
        return self._renew({key: own.get(key, self.sources[key].code) for key in keys}, cause)

    def read_again(self, keys: Iterable[Key]) -> Renewal:
        """Read these preloads and their helpers afresh."""
        chosen = list(keys)
        with self._lock:
            for path in dict.fromkeys(path for key in chosen for path in self._helpers[key].values()):
                helper = read_helper("", path)
                if helper.hash and (path in self._changed or helper.hash != self._imported[path]):
                    self._changed[path] = helper.code
        return self._renew(dict.fromkeys(chosen), "asked for")

    def _explain(self, saved: Mapping[Path, bytes], keys: Iterable[Key], counts: str) -> str:
        """Say which file changed, by how many lines, and what that leads to."""
        preloads = dict.fromkeys(os.path.basename(self.sources[key].path) for key in keys)
        files = sorted({path.name for path in saved}, key=lambda name: (name not in preloads, name))
        n_more = len(files) - N_FILES_SHOWN + 1
        shown = ", ".join(files) if n_more <= 1 else f"{', '.join(files[:-n_more])} and {n_more} more"
        changed = f"{shown} changed{counts}"
        return changed if set(preloads) <= set(files) else f"{changed} → {', '.join(name for name in preloads if name not in files)}"

    def _renew(self, codes: Mapping[Key, bytes | None], cause: str) -> Renewal:
        renewed: dict[Key, Source] = {}
        broken: dict[Key, str] = {}
        details: list[str] = []
        for key, code in codes.items():
            try:
                source = renew_source(self.sources[key], code, trust=self._trust)
                helpers = self._shipped(key)
                for helper in helpers:
                    compile_source(helper.code, helper.path, preload=source.label)
            except LocaldaskError as error:
                broken[key] = hash_code(code or b"")
                details.append(str(error))
                continue
            self.sources[key] = source
            renewed[key] = replace(source, helpers=helpers)
        return Renewal(renewed, broken, "\n".join(dict.fromkeys(details)), cause)

    def _shipped(self, key: Key) -> tuple[Helper, ...]:
        """Return the helpers of a preload that are not what was imported at the start."""
        with self._lock:
            known = {name: path for name, path in sorted(self._helpers[key].items()) if path in self._changed}
            return tuple(Helper(name, path, self._changed[path], hash_code(self._changed[path])) for name, path in known.items())


def _count_lines(pairs: Iterable[tuple[bytes | None, bytes]]) -> str:
    """Return how many lines came and went, as " (+3 −1)"; nothing where that is not known. A line that only moved did neither."""
    n_added = n_removed = 0
    for before, after in pairs:
        if before is None:
            return ""
        old, new = Counter(before.splitlines()), Counter(after.splitlines())
        n_added += (new - old).total()
        n_removed += (old - new).total()
    return f" (+{n_added} −{n_removed})" if n_added or n_removed else ""
