"""How a verb reaches a cluster that runs in another process.

Runs in the user's process, under every verb that looks at a cluster or changes it.
"""

from __future__ import annotations

import contextlib
import io
import select
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import click

from localdask.api import addresses
from localdask.api.client import Client
from localdask.api.socket_link import SocketLink
from localdask.system.sockets import DoorEntry

__all__ = ["cluster_argument", "cluster_option", "the_cluster", "until_ctrl_c", "visit", "watch_reader"]

#: How long a cluster may take to answer a question that needs no waiting, in seconds.
ANSWER_S = 10.0
_VARIABLE = "LOCALDASK_ADDRESS"


def cluster_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb ``--cluster``."""
    return click.option("-c", "--cluster", metavar="NAME", envvar=_VARIABLE, help="Which cluster. [default: the only one]")(command)


def cluster_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the cluster as its only word."""
    return click.argument("cluster", required=False, envvar=_VARIABLE)(command)


def the_cluster(name: str | None) -> str:
    """Return the address of the cluster of that name, or of the only one that runs.

    A cluster that was given a name goes before those that were not, which are scripts' own.
    """
    if name not in (None, "", "auto"):
        return f"unix://{addresses.socket_path(str(name))}"
    running = addresses.list_clusters()
    if len(running) == 1:
        return running[0].address
    return addresses.find_cluster(None).address


@contextlib.contextmanager
def visit(cluster: str | DoorEntry | None, timeout_s: float = ANSWER_S) -> Iterator[Client]:
    """Give a client of a cluster for as long as the verb needs it."""
    address = cluster.address if isinstance(cluster, DoorEntry) else the_cluster(cluster)
    client = Client(SocketLink(addresses.socket_path(address), timeout_s), set_as_default=False, name="cli")
    try:
        yield client
    finally:
        client.close()


@contextlib.contextmanager
def until_ctrl_c(is_live: bool = True) -> Iterator[None]:
    """Let Ctrl-C end what goes on until then, and well."""
    try:
        yield
    except KeyboardInterrupt:
        if not is_live:
            raise


def watch_reader(client: Client) -> None:
    """Close the client once nobody reads standard output any more, as after ``| head -1``, which who only waits would not see."""
    try:
        output = sys.stdout.fileno()
    except (AttributeError, io.UnsupportedOperation):
        return

    def watch() -> None:
        poll = select.poll()
        poll.register(output, 0)  # not whether there is room, but whether it is broken
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll()):
            client.close()

    threading.Thread(target=watch, name="localdask-reader", daemon=True).start()
