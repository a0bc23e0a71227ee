"""Which Python, system and packages a process has: for comparing processes that should have the same.

Called in the client's process, the scheduler's and the workers', by ``client.get_versions``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

__all__ = ["PACKAGES", "read_versions"]

#: What travels between processes is made by these: a difference is felt.
PACKAGES = ("localdask", "cloudpickle", "dask", "distributed", "numpy", "pandas", "msgpack", "toolz", "tornado")


def read_versions(packages: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Return ``host`` and ``packages`` of this process, in Dask's shape; None stands for a package that is not there."""
    import importlib.metadata  # noqa: PLC0415 - slow, and only who asks needs it
    import platform  # noqa: PLC0415 - the same

    def version(name: str) -> str | None:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    host = {
        "python": platform.python_version(),
        "python-bits": sys.maxsize.bit_length() + 1,
        "OS": platform.system(),
        "OS-release": platform.release(),
        "machine": platform.machine(),
        "byteorder": sys.byteorder,
        "LC_ALL": os.environ.get("LC_ALL", "None"),
        "LANG": os.environ.get("LANG", "None"),
    }
    found = {"python": host["python"], **{name: version(name) for name in (*PACKAGES, *packages)}}
    return {"host": host, "packages": found}
