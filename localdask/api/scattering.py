"""Putting data on the cluster without a task: the part of a client that scatters.

A small value travels in the words themselves; a large one is written to a segment, once,
where every process can map it, and so survives every worker. A large value that is
scattered again is recognised by comparing it with what was written, byte for byte: that is
several times faster than a digest, and a value changed in place meanwhile is seen to be
another. ``Client`` is made of this among others.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from localdask.api.futures import CANCELLED, LOST, Future, FutureState
from localdask.api.links import Link
from localdask.messages import AddData
from localdask.records import record, replace
from localdask.system import codec
from localdask.system.codec import blake2b

if TYPE_CHECKING:
    from localdask.system.segments import SegmentPayload

#: Values up to this size, in bytes, travel in the words themselves; larger ones in a segment.
INLINE_MAX = 65536
#: A fingerprint takes so many pieces of a buffer, of so many bytes each.
N_PIECES = 16
PIECE = 64
#: How many fingerprints are kept before those of values that are gone are thrown out.
FINGERPRINTS_MAX = 64


@record(frozen=True)
class _Stored:
    """A large value that was stored: its future's state, and where it lies."""

    state: weakref.ref[FutureState]
    payload: SegmentPayload
    is_argument: bool


class Scattering:
    """What ``Client`` does to put data on the cluster."""

    id: str
    _link: Link
    _states: dict[str, weakref.ref[FutureState]]
    _submitting: threading.RLock
    _drop: Callable[[str], None]
    _check_running: Callable[[], None]
    _make_room: Callable[[int], None]

    def _begin_scattering(self) -> None:
        self._stored: dict[bytes, _Stored] = {}

    def scatter(
        self,
        data: Any,
        workers: Any = None,
        broadcast: bool | int = False,
        direct: bool | None = None,
        hash: bool = True,
        timeout: Any = None,
    ) -> Any:
        """Put data on the cluster, once, for many tasks. Meanings as in Dask, but it survives every worker.

        Parameters
        ----------
        data : list, tuple, set, dict, iterator or object
            A collection gives futures in the same shape, a dict by its keys, any other object one future.
        workers, broadcast, direct, timeout
            Accepted for Dask's sake: every worker can read the data in place.
        hash : bool, default True
            Whether equal values share a key; large ones do for as long as a future of the first is held.

        Returns
        -------
        list, tuple, set, dict or Future
            Futures in the shape of ``data``.
        """
        self._check_running()
        if type(data) is dict:
            return {key: self._scatter(value, str(key), hash) for key, value in data.items()}
        if type(data) in (list, tuple, set, frozenset):
            return type(data)([self._scatter(value, None, hash) for value in data])
        if isinstance(data, (Iterator, range)):
            return [self._scatter(value, None, hash) for value in data]
        return self._scatter(data, None, hash)

    def _scatter(self, value: Any, key: str | None, hash: bool) -> Future[Any]:
        header, buffers = codec.dumps_buffers(value, "the scattered value")
        nbytes = codec.nbytes_of(header, buffers)
        name = type(value).__name__
        if nbytes > INLINE_MAX and self._link.segments is not None:
            return self._store(name, header, buffers, key=key, is_shared=hash)
        if key is None:
            digest = blake2b(header, digest_size=16)
            for buffer in buffers:
                digest.update(buffer)
            key = f"{name}-{digest.hexdigest() if hash else os.urandom(16).hex()}"
        return self._add(key, codec.dumps(value), nbytes)

    def _store(
        self,
        name: str,
        header: bytes,
        buffers: Sequence[memoryview],
        *,
        key: str | None = None,
        is_shared: bool = True,
        is_argument: bool = False,
    ) -> Future[Any]:
        """Return a future of a large value that lies in a segment: the one that it lies in already, or a new one."""
        from localdask.system.segments import holds  # noqa: PLC0415 - a running cluster has imported it

        assert self._link.segments is not None
        is_shared = is_shared and key is None
        print_ = _fingerprint(name, header, buffers) if is_shared else b""
        known = self._stored.get(print_)
        state = known.state() if known is not None else None
        if known is not None and state is not None and not state.is_gone and state.status not in (CANCELLED, LOST):
            # The future first: while it is held the segment stays.
            future: Future[Any] = Future(state.key, self, state)
            if holds(known.payload, header, buffers):
                if is_argument and not known.is_argument:
                    self._stored[print_] = replace(known, is_argument=True)
                    self._link.post([AddData(self.id, [(state.key, known.payload, state.nbytes)], True)])
                return future
        nbytes = codec.nbytes_of(header, buffers)
        if is_argument:
            self._make_room(nbytes)
        payload = self._link.segments.publish(header, buffers)
        try:
            future = self._add(key or f"{name}-{os.urandom(16).hex()}", payload, nbytes, is_argument=is_argument)
        except BaseException:  # nobody has the future, so nobody misses what it stands for
            self._link.segments.unlink(payload[0])
            raise
        if is_shared:
            if len(self._stored) >= FINGERPRINTS_MAX:
                self._stored = {seen: stored for seen, stored in self._stored.items() if stored.state() is not None}
            self._stored[print_] = _Stored(weakref.ref(future._state), payload, is_argument)
        return future

    def _add(self, key: str, payload: Any, nbytes: int, *, is_argument: bool = False) -> Future[Any]:
        with self._submitting:
            ref = self._states.get(key)
            state = ref() if ref is not None else None
            if state is None or state.is_gone or state.status in (CANCELLED, LOST):
                state = FutureState(key, self._drop)
                self._states[key] = weakref.ref(state)
            future: Future[Any] = Future(key, self, state)
            self._link.post([AddData(self.id, [(key, payload, nbytes)], is_argument)])
            self._check_running()
        return future


def _fingerprint(name: str, header: bytes, buffers: Sequence[memoryview]) -> bytes:
    """Return a digest of a value's type, sizes and a few of its bytes: equal values have equal ones, and hardly any others do."""
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16)
    for buffer in (memoryview(header), *buffers):
        digest.update(b"%d," % buffer.nbytes)
        view = buffer.cast("B")
        for start in range(0, view.nbytes, max(view.nbytes // N_PIECES, PIECE)):
            digest.update(view[start : start + PIECE])
    return digest.digest()
