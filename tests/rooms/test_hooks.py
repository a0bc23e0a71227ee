"""Hooks of every shape, their time limits, and what their failures are called."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest

from localdask.errors import PreloadError
from localdask.preloads.hooks import HookCaller, HookName
from localdask.preloads.limits import LimitPassed, run_within
from tests.conftest import wait_until

NAME = HookName("x.py", "dask_setup", __file__, "w0")


@pytest.fixture
def caller() -> Iterator[HookCaller]:
    caller = HookCaller()
    yield caller
    caller.close()


def somewhere(thread: str, call: Callable[[], Any]) -> Any:
    """Run a call in the main thread, in another thread, or in the main thread of a running event loop."""
    if thread == "main":
        return call()
    if thread == "event loop":

        async def inside() -> Any:
            return call()

        return asyncio.run(inside())
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            results.append(error)

    other = threading.Thread(target=run)
    other.start()
    other.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


everywhere = pytest.mark.parametrize("thread", ["main", "other", "event loop"])


# ── shapes ───────────────────────────────────────────────────────────────────


def plain(service: list[Any]) -> None:
    service.append("plain")


async def coroutine(service: list[Any]) -> None:
    await asyncio.sleep(0)
    service.append("coroutine")


def returns_awaitable(service: list[Any]) -> Any:
    return coroutine(service)


@click.command()
@click.option("--count", default=1)
@click.argument("words", nargs=-1)
def command(service: list[Any], count: int, words: tuple[str, ...]) -> None:
    service.append(("command", count, words))


@click.command()
@click.option("--count", default=1)
async def async_command(service: list[Any], count: int) -> None:
    await asyncio.sleep(0)
    service.append(("async command", count, click.get_current_context().params))


@click.option("--print-count/--no-print-count", default=False)
def options_only(service: list[Any], print_count: bool) -> None:
    service.append(("options only", print_count))


@everywhere
@pytest.mark.parametrize(
    ("hook", "argv", "expected"),
    [
        (plain, ["--ignored"], "plain"),
        (coroutine, [], "coroutine"),
        (returns_awaitable, [], "coroutine"),
        (command, [], ("command", 1, ())),
        (command, ["--count", "3", "a", "b"], ("command", 3, ("a", "b"))),
        (async_command, ["--count", "3"], ("async command", 3, {"count": 3})),
        (options_only, ["--print-count"], ("options only", True)),
    ],
)
def test_a_hook_of_any_shape_is_called_with_its_service(caller: HookCaller, thread: str, hook: Any, argv: list[str], expected: Any) -> None:
    for _ in range(2):
        service: list[Any] = []
        somewhere(thread, lambda: caller.call(hook, service, name=NAME, timeout_s=10, argv=argv))
        assert service == [expected]


def test_a_command_that_asks_for_its_context_gets_it_before_the_service(caller: HookCaller) -> None:
    @click.command()
    @click.pass_context
    def with_context(context: click.Context, service: list[Any]) -> None:
        service.append(context.info_name)

    service: list[Any] = []
    caller.call(with_context, service, name=NAME, timeout_s=10)
    assert service == ["localdask … x.py"]


def test_what_an_asynchronous_hook_started_lives_until_the_next_one(caller: HookCaller) -> None:
    async def setup(service: dict[str, Any]) -> None:
        service["event"] = asyncio.Event()
        service["task"] = asyncio.ensure_future(service["event"].wait())

    async def teardown(service: dict[str, Any]) -> None:
        service["event"].set()
        service["result"] = await service["task"]

    service: dict[str, Any] = {}
    caller.call(setup, service, name=NAME, timeout_s=10)
    caller.call(teardown, service, name=NAME, timeout_s=10)
    assert service["result"] is True


def test_closing_cancels_what_asynchronous_hooks_left_running() -> None:
    caller = HookCaller()
    ended: list[str] = []

    async def background() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("cancelled")

    async def setup(service: Any) -> None:
        service.append(asyncio.ensure_future(background()))
        await asyncio.sleep(0)

    caller.call(setup, [], name=NAME, timeout_s=10)
    assert caller.close() == ""
    assert ended == ["cancelled"]
    assert caller.close() == ""


def test_asyncio_and_click_are_imported_only_by_hooks_that_need_them() -> None:
    import subprocess

    code = (
        "import sys; from localdask.preloads.generations import Preloads; from localdask.preloads.hooks import *;"
        "HookCaller().call(print, 1, name=HookName('x', 'y'), timeout_s=9);"
        "print({'asyncio', 'click', 'urllib.request', 'ast'} & sys.modules.keys() - {'ast'})"
    )
    assert subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True).stdout == "1\nset()\n"


# ── usage ────────────────────────────────────────────────────────────────────


def usage(caller: HookCaller, hook: Any, *argv: str) -> PreloadError:
    with pytest.raises(PreloadError) as caught:
        caller.call(hook, [], name=NAME, timeout_s=10, argv=argv)
    return caught.value


def test_a_wrong_option_is_a_usage_error_with_the_programs_name(caller: HookCaller) -> None:
    error = usage(caller, command, "--bogus")
    assert (error.exit_code, error.usage, error.process) == (2, True, "w0")
    assert str(error).startswith("Usage: localdask … x.py [OPTIONS] [WORDS]...\nTry 'localdask … x.py --help'")
    assert "No such option" in str(error) and "--bogus" in str(error)


@pytest.mark.parametrize("argv", [["--count", "three"], ["--count"]])
def test_a_bad_value_is_a_usage_error(caller: HookCaller, argv: list[str]) -> None:
    assert usage(caller, command, *argv).exit_code == 2


def test_extra_arguments_are_a_usage_error(caller: HookCaller) -> None:
    error = usage(caller, async_command, "surplus")
    assert error.exit_code == 2 and "surplus" in str(error)


def test_a_usage_error_of_the_callback_is_one_too(caller: HookCaller) -> None:
    @click.command()
    def picky(service: Any) -> None:
        raise click.BadParameter("not on a Sunday")

    assert "not on a Sunday" in str(usage(caller, picky)) and usage(caller, picky).exit_code == 2


def test_help_is_an_error_that_carries_the_help_and_exit_code_zero(caller: HookCaller, capsys: pytest.CaptureFixture[str]) -> None:
    error = usage(caller, command, "--help")
    assert error.exit_code == 0 and "--count INTEGER" in str(error)
    assert capsys.readouterr().out == ""


def test_a_group_is_refused_with_the_reason(caller: HookCaller) -> None:
    @click.group()
    def several() -> None: ...

    error = usage(caller, several)
    assert "click group" in str(error) and error.exit_code == 2


def test_a_command_that_exits_with_zero_returned_and_with_more_failed(caller: HookCaller) -> None:
    @click.command()
    @click.argument("code", type=int)
    @click.pass_context
    def leaves(context: click.Context, service: Any, code: int) -> None:
        context.exit(code)

    caller.call(leaves, [], name=NAME, timeout_s=10, argv=["0"])
    assert usage(caller, leaves, "3").exit_code == 5


# ── failures ─────────────────────────────────────────────────────────────────


def raises(error: BaseException) -> Callable[[Any], None]:
    def hook(service: Any) -> None:
        raise error

    return hook


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("refused"), "dask_setup raised ConnectionError: refused at"),
        (SystemExit(3), "dask_setup called sys.exit(3) at"),
        (SystemExit(), "dask_setup called sys.exit() at"),
        (GeneratorExit(), "dask_setup raised GeneratorExit at"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "install torch, or put torch.py beside"),
        (Unprintable(), "dask_setup raised Unprintable: <its str() raised RuntimeError>"),
        (ValueError("a\nb" + "c" * 9999), "dask_setup raised ValueError: a at"),
    ],
)
def test_whatever_a_hook_raises_becomes_one_error_that_says_where(caller: HookCaller, error: BaseException, words: str) -> None:
    failure = usage(caller, raises(error))
    assert str(failure).startswith("the preload x.py failed in w0: ")
    assert words in failure.args[0]
    line = raises.__code__.co_firstlineno + 2
    assert failure.where == f"{__file__}:{line}"
    assert (failure.preload, failure.process, failure.exit_code) == ("x.py", "w0", 5)
    assert "localdask/preloads" not in failure.detail


def test_a_hook_that_cannot_be_called_with_its_service_is_told_in_one_line(caller: HookCaller) -> None:
    def forgets_the_service() -> None: ...

    with pytest.raises(PreloadError) as caught:
        caller.call(forgets_the_service, None, name=NAME, timeout_s=5)
    assert "takes 0 positional arguments but 1 was given" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_interrupt_from_the_keyboard_passes_through(caller: HookCaller) -> None:
    with pytest.raises(KeyboardInterrupt):
        caller.call(raises(KeyboardInterrupt()), [], name=NAME, timeout_s=10)


# ── limits ───────────────────────────────────────────────────────────────────


def spins(service: threading.Event) -> None:
    while not service.is_set():
        time.monotonic()


def stubborn(service: threading.Event) -> None:
    for _ in range(2):
        try:
            while not service.is_set():
                time.monotonic()
        except BaseException:
            continue


async def awaits(service: threading.Event) -> None:
    await inner_wait(service)


async def inner_wait(service: threading.Event) -> None:
    while not service.is_set():
        await asyncio.sleep(0.01)


async def spins_in_coroutine(service: threading.Event) -> None:
    spins(service)


@everywhere
@pytest.mark.parametrize(
    ("hook", "innermost"), [(spins, "spins"), (awaits, "inner_wait"), (spins_in_coroutine, "spins"), (stubborn, "stubborn")]
)
def test_a_hook_past_its_limit_fails_with_its_stack(caller: HookCaller, thread: str, hook: Any, innermost: str) -> None:
    release = threading.Event()
    with pytest.raises(PreloadError) as caught:
        somewhere(thread, lambda: caller.call(hook, release, name=NAME, timeout_s=0.1))
    release.set()
    assert "dask_setup was still running after 0.1 s" in caught.value.args[0]
    assert f"in {innermost}\n" in caught.value.detail and f"in {hook.__name__}\n" in caught.value.detail
    assert caught.value.where.startswith(f"{__file__}:")
    assert "localdask/preloads" not in caught.value.detail
    service: list[Any] = []
    caller.call(coroutine, service, name=NAME, timeout_s=10)
    assert service == ["coroutine"], "the caller is usable afterwards"


def test_a_limit_puts_back_the_handler_and_timer_of_others() -> None:
    rings: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda number, frame: rings.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        with pytest.raises(LimitPassed):
            run_within(0.05, lambda: spins(threading.Event()))
        deadline = time.monotonic() + 30
        while not rings and time.monotonic() < deadline:
            signal.sigtimedwait([], 0) if hasattr(signal, "sigtimedwait") else None
        assert rings == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_a_hook_that_returns_in_time_leaves_no_alarm() -> None:
    before = signal.getsignal(signal.SIGALRM)
    assert run_within(10, lambda: 7) == 7
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == before


def test_a_limit_holds_also_within_another_and_after_it() -> None:
    def outer() -> None:
        with pytest.raises(LimitPassed):
            run_within(0.02, lambda: spins(threading.Event()))
        spins(threading.Event())

    with pytest.raises(LimitPassed):
        run_within(0.1, outer)


def test_a_hook_sees_the_context_variables_of_its_caller_in_any_thread(caller: HookCaller) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    def call() -> str:
        variable.set("set")
        return caller.run(variable.get, name=NAME, timeout_s=10)

    assert contextvars.copy_context().run(call) == "set"
    assert somewhere("other", call) == "set"


# ── what asynchronous hooks leave going ──────────────────────────────────────


def test_a_task_that_an_asynchronous_hook_starts_goes_on_until_the_end(caller: HookCaller) -> None:
    beats: list[int] = []
    ended: list[str] = []

    async def beat() -> None:
        try:
            while True:
                beats.append(len(beats))
                await asyncio.sleep(0.001)
        finally:
            ended.append("cancelled")

    class Service:
        task: asyncio.Task[None]

    async def dask_setup(service: Service) -> None:
        service.task = asyncio.get_running_loop().create_task(beat())

    async def dask_teardown(service: Service) -> None:
        assert not service.task.done()
        service.task.cancel()
        await asyncio.wait([service.task])

    service = Service()
    caller.call(dask_setup, service, name=NAME, timeout_s=10)
    wait_until(lambda: len(beats) > 5)
    caller.call(dask_teardown, service, name=NAME, timeout_s=10)
    assert ended == ["cancelled"] and not turners()
    n_beats = len(beats)
    assert caller.close() == "" and len(beats) == n_beats


def test_a_server_that_an_asynchronous_hook_opens_answers_between_hooks(caller: HookCaller) -> None:
    class Service:
        server: asyncio.Server

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    async def dask_setup(service: Service) -> None:
        service.server = await asyncio.start_server(answer, "127.0.0.1", 0)

    async def dask_teardown(service: Service) -> None:
        service.server.close()
        await service.server.wait_closed()

    service = Service()
    caller.call(dask_setup, service, name=NAME, timeout_s=10)
    with socket.create_connection(service.server.sockets[0].getsockname(), timeout=10) as connection:
        connection.sendall(b"hello\n")
        assert connection.makefile().readline() == "hello\n"
    caller.call(dask_teardown, service, name=NAME, timeout_s=10)
    assert caller.close() == ""


def test_without_anything_left_going_there_is_no_thread(caller: HookCaller) -> None:
    async def dask_setup(service: object) -> None:
        await asyncio.sleep(0)

    caller.call(dask_setup, object(), name=NAME, timeout_s=10)
    assert not turners()


def test_closing_ends_what_still_goes_on(caller: HookCaller) -> None:
    ended: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("cancelled")

    tasks = []

    async def dask_setup(service: object) -> None:
        tasks.append(asyncio.get_running_loop().create_task(wait()))
        await asyncio.sleep(0)

    caller.call(dask_setup, object(), name=NAME, timeout_s=10)
    assert turners()
    assert caller.close() == "" and ended == ["cancelled"] and not turners()


def turners() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "localdask-async-hooks"]
