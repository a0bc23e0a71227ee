"""One call for a client, wherever the cluster is: on this machine, or a real Dask cluster elsewhere.

Runs in the user's process. localdask speaks no network protocol of its own: an address that
names one gives a client of ``distributed``, which the user installs for it. What is localdask's
own is refused there with a word, before anything is sent.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from localdask.api.addresses import ELSEWHERE, asks_for_default, default_address
from localdask.api.annotations import present
from localdask.api.client import Client, default_cluster
from localdask.errors import UsageError

__all__ = ["connect"]

#: What ``annotate`` gives to tasks here, and Dask's tasks know nothing of.
_OURS = ("timeout", "retry_on")


def connect(address: Any = None, **kwargs: Any) -> Any:
    """Return a client: of a cluster on this machine, or of a Dask cluster elsewhere, so that a script moves by its address alone.

    Parameters
    ----------
    address : str, LocalCluster or None
        As for ``Client``: None or ``"auto"`` (what ``LOCALDASK_ADDRESS`` says, or else ``scheduler-address`` of the
        configuration, also of a Dask cluster), a cluster's name, ``unix://…`` or a cluster.
        ``tcp://``, ``tls://`` and ``ws://`` reach a Dask cluster.
    **kwargs
        For the client.

    Returns
    -------
    Client or distributed.Client
        The second for a Dask cluster (extra ``[distributed]``). There, ``as_completed``, ``wait``, ``fire_and_forget``, ``get_client``
        and ``get_worker`` of localdask do what Dask's do, and what Dask has not is refused.

    Raises
    ------
    ImportError
        A Dask cluster was asked for and ``distributed`` is not installed.
    ClusterNotFoundError
        No such cluster runs here.
    UsageError
        Something of localdask's own was asked of a Dask cluster.

    Examples
    --------
    >>> client = connect("tcp://10.0.0.5:8786")  # doctest: +SKIP
    """
    if asks_for_default(address, kwargs) and not default_cluster:
        address = default_address(elsewhere=True) or address
    if not isinstance(address, str) or not address.startswith(ELSEWHERE):
        return Client(address, **kwargs)
    try:
        import distributed  # noqa: PLC0415 - an extra of the user's
    except ImportError as error:
        raise ImportError(f"{address} is a Dask cluster, which needs distributed: pip install 'localdask[distributed]'") from error
    return _client_elsewhere(distributed.Client)(address, **kwargs)


@cache
def _client_elsewhere(theirs: Any) -> Any:
    """Return ``distributed``'s client, made to refuse what is only ours."""

    class DaskClient(theirs):  # type: ignore[misc]
        """A client of a Dask cluster."""

        def __init__(self, address: str, **kwargs: Any) -> None:
            if strange := sorted(name for name in kwargs if name.startswith(("preload", "reload"))):
                raise UsageError(f"{strange[0]}=… belongs to a cluster, and {address} runs already: give it to `dask worker --preload …`")
            super().__init__(address, **kwargs)

        def __getattr__(self, name: str) -> Any:
            if name[:1] != "_" and hasattr(Client, name):
                raise AttributeError(f"client.{name} is localdask's own, and this client is of a Dask cluster; see docs/api.md")
            raise AttributeError(f"'Client' object has no attribute {name!r}")

        def submit(self, *args: Any, **kwargs: Any) -> Any:
            """Submit a task, as Dask does."""
            _check_block()
            return super().submit(*args, **kwargs)

        def map(self, *args: Any, **kwargs: Any) -> Any:
            """Submit tasks, as Dask does."""
            _check_block()
            return super().map(*args, **kwargs)

        def compute(self, *args: Any, **kwargs: Any) -> Any:
            """Compute collections, as Dask does."""
            _check_block()
            return super().compute(*args, **kwargs)

    return DaskClient


def _check_block() -> None:
    """Refuse tasks in a block of ``localdask.annotate``: Dask would pass over what it says."""
    if options := present.get():
        own = [name for name in options if name in _OURS]
        raise UsageError(
            f"annotate({own[0]}=…) is localdask's own, and this client is of a Dask cluster, which would pass over it"
            if own
            else "localdask.annotate says nothing to a Dask cluster: use dask.annotate, or submit's own keywords"
        )
