"""The large segments that a thread's last task read, mapped still for the next one that reads them.

Mapping a segment is quick, but each page of it is put into the process's page table when it
is first touched, and taken out in the end: for a large array that takes longer than to sum it
up. Tasks often share such an input, so its mapping is handed from one task to the next, under the
same promise as a fresh one: what a task reads is as it was published, and its own.

So a mapping is handed on only when nothing refers to it any more, and when none of its pages was
written to. The kernel tells both: the first by way of a weak reference to what all views of the
mapping lead to, the second by the page table, in which a page that was written to is the
process's own and no longer the file's. Where that table cannot be read, each task maps for itself.
"""

from __future__ import annotations

import mmap
import os
import weakref
from typing import Any

from localdask.system.segments import Buffer, SegmentPayload, map_payload, open_mapping, views_of

__all__ = ["Mappings"]

#: Smaller segments are mapped anew each time, in bytes: they have few pages.
HANDED_ON_MIN = 1 << 20
_ENTRY = 8  # bytes of the page table's file that tell of one page
#: The highest byte of an entry: absent, absent though of a file, of a file, of a file and nowhere else mapped.
_UNWRITTEN = b"\x00\x20\xa0\xa1"


class _Mapping:
    """One segment in this process's memory, and who reads it."""

    __slots__ = ("_address", "_mapped", "_reader")

    def __init__(self, payload: SegmentPayload) -> None:
        self._mapped = open_mapping(payload)
        self._address = 0
        self._reader: Any = None

    def lend(self) -> memoryview:
        """Return a view, which ``is_unread`` knows of, with all that is made of it."""
        import ctypes  # noqa: PLC0415 - 4 ms, which only large inputs pay

        reader = (ctypes.c_ubyte * len(self._mapped)).from_buffer(self._mapped)
        self._address = ctypes.addressof(reader)
        self._reader = weakref.ref(reader)
        return memoryview(reader).cast("B")

    def is_as_new(self) -> bool:
        """Whether nobody reads it any more, and nobody wrote to it."""
        if self._reader() is not None:
            return False
        n_pages = -(-len(self._mapped) // mmap.PAGESIZE)
        try:
            fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            entries = os.pread(fd, _ENTRY * n_pages, self._address // mmap.PAGESIZE * _ENTRY)
        except OSError:
            return False
        finally:
            os.close(fd)
        return len(entries) == _ENTRY * n_pages and not entries[_ENTRY - 1 :: _ENTRY].translate(None, _UNWRITTEN)


class Mappings:
    """What one thread's tasks map: for each task ``begin``, ``map`` and ``end_loading``; ``drop`` when none follows."""

    __slots__ = ("_before", "held")

    def __init__(self) -> None:
        self._before: dict[str, _Mapping] = {}
        #: What the last task read, by path.
        self.held: dict[str, _Mapping] = {}

    def begin(self) -> None:
        """Another task begins: what the last one read may be handed on."""
        self._before, self.held = self.held, {}

    def map(self, payload: SegmentPayload) -> tuple[Buffer, list[memoryview]]:
        """Return a segment's header and buffers, as ``map_payload`` does."""
        path, _, lengths = payload
        if sum(lengths) < HANDED_ON_MIN:
            return map_payload(payload)
        mapping = self._before.pop(path, None)
        if mapping is None or not mapping.is_as_new():
            mapping = _Mapping(payload)
        self.held[path] = mapping
        return views_of(payload, mapping.lend())

    def end_loading(self) -> None:
        """Let go of what this task does not read."""
        self._before.clear()

    def drop(self) -> None:
        """Let go of everything, so that memory of what is released goes back at once."""
        self._before.clear()
        self.held.clear()
