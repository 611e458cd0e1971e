"""Tasks that nobody awaits: how one of them ends by a fault is told at once, and not when it is collected, or never."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


def background(work: Coroutine[Any, Any, _Result], *, name: str = "") -> asyncio.Task[_Result]:
    """Start a task whose result nobody awaits; the caller keeps it, and cancels it.

    An exception of it goes to the event loop's exception handler as soon as it has ended, also if it is still
    referenced or gathered later. Without a name it has that of its function. For a task that is awaited, whose
    exception reaches whoever waits, use `asyncio.create_task`.
    """
    task = asyncio.get_running_loop().create_task(work, name=name or getattr(work, "__qualname__", None))
    task.add_done_callback(_tell)
    return task


def _tell(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (problem := task.exception()) is not None:
        message = f"the task {task.get_name()!r} has failed"
        task.get_loop().call_exception_handler({"message": message, "exception": problem, "task": task})
