"""Named values that a client publishes for others, and what clients note at the scheduler.

``Client`` is made of this and other rooms. What is published is kept by the scheduler, with the
futures in it, until somebody takes it back; the client that published it may go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from localdask.api.asking import Answer
from localdask.api.handing import pack, taken, tell
from localdask.api.links import Link

__all__ = ["Datasets", "Publishing"]

#: The default of who wants an error instead.
NO_DEFAULT = object()
_PLAIN = (type(None), bool, int, float, str, bytes)


class Publishing:
    """What ``Client`` does about datasets and metadata."""

    asynchronous: bool
    _link: Link
    _ask: Callable[..., Any]
    _ask_nowait: Callable[..., Answer]
    _withdraw: Callable[[Answer], None]

    def publish_dataset(self, *args: Any, name: Any = None, override: bool = False, **kwargs: Any) -> None:
        """Publish values under names, for all clients and tasks. Meanings as in Dask.

        Futures in them are kept until ``unpublish_dataset``, also when this client goes. Other
        objects are pickled.

        Parameters
        ----------
        *args : object
            One value, to be published as ``name``.
        name : hashable of plain data, optional
            Its name.
        override : bool, default False
            Whether to replace what is published under these names.
        **kwargs
            Values by their names.

        Raises
        ------
        KeyError
            A name is taken already; then nothing was published.
        ValueError
            A value has no name, or a name no value.

        Examples
        --------
        >>> client.publish_dataset(totals=client.submit(sum, [1, 2]))  # doctest: +SKIP
        >>> client.get_dataset("totals").result()  # doctest: +SKIP
        3
        """
        if len(args) > 1 or bool(args) != (name is not None):
            raise ValueError("give one value with its name, as in publish_dataset(x, name='totals'), or values by name, as in totals=x")
        values = {**kwargs, **({name: args[0]} if args else {})}
        self._ask("dataset_publish", [(key, *pack(value, f"dataset {key!r}")) for key, value in values.items()], override)

    def unpublish_dataset(self, name: Any) -> None:
        """Take back what is published under a name, and let go of the futures in it; ``KeyError`` when there is nothing."""
        self._ask("dataset_unpublish", name)

    def list_datasets(self) -> tuple[Any, ...]:
        """Return the names of all that is published."""
        return tuple(self._ask("dataset_list"))

    def get_dataset(self, name: Any, default: Any = NO_DEFAULT) -> Any:
        """Return what is published under a name.

        Parameters
        ----------
        name : hashable of plain data
            The name.
        default : object, optional
            What to return when there is nothing.

        Raises
        ------
        KeyError
            There is nothing, and no default.
        """
        answer = self._ask_nowait("dataset_get", name)
        try:
            with self._link.blocking():
                answer.wait(None)
            values = taken("dataset_got", self, answer)
        except BaseException:
            self._withdraw(answer)
            tell(self, "dataset_got", answer.request)
            raise
        if values:
            return values[0]
        if default is NO_DEFAULT:
            raise KeyError(f"Dataset {name!r} not found")
        return default

    @property
    def datasets(self) -> Datasets:
        """What is published, as a mapping: ``client.datasets["x"] = future`` publishes, ``del`` takes back."""
        return Datasets(self)

    def set_metadata(self, key: Any, value: Any) -> None:
        """Note something at the scheduler, for all clients. Meanings as in Dask.

        Parameters
        ----------
        key : str or list of str
            Where: a name, or a path of them in nested dicts, which are made as needed.
        value : object
            Plain data: numbers, texts, bytes, and lists, tuples and dicts of them.

        Raises
        ------
        TypeError
            The value is not plain data.

        Examples
        --------
        >>> client.set_metadata(["run", "seed"], 42)  # doctest: +SKIP
        >>> client.get_metadata("run")  # doctest: +SKIP
        {'seed': 42}
        """
        self._ask("metadata_set", _path(key), _plain(value))

    def get_metadata(self, keys: Any, default: Any = NO_DEFAULT) -> Any:
        """Return what was noted at a name, or at a path of them; the default, or ``KeyError``, when there is nothing."""
        found = self._ask("metadata_get", _path(keys))
        if found:
            return _plain(found[0])  # in the scheduler's own process it is the scheduler's own
        if default is NO_DEFAULT:
            raise KeyError(keys)
        return default


class Datasets(MutableMapping[Any, Any]):
    """What is published on a cluster, by name. Each access asks the scheduler anew."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getitem__(self, name: Any) -> Any:
        return self._client.get_dataset(name)

    def __setitem__(self, name: Any, value: Any) -> None:
        self._check_blocks()
        self._client.publish_dataset(value, name=name)

    def __delitem__(self, name: Any) -> None:
        self._check_blocks()
        self._client.unpublish_dataset(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __repr__(self) -> str:
        return f"<Datasets of {self._client!r}>"

    def _names(self) -> tuple[Any, ...]:
        self._check_blocks()
        return self._client.list_datasets()  # type: ignore[no-any-return]

    def _check_blocks(self) -> None:
        if self._client.asynchronous:
            raise TypeError("the datasets of an asynchronous client cannot be asked here: await its list_datasets(), publish_dataset(), …")


def _path(key: Any) -> Any:
    return _plain(list(key) if isinstance(key, (list, tuple)) else [key])


def _plain(value: Any) -> Any:
    """Return a copy of plain data; ``TypeError`` for anything else."""
    if type(value) in _PLAIN:
        return value
    if type(value) in (list, tuple):
        return type(value)([_plain(item) for item in value])
    if type(value) is dict:
        return {_plain(name): _plain(item) for name, item in value.items()}
    raise TypeError(f"metadata are plain data, and a {type(value).__name__} is not: publish_dataset() takes any object")
