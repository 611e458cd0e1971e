"""When a scheduled task runs next."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pytest

from devloop.config.model import MS, SECOND
from devloop.local import schedule

BEGIN = 1_000_000 * SECOND


def test_every_is_counted_from_its_begin_and_what_was_missed_is_not_caught_up_with() -> None:
    every = 60 * SECOND
    assert schedule.next_every(every, BEGIN, BEGIN) == BEGIN + every
    assert schedule.next_every(every, BEGIN, BEGIN + every - MS) == BEGIN + every
    assert schedule.next_every(every, BEGIN, BEGIN + every) == BEGIN + 2 * every
    assert schedule.next_every(every, BEGIN, BEGIN + 1000 * every + 5) == BEGIN + 1001 * every
    assert schedule.next_every(every, BEGIN, BEGIN - 5) == BEGIN + every


@pytest.fixture
def berlin() -> ZoneInfo:
    try:
        return ZoneInfo("Europe/Berlin")
    except ZoneInfoNotFoundError:
        pytest.skip("there are no time zones here: apt-get install tzdata")


def times(cron: str, zone: ZoneInfo, begin: str, count: int) -> list[str]:
    at = round(datetime.fromisoformat(begin).replace(tzinfo=zone).timestamp()) * SECOND
    found = []
    for _ in range(count):
        at = schedule.next_cron(cron, at, zone)
        found.append(f"{datetime.fromtimestamp(at / SECOND, zone):%d %H:%M%z}")
    return found


def test_cron_in_local_time(berlin: ZoneInfo) -> None:
    assert times("*/20 * * * *", berlin, "2026-07-01 11:59:59", 3) == [
        "01 12:00+0200",
        "01 12:20+0200",
        "01 12:40+0200",
    ]
    assert times("0 9 * * MON-FRI", berlin, "2026-11-27 09:00:00", 2) == ["30 09:00+0100", "01 09:00+0100"]


def test_a_time_that_is_skipped_or_comes_twice_is_one_run(berlin: ZoneInfo) -> None:
    # 2026-03-29: 02:00 → 03:00. 2026-10-25: 03:00 → 02:00.
    assert times("30 2 * * *", berlin, "2026-03-28 12:00", 2) == ["29 03:00+0200", "30 02:30+0200"]
    assert times("30 2 * * *", berlin, "2026-10-24 12:00", 2) == ["25 02:30+0200", "26 02:30+0100"]


def test_each_hour_goes_by_the_clock(berlin: ZoneInfo) -> None:
    assert times("0 * * * *", berlin, "2026-10-25 01:30", 3) == ["25 02:00+0200", "25 02:00+0100", "25 03:00+0100"]


def test_the_zone_is_that_of_tz_or_the_machines(
    berlin: ZoneInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert schedule.local_zone({"TZ": ":Europe/Berlin"}) == berlin
    monkeypatch.setattr(schedule, "_LOCALTIME", tmp_path / "nothing")
    now = time.time()
    for environ in ({}, {"TZ": "CET-1CEST,M3.5.0,M10.5.0/3"}):
        zone = schedule.local_zone(environ)
        assert datetime.fromtimestamp(now, zone).utcoffset() == datetime.fromtimestamp(now).astimezone().utcoffset()
