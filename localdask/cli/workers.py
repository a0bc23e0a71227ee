"""``scale``, ``restart``, ``exec`` and ``stacks``: what is done to, and asked of, the workers of a running cluster.

Runs in the user's process; the work is done by the cluster, and by its workers.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from localdask.api.client import Client
from localdask.api.stacks import shown_stacks
from localdask.cli.listing import format_option, to_json
from localdask.cli.talk import escape, log_line, plural, wants_colour
from localdask.cli.targets import choose
from localdask.cli.verbs import Verb
from localdask.cli.visits import ANSWER_S, cluster_option, visit
from localdask.errors import UsageError
from localdask.sizing import parse_duration
from localdask.system import codec, outcomes

__all__ = ["execute", "restart", "scale", "stacks"]

EXIT_FAILED = 1
EXIT_NOT_READY = 4
EXIT_SOME = 6
#: How often it is looked whether workers have come.
LOOK_S = 0.03


def _rows(client: Client) -> list[Mapping[str, Any]]:
    return list(client._ask("processes", timeout=ANSWER_S))


# ── scale ────────────────────────────────────────────────────────────────────


@click.command(
    "scale",
    cls=Verb,
    usage=("N|+N|-N",),
    examples=(("localdask scale 8", "eight workers"), ("localdask scale +2 --wait", "two more, and wait until they are there")),
    context_settings={"ignore_unknown_options": True},
    help="Change how many workers there are.",
)
@click.argument("number")
@cluster_option
@click.option("--wait", is_flag=True, help="Return when as many are there, with exit code 4 if they are not in time.")
@click.option("--timeout", metavar="TIME", default="60s", help="How long to wait. [default: 60s]")
def scale(number: str, cluster: str | None, wait: bool, timeout: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", number):
        raise UsageError(f"{number!r} is no number of workers; write for example 8, +2 or -1")
    with visit(cluster) as client:
        n = client._ask("scale", int(number), number[0] in "+-", timeout=ANSWER_S)
        deadline = time.monotonic() + (parse_duration(timeout) or 0.0)
        while wait and (there := client.scheduler_info()["n_workers"]) != n:
            if time.monotonic() > deadline:
                print(f"error: {there} of {plural(n, 'worker')} are there after {timeout}", file=sys.stderr)
                return EXIT_NOT_READY
            time.sleep(LOOK_S)
    print(f"{plural(n, 'worker')} {('is there' if n == 1 else 'are there') if wait else 'asked for'}", file=sys.stderr)
    return 0


# ── restart ──────────────────────────────────────────────────────────────────


@click.command(
    "restart",
    cls=Verb,
    usage=("WORKER...",),
    examples=(
        ("localdask restart w0", "one worker"),
        ("localdask restart 'w*'", "every worker, one after the other"),
        ("localdask restart all --at-once", "the same, without the patience"),
    ),
    help="Replace workers (w0, w0-w3, 'w*', a pid, all) or nannies (n0). Their tasks run again elsewhere.",
)
@click.argument("targets", nargs=-1, required=True)
@cluster_option
@click.option("--at-once", is_flag=True, help="All together instead of one after the other.")
@click.option("--grace", metavar="TIME", default="8s", help="What running tasks are given. [default: 8s]")
@click.option("--timeout", metavar="TIME", default="60s", help="How long each may take to be back. [default: 60s]")
def restart(targets: tuple[str, ...], cluster: str | None, at_once: bool, grace: str, timeout: str) -> int:
    with visit(cluster) as client:
        names = [row["name"] for row in choose(targets, _rows(client))]
        left = client._ask("restart_workers", names, not at_once, parse_duration(grace) or 0.0, parse_duration(timeout))
    back = [name for name in names if name not in left]
    if back:
        print(f"replaced {', '.join(back)}", file=sys.stderr)
    for name in left:
        print(f"error: {name} is not back after {timeout}; localdask logs {name} may say why", file=sys.stderr)
    return 0 if not left else EXIT_SOME if back else EXIT_FAILED


# ── exec ─────────────────────────────────────────────────────────────────────


def run_code(code: str, dask_worker: Any) -> tuple[str, str | None, str | None]:
    """Run code in a worker, which it finds as ``worker``; return what it printed, its last expression's repr, and its traceback."""
    import ast  # noqa: PLC0415 - only this needs it
    import traceback  # noqa: PLC0415 - the same

    tree = ast.parse(code, "<exec>")
    last = ast.Expression(tree.body.pop().value) if tree.body and isinstance(tree.body[-1], ast.Expr) else None  # type: ignore[attr-defined]
    names = {"__name__": "__exec__", "worker": dask_worker}
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, "<exec>", "exec"), names)
            value = None if last is None else eval(compile(last, "<exec>", "eval"), names)
            shown = None if value is None else repr(value)
    except BaseException as error:  # whatever the code raises is its answer
        trace = error.__traceback__
        return printed.getvalue(), None, "".join(traceback.format_exception(type(error), error, trace.tb_next if trace else None)).rstrip()
    return printed.getvalue(), shown, None


@click.command(
    "exec",
    cls=Verb,
    usage=("CODE", "[WORKER]..."),
    examples=(
        ("localdask exec 'import os; os.getpid()'", "in every worker; each one's last expression is shown"),
        ("localdask exec 'worker.connection' w0", "worker is the worker itself, as dask_setup left it"),
        ("localdask exec - w0 < look.py", "code from standard input"),
    ),
    help="Run code in workers, beside their tasks, and show each one's answer. Exit code 6 if it failed in some, 1 if in all.",
)
@click.argument("code")
@click.argument("targets", nargs=-1)
@cluster_option
@click.option("--timeout", metavar="TIME", default="30s", help="How long to wait for the answers. [default: 30s]")
@format_option("text", "json", "jsonl")
def execute(code: str, targets: tuple[str, ...], cluster: str | None, timeout: str, format: str) -> int:
    try:
        code = sys.stdin.read() if code == "-" else code
        compile(code, "<exec>", "exec", dont_inherit=True)
    except SyntaxError as error:
        where = "" if error.lineno is None else f", line {error.lineno}"
        raise UsageError(f"the code does not compile{where}: {error.msg}") from error
    except ValueError as error:
        raise UsageError(f"the code is no text: {error}") from error
    with visit(cluster) as client:
        names = [row["name"] for row in choose(targets, _rows(client), roles=("worker",))]
        call = codec.dumps((run_code, (code,), {}), "the code")
        asked = {name: client._ask_nowait("run", call, [name], True, False) for name in names}
        deadline = time.monotonic() + (parse_duration(timeout) or 0.0)
        rows = [_answer_row(name, answer, max(0.0, deadline - time.monotonic())) for name, answer in asked.items()]
    if format == "text":
        _write_answers(rows)
    else:
        sys.stdout.write(to_json(rows, format))
    n_failed = sum(row["error"] is not None for row in rows)
    return 0 if not n_failed else EXIT_FAILED if n_failed == len(rows) else EXIT_SOME


def _answer_row(name: str, answer: Any, timeout_s: float) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "printed": "", "value": None, "error": None}
    if not answer.wait(timeout_s):
        return {**row, "error": "it did not answer in time"}
    try:
        (outcome,) = answer.value().values()
        if outcome is None:
            return {**row, "error": "it died before it answered"}
        ended = outcomes.loads_outcome(outcome)
    except ValueError as error:  # it left between the two questions
        return {**row, "error": str(error)}
    if isinstance(ended, outcomes.Err):
        return {**row, "error": ended.traceback_text.rstrip() or repr(ended.exception)}
    printed, value, failure = ended.value
    return {**row, "printed": printed, "value": value, "error": failure}


def _write_answers(rows: Sequence[Mapping[str, Any]]) -> None:
    out, err = (wants_colour(stream, os.environ) for stream in (sys.stdout, sys.stderr))
    for row in rows:
        for line in [*row["printed"].splitlines(), *(row["value"] or "").splitlines()]:
            sys.stdout.write(log_line(row["name"], line, coloured=out) + "\n")
        for line in (row["error"] or "").splitlines():
            sys.stderr.write(log_line(row["name"], line, coloured=err) + "\n")
    sys.stdout.flush()


# ── stacks ───────────────────────────────────────────────────────────────────


@click.command(
    "stacks",
    cls=Verb,
    usage=("[WORKER]...",),
    examples=(
        ("localdask stacks", "what every thread of every worker does now"),
        ("localdask stacks w2", "of one, also when C code holds it"),
    ),
    help="Show what workers are doing, innermost call first. They show it on their stderr, so logs and up have it too.",
)
@click.argument("targets", nargs=-1)
@cluster_option
def stacks(targets: tuple[str, ...], cluster: str | None) -> int:
    with visit(cluster) as client:
        names = [row["name"] for row in choose(targets, _rows(client), roles=("worker",))]
        found = shown_stacks(client, names)
    coloured = wants_colour(sys.stdout, os.environ)
    for name in names:
        for line in found.get(name, ()):
            sys.stdout.write(log_line(name, line, coloured=coloured) + "\n")
    silent = [name for name in names if not found.get(name)]
    for name in silent:
        print(f"error: {escape(name)} shows no stack; it is starting, stopped, or its code took SIGUSR2", file=sys.stderr)
    return 0 if not silent else EXIT_FAILED if len(silent) == len(names) else EXIT_SOME
