"""No task dies unread: who starts one either awaits it or starts it with `background`."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path
from typing import Any

import pytest

from devloop.agent.tasks import background

ROOT = Path(__file__).parents[2]

AWAITED = {
    "devloop/agent/direct.py": {"_arrived"},
    # File → functions whose tasks are awaited by somebody, whom their exceptions reach.
    "devloop/agent/tasks.py": {"background"},
    "devloop/attach/releases.py": {"begin"},  # what fails is tried again, and told where nobody waits for it
    "devloop/attach/renewals.py": {"_renew"},
    "devloop/sandbox/sandbox.py": {"_pod"},  # its end is looked at: a pod that can't be kept says why
    "devloop/sandbox/pod.py": {"_let_go"},
    "devloop/net/publish.py": {"_arrival"},
    "devloop/net/dns.py": {"_ask"},
    "devloop/net/inside.py": {"_socket"},
    "devloop/net/forward.py": {"open"},
    "devloop/engine/names.py": {"lookup"},
    "devloop/engine/remote.py": {"_until_surveyed"},
    "devloop/engine/here.py": {"open_world"},
    "devloop/control/server.py": {"_hung_up"},
    "devloop/commands/terminal.py": {"run"},
    "devloop/remote/kubernetes/names.py": {"namespace"},
    "devloop/remote/kubernetes/portforward.py": {"_socket"},
    "devloop/remote/dns.py": {"_ready", "_gone"},
    "devloop/remote/sshcarrier.py": {"resolver", "datagrams"},
    "devloop/remote/workload/far_end.py": {"serve"},
}
STARTS = ("create_task", "ensure_future")


def starts(tree: ast.Module) -> list[tuple[str, int]]:
    """The function and line of each task that is started without a group around it."""
    found: list[tuple[str, int]] = []

    def visit(node: ast.AST, function: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in STARTS:
            owner = ast.unparse(node.func.value)
            if owner not in ("group", "tasks"):  # asyncio.TaskGroup reads its own
                found.append((function, node.lineno))
        for child in ast.iter_child_nodes(node):
            visit(child, function)

    visit(tree, "")
    return found


def test_tasks_are_awaited_or_watched() -> None:
    wrong = []
    for package in ("devloop", "tui"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name.startswith("devloop/testing/"):
                continue
            for function, line in starts(ast.parse(path.read_text("utf-8"))):
                if function not in AWAITED.get(name, ()):
                    wrong.append(f"{name}:{line} ({function})")
    assert not wrong, (
        "start these with devloop.agent.tasks.background, or, if their result is awaited, name them in AWAITED: "
        + ", ".join(wrong)
    )


async def test_a_failure_is_told_while_somebody_still_holds_the_task() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    async def breaks() -> None:
        raise ValueError("broken")

    task = background(breaks(), name="a task")
    await asyncio.wait([task])
    await asyncio.sleep(0)  # done callbacks run in the next turn
    assert [(str(each["exception"]), each["message"]) for each in told] == [("broken", "the task 'a task' has failed")]


@pytest.mark.parametrize("ends", ["returns", "cancelled"])
async def test_other_ends_are_nobodys_business(ends: str) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    waits = asyncio.Event()
    task = background(waits.wait())
    await asyncio.sleep(0)
    if ends == "cancelled":
        task.cancel()
    waits.set()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert told == []
