"""The thread that runs what was to be called when futures are done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

__all__ = ["CallbackThread"]

#: How long the thread waits for more, in seconds, before it ends.
IDLE_S = 1.0


class CallbackThread:
    """A thread that runs what comes when futures are done; it lives while anything is expected, and a little longer."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: SimpleQueue[tuple[Callable[[Any], Any], Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._n_expected = 0

    def expect(self, n: int = 1) -> None:
        """Be there for so many calls more."""
        with self._lock:
            self._n_expected += n
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def submit(self, function: Callable[[Any], Any], argument: Any) -> None:
        """Have an expected call run, after those that came before. From anywhere; takes no lock."""
        self._queue.put((function, argument))

    def end(self) -> None:
        """End now rather than after a while, unless more is expected."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._queue.put(None)
            thread.join()

    def _run(self) -> None:
        while True:
            try:
                call = self._queue.get(timeout=None if self._n_expected else IDLE_S)
            except Empty:
                call = None
            if call is None:
                with self._lock:
                    if not self._n_expected:
                        self._thread = None
                        return
                continue
            function, argument = call
            try:
                function(argument)
            except BaseException as error:
                threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread())))
            del function, argument, call
            with self._lock:
                self._n_expected -= 1
