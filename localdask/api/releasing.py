"""What a client does with the keys whose last future is gone: it tells the scheduler, many at a time.

``Client`` is made of this among others. A key is dropped in a ``__del__``, which runs anywhere, also
within a transition; it is only noted there, and released on the loop's thread or with the next submission.
"""

from __future__ import annotations

import weakref
from collections import deque
from typing import Any

from localdask.api.futures import FutureState
from localdask.api.links import Link
from localdask.messages import ReleaseKeys

#: How many released keys there are at least between two searches for those whose drop was lost.
SEARCH_MIN = 64


class Releasing:
    """What ``Client`` does to let go of keys."""

    id: str
    status: str
    _link: Link
    _states: dict[str, weakref.ref[FutureState]]
    _submitting: Any

    def _begin_releasing(self) -> None:
        self._dropped: deque[str] = deque()
        self._is_dropping = False
        self._n_since_search = 0

    def _drop(self, key: str) -> None:
        """The last future of a key went. Runs in a ``__del__``: no lock is taken here."""
        self._dropped.append(key)
        if not self._is_dropping and self.status == "running":
            try:
                self._is_dropping = True
                self._link.call_soon(self._release_dropped)
            except BaseException:  # an interrupt: the next drop asks again
                self._is_dropping = False
                raise

    def _release_dropped(self) -> None:
        with self._submitting:
            self._is_dropping = False
            keys = self._take_dropped()
            if keys and self.status == "running":
                self._link.post([ReleaseKeys(self.id, keys)])

    def _take_dropped(self) -> list[str]:
        """Return the dropped keys that nobody has made a future of since. Under ``_submitting``."""
        keys = []
        while self._dropped:
            key = self._dropped.popleft()
            ref = self._states.get(key)
            state = ref() if ref is not None else None
            if ref is not None and (state is None or state.is_gone):
                del self._states[key]
                keys.append(key)
            del state
        self._n_since_search += len(keys)
        if self._n_since_search > max(SEARCH_MIN, 2 * len(self._states)):
            keys += self._take_lost()
        return keys

    def _take_lost(self) -> list[str]:
        """Return the keys whose states are gone without a drop: Ctrl-C came right in the ``__del__``, where Python loses both."""
        self._n_since_search = 0
        lost = [key for key, ref in list(self._states.items()) if ref() is None]
        for key in lost:
            del self._states[key]
        return lost
