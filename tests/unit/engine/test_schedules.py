"""The clock of scheduled tasks, on a clock that the test sets."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import pytest

from devloop.config.model import SECOND, Schedule
from devloop.engine.schedules import Schedules
from devloop.protocol import ServiceStatus, State


@dataclass
class Clock:
    """Both clocks, and the one timer that is set on them."""

    now: int = 1_800_000_000 * SECOND
    boot: int = 5000 * SECOND
    timer: tuple[float, Any, tuple[Any, ...]] | None = None

    def call_later(self, delay: float, call: Any, *args: Any) -> Clock:
        self.timer = (delay, call, args)
        return self

    def cancel(self) -> None:
        self.timer = None

    def fire(self, slept: int = 0) -> None:
        """The time of the timer has come, after the machine slept so many nanoseconds."""
        assert self.timer is not None
        delay, call, args = self.timer
        passed = round(delay * SECOND) + slept
        self.now += passed
        self.boot += passed
        call(*args)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time_ns", lambda: clock.now)
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _: clock.boot)
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: clock)
    return clock


def until_due(clock: Clock, due: list[str], most: int = 1000) -> int:
    """Seconds by the clock until the next run."""
    begin, count = clock.now, len(due)
    for _ in range(most):
        clock.fire()
        if len(due) > count:
            return (clock.now - begin) // SECOND
    raise AssertionError("never due")


@pytest.mark.parametrize(("schedule", "each"), [(Schedule(every=90 * SECOND), 90), (Schedule(cron="*/5 * * * *"), 300)])
def test_it_comes_again_and_again(clock: Clock, schedule: Schedule, each: int) -> None:
    due: list[str] = []
    schedules = Schedules(due.append, {"TZ": "UTC"})
    schedules.set("job", schedule)
    assert [until_due(clock, due) for _ in range(3)] == [each] * 3
    assert due == ["job"] * 3
    schedules.clear("job")
    assert clock.timer is None


@pytest.mark.parametrize("schedule", [Schedule(every=60 * SECOND), Schedule(cron="* * * * *")])
def test_what_a_sleeping_machine_missed_is_made_up_for_once(clock: Clock, schedule: Schedule) -> None:
    due: list[str] = []
    Schedules(due.append, {"TZ": "UTC"}).set("job", schedule)
    clock.fire(slept=3600 * SECOND)
    assert due == ["job"]
    assert 0 < until_due(clock, due) <= 60
    assert due == ["job", "job"]


def test_a_clock_that_is_set_back_does_not_hold_a_job_up(clock: Clock) -> None:
    due: list[str] = []
    Schedules(due.append, {"TZ": "UTC"}).set("job", Schedule(cron="*/5 * * * *"))
    clock.now -= 24 * 3600 * SECOND
    assert until_due(clock, due) <= 310


def test_the_next_run_is_shown(clock: Clock) -> None:
    schedules = Schedules(lambda _: None, {"TZ": "UTC"})
    schedules.set("job", Schedule(every=60 * SECOND))
    status = ServiceStatus("job", "local", State.FAILED, "exited with 1", 0)
    shown = schedules.decorated(status)
    assert shown.next_at == clock.now + 60 * SECOND
    assert shown.reason.startswith("exited with 1; next run ")
    assert schedules.decorated(ServiceStatus("other", "local", State.READY, "", 0)).next_at is None
    running = schedules.decorated(ServiceStatus("job", "local", State.STARTING, "the task runs", 0))
    assert (running.reason, running.next_at) == ("the task runs", shown.next_at)
