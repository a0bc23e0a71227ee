"""What Dask's own configuration says: its folders, its variables, and ``dask.config`` in this process.

Called by ``config`` alone, in the user's process. Dask's keys under ``distributed``
stand at localdask's root, so ``distributed.worker.preload`` is ``worker.preload``.
Dask is never imported; when the user has imported it, what ``dask.config.set`` said
is heard as well, while Dask's defaults are not taken for anybody's wish.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from localdask.layers import MISSING, Layer, look_up, merge, read_environment, read_folder, read_yaml

__all__ = ["read_dask_files", "read_dask_process", "read_dask_variables"]

#: Keys outside of ``distributed`` that mean something here.
ROOT_KEYS = ("temporary-directory",)
NOT_KEYS = ("DASK_CONFIG", "DASK_ROOT_CONFIG", "DASK_INTERNAL_INHERIT_CONFIG")


def _ours(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of Dask's tree that means something here, at our root."""
    found = look_up(tree, ("distributed",))
    result = dict(found) if isinstance(found, Mapping) else {}
    for key in ROOT_KEYS:
        value = look_up(tree, (key,))
        if value is not MISSING:
            result[key] = value
    return result


def _folders(environ: Mapping[str, str]) -> list[str]:
    """Return Dask's places in their order: system, interpreter, user, ``DASK_CONFIG``. The last mention of a place counts."""
    prefixes = [os.path.join(prefix, "etc", "dask") for prefix in (sys.prefix, sys.exec_prefix)]
    home = os.path.join(os.path.expanduser("~"), ".config", "dask")
    places = [environ.get("DASK_ROOT_CONFIG", "/etc/dask"), *prefixes, home, environ.get("DASK_CONFIG", "")]
    return list(dict.fromkeys(place for place in reversed(places) if place))[::-1]


def read_dask_files(environ: Mapping[str, str]) -> Iterator[Layer]:
    """Yield a layer for each of Dask's yaml files. A place that is not there, or not ours to read, is passed over as Dask does."""
    for place in _folders(environ):
        if not os.access(place, os.R_OK):
            continue
        for layer in read_folder(place) if os.path.isdir(place) else [read_yaml(place)]:
            # Dask starts relative paths in the working directory, so this layer has no folder.
            yield Layer(layer.origin, _ours(layer.tree))


def read_dask_variables(environ: Mapping[str, str]) -> Iterator[Layer]:
    """Yield a layer for each ``DASK_…`` variable that means something here."""
    for layer in read_environment({name: environ[name] for name in environ if name not in NOT_KEYS}, "DASK_"):
        tree = _ours(layer.tree)
        if tree:
            yield Layer(layer.origin, tree)


def read_dask_process(path: tuple[str, ...], known: Mapping[str, Any]) -> Layer | None:
    """Return what this process's ``dask.config`` says at ``path`` beyond Dask's defaults and what is ``known`` from its places."""
    module = sys.modules.get("dask.config")
    if module is None or not hasattr(module, "defaults"):
        return None
    defaults: Any = {}
    for tree in module.defaults:
        defaults = merge(defaults, _ours(tree))
    baseline = look_up(merge(defaults, known), path)
    said = _difference(look_up(_ours(module.config), path), baseline)
    if said is MISSING:
        return None
    for name in reversed(path):
        said = {name: said}
    return Layer("dask.config", said)


def _difference(value: Any, baseline: Any) -> Any:
    """Return what ``value`` says that ``baseline`` does not, or MISSING."""
    if isinstance(value, Mapping) and isinstance(baseline, Mapping):
        parts = {name: _difference(item, look_up(baseline, (name,))) for name, item in value.items()}
        parts = {name: item for name, item in parts.items() if item is not MISSING}
        return parts or MISSING
    return MISSING if value == baseline else value
