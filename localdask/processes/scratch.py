"""A worker's folder of its own, for scripts: made when it is first asked for.

Runs in the worker. It lies in ``local_directory``, or in the cluster's folder on disk, which goes with the cluster.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from localdask.system.segments import find_disk_folder

__all__ = ["Scratch"]


class Scratch:
    """The folder of one worker; ``settings`` are the worker's."""

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self._name = name
        self._settings = settings
        self._path = ""

    @property
    def path(self) -> str:
        """Where it is."""
        if not self._path:
            import tempfile  # noqa: PLC0415 - 7 ms, and few scripts ask

            settings = self._settings
            parent = settings.get("local_directory") or find_disk_folder(settings.get("segment_folder") or tempfile.gettempdir())
            os.makedirs(parent, exist_ok=True)
            self._path = tempfile.mkdtemp(prefix=f"localdask-{self._name}-", dir=parent)
        return self._path

    def remove(self) -> None:
        """Remove it, if it was ever made."""
        if self._path:
            import shutil  # noqa: PLC0415 - 4 ms, and few scripts ask for a folder

            shutil.rmtree(self._path, ignore_errors=True)
