"""Moves a worker's large results to disk, and reads them from there.

Runs in the worker, for it; which result goes when is decided by ``state/spilling.py``. Writing one is publishing it
to the cluster's folder on disk: the scheduler is told where it lies, gives that to whoever needs it, and has the file
removed when nobody does any more. So a result that was spilled outlives its worker. What is left in the worker
is a ``Spilled``; a task that reads it maps the file, which takes no memory of the worker's own until it is changed.

Results are pickled and written as an errand, without the worker's lock.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, ItemsView, Iterator, Mapping, MutableMapping, ValuesView
from typing import Any

from localdask.messages import KeyPublished, MemoryPressed
from localdask.processes.desk import Desk
from localdask.processes.intake import Intake, Spilled
from localdask.sizing import format_bytes
from localdask.state.memory import steps_of
from localdask.state.spilling import Spilling
from localdask.system import codec
from localdask.system.memory import private_nbytes, trim
from localdask.system.segments import map_payload, result_prefix

__all__ = ["HeldValues", "Spiller"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Spiller:
    """Spills for one worker, if its settings (``memory_limit``, ``memory_steps``) say when. ``tell`` shows a sentence to the user."""

    def __init__(self, worker: Any, intake: Intake, desk: Desk, settings: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        limit = int(settings.get("memory_limit") or 0)
        steps = steps_of(settings)
        self._worker = worker
        self._intake = intake
        self._desk = desk
        self._lock = worker.lock
        #: By this what a killed worker left is found.
        self._prefix = desk.prefix = result_prefix(worker.name, worker.life)
        self._tell = tell
        self._told: set[str] = set()
        self._is_planned = False
        self._max_spill = steps.max_spill
        goal = steps.target if steps.target is not None else steps.spill
        #: What the process should come down to when it is too large.
        self._goal = int((goal or 0) * limit)
        self._state = Spilling(None if steps.target is None else int(steps.target * limit), steps.max_spill)
        if limit and goal is not None:
            intake.spilling = self._state
            intake.on_held = self.look
        desk.listen(MemoryPressed, self._pressed)

    # ── under the worker's lock ──────────────────────────────────────────────

    def _pressed(self, word: MemoryPressed) -> None:
        worker = self._worker
        if worker.status in ("running", "paused"):
            worker.status = "paused" if word.is_paused else "running"
        if word.must_spill:
            self.press()
        elif word.is_paused:
            self._desk.add_errand(trim)
            self._desk.ring()

    def look(self) -> None:
        """Have a result moved, if one should be."""
        if not self._is_planned and (self._state.is_pressed or self._state.next() is not None):
            self._is_planned = True
            self._desk.add_errand(self._spill)
            self._desk.ring()

    def press(self) -> None:
        """The process is too large: move what can be moved until it is not."""
        self._state.is_pressed = True
        self._state.is_full = False  # others may have made room
        self.look()

    # ── without it ───────────────────────────────────────────────────────────

    def _spill(self) -> None:
        with self._lock:
            key = self._state.next()
            if key is not None and key not in self._intake.data:
                self._state.forget(key)  # a script took it away
                key = None
            value = None if key is None else self._intake.data[key]
            known = None if key is None else self._state.published.get(key)
        if key is not None:
            self._move(key, value, known)
            del value
        is_pressed = self._state.is_pressed
        if is_pressed:
            trim()
        is_small = is_pressed and private_nbytes(os.getpid()) <= self._goal
        with self._lock:
            dropped = self._intake.take_dropped()
            if is_small or self._state.next() is None:
                self._state.is_pressed = False  # there is no more to be done; the nanny looks on
            self._is_planned = False
            self.look()
        del dropped
        if not self._is_planned:
            if key is not None and not is_pressed:
                trim()  # else what was let go stays with the process, in pieces
            self._desk.main_ear.ring()  # tasks may have waited for this

    def _move(self, key: str, value: Any, known: Any) -> None:
        """Write a result, or only let it go where it was published already."""
        try:
            payload, nbytes = (known, 0) if known is not None else self._write(key, value)
        except OSError as error:
            if error.errno not in _FULL:
                self._keep(key, error)
                return
            self._state.is_full = True
            self._tell_once("full", f"results that should go to disk stay in memory: {error.strerror or error}")
            return
        except BaseException as error:  # whatever the value's own code raises
            self._keep(key, error)
            return
        if payload is None:
            return
        with self._lock:
            if key in self._state.live and self._intake.let_go(key, value, payload, nbytes):
                self._intake.words.append(KeyPublished(key, payload, None, True))
                return
        if known is None and self._desk.segments is not None:  # released meanwhile
            self._desk.segments.unlink(payload[0])

    def _write(self, key: str, value: Any) -> tuple[Any, int]:
        folder = self._desk.segments
        if folder is None:
            raise OSError(errno.ENOSPC, "this worker has no folder for large data")
        header, buffers = codec.dumps_buffers(value, f"the result {key!r}")
        nbytes = codec.nbytes_of(header, buffers)
        if not self._state.may_write(key, nbytes):
            text = f"worker.memory.max-spill ({format_bytes(self._max_spill or 0)}) is reached; results beyond it stay in memory"
            self._tell_once("max", text)
            return None, 0
        return folder.publish(header, buffers, on_disk=True, prefix=self._prefix), nbytes

    def _keep(self, key: str, error: BaseException) -> None:
        with self._lock:
            self._state.stick(key)
        self._tell_once(key, f"the result {key!r} stays in memory, because it could not be written to disk: {error!r:.300}")

    def _tell_once(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self._tell(text)


class HeldValues(MutableMapping[str, Any]):
    """What a worker holds, as scripts see it: what was spilled is read when it is asked for, each time anew."""

    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data

    def __getitem__(self, key: str) -> Any:
        value = self._data[key]
        return codec.loads_buffers(*map_payload(value.payload), f"the result {key!r}") if type(value) is Spilled else value

    def __setitem__(self, key: str, value: Any) -> None:
        self._data[key] = value

    def __delitem__(self, key: str) -> None:
        del self._data[key]

    def __contains__(self, key: object) -> bool:
        return key in self._data

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._data))

    def __len__(self) -> int:
        return len(self._data)

    def items(self) -> ItemsView[str, Any]:
        """Return what is held now, whatever is released meanwhile."""
        return ItemsView(HeldValues(dict(self._data)))

    def values(self) -> ValuesView[Any]:
        """Return the values of what is held now, whatever is released meanwhile."""
        return ValuesView(HeldValues(dict(self._data)))

    def __repr__(self) -> str:
        return f"<{len(self._data)} results, of which {sum(type(value) is Spilled for value in list(self._data.values()))} in files>"
