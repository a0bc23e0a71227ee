"""What the things by which tasks and clients coordinate themselves have in common: a name, and how they ask.

Each lives at the scheduler under its name, and its objects, in any client or task, are
only handles: they pickle by name. Whoever waits for one waits for the scheduler's one answer.
Whether it came in time is decided there; a wait that an interrupt or a cancellation ends
here is taken back there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from localdask.api.asking import Answer
from localdask.api.asynchronous import Done, in_loop
from localdask.api.client import Client, get_client
from localdask.errors import UsageError
from localdask.system.keys import is_key

__all__ = ["Coordinated", "Undo", "value_of"]

C = TypeVar("C", bound="Coordinated")
T = TypeVar("T")
#: What takes back the question of that number, whose answer nobody takes.
Undo = Callable[[Client, int], object]

#: So long a task waits in its slot, in seconds: an answer that is there at once is not worth giving the slot to another task.
PATIENCE_S = 0.02


def _no_undo(client: Client, request: int) -> None:
    return None


class Coordinated:
    """A handle of something named at the scheduler.

    Attributes
    ----------
    name : str
        What all who share it call it.
    """

    def __init__(self, name: str | None = None, client: Client | None = None) -> None:
        kind = type(self).__name__
        if name is not None and not is_key(name):
            raise UsageError(f"{kind}(name={name!r:.80}); it is a text")
        if client is not None:
            self._check(client)
        self.name = name or f"{kind.lower()}-{os.urandom(16).hex()}"
        self._client = client

    @property
    def client(self) -> Client:
        """The client that it asks: the one it was given, else the current one."""
        return self._client or self._check(get_client())

    def _check(self, client: Any) -> Client:
        if isinstance(client, Client):
            return client
        kind = type(self).__name__
        if hasattr(client, "submit"):  # that of a Dask cluster, which ``connect`` gave
            mend = f"this client is of {type(client).__module__}: use its own {kind}"
        else:
            mend = f"client={client!r:.80} is no Client of one: leave it out for the current one"
        raise UsageError(f"localdask.{kind} works on clusters of localdask, and {mend}")

    def __reduce__(self) -> Any:
        return type(self), (self.name,)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.name}>"

    def __await__(self: C) -> Generator[Any, None, C]:
        return Done(self).__await__()  # scripts written for Dask await it when they make it; here it is ready at once

    def _do_at_once(self, what: str) -> Any:
        """Have done what nobody needs to wait for; in coroutines it is done whether it is awaited or not."""
        client = self.client
        if not (client.asynchronous and in_loop()):
            return self._do(what, self.name, then=value_of)
        client._ask_nowait(what, self.name)
        return Done(None)

    def _do(self, what: str, *arguments: Any, then: Callable[[Client, Answer], T], undo: Undo = _no_undo) -> Any:
        """Return what ``then`` makes of the scheduler's answer; an awaitable of it for a client of coroutines."""
        client = self.client
        if client.asynchronous and in_loop():
            return self._do_soon(what, *arguments, then=then, undo=undo)
        answer = client._ask_nowait(what, *arguments)
        try:
            if not answer.wait(PATIENCE_S):
                with client._link.blocking():
                    answer.wait(None)
            return then(client, answer)
        except BaseException:
            client._withdraw(answer)
            undo(client, answer.request)
            raise

    async def _do_soon(self, what: str, *arguments: Any, then: Callable[[Client, Answer], T], undo: Undo = _no_undo) -> T:
        """As ``_do``, in a coroutine of any client."""
        client = self.client
        answer = client._ask_nowait(what, *arguments)
        try:
            await answer.wait_soon(client._link)
            return then(client, answer)
        except BaseException:
            client._withdraw(answer)
            undo(client, answer.request)
            raise


def value_of(client: Client, answer: Answer) -> Any:
    """Return what was answered, as it is."""
    return answer.value()
