"""Dask's collections on a client: ``get``, ``compute`` and ``persist``.

``Client`` is made of this among others. Dask does its own part: it finds the collections, joins and
optimises their graphs, and asks its scheduler for keys. What is here is that scheduler, which
gives values to ``get`` and futures to the other two.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from localdask.api.futures import CANCELLED, LOST, Future, FutureState, futures_in
from localdask.api.graphs import OPTIONS, Graph
from localdask.api.storing import Storing
from localdask.messages import SubmitTasks
from localdask.spelling import mend_of

__all__ = ["Collections", "futures_of"]

#: What Dask's ``compute`` and ``persist`` take and makes no difference here.
_IDLE_OPTIONS = ("fifo_timeout", "actors")


class Collections(Storing):
    """What ``Client`` does for Dask's collections."""

    _attach: Callable[[str], FutureState]
    gather: Callable[..., Any]

    def get(self, dsk: Any, keys: Any, *, sync: bool = True, **kwargs: Any) -> Any:
        """Run a graph, and return the values of its keys. What Dask calls when this client is its scheduler.

        Parameters
        ----------
        dsk : expression or dict
            The graph.
        keys : key or nested lists of keys
            What of it is asked for.
        sync : bool, default True
            Whether to wait for the values; futures are returned otherwise.
        **kwargs
            ``workers``, ``allow_other_workers``, ``resources``, ``retries`` and ``priority`` hold for all its tasks, as for
            ``submit``; what other schedulers of Dask's take is ignored, as it is there.

        Returns
        -------
        object
            Values, or futures, in the shape of ``keys``.
        """
        return self._values(self._submit_graph(dsk, keys, kwargs)) if sync else self._submit_graph(dsk, keys, kwargs)

    def _values(self, futures: Any) -> Any:
        try:
            return self.gather(futures)
        except BaseException as error:
            # Who keeps the error, as a notebook does, would keep the futures in its frames too, and have the rest computed.
            del futures
            import traceback  # noqa: PLC0415 - 4 ms, and only an error needs it

            traceback.clear_frames(error.__traceback__)
            raise

    def compute(self, collections: Any, sync: bool = False, optimize_graph: bool = True, traverse: bool = True, **kwargs: Any) -> Any:
        """Compute Dask collections. Meanings as in Dask.

        Parameters
        ----------
        collections : collection, or a list of collections and other things
            What to compute; other things pass through. A list, tuple, set or dict within the list, or in its place a dict, is
            one thing to compute, with the collections in it, unless ``traverse`` is False.
        sync : bool, default False
            Whether to wait for the values and return them.
        optimize_graph, traverse
            As for ``dask.compute``.
        **kwargs
            As for ``get``; others are a ``TypeError``.

        Returns
        -------
        Future or list of Future
            One for each collection; values when ``sync``.
        """
        from dask import base  # noqa: PLC0415 - an extra of the user's
        from dask.delayed import delayed  # noqa: PLC0415 - as that

        _check_options("compute", kwargs)
        is_one = not isinstance(collections, (list, tuple, set, frozenset))
        given = [collections] if is_one else list(collections)
        if traverse:
            group: Any = delayed
            given = [group(part) if isinstance(part, (list, tuple, set, dict, Iterator)) else part for part in given]
        compute: Any = base.compute
        made = list(compute(*given, scheduler=self._futures_of_graph, optimize_graph=optimize_graph, traverse=traverse, **kwargs))
        found = made[0] if is_one else made
        return self.gather(found) if sync else found

    def persist(self, collections: Any, optimize_graph: bool = True, **kwargs: Any) -> Any:
        """Compute the chunks of Dask collections, and keep them on the cluster. Meanings as in Dask.

        Parameters
        ----------
        collections : collection, or a list of collections
            What to compute.
        optimize_graph
            As for ``dask.persist``.
        **kwargs
            As for ``get``; others are a ``TypeError``.

        Returns
        -------
        collection or list of collections
            The same, of futures. Their results are kept as long as they are.
        """
        from dask import base  # noqa: PLC0415 - an extra of the user's

        _check_options("persist", kwargs)
        is_one = not isinstance(collections, (list, tuple, set, frozenset))
        given = [collections] if is_one else list(collections)
        persist: Any = base.persist
        made = list(persist(*given, scheduler=self._futures_of_graph, optimize_graph=optimize_graph, **kwargs))
        return made[0] if is_one else made

    @property
    def _futures_of_graph(self) -> Callable[..., list[Future[Any]]]:
        """A scheduler of Dask's that gives futures. It is no method, for Dask would ask the client that it belongs to."""

        def schedule(dsk: Any, keys: Any, **kwargs: Any) -> Any:
            return self._submit_graph(dsk, keys, kwargs)

        return schedule

    def _submit_graph(self, dsk: Any, keys: Any, options: dict[str, Any]) -> Any:
        """Have a graph run; return futures in the shape of ``keys``."""
        self._check_running()
        asked = list(_flatten(keys))
        graph = Graph(dsk, asked, {word: options[word] for word in OPTIONS if options.get(word) is not None})
        # The data, and what is large among arguments, is held here until the tasks are known: from then on they hold what they read.
        specs, keeps = graph.specs(self._pack_arguments)
        data = {name: self._scatter(value, name, True) for name, value in graph.data}
        made = dict(data)
        own = {spec.key for spec in specs}
        wanted = dict.fromkeys(graph.name(key) for key in asked)
        is_new = False
        with self._submitting:
            for key in wanted:
                ref = self._states.get(key)
                state = ref() if ref is not None else None
                if state is not None and not state.is_gone and state.status not in (CANCELLED, LOST):
                    made[key] = Future(key, self, state)
                elif key in own:
                    is_new = True
                    state = FutureState(key, self._drop)
                    self._states[key] = weakref.ref(state)
                    made[key] = Future(key, self, state)
                elif key not in made:
                    made[key] = Future(key, self, self._attach(key))
            if is_new:
                self._link.post([SubmitTasks(self.id, specs, tuple(wanted))])
        del keeps
        return _in_shape(keys, lambda key: made[graph.name(key)])


def _check_options(method: str, options: Iterable[str]) -> None:
    known = f"it takes {', '.join(OPTIONS)}"
    for name in options:
        if name not in OPTIONS and name not in _IDLE_OPTIONS:
            raise TypeError(f"{method}() has no argument {name!r}; {mend_of(name, OPTIONS, known)}")


def _flatten(keys: Any) -> Iterable[Any]:
    if isinstance(keys, list):
        for key in keys:
            yield from _flatten(key)
    else:
        yield keys


def _in_shape(keys: Any, take: Callable[[Any], Any]) -> Any:
    return [_in_shape(key, take) for key in keys] if isinstance(keys, list) else take(keys)


def futures_of(obj: Any, client: Any = None) -> list[Future[Any]]:
    """Return the futures in Dask collections, and in nested lists, tuples, sets and dicts.

    Parameters
    ----------
    obj : object
        A persisted collection, a future, or a collection of them.
    client : Client, optional
        Accepted for Dask's sake.

    Returns
    -------
    list of Future
        Each once.
    """
    return list({id(future): future for future in futures_in(obj)}.values())
