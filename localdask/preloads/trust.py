"""Whether another user of this machine could have written a file that is about to be run.

Runs in the cluster's process, once a reading of a preload, on the file and on each folder
that leads to it. It looks at owners and modes only, never opens or changes anything, and
knows nothing of access control lists.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

__all__ = ["explain_distrust"]


def explain_distrust(path: str) -> str:
    """Return why ``path`` cannot be trusted, as a clause with its mend; empty when it can."""
    status = os.stat(path)
    if status.st_uid not in (0, os.getuid()):
        return f"it belongs to another user (uid {status.st_uid}), who can change it; copy it to a place of your own"
    # A group of one's own number is a private one (umask 002); group 0 is root's.
    shared = status.st_mode & stat.S_IWGRP and status.st_gid not in (0, status.st_uid)
    if status.st_mode & stat.S_IWOTH or shared:
        return f"other users can write it (mode {stat.S_IMODE(status.st_mode):o}); run 'chmod go-w {path}'"
    for folder in _folders(path):
        mode = os.stat(folder).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return f"anyone can replace files in {folder} (mode {stat.S_IMODE(mode):o}, no sticky bit); run 'chmod o-w {folder}'"
    return ""


def _folders(path: str) -> Iterator[str]:
    """Yield every folder through which ``path`` is reached, by each hop of its symbolic links."""
    seen: set[str] = set()
    pending = [os.path.abspath(path)]
    while pending:
        place = pending.pop()
        if place in seen:
            continue
        seen.add(place)
        folder = os.path.dirname(place)
        if os.path.islink(place):
            pending.append(os.path.normpath(os.path.join(os.path.realpath(folder), os.readlink(place))))
        if folder != place:
            yield folder
            pending.append(folder)
