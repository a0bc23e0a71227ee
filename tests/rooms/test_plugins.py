"""Plugins: by shape, in order, ended in reverse, told once, and free where nobody asks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from localdask.errors import UsageError
from localdask.preloads.plugins import NannyPlugin, Plugins, SchedulerPlugin, WorkerPlugin, plugin_kind, plugin_name

LOG: list[Any] = []
TOLD: list[str] = []


@pytest.fixture(autouse=True)
def empty_logs() -> None:
    LOG.clear()
    TOLD.clear()


def make(kind: str, **limits: float) -> Plugins:
    return Plugins(f"the {kind}", kind, "w0", report=TOLD.append, **limits)


@pytest.fixture
def workers() -> Iterator[Plugins]:
    plugins = make("worker", setup_s=10, teardown_s=10)
    yield plugins
    plugins.end()


class Logs:
    """A worker's plugin that inherits from nothing."""

    def __init__(self, name: str) -> None:
        self.who = name

    def setup(self, worker: Any) -> None:
        LOG.append(("setup", self.who, worker))

    def teardown(self, worker: Any) -> None:
        LOG.append(("teardown", self.who, worker))

    def transition(self, key: str, start: str, finish: str, **kwargs: Any) -> str:
        LOG.append((self.who, key, start, finish))
        return self.who


class Waits(WorkerPlugin):
    async def setup(self, worker: Any) -> None:
        self.session = asyncio.ensure_future(asyncio.sleep(1000))
        await asyncio.sleep(0)
        LOG.append("waited")

    async def teardown(self, worker: Any) -> None:
        self.session.cancel()
        LOG.append("ended")


# ── coming and going ─────────────────────────────────────────────────────────


def test_plugins_begin_in_order_and_end_in_reverse_and_get_their_service(workers: Plugins) -> None:
    assert workers.add("a", Logs("a")) and workers.add("b", Logs("b"))
    workers.end()
    order = [("setup", "a"), ("setup", "b"), ("teardown", "b"), ("teardown", "a")]
    assert [(what, who, "the worker") for what, who in order] == LOG
    workers.end()
    assert len(LOG) == 4


def test_a_registry_is_a_mapping_in_order_of_registration(workers: Plugins) -> None:
    first, second = Logs("1"), Logs("2")
    workers.add("z", first)
    workers.add("a", second)
    assert list(workers) == ["z", "a"] and workers["a"] is second and "z" in workers and len(workers) == 2


def test_replacing_ends_the_old_one_first(workers: Plugins) -> None:
    workers.add("same", Logs("old"))
    assert workers.add("same", Logs("new"))
    assert [entry[:2] for entry in LOG] == [("setup", "old"), ("teardown", "old"), ("setup", "new")]


@pytest.mark.parametrize("how", ["idempotent", "keep_old"])
def test_one_that_is_idempotent_or_to_be_kept_changes_nothing(workers: Plugins, how: str) -> None:
    old, new = Logs("old"), Logs("new")
    new.idempotent = how == "idempotent"  # type: ignore[attr-defined]
    workers.add("same", old)
    assert not workers.add("same", new, keep_old=how == "keep_old")
    assert workers["same"] is old and len(LOG) == 1


def test_one_that_cannot_be_set_up_raises_as_it_is_and_is_not_registered(workers: Plugins) -> None:
    class Fails(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            raise ConnectionError("refused")

    with pytest.raises(ConnectionError, match="refused"):
        workers.add("fails", Fails())
    assert "fails" not in workers and TOLD == []


def test_one_that_hangs_is_given_up_with_its_stack() -> None:
    release = threading.Event()

    class Hangs:
        def setup(self, worker: Any) -> None:
            while not release.is_set():
                pass

        teardown = setup

    plugins = make("worker", setup_s=0.1, teardown_s=0.1)
    with pytest.raises(TimeoutError, match=r"the plugin hangs in w0 was not set up within 0\.1 s(.|\n)*in setup"):
        plugins.add("hangs", Hangs())
    release.set()
    plugins.add("hangs", Hangs())
    release.clear()
    plugins.end()
    assert "the plugin hangs failed in w0" in TOLD[0] and "still running" in TOLD[0]


def test_removing_what_is_not_there_names_what_is(workers: Plugins) -> None:
    workers.add("one", Logs("1"))
    with pytest.raises(UsageError, match="no plugin is named 'two'.*: one"):
        workers.remove("two")
    assert workers.remove("one").who == "1" and LOG[-1][0] == "teardown"


def test_an_end_that_raises_is_told_and_the_others_still_end(workers: Plugins) -> None:
    class Grumbles:
        def teardown(self, worker: Any) -> None:
            raise OSError("busy")

    workers.add("a", Logs("a"))
    workers.add("grumbles", Grumbles())
    workers.end()
    assert LOG[-1][:2] == ("teardown", "a")
    assert len(TOLD) == 1 and "the plugin grumbles failed in w0" in TOLD[0] and "busy" in TOLD[0] and "test_plugins.py" in TOLD[0]


def test_asynchronous_plugins_keep_what_they_opened(workers: Plugins) -> None:
    workers.add("waits", Waits())
    workers.end()
    assert LOG == ["waited", "ended"] and TOLD == []


def test_a_nanny_plugin_is_given_its_nanny_by_keyword() -> None:
    class Pins(NannyPlugin):
        def setup(self, nanny: Any) -> None:
            LOG.append(nanny)

    plugins = make("nanny")
    plugins.add("pins", Pins())
    plugins.end()
    assert LOG == ["the nanny"]


def test_a_scheduler_plugin_is_started_and_closed() -> None:
    class Watches(SchedulerPlugin):
        async def start(self, scheduler: Any) -> None:
            LOG.append(("start", scheduler))

        async def before_close(self) -> None:
            LOG.append("before_close")

        async def close(self) -> None:
            LOG.append("close")

        async def add_worker(self, scheduler: Any, worker: str) -> None:
            LOG.append((scheduler, worker))

    plugins = make("scheduler")
    plugins.add("watches", Watches())
    plugins.notify("add_worker", "the scheduler", "local://a")
    plugins.notify("before_close")
    plugins.end()
    assert LOG == [("start", "the scheduler"), ("the scheduler", "local://a"), "before_close", "close"]


# ── being notified ───────────────────────────────────────────────────────────


def test_every_plugin_that_asks_is_notified_in_order(workers: Plugins) -> None:
    workers.add("b", Logs("b"))
    workers.add("quiet", Waits())
    workers.add("a", Logs("a"))
    LOG.clear()
    assert workers.notify("transition", "key", "ready", "executing", worker=1) == ["b", "a"]
    assert LOG == [("b", "key", "ready", "executing"), ("a", "key", "ready", "executing")]


def test_hooks_that_do_nothing_are_not_called_and_the_answer_is_cached(workers: Plugins) -> None:
    workers.add("quiet", WorkerPlugin())
    assert workers.hooks("transition") == ()
    assert workers.hooks("transition") is workers.hooks("transition")
    workers.add("loud", Logs("loud"))
    assert len(workers.hooks("transition")) == 1
    workers.remove("loud")
    assert workers.hooks("transition") == ()


@pytest.mark.parametrize("base", [WorkerPlugin, NannyPlugin, SchedulerPlugin])
def test_the_base_classes_of_dask_cost_nothing_either(workers: Plugins, base: type) -> None:
    """A twin of Dask's class: its name, its module, and hooks that do nothing. (With distributed itself it was tried by hand.)"""
    module: dict[str, Any] = {"__name__": "distributed.diagnostics.plugin"}
    hooks = "\n".join(f"    def {name}(self, *args, **kwargs): pass" for name, value in vars(base).items() if callable(value))
    exec(f"class {base.__name__}:\n    idempotent = False\n{hooks}", module)
    theirs = type("Mine", (module[base.__name__],), {})()
    assert plugin_kind(theirs) == base.__name__.removesuffix("Plugin").lower()
    workers.add("theirs", theirs)
    assert workers.hooks("transition") == ()


def test_what_a_notified_hook_raises_is_told_once_for_each_plugin_and_hook(workers: Plugins) -> None:
    class Fails:
        def transition(self, *arguments: Any, **kwargs: Any) -> None:
            raise ValueError("planted")

        def release_key(self, key: str) -> None: ...

    workers.add("one", Fails())
    workers.add("two", Fails())
    workers.add("good", Logs("good"))
    for _ in range(3):
        assert workers.notify("transition", "key", "ready", "memory") == ["good"]
        workers.notify("release_key", "key", "memory", cause=None)
    assert len(TOLD) == 4
    assert "the plugin one in w0: transition raised ValueError: planted" in TOLD[0] and "test_plugins.py" in TOLD[0]
    assert "release_key raised TypeError" in TOLD[2]
    workers.add("one", Fails())
    workers.notify("transition", "key", "ready", "memory")
    assert len(TOLD) == 5, "a new plugin of that name is told of again"


def test_what_hooks_return_is_handed_back() -> None:
    class Keeps:
        def valid_workers_downscaling(self, scheduler: Any, workers: list[str]) -> list[str]:
            return workers[1:]

    plugins = make("scheduler")
    plugins.add("keeps", Keeps())
    assert plugins.notify("valid_workers_downscaling", None, ["a", "b"]) == [["b"]]
    plugins.end()


# ── whose plugin, and its name ───────────────────────────────────────────────


def test_whose_plugin_it_is_is_told_by_its_shape() -> None:
    class ForNanny:
        def setup(self, nanny: Any = None) -> None: ...

    class ForScheduler:
        def add_worker(self, scheduler: Any = None, worker: Any = None) -> None: ...

    class Transitions:
        def transition(self, *arguments: Any) -> None: ...

    kinds = [plugin_kind(plugin) for plugin in (ForNanny(), ForScheduler(), Transitions(), Logs("x"), WorkerPlugin(), SchedulerPlugin())]
    assert kinds == ["nanny", "scheduler", "worker", "worker", "worker", "scheduler"]
    with pytest.raises(UsageError, match="none of the hooks"):
        plugin_kind(object())


def test_a_plugins_name_is_the_given_one_its_own_or_made_up() -> None:
    plugin = Logs("x")
    assert plugin_name(plugin, "given") == "given"
    assert plugin_name(plugin).startswith("Logs-") and plugin_name(plugin) != plugin_name(plugin)
    plugin.name = "own"  # type: ignore[attr-defined]
    assert plugin_name(plugin) == "own"


@pytest.mark.parametrize(
    ("base", "hooks"),
    [
        (WorkerPlugin, "setup teardown transition release_key release_dep"),
        (NannyPlugin, "setup teardown"),
        (
            SchedulerPlugin,
            "start before_close close update_graph restart transition add_worker remove_worker add_client remove_client "
            "valid_workers_downscaling log_event",
        ),
    ],
)
def test_the_base_classes_have_every_hook_of_dask_each_with_its_documentation(base: type, hooks: str) -> None:
    assert {name for name in vars(base) if not name.startswith("_")} - {"idempotent", "restart" if base is NannyPlugin else ""} == set(
        hooks.split()
    )
    assert all(getattr(base, name).__doc__ for name in hooks.split())
    assert base.idempotent is False  # type: ignore[attr-defined]
