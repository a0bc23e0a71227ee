"""The list of every public name in ``docs/api.md``, made from the code.

What stands between ``<!-- reference -->`` and ``<!-- end of reference -->`` is what ``localdask.__all__``
lists: functions, then each class with its public methods and attributes, then the errors; each with its
parameters and the first sentence of its docstring. ``python -m tests.house.reference`` renews it, and
``test_reference.py`` fails when it was not renewed.
"""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import FunctionType
from typing import Any

import localdask
from localdask import errors

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
PLACE = re.compile(r"(<!-- reference -->\n)(.*?)(<!-- end of reference -->)", re.DOTALL)
#: Public classes that nobody makes by name: whose methods give them. dotted name → which.
GIVEN = {"localdask.api.executor.ClientExecutor": "Client.get_executor"}


#: The same of classes that the package shows.
MADE_BY = {"Actor": "Client.submit(…, actor=True)", "ActorFuture": "a method of an Actor"}
#: The public names of ``distributed`` 2026.8, but for those that it keeps for its own parts: of the package, and of its classes.
DASK = {
    "distributed": "Actor ActorFuture BaseActorFuture Client CondaInstall Environ Event Future InstallPlugin KilledWorker LocalCluster "
    "Lock MultiLock NannyPlugin PipInstall Queue Reschedule SchedulerPlugin Semaphore UploadDirectory UploadFile Variable WorkerPlugin "
    "as_completed connect default_client fire_and_forget futures_of get_client get_task_metadata get_task_stream get_worker "
    "local_client performance_report print progress rejoin secede span sync wait warn worker_client",
    "Client": "amm as_current asynchronous benchmark_hardware call_stack cancel close compute current dashboard_link "
    "dump_cluster_state forward_logging futures_of gather get get_dataset get_events get_executor get_metadata get_scheduler_logs "
    "get_task_stream get_versions get_worker_logs has_what list_datasets log_event loop map nbytes ncores normalize_collection nthreads "
    "persist processing profile publish_dataset rebalance register_plugin register_worker_callbacks replicate restart restart_workers "
    "retire_workers retry run run_on_scheduler scatter scheduler_info set_metadata shutdown start story submit subscribe_topic sync "
    "unforward_logging unpublish_dataset unregister_scheduler_plugin unregister_worker_plugin unsubscribe_topic upload_file "
    "wait_for_workers who_has write_scheduler_file",
    "Future": "add_done_callback bind_client cancel cancelled client done exception executor key release result retry status "
    "substitute traceback type",
    "LocalCluster": "adapt asynchronous called_from_running_loop close dashboard_link from_name get_client get_logs loop name "
    "new_worker_spec observed plan requested scale scale_down scale_up scheduler_address start_worker sync wait_for_workers",
}
#: What instances of ours have and their classes do not show.
OF_INSTANCES = {"Client": {"futures_of"}, "LocalCluster": {"name"}, "Future": {"key"}}


def missing() -> dict[str, list[str]]:
    """Return which of Dask's names are not here, by where they are there."""
    found = {}
    for place, names in DASK.items():
        ours = set(localdask.__all__) if place == "distributed" else {*dir(getattr(localdask, place)), *OF_INSTANCES[place]}
        found[place] = [name for name in names.split() if name not in ours]
    return found


def first_sentence(thing: Any) -> str:
    """Return the first sentence of a docstring on one line, fit for a table."""
    paragraph = (inspect.getdoc(thing) or "").split("\n\n")[0]
    text = " ".join(paragraph.split())
    text = re.split(r"(?<=\.) (?=[A-Z`])", text)[0]
    return text.replace("|", "\\|").replace("``", "`")


def parameters(function: Any) -> str:
    """Return what a function is called with: names and defaults, without types, which the code has."""
    shown, starred = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self" or parameter.name.startswith("_"):
            continue
        text = parameter.name if parameter.default is parameter.empty else f"{parameter.name}={default(parameter.default)}"
        if parameter.kind is parameter.VAR_POSITIONAL:
            text, starred = "*" + text, True
        elif parameter.kind is parameter.VAR_KEYWORD:
            text = "**" + text
        elif parameter.kind is parameter.KEYWORD_ONLY and not starred:
            shown, starred = [*shown, "*"], True
        shown.append(text)
    return ", ".join(shown)


def default(value: Any) -> str:
    """Return a default as one writes it, the same on every Python."""
    return repr(value) if value is None or value == () or isinstance(value, (str, int, float)) else "…"


def members(kind: type) -> dict[str, Any]:
    """Return the public members of a class by name, as they stand in it or in a parent of ours that has no part of its own."""
    found: dict[str, Any] = {}
    for parent in reversed(kind.__mro__):
        is_shown = parent is not kind and parent.__name__ in localdask.__all__
        if not is_shown and parent.__module__.startswith("localdask"):
            found.update({name: value for name, value in vars(parent).items() if name[0] != "_"})
    return dict(sorted(found.items()))


def row(name: str, value: Any) -> str:
    """Return the line of one member; nothing for what is no more than a value or a slot."""
    if isinstance(value, property):
        return f"| `{name}` | {first_sentence(value.fget)} |\n"
    if isinstance(value, (classmethod, staticmethod)):
        value = value.__func__
        return f"| `{name}({parameters(value).removeprefix('cls, ')})` | {first_sentence(value)} |\n"
    if isinstance(value, FunctionType):
        return f"| `{name}({parameters(value)})` | {first_sentence(value)} |\n"
    return ""


def class_part(name: str, kind: type, made_by: str = "") -> str:
    """Return the part about one class."""
    made_by = made_by or MADE_BY.get(name, "")
    made = f"Made by `{made_by}`. " if made_by else ""
    is_made = not made_by and isinstance(kind.__init__, FunctionType)
    call = f"`{name}({parameters(kind.__init__)})`\n\n" if is_made else ""
    rows = "".join(row(member, value) for member, value in members(kind).items())
    table = "\n| member | what it is |\n| --- | --- |\n" + rows if rows else ""
    return f"\n### {name}\n\n{call}{made}{first_sentence(kind)}\n{table}"


def render() -> str:
    """Return the whole list."""
    public = {name: getattr(localdask, name) for name in localdask.__all__ if name != "__version__"}
    failures = {name: getattr(errors, name) for name in {**vars(errors), **dict.fromkeys(errors.__all__)}}
    failures = {name: value for name, value in failures.items() if isinstance(value, type) and issubclass(value, BaseException)}
    failures = {name: value for name, value in failures.items() if name[0] != "_" and value.__module__ == errors.__name__}
    functions = [(name, value) for name, value in public.items() if not isinstance(value, type)]
    text = "\n## Functions\n\n| name | what it does |\n| --- | --- |\n"
    for name, value in functions:
        text += f"| `{name}({parameters(value)})` | {first_sentence(value)} |\n"
    text += "\n## Classes\n"
    for name, value in public.items():
        if isinstance(value, type) and name not in failures:
            text += class_part(name, value)
    for dotted, made_by in GIVEN.items():
        module, name = dotted.rsplit(".", 1)
        text += class_part(name, getattr(importlib.import_module(module), name), made_by)
    text += "\n## Errors\n\nAll are in `localdask.errors`.\n\n| error | is a | what it says |\n| --- | --- | --- |\n"
    for name, value in failures.items():
        text += f"| `{name}` | {', '.join(f'`{parent.__name__}`' for parent in value.__bases__)} | {first_sentence(value)} |\n"
    text += "\n## What Dask has and localdask has not\n\nNames of `distributed` 2026.8.\n\n| of | not here |\n| --- | --- |\n"
    for place, names in missing().items():
        text += f"| `{place}` | {', '.join(f'`{name}`' for name in names) or '–'} |\n"
    return text + "\n"


def renew(text: str) -> str:
    """Return a page with the list as the code has it now."""
    return PLACE.sub(lambda match: match[1] + render() + match[3], text)


if __name__ == "__main__":
    PAGE.write_text(renew(PAGE.read_text()))
