"""Layers of configuration: one nested mapping for each place that says something, each with its origin.

Runs wherever configuration is read, which is the user's process. ``config`` stacks
layers, ``dask_config`` finds those of Dask. A layer is read here from a yaml file, a
folder of them, or environment variables, and a key is looked up in it. This room
knows the form of configuration and none of its keys; it never writes a file, and
never imports yaml unless there is a file to read.

``-`` and ``_`` mean the same in every key, and keys keep the spelling they came with,
because the names of environment variables are keys too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from localdask.errors import ConfigError
from localdask.parameters import check_text

__all__ = ["MISSING", "Layer", "interpret", "look_up", "merge", "read_environment", "read_folder", "read_yaml", "split_key"]

SUFFIXES = (".yaml", ".yml", ".json")


class _Missing:
    """The answer of a look-up that found nothing (None is a value)."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()


class Layer:
    """What one place says. ``folder`` is where its relative paths start, or None for the working directory."""

    __slots__ = ("folder", "origin", "tree")

    def __init__(self, origin: str, tree: Mapping[str, Any], folder: str | None = None) -> None:
        self.origin = origin
        self.tree = tree
        self.folder = folder

    def __repr__(self) -> str:
        return f"<Layer {self.origin}>"


def split_key(key: str) -> tuple[str, ...]:
    """Return the path that a dotted key means; a leading ``distributed.`` is Dask's name for our root."""
    path = tuple(check_text("key", key, "a name with dots").split("."))
    return path[1:] if path[0] == "distributed" and len(path) > 1 else path


def _spelling(mapping: Mapping[Any, Any], name: str) -> Any:
    """Return the key of ``mapping`` that means ``name``, or MISSING."""
    if name in mapping:
        return name
    plain = name.replace("_", "-")
    for key in mapping:
        if isinstance(key, str) and key.replace("_", "-") == plain:
            return key
    return MISSING


def look_up(tree: Any, path: Iterable[str]) -> Any:
    """Return what stands at ``path``, or MISSING. A null on the way says nothing."""
    for name in path:
        if not isinstance(tree, Mapping):
            return MISSING
        key = _spelling(tree, name)
        if key is MISSING:
            return MISSING
        tree = tree[key]
    return tree


def merge(low: Any, high: Any) -> Any:
    """Return ``high`` laid over ``low``: mappings are merged key by key, all else is replaced."""
    if not isinstance(high, Mapping):
        return low if high is MISSING else high
    merged = dict(low) if isinstance(low, Mapping) else {}
    for name, value in high.items():
        key = _spelling(merged, name) if isinstance(name, str) else name
        if key is MISSING:
            key = name
        if value is None and isinstance(merged.get(key), Mapping):
            continue  # a heading in yaml whose lines are all comments
        merged[key] = merge(merged.get(key, MISSING), value)
    return merged


def interpret(text: str) -> Any:
    """Return the value of an environment variable: a Python literal, yaml's words for none and truth, else the text."""
    import ast  # noqa: PLC0415 — 2 ms, and few set such variables

    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        pass
    return {"none": None, "null": None, "false": False, "true": True}.get(text.lower(), text)


def read_environment(environ: Mapping[str, str], prefix: str) -> Iterator[Layer]:
    """Yield a layer for each variable that starts with ``prefix``; ``__`` nests. A deeper key comes later, so it wins."""
    for name in sorted(environ):
        if name.startswith(prefix):
            path = name[len(prefix) :].lower().split("__")
            if not all(path):
                continue
            tree: Any = interpret(environ[name])
            for part in reversed(path):
                tree = {part: tree}
            yield Layer(name, tree)


def read_yaml(path: str) -> Layer:
    """Return the layer that a yaml file holds; raise ``ConfigError`` when it is not one that only its user could have written."""
    import yaml  # noqa: PLC0415 — 20 ms, and most users have no such file

    try:
        with open(path, "rb") as file:
            refuse_others_file(path, os.fstat(file.fileno()))
            tree = yaml.safe_load(file.read())
    except OSError as error:
        raise ConfigError(f"the configuration {path} cannot be read: {error.strerror}; make it readable or move it away") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark is not None else path
        what = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise ConfigError(f"{where}: this is not yaml: {what}; mend the line or move the file away") from error
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path} holds a {type(tree).__name__}, not keys with values; it should look like 'worker:' and '  preload: x.py'"
        )
    return Layer(path, _expand(tree), os.path.dirname(os.path.abspath(path)))


def read_folder(folder: str) -> Iterator[Layer]:
    """Yield the layers of a folder's yaml files in the order of their names."""
    for name in sorted(os.listdir(folder)):
        if name.endswith(SUFFIXES) and not name.startswith("."):
            yield read_yaml(os.path.join(folder, name))


def refuse_others_file(path: str, status: os.stat_result) -> None:
    """Raise ``ConfigError`` when another user could have written this file: what it names is run.

    Writable by a group is fine when the group is the user's private one, whose number
    is the user's own on every system that has such groups.
    """
    mode = status.st_mode
    shared = mode & stat.S_IWGRP and status.st_gid not in (0, status.st_uid)
    if mode & stat.S_IWOTH or shared:
        raise ConfigError(f"{path} can be written by other users, and what it says is run: chmod go-w {path}")
    if status.st_uid not in (0, os.getuid()):
        raise ConfigError(
            f"{path} belongs to another user (uid {status.st_uid}), and what it says is run: make it your own or move it away"
        )


def _expand(value: Any) -> Any:
    """Return ``value`` with ``$VARIABLE`` replaced in its texts, as in Dask's configuration."""
    if isinstance(value, str):
        return os.path.expandvars(value)
    if isinstance(value, dict):
        return {key: _expand(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item) for item in value]
    return value
