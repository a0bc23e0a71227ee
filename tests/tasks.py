"""Functions for tasks, apart from the tests: a worker that imports this imports no pytest."""

from __future__ import annotations

import os
import time


def wait_for_file(path: str) -> str:
    """Return the path once it is there."""
    while not os.path.exists(path):
        time.sleep(0.002)
    return path
