"""When a scheduled task runs next, in local time, across changes of the clock.

Cron's times are cronsim's, which treats daylight saving as Debian's cron does: a job with a fixed time runs once on the
day of a change, also if its time is skipped or comes twice; one that runs each hour or more often goes by the clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from devloop.config.model import SECOND

_LOCALTIME = Path("/etc/localtime")


def local_zone(environ: Mapping[str, str]) -> tzinfo:
    """The time zone of TZ, else the machine's (tzset(3)); the present offset where neither can be read."""
    name = environ.get("TZ", "").lstrip(":")
    with suppress(ZoneInfoNotFoundError, ValueError, OSError):
        if name:
            return ZoneInfo(name)
        with _LOCALTIME.open("rb") as file:
            return ZoneInfo.from_file(file)
    return datetime.now().astimezone().tzinfo or UTC


def next_cron(cron: str, after: int, zone: tzinfo) -> int:
    """The first time of a cron expression after this Unix time; both in nanoseconds."""
    from cronsim import CronSim

    begin = datetime.fromtimestamp(after // SECOND, zone)
    return round(next(CronSim(cron, begin)).timestamp()) * SECOND


def next_every(every: int, base: int, now: int) -> int:
    """The first of `base + n * every` after `now`: what was missed is not caught up with."""
    return base + every * max(1, (now - base) // every + 1)
