"""What clients ask about preloads and reloads, answered as plain data.

Registered by the cluster; called on the scheduler's I/O thread. Reading files for a reload
that is asked for is done on a thread of its own.
"""

from __future__ import annotations

import threading
from typing import Any

from localdask.processes.questions import Question
from localdask.processes.reloading import Reloader, ReloadRecord
from localdask.processes.scheduler import Scheduler
from localdask.records import as_dict

__all__ = ["answer_about_reloads"]


def answer_about_reloads(scheduler: Scheduler, reloader: Reloader) -> None:
    """Answer ``preloads``, ``reloads`` and ``reload`` (arguments: a path or None, and whether only to check)."""

    def ask(question: Question) -> None:
        path, is_check = question.arguments

        def begin() -> None:
            try:
                reloader.ask(path, lambda record: question.answer(_plain(record)), is_check=is_check)
            except ValueError as error:  # there is no such preload, or nothing to reload
                question.fail(error)

        threading.Thread(target=begin, name="localdask-reload", daemon=True).start()

    scheduler.answerers.update(
        preloads=lambda question: question.answer([as_dict(status) for status in reloader.preloads()]),
        reloads=lambda question: question.answer([_plain(record) for record in reloader.records]),
        reload=ask,
    )


def _plain(record: ReloadRecord) -> dict[str, Any]:
    processes = {name: as_dict(account) for name, account in record.processes.items()}
    told = {"has_failed": record.has_failed, "text": str(record), "by_process": record.by_process}
    return {**as_dict(record), "processes": processes, **told}
