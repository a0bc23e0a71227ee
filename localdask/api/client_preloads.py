"""The preloads of a client: set up when it has connected, torn down when it closes, never reloaded.

Runs in the user's process, in the thread that makes or closes the client. Clients that live
in tasks have none: their worker has its own.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from localdask.api.arguments import read_preloads

if TYPE_CHECKING:
    from localdask.preloads.generations import Preloads

__all__ = ["begin_client_preloads", "end_client_preloads"]


def begin_client_preloads(client: Any) -> Preloads | None:
    """Run the preloads that configuration names under ``client.preload``; None where there are none."""
    sources = read_preloads("client", None, None)
    if not sources:
        return None
    from localdask.preloads.generations import Preloads  # noqa: PLC0415 - few clients have preloads

    preloads = Preloads(client, "client", "client")
    preloads.load(sources)
    preloads.setup()
    return preloads


def end_client_preloads(preloads: Preloads | None) -> None:
    """Tear them down, in reverse; what goes wrong is told, and stops nothing."""
    for error in preloads.teardown() if preloads is not None else ():
        print(f"localdask: {error}", file=sys.stderr)
