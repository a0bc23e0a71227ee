"""How much memory a process has to itself: what is shared with others, as mapped segments are, is not counted.

A nanny asks it of its worker, a worker of itself after a task, and the cluster's process of its workers when
somebody looks, so that an idle worker is never woken for it. Reads what the kernel tells and changes nothing.
"""

from __future__ import annotations

import sys

__all__ = ["private_nbytes", "trim"]

_IS_LINUX = sys.platform.startswith("linux")


def private_nbytes(pid: int) -> int:
    """Return the bytes of memory that are this process's own; 0 when it is gone.

    On Linux these are its anonymous pages: pages of files and of shared memory count for nobody. Elsewhere it is all that is resident.
    """
    if _IS_LINUX:
        try:
            with open(f"/proc/{pid}/status", "rb") as file:
                text = file.read()
        except (FileNotFoundError, ProcessLookupError):
            return 0
        _, found, rest = text.partition(b"RssAnon:")
        return int(rest.split(None, 1)[0]) * 1024 if found else 0
    import psutil  # noqa: PLC0415 - 38 ms, and only asked for when somebody looks

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def trim() -> None:
    """Give back to the kernel what this process has freed and its C library still keeps, where that can be asked for."""
    import ctypes  # noqa: PLC0415 - 4 ms, and only a process that is too large needs it

    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if give_back is not None:
        give_back(0)
