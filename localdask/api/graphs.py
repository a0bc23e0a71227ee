"""A graph of Dask's as tasks: what each node calls, with what, and under which key.

Used by ``api/collections.py``. A node whose arguments are values and references becomes a task
of its function itself; one that calls others within is called as it is, on the worker. Dask
is imported here only to take its own objects apart, so it is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeAlias

from localdask.api.annotations import TaskOptions
from localdask.api.futures import Future
from localdask.messages import Function, TaskSpec
from localdask.parameters import read
from localdask.processes.bodies import call_node
from localdask.system import codec

__all__ = ["OPTIONS", "Graph"]

#: What may be said of how a task runs, by a call and by an annotation.
OPTIONS = ("workers", "allow_other_workers", "resources", "retries", "priority")


#: As ``Storing._pack_arguments``.
Pack: TypeAlias = "Callable[[tuple[Any, ...], dict[str, Any]], tuple[bytes, list[Any], tuple[Any, ...]]]"


class GraphInput:
    """Stands in arguments for another node's result."""

    __slots__ = ("key",)
    __localdask_future__: ClassVar[bool] = True

    def __init__(self, key: str) -> None:
        self.key = key

    def __reduce__(self) -> tuple[type[GraphInput], tuple[str]]:
        codec.note_future(self)
        return (GraphInput, (self.key,))


class _CallWithinError(Exception):
    """An argument is itself a call."""


class Graph:
    """One graph, as a scheduler of Dask's is given it.

    Parameters
    ----------
    dsk : expression or mapping
        The graph.
    keys : iterable
        What of it is asked for.
    options : mapping
        How its tasks run, where the graph itself says nothing: arguments of ``TaskOptions``.

    Attributes
    ----------
    data : list of (str, object)
        Its values that are no tasks, by key.
    """

    def __init__(self, dsk: Any, keys: Iterable[Any], options: Mapping[str, Any]) -> None:
        from dask import _task_spec as kinds  # noqa: PLC0415 - an extra of the user's

        self._kinds = kinds
        given = read("dsk", dsk.__dask_graph__() if hasattr(dsk, "__dask_graph__") else dsk, dict, "a graph: a dict of tasks by key")
        nodes = self._with_futures_apart(kinds.convert_legacy_graph(given))
        self._names: dict[Any, str] = {}
        self._aliases: dict[Any, Any] = {}
        self._given = dict(options)
        self._options = TaskOptions(**options)
        self._annotations: Mapping[str, Mapping[Any, Any]] = dsk.__dask_annotations__() if hasattr(dsk, "__dask_annotations__") else {}
        self._packed: dict[tuple[str, str], Function] = {}
        self.data: list[tuple[str, Any]] = []
        self._calls: dict[Any, Any] = {}
        asked = list(keys)
        for key in asked:
            if key not in given:
                raise KeyError(f"{key!r} is no key of the graph")
        self._nodes = self._needed(nodes, asked)
        if _is_of_frames(dsk) and not self._annotations:
            self._nodes = self._joined(self._nodes, asked)
        for key, node in self._nodes.items():
            if isinstance(node, kinds.Alias):
                self._aliases[key] = node.target
            elif isinstance(node, kinds.DataNode) and isinstance(node.value, Future):
                self._aliases[key] = node.value.key
            else:
                name = self._names[key] = key if isinstance(key, str) else str(key)
                if isinstance(node, kinds.DataNode):
                    self.data.append((name, node.value))
                else:
                    self._calls[key] = node

    def _with_futures_apart(self, nodes: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return nodes of which the futures that Dask fused into others are nodes of their own: it knows only ``distributed``'s."""
        found: dict[Any, Any] = {}
        return {**{key: self._without_futures(node, found) for key, node in nodes.items()}, **found}

    def _without_futures(self, node: Any, found: dict[Any, Any]) -> Any:
        """Return a node that reads the futures within it from beside it; add those to ``found``."""
        kinds = self._kinds
        if not isinstance(node, kinds.Task) or not node.has_subgraph():
            return node
        parts, result, names, *given = node.args
        mine: dict[Any, Any] = {}
        others = {}
        for key, part in parts.items():
            if isinstance(part, kinds.DataNode) and isinstance(part.value, Future):
                mine[key] = part
            else:
                others[key] = self._without_futures(part, mine)
        if not mine:
            return node
        found.update(mine)
        return kinds.Task(node.key, node.func, others, result, (*names, *mine), *given, *map(kinds.TaskRef, mine))

    @staticmethod
    def _needed(nodes: dict[Any, Any], keys: Iterable[Any]) -> dict[Any, Any]:
        """Return the nodes that these keys need."""
        needed: dict[Any, Any] = {}
        stack = list(keys)
        while stack:
            key = stack.pop()
            if key in nodes and key not in needed:
                node = needed[key] = nodes[key]
                stack.extend(node.dependencies)
        return needed

    def _joined(self, nodes: dict[Any, Any], keys: list[Any]) -> dict[Any, Any]:
        """Return nodes of which those that only continue each other are one; data stays apart."""
        data = {key: node for key, node in nodes.items() if isinstance(node, self._kinds.DataNode)}
        join: Any = self._kinds.fuse_linear_task_spec
        return {**join({key: node for key, node in nodes.items() if key not in data}, keys), **data}

    def name(self, key: Any) -> str:
        """Return the key under which the scheduler knows a node's result."""
        key = self._end_of(key)
        known = self._names.get(key)
        return known if known is not None else str(key)

    def _end_of(self, key: Any) -> Any:
        """Return the node that an alias is another name of, at last."""
        followed = {key}
        while key in self._aliases:
            key = self._aliases[key]
            if key in followed:
                break  # named after the future that it is
            followed.add(key)
        return key

    def specs(self, pack: Pack) -> tuple[list[TaskSpec], list[Any]]:
        """Return its calls as tasks, in the order in which Dask would have them run, each after what it reads.

        ``pack`` pickles arguments. Also returned is what it stored apart, to be held until the tasks are known.
        """
        from dask.order import order  # noqa: PLC0415 - an extra of the user's

        calls = self._calls
        needs = {key: [end for needed in node.dependencies if (end := self._end_of(needed)) in calls] for key, node in calls.items()}
        places: dict[Any, int] = order(self._nodes)
        specs: list[TaskSpec] = []
        keeps: list[Any] = []
        done: set[Any] = set()
        for key in sorted(calls, key=places.__getitem__):
            stack = [key]  # places are an advice: beside aliases, some are not after what is read
            while stack:
                key = stack[-1]
                lacking = [needed for needed in needs[key] if needed not in done]
                if lacking:
                    stack.extend(lacking)
                    continue
                stack.pop()
                if key not in done:
                    done.add(key)
                    specs.append(self._spec(key, calls[key], pack, keeps))
        return specs, keeps

    def _spec(self, key: Any, node: Any, pack: Pack, keeps: list[Any]) -> TaskSpec:
        name = self._names[key]
        try:
            args = tuple(map(self._plain, node.args))
            kwargs = {word: self._plain(value) for word, value in node.kwargs.items()} if node.kwargs else {}
            function = self._pack(name, codec.dumps_function(node.func))
        except _CallWithinError:
            inputs = tuple(node.dependencies)
            args, kwargs = (node, inputs, *(GraphInput(self.name(needed)) for needed in inputs)), {}
            function = self._pack(name, codec.dumps_function(call_node))
        arguments, met, stored = pack(args, kwargs)
        keeps += stored
        options = self._options_of(key) if self._annotations else self._options
        return options.spec(name, function, arguments, tuple(needed.key for needed in met))

    def _plain(self, arg: Any) -> Any:
        """Return an argument with what stands for results in place of references; containers of Dask's become Python's."""
        kinds = self._kinds
        if isinstance(arg, kinds.TaskRef):
            return GraphInput(self.name(arg.key))
        if not isinstance(arg, kinds.GraphNode):
            return arg
        if isinstance(arg, kinds.Alias):
            return GraphInput(self.name(arg.target))
        if isinstance(arg, kinds.DataNode):
            return arg.value
        make: Callable[[Any], Any] | None = {kinds.List: list, kinds.Tuple: tuple, kinds.Set: set}.get(type(arg))
        if make is None:
            raise _CallWithinError
        return make(map(self._plain, arg.args))

    def _pack(self, name: str, function: Function) -> Function:
        """Return a function under its node's name: how long it takes differs from layer to layer."""
        from dask.utils import key_split  # noqa: PLC0415 - an extra of the user's

        prefix = key_split(name)
        packed = self._packed.get((function.function_id, prefix))
        if packed is None:
            packed = self._packed[function.function_id, prefix] = Function(f"{function.function_id}-{prefix}", prefix, function.pickled)
        return packed

    def _options_of(self, key: Any) -> TaskOptions:
        """Return how a node is to run: what it is annotated with, else as all are."""
        own = {word: self._annotations[word][key] for word in OPTIONS if key in self._annotations.get(word, ())}
        return TaskOptions(**{**self._given, **own}) if own else self._options


def _is_of_frames(dsk: Any) -> bool:
    """Whether a graph is of data frames, whose chains Dask leaves apart. It joins those of arrays and bags; delayed calls stay."""
    from dask import _expr  # noqa: PLC0415 - an extra of the user's

    return isinstance(dsk, _expr._ExprSequence)
