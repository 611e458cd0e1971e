"""What `up --headless` and `up --detach` say of services, besides what these print: who waits for what, and why."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping

from devloop.protocol import AttachmentStatus, ServiceStatus, State

_WEB = re.compile(r"http|web|ui\b")
PATIENCE = 2.0
"""Seconds that a service may wait for another until that is said: most starts are over by then."""


def failure(status: ServiceStatus) -> str:
    """A line on what is wrong with a service; "" if nothing is."""
    name, reason = status.name, status.reason
    match status.state:
        case State.FAILED | State.BACKOFF | State.CRASH_LOOP:
            line = f"{name} {reason}" if reason.startswith(("exited", "ended")) else f"{name} failed: {reason}"
            if status.state is State.CRASH_LOOP:
                by_itself = "" if status.task else " when a watched file changes, or"  # few tasks watch any
                line += f"; it starts again{by_itself} by `devloop restart {name}`"
            return line
        case State.WAITING if status.stuck:
            return f"{name} waits {reason}; see `devloop logs {status.stuck}`"
        case State.STARTING if reason.startswith("not ready"):
            return f"{name} is {reason}"
        case State.READY if reason and reason != "building":
            return f"{name}: {reason}"
    return ""


def coming(status: ServiceStatus, attachment: AttachmentStatus) -> bool:
    """Whether an attachment is about to be made. Of a service that is not ready it may stay open for good."""
    return attachment.phase == "attaching" or (attachment.phase == "failed open" and status.state is State.READY)


def late(status: ServiceStatus) -> str:
    """Why a service is not ready yet, for a list."""
    reason = f"waits {status.reason}" if status.state is State.WAITING else status.reason or status.state.value
    for each in status.attachments:
        if coming(status, each):
            why = f": {each.reason}" if each.reason else ""
            reason += f"; its {each.kind} of {each.target} is {each.phase}{why}"
    return f"{status.name} ({reason})"


def places(published: Mapping[str, int]) -> str:
    """Where a service is found on this machine: a URL for what is called like one's port, else host and port."""
    found = []
    for name, port in published.items():
        scheme = "https" if "https" in name else "http" if _WEB.search(name) else ""
        found.append(f"{scheme}://localhost:{port}" if scheme else f"localhost:{port}")
    return ", ".join(dict.fromkeys(found))


class Reporter:
    """Says what keeps services from being ready, once each, and where those that are ready are found."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: dict[str, str] = {}
        self._found: dict[str, str] = {}
        self._later: dict[str, asyncio.TimerHandle] = {}

    def status(self, status: ServiceStatus) -> None:
        """There is news of a service."""
        name = status.name
        timer = self._later.pop(name, None)
        if timer is not None:
            timer.cancel()
        if line := failure(status):
            self._tell(name, line)
        elif status.state is State.WAITING and status.next_at is None:
            line = f"{name} waits {status.reason}"
            self._later[name] = asyncio.get_running_loop().call_later(PATIENCE, self._tell, name, line)
        elif status.state in (State.READY, State.COMPLETED) and self._said.pop(name, ""):
            self._say(f"{name} is {'ready' if status.state is State.READY else 'completed'} now")
        where = places(status.published) if status.state is State.READY else ""
        if where and self._found.get(name) != where:
            self._found[name] = where
            self._say(f"{name} is ready at {where}")

    def _tell(self, name: str, line: str) -> None:
        if self._said.get(name) != line:
            self._said[name] = line
            self._say(line)
