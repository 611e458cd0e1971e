"""The clock of scheduled tasks: tells the core when the time of each has come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from devloop.config.model import SECOND, Schedule
from devloop.local.schedule import local_zone, next_cron, next_every
from devloop.protocol import ServiceStatus, State

LOOK = 10 * SECOND
"""Longest time between two looks at the clock: it may be set, and timers stand still while the machine sleeps."""
_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Goes on while the machine sleeps (clock_gettime(2))."""


@dataclass(slots=True)
class _Entry:
    schedule: Schedule
    next: int
    """By the clock that it goes by, nanoseconds."""
    looked: int
    timer: asyncio.TimerHandle | None = None


class Schedules:
    """Calls `due` with a task's name at each of its times; those that were missed, once."""

    def __init__(self, due: Callable[[str], None], environ: Mapping[str, str]) -> None:
        self._due = due
        self._environ = environ
        self._entries: dict[str, _Entry] = {}

    def set(self, service: str, schedule: Schedule) -> None:
        """From now on, in place of what was set before."""
        self.clear(service)
        now = self._now(schedule)
        self._entries[service] = _Entry(schedule, self._next(schedule, now, now), now)
        self._wait(service)

    def clear(self, service: str) -> None:
        """Not any more."""
        entry = self._entries.pop(service, None)
        if entry is not None and entry.timer is not None:
            entry.timer.cancel()

    def close(self) -> None:
        """None any more."""
        for service in tuple(self._entries):
            self.clear(service)

    def decorated(self, status: ServiceStatus) -> ServiceStatus:
        """The status of a task that waits for its time, with when that is."""
        entry = self._entries.get(status.name)
        if entry is None:
            return status
        at = time.time_ns() + entry.next - self._now(entry.schedule)
        if status.state not in (State.WAITING, State.COMPLETED, State.FAILED):
            return replace(status, next_at=at)
        when = f"next run {_clock(at)}"
        reason = when if status.reason in ("", "for its time") else f"{status.reason}; {when}"
        return replace(status, next_at=at, reason=reason)

    def _now(self, schedule: Schedule) -> int:
        return time.time_ns() if schedule.cron else time.clock_gettime_ns(_BOOT)

    def _next(self, schedule: Schedule, base: int, now: int) -> int:
        if schedule.cron:
            return next_cron(schedule.cron, now, local_zone(self._environ))
        return next_every(schedule.every, base, now)

    def _wait(self, service: str) -> None:
        entry = self._entries[service]
        left = min(max(0, entry.next - self._now(entry.schedule)), LOOK)
        entry.timer = asyncio.get_running_loop().call_later(left / SECOND, self._look, service)

    def _look(self, service: str) -> None:
        entry = self._entries[service]
        now = self._now(entry.schedule)
        is_due = now >= entry.next
        if is_due or now < entry.looked:  # or the clock was set back
            entry.next = self._next(entry.schedule, entry.next, now)
        entry.looked = now
        self._wait(service)
        if is_due:
            self._due(service)


def _clock(at: int) -> str:
    """A Unix time for people: without its day if that is today."""
    when = datetime.fromtimestamp(at / SECOND).astimezone()
    return f"{when:%H:%M:%S}" if when.date() == datetime.now().astimezone().date() else f"{when:%Y-%m-%d %H:%M}"
