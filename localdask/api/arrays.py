"""Arrays that are born in shared memory: what is put into them is published without a copy.

Runs wherever a user's code does. The memory, and what keeps a published array from changing, is
``system/unfinished_segments.py``. numpy is imported when an array is asked for, and not before.
"""

from __future__ import annotations

from typing import Any

from localdask.api.client import Client
from localdask.processes.runner import own_worker
from localdask.system.segments import SegmentFolder, result_prefix
from localdask.system.unfinished_segments import UnfinishedSegment

__all__ = ["empty"]

#: Smaller arrays are plain memory, in bytes: copying them costs less than a file does.
IN_PLACE_MIN = 1 << 20


def empty(shape: Any, dtype: Any = float) -> Any:
    """Return a new array in the cluster's shared memory, with whatever is in there, as ``numpy.empty`` does.

    A task that fills it and returns it as a whole copies nothing when another process asks for the result. Nor do
    ``scatter`` and ``submit`` when they are given it. Then it is as with any other array: what you change in it
    afterwards is seen by you alone. Whatever is only a part of it, or an object with other large data in it too, is copied.

    Parameters
    ----------
    shape : int or tuple of int
        The shape.
    dtype : data-type, default float
        The type of its items.

    Returns
    -------
    numpy.ndarray
        Plain memory if it is smaller than 1 MiB, if it is of objects, if shared memory is full or missing, outside of
        a task when there is no client, and on systems other than Linux.

    Examples
    --------
    >>> from localdask import LocalCluster, empty
    >>> def count(n):
    ...     numbers = empty(n, dtype="int64")
    ...     numbers[:] = range(n)
    ...     return numbers
    >>> with LocalCluster(n_workers=1) as cluster, cluster.get_client() as client:
    ...     client.submit(count, 200_000).result()[-1].item()
    199999
    """
    import numpy  # noqa: PLC0415 - localdask works without it

    plain = numpy.empty(shape, dtype)
    segment = None if plain.nbytes < IN_PLACE_MIN or plain.dtype.hasobject else _begin_segment(plain.nbytes)
    return plain if segment is None else numpy.ndarray(plain.shape, plain.dtype, segment)


def _begin_segment(nbytes: int) -> UnfinishedSegment | None:
    worker, prefix = own_worker(), ""
    folder: SegmentFolder | None
    if worker is not None:
        folder, prefix = worker.segments, result_prefix(worker.name, worker.life)
    else:
        try:
            folder = Client.current()._link.segments
        except ValueError:  # there is no client
            return None
    return None if folder is None else folder.begin(nbytes, prefix)
