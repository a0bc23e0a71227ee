"""The preloads of one service: which generation runs, and the way to the next.

One manager lives in each process that has preloads: in a nanny, a worker, the scheduler, a
client. It runs bodies (``load``) and hooks (``setup``, ``teardown``), and takes its part in
a reload: ``prepare`` runs the new bodies beside the old ones, ``swap`` tears down the old
and sets up the new, ``roll_back`` goes the whole way back, ``discard`` and ``commit`` end
it. It never reads a preload's file, never decides to reload, and never talks to anyone.

What holds at every moment: a generation whose setup was begun is torn down exactly once,
by ``teardown``, ``swap`` or ``roll_back``, or handed over to its successor by that one's
``dask_reload``. Setups run in the order of the list, teardowns in reverse.
"""

from __future__ import annotations

import enum
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from localdask.errors import PreloadError
from localdask.preloads.failures import explain_failure
from localdask.preloads.hooks import HookCaller, HookName
from localdask.preloads.loading import Loading, helper_as_published, import_graph, shipped_hash
from localdask.preloads.modules import added_directories
from localdask.preloads.sources import Helper, Source
from localdask.preloads.standins import standing_in
from localdask.sizing import SETUP_S, TEARDOWN_S

__all__ = ["Generation", "Preloads", "ReloadPhase", "folders_of", "stale_modules"]

#: Roles whose process is the user's own: there, Ctrl-C is the user's word and not a preload's failure.
_USERS_OWN = ("scheduler", "client")
#: What a teardown gets when the time for all of them is used up.
_LAST_MOMENT_S = 0.1


class ReloadPhase(str, enum.Enum):
    """How far a reload has come in this process."""

    IDLE = "idle"
    LOADED = "loaded"
    SWAPPED = "swapped"
    FAILED = "failed"


class Generation:
    """One preload at one generation, as it runs in this process.

    Attributes
    ----------
    source : Source
        What it was made from.
    module : module
        What its body made.
    is_set_up : bool
        Whether its ``dask_setup`` was begun, and its ``dask_teardown`` is owed.
    took_over : bool
        Whether it was handed its predecessor's state by ``dask_reload``.
    """

    __slots__ = ("is_set_up", "module", "source", "took_over")

    def __init__(self, source: Source, module: ModuleType) -> None:
        self.source = source
        self.module = module
        self.is_set_up = False
        self.took_over = False

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def argv(self) -> tuple[str, ...]:
        return self.source.argv

    @property
    def number(self) -> int:
        return self.source.generation

    def __repr__(self) -> str:
        return f"<preload {self.source.label}, generation {self.number}{'' if self.is_set_up else ', not set up'}>"


class Preloads:
    """The preloads of one service, in order. Iterates over the running generations.

    Parameters
    ----------
    service : object
        What the hooks are given: the scheduler, nanny, worker or client.
    role : str
        ``"scheduler"``, ``"nanny"``, ``"worker"`` or ``"client"``.
    process : str
        Who this is, for errors (``w0``).
    setup_s, teardown_s, teardowns_s : float
        Limits in seconds: for a body or a setup, for one teardown, and for all teardowns together.
    is_optional : bool
        Whether a failing ``dask_setup`` is only told, as Dask does, and not raised.
    on_hook : callable
        Is given the time limit of each body and hook that begins.
    """

    def __init__(
        self,
        service: Any,
        role: str,
        process: str,
        *,
        setup_s: float = SETUP_S,
        teardown_s: float = TEARDOWN_S,
        teardowns_s: float = 8.0,
        is_optional: bool = False,
        on_hook: Callable[[float], None] = lambda limit_s: None,
    ) -> None:
        self.service = service
        self.role = role
        self.process = process
        self.setup_s = setup_s
        self.teardown_s = teardown_s
        self.teardowns_s = teardowns_s
        self.is_optional = is_optional
        self.phase = ReloadPhase.IDLE
        self._hooks = HookCaller(on_hook)
        self._running: list[Generation] = []
        self._next: dict[int, Generation] = {}
        self._loading: Loading | None = None

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Generation]:
        return iter(self._running)

    def __getitem__(self, index: int) -> Generation:
        return self._running[index]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The generation of each preload whose setup ran last, in their order."""
        after = self._next if self.phase is ReloadPhase.SWAPPED else {}
        return tuple(after.get(index, running).number for index, running in enumerate(self._running))

    # ── the first start and the end ──────────────────────────────────────────

    def load(self, sources: Sequence[Source]) -> None:
        """Run the bodies, in order, and no hook. When one fails, no module of any of them stays."""
        if not sources:
            self._running = []
            return  # most processes have none, and looking for what is stale touches every module
        added = self._add_directories(sources)
        fresh = [source for source in sources if not _is_imported_already(source)]
        for source in fresh:
            import_graph.edges.pop(source.module_name, None)  # of an earlier preload of that name
        loading = self._new_loading(fresh, sources)
        loaded: list[Generation] = []
        try:
            with standing_in(), loading.active(publish=True):
                for source in sources:
                    loaded.append(Generation(source, self._run_body(loading, source)))
        except BaseException as error:
            sys.path[:] = [folder for folder in sys.path if folder not in added]
            added_directories.difference_update(added)
            _name_helpers(error, sources)
            raise
        self._running = loaded

    def _add_directories(self, sources: Sequence[Source]) -> list[str]:
        """Put the folders of file preloads on ``sys.path``, so that what lies beside them can be imported."""
        folders = dict.fromkeys(os.path.dirname(source.path) for source in sources if source.kind == "file")
        added = [folder for folder in folders if folder not in sys.path]
        sys.path[:0] = added
        added_directories.update(added)
        return added

    def _new_loading(self, fresh: Sequence[Source], sources: Sequence[Source]) -> Loading:
        folders = dict.fromkeys(folder for source in (*sources, *(old.source for old in self._running)) for folder in folders_of(source))
        names = {generation.source.module_name for generation in self._running}
        return Loading(fresh, stale_modules(sources) - names, (*folders, os.getcwd()))

    def _run_body(self, loading: Loading, source: Source) -> ModuleType:
        def run() -> ModuleType:
            loading.on_this_thread()
            return loading.execute(source)

        module: ModuleType = self._run(run, HookName(source.label, "its body", source.path, self.process), self.setup_s)
        return module

    def _run(self, call: Callable[[], Any], name: HookName, timeout_s: float) -> Any:
        try:
            return self._hooks.run(call, name=name, timeout_s=timeout_s)
        except KeyboardInterrupt as error:
            if self.role in _USERS_OWN:
                raise
            raise explain_failure(error, **name.about) from None

    def setup(self) -> list[PreloadError]:
        """Run every ``dask_setup`` in order, and return what was told (only when optional).

        When one fails it is torn down as far as it will go, then the earlier ones in reverse.
        """
        told = []
        for generation in self._running:
            try:
                self._set_up(generation)
            except PreloadError as error:
                if self.is_optional and not error.usage:
                    told.append(error)
                    continue
                for later in self.teardown():
                    error.detail = f"{error.detail}\nThen {later.args[0]}".lstrip()
                raise
            except BaseException:
                self.teardown()
                raise
        return told

    def teardown(self) -> list[PreloadError]:
        """Run every ``dask_teardown`` that is owed, in reverse, each within its limit; return what went wrong."""
        if self.phase is ReloadPhase.SWAPPED:
            self.commit()
        deadline = time.monotonic() + self.teardowns_s
        told: list[PreloadError] = []
        interrupt: BaseException | None = None
        owed = [generation for index, running in enumerate(self._running) for generation in (running, self._next.get(index))]
        for generation in reversed(owed):
            limit_s = max(_LAST_MOMENT_S, min(self.teardown_s, deadline - time.monotonic()))
            try:
                told += self._tear_down(generation, limit_s) if generation is not None else []
            except KeyboardInterrupt as error:
                interrupt = error
        self._end_reload()
        if left := self._hooks.close():
            told.append(PreloadError(f"the preloads in {self.process}: {left}", process=self.process))
        if interrupt is not None:
            raise interrupt
        return told

    # ── a reload ─────────────────────────────────────────────────────────────

    def prepare(self, sources: Mapping[int, Source]) -> None:
        """Run new bodies beside the running ones, by their place in the list, and no hook.

        Helpers that the sources carry are run afresh where their code differs from what runs,
        and so is whatever imports them. On failure everything is as before.
        """
        if self.phase is ReloadPhase.SWAPPED:
            self.commit()
        self.discard()
        assert self.phase is ReloadPhase.IDLE, "a swap that failed is rolled back before the next reload"
        order = sorted(sources)
        loading = self._new_loading([sources[index] for index in order], [sources[index] for index in order])
        prepared: dict[int, Generation] = {}
        try:
            with standing_in(), loading.active():
                for index in order:
                    source = sources[index]
                    module = self._run_body(loading, source) if source.hash else self._running[index].module
                    prepared[index] = Generation(source, module)
                    self._check_kept(prepared[index])
        except BaseException as error:
            _name_helpers(error, tuple(sources.values()))
            raise
        self._next, self._loading, self.phase = prepared, loading, ReloadPhase.LOADED

    def swap(self) -> list[PreloadError]:
        """Tear down the old generations, publish the prepared ones and set those up.

        Returns what old teardowns raised, which does not stop the swap. A new setup that
        fails raises ``PreloadError``, and ``roll_back`` is then the way out.
        """
        assert self.phase is ReloadPhase.LOADED and self._loading is not None, f"nothing is loaded to swap to: {self.phase.value}"
        self.phase = ReloadPhase.FAILED  # until it has worked
        told = []
        for index in reversed(sorted(self._next)):
            if not self._takes_over(self._next[index]):
                told += self._tear_down(self._running[index], self.teardown_s)
        self._loading.publish()
        for index in sorted(self._next):
            old, new = self._running[index], self._next[index]
            self._keep(old, new)
            if old.is_set_up:
                self._hand_over(old, new)
            else:
                self._set_up(new)
        self.phase = ReloadPhase.SWAPPED
        return told

    def roll_back(self) -> list[PreloadError]:
        """Be as before ``prepare``, from wherever the reload has come.

        Returns what new teardowns raised. Every old setup that is owed is run, also after
        one failed; the first failure is raised, and this process is then not what it was.
        """
        if self._loading is None or self.phase is ReloadPhase.LOADED:
            self.discard()
            return []
        told: list[PreloadError] = []
        failures: list[PreloadError] = []
        order = sorted(self._next)
        for index in reversed(order):
            old, new = self._running[index], self._next[index]
            if not (new.took_over and self._takes_over(old)):
                told += self._tear_down(new, self.teardown_s)
        self._loading.withdraw()
        for index in order:
            old, new = self._running[index], self._next[index]
            try:
                if new.is_set_up:
                    self._hand_over(new, old)
            except PreloadError as error:
                told += [error, *self._tear_down(new, self.teardown_s)]
            try:
                if not old.is_set_up:
                    self._set_up(old)
            except PreloadError as error:
                failures.append(error)
        self._end_reload()
        if failures:
            raise failures[0]
        return told

    def discard(self) -> None:
        """Forget what was prepared. Nothing of it was published, and no hook ran."""
        if self.phase is ReloadPhase.LOADED:
            self._end_reload()

    def commit(self) -> None:
        """Let the old generations go: every process swapped."""
        if self.phase is ReloadPhase.SWAPPED:
            for index, generation in self._next.items():
                self._running[index] = generation
            self._end_reload()

    def _end_reload(self) -> None:
        self._next, self._loading, self.phase = {}, None, ReloadPhase.IDLE

    # ── single steps ─────────────────────────────────────────────────────────

    def _set_up(self, generation: Generation) -> None:
        hook = self._hook(generation, "dask_setup")

        def begin() -> None:
            generation.is_set_up = True  # begun is owed, whatever comes of it

        if hook is None:
            begin()
        else:
            self._call(generation, hook, "dask_setup", self.setup_s, begin)

    def _tear_down(self, generation: Generation, timeout_s: float) -> list[PreloadError]:
        if not generation.is_set_up:
            return []
        generation.is_set_up = generation.took_over = False
        try:
            hook = self._hook(generation, "dask_teardown")
            if hook is not None:
                self._call(generation, hook, "dask_teardown", timeout_s)
        except PreloadError as error:
            return [error]
        return []

    def _takes_over(self, successor: Generation) -> bool:
        return getattr(successor.module, "dask_reload", None) is not None

    def _hand_over(self, old: Generation, new: Generation) -> None:
        """Let ``dask_reload`` of ``new`` take what ``old`` set up. If it raises, ``old`` still has it."""
        hook = self._hook(new, "dask_reload")

        def reload(service: Any) -> Any:
            return hook(service, old.module)

        self._call(new, reload, "dask_reload", self.setup_s)
        old.is_set_up = old.took_over = False
        new.is_set_up = new.took_over = True

    def _call(self, generation: Generation, hook: Any, did: str, timeout_s: float, begin: Callable[[], None] = lambda: None) -> None:
        """Call a hook; ``begin`` is called once nothing is left but to run it: a wrong option of its own ends before."""
        source = generation.source
        name = HookName(source.label, did, source.path, self.process)
        finder = self._new_loading([source], [source])
        with standing_in(), finder.finding():
            call = self._hooks.bind(hook, self.service, name=name, argv=source.argv)
            begin()

            def run() -> Any:
                finder.on_this_thread()
                return call()

            try:
                self._run(run, name, timeout_s)
            except PreloadError as error:
                _name_helpers(error, [source])
                raise

    def _hook(self, generation: Generation, did: str) -> Any:
        hook = getattr(generation.module, did, None)
        if hook is None or callable(hook):
            return hook
        label = generation.source.label
        text = f"the preload {label} failed in {self.process}: {did} is {hook!r:.80}, and not a function; give it another name"
        raise PreloadError(text, preload=label, process=self.process, where=generation.source.path)

    def _check_kept(self, generation: Generation) -> None:
        names = getattr(generation.module, "KEEP", ())
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            label = generation.source.label
            text = f"the preload {label} failed in {self.process}: KEEP is {names!r:.80}; write a tuple of names, like KEEP = ('model',)"
            raise PreloadError(text, preload=label, process=self.process, where=generation.source.path)

    def _keep(self, old: Generation, new: Generation) -> None:
        for name in getattr(new.module, "KEEP", ()):
            if hasattr(old.module, name):
                setattr(new.module, name, getattr(old.module, name))

    # ── what the bodies import ───────────────────────────────────────────────

    @property
    def helpers(self) -> dict[str, str]:
        """The user's own modules that these preloads import, by name, and where they lie."""
        return {helper.module_name: helper.path for generation in self._running for helper in self.helpers_of(generation.source)}

    def helpers_of(self, source: Source) -> tuple[Helper, ...]:
        """Return the user's own modules that a preload imports, as they are published now."""
        own = {generation.source.module_name for generation in self._running}
        return tuple(
            helper_as_published(name)
            for name in sorted(import_graph.reach(source.module_name) - own - {source.module_name})
            if name in import_graph.helpers
        )


def _is_imported_already(source: Source) -> bool:
    """Whether a module preload was imported in this process by the user's own code: it is then used as it is."""
    return source.kind == "module" and source.module_name in sys.modules and not shipped_hash(source.module_name)


def folders_of(source: Source) -> list[str]:
    """Return the folder from which a preload's own imports come."""
    if not source.is_watched:
        return []
    folder = os.path.dirname(source.path)
    if source.kind == "module":
        n_up = source.module_name.count(".") + os.path.basename(source.path).startswith("__init__.")
        for _ in range(n_up):
            folder = os.path.dirname(folder)
    return [folder]


def stale_modules(sources: Sequence[Source]) -> set[str]:
    """Return the modules in the way of helpers that are shipped with other code than ran here, and all above them."""
    changed = set()
    for source in sources:
        for helper in source.helpers:
            ran = shipped_hash(helper.module_name) or helper_as_published(helper.module_name).hash
            if helper.hash and ran and ran != helper.hash and helper.module_name in sys.modules:
                changed.add(helper.module_name)
    return {name for name in import_graph.importers(changed) if name in changed or name in import_graph.helpers}


def _name_helpers(error: BaseException, sources: Sequence[Source]) -> None:
    """Name in a preload's error the files whose change may mend it."""
    if isinstance(error, PreloadError):
        reached = {name for source in sources for name in import_graph.reach(source.module_name)}
        error.helpers = tuple(sorted({import_graph.helpers[name].path for name in reached if name in import_graph.helpers}))
