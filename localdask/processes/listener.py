"""The thread that hears a worker's pipes while its main thread runs a task.

A worker's main thread reads its pipes when it has nothing to run, and between short
tasks. While it is inside a long task somebody else must answer: give tasks back, publish
values, run functions, send what was finished before, and end the process when the nanny
is gone. That is this thread.

It costs nothing that would be felt. While the worker idles it sleeps without a timeout.
While the main thread is at work it looks every few milliseconds, and takes the pipes over
only when the main thread is still at the same thing as at the last look; then it waits for
the pipes like the main thread would, until that is back. After some looks at an idle main
thread it sleeps again. So a stream of short tasks never switches threads.
"""

from __future__ import annotations

import threading
from typing import Protocol

from localdask.processes.ears import Ear

__all__ = ["Listener", "begin_listening"]

TICK_S = 0.005
#: So many looks at an idle main thread in a row, and this thread sleeps.
QUIET_TICKS = 10


class Relieved(Protocol):
    """The worker, as its listener sees it. Everything is called under ``lock``."""

    lock: threading.Lock

    def main_does(self) -> object | None:
        """What the main thread does, by identity; None while it waits for the pipes itself."""

    def wait_at(self, ear: Ear) -> None:
        """Wait for the pipes at that ear, without the lock, then take in what came."""

    def look_around(self) -> None:
        """Take in, without waiting, what else may not wait for the main thread."""


class Listener:
    """One worker's listener.

    Attributes
    ----------
    is_asleep : bool
        Whether it has to be woken when the main thread begins to work.
    is_listening : bool
        Whether it waits for the pipes now.
    """

    def __init__(self, worker: Relieved, ear: Ear) -> None:
        self.is_asleep = False
        self.is_listening = False
        self._worker = worker
        self._ear = ear
        self._is_asked = False
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="localdask-listener", daemon=True)

    def start(self) -> None:
        """Begin, unless it has."""
        if self._thread.ident is None:
            self._thread.start()

    def wake(self) -> None:
        """The main thread begins to work."""
        self.is_asleep = False
        self._ear.ring()

    def take_over(self) -> None:
        """The main thread will be away: do not wait for the next look."""
        self._is_asked = True
        self._ear.ring()

    def relieve(self) -> None:
        """The main thread is back."""
        self.is_listening = False
        self._ear.ring()

    def ring(self) -> None:
        """Have it look around now, whatever it does. From anywhere."""
        self._ear.ring()

    def close(self) -> None:
        """Let it end, and wait until it has."""
        self._is_over = True
        self._ear.ring()
        self._thread.join()

    def _run(self) -> None:
        worker, ear = self._worker, self._ear
        seen: object | None = None
        n_quiet = 0
        while not self._is_over:
            if n_quiet < QUIET_TICKS:
                ear.wait_for_bell(TICK_S)
            else:
                self.is_asleep = True
                # Set first, then look: a main thread that begins just now sees it, or is seen.
                if worker.main_does() is None:
                    ear.wait_for_bell(None)
                self.is_asleep = False
                n_quiet = 0
            with worker.lock:
                doing = worker.main_does()
                worker.look_around()
                if doing is None:
                    self._is_asked = False
                    n_quiet += 1
                else:
                    n_quiet = 0
                    if self._is_asked or doing is seen:
                        self._is_asked = False
                        self._listen()
                seen = doing
            del doing

    def _listen(self) -> None:
        """Hear the pipes until the main thread is back."""
        self.is_listening = True
        while self.is_listening and not self._is_over:
            self._worker.wait_at(self._ear)
        self.is_listening = False


def begin_listening(listener: Listener | None, is_due: bool = True) -> None:
    """Have a worker's listener begin, unless it has: before code of a user's runs, so that the nanny's death is seen meanwhile.

    Where there is none, it is due once the worker is registered: a thread that starts holds up the one that starts it.
    """
    if is_due and listener is not None:
        listener.start()
