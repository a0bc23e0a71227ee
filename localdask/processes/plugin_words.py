"""What a worker or a nanny does about plugins: words in, plugins begun and ended, answers out.

Runs in the process whose plugins they are, in the thread that carries out the word. Here
is where a plugin's pickle is loaded: in workers, and in the nannies to which it was sent.
Nothing here decides who gets which plugin; that is ``state/plugins.py``'s, in the
cluster's process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from localdask.errors import PreloadError, SerializationError
from localdask.messages import AddPlugin, PluginAnswered, RemovePlugin
from localdask.preloads.failures import explain_failure
from localdask.preloads.plugins import Plugins
from localdask.preloads.standins import standing_in
from localdask.system import codec, outcomes

__all__ = ["PLUGIN_WORDS", "PluginWords"]

#: What a cluster says to those that hold plugins.
PLUGIN_WORDS = (AddPlugin, RemovePlugin)


class PluginWords:
    """One holder's part in changes of plugins.

    Parameters
    ----------
    plugins : Plugins
        Its registry.
    on_changed : callable
        Is called after each change, also one that failed.
    """

    def __init__(self, plugins: Plugins, on_changed: Callable[[], Any] = lambda: None) -> None:
        self._plugins = plugins
        self._on_changed = on_changed
        #: What to begin with; None until it was told.
        self.first_rows: list[tuple[str, bytes]] | None = None

    def begin(self, rows: Iterable[tuple[str, bytes]]) -> None:
        """Set up what is registered, in order. The first failure is raised as a ``PreloadError``: nobody above loads a user's own."""
        for name, pickled in rows:
            try:
                self._add(name, pickled)
            except PreloadError:
                raise
            except BaseException as error:  # whatever a user's setup raises, also an exit
                raise _explain(name, self._plugins.process, error) from None

    def hear(self, word: AddPlugin | RemovePlugin) -> PluginAnswered:
        """Carry out a word, and return the answer."""
        try:
            if isinstance(word, AddPlugin):
                self._add(word.name, word.pickled)
            else:
                self._remove(word.name)
        except BaseException as error:  # as above: it is the answer
            return PluginAnswered(word.change, outcomes.dumps_error(error, skip=2))
        return PluginAnswered(word.change)

    def _add(self, name: str, pickled: bytes) -> None:
        try:
            with standing_in():
                plugin = codec.loads(pickled, f"the plugin {name}")
            self._plugins.add(name, plugin, replaces=True)
        finally:
            self._on_changed()

    def _remove(self, name: str) -> None:
        try:
            if name in self._plugins:
                self._plugins.remove(name, raises=True)
        finally:
            self._on_changed()


def _explain(name: str, process: str, error: BaseException) -> PreloadError:
    did = "loading it" if isinstance(error, SerializationError) else "setup"
    explained = explain_failure(error, preload=name, process=process, did=did, filename="")
    text = str(explained.args[0]).replace("the preload", "the plugin", 1)
    return PreloadError(text, preload=name, process=process, where=explained.where, detail=explained.detail)
