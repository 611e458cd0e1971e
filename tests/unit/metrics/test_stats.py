from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable

import pytest

from devloop.metrics.stats import DAY, percentile, report, summarise
from devloop.protocol import Cause, Loop, Outcome

from .conftest import HOUR, MS, NOW

Make = Callable[..., Loop]


def test_percentiles_are_those_of_the_method_that_is_promised() -> None:
    assert percentile([5], 95) == 5
    assert percentile([10, 20], 50) == 15
    assert percentile(range(1, 101), 95) == round(95.05)
    random.seed(1)
    values = [random.randrange(10**9) for _ in range(57)]
    reference = statistics.quantiles(values, n=100, method="inclusive")
    for p in (5, 50, 95):
        assert percentile(values, p) == pytest.approx(reference[p - 1], abs=1)
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


def test_a_service_is_summed_up(loop: Make) -> None:
    loops = [loop(ready, id=number) for number, ready in enumerate((100, 300, 200), 1)]
    (api,) = summarise(loops, NOW)
    assert (api.service, api.count, api.p50, api.worst, api.worst_id) == ("api", 3, 200 * MS, 300 * MS, 2)
    assert api.p95 == 290 * MS
    assert api.total == 600 * MS
    assert api.outcomes == {"ok": 3}


def test_only_ok_loops_that_somebody_waited_for_are_counted(loop: Make) -> None:
    loops = [
        loop(100),
        loop(120, cause=Cause.MANUAL),
        loop(9_000, cause=Cause.START),
        loop(9_000, cause=Cause.CRASH),
        loop(9_000, cause=Cause.CONFIG),
        loop(9_000, outcome=Outcome.FAILED),
        loop(9_000, outcome=Outcome.SUPERSEDED),
    ]
    (api,) = summarise(loops, NOW)
    assert (api.count, api.worst) == (2, 120 * MS)
    assert api.outcomes == {"failed": 1, "ok": 2, "superseded": 1}
    assert api.causes == {"change": 3, "config": 1, "crash": 1, "manual": 1, "start": 1}
    (started,) = summarise(loops, NOW, causes={Cause.START})
    assert started.p50 == 9_000 * MS


def test_a_service_without_counted_loops_is_listed_with_no_times(loop: Make) -> None:
    (api,) = summarise([loop(cause=Cause.START)], NOW)
    assert (api.count, api.p50, api.p95, api.worst, api.worst_id, api.phases) == (
        0,
        None,
        None,
        None,
        None,
        (),
    )
    assert api.trend.change is None


def test_phases_share_the_whole_time_in_their_order(loop: Make) -> None:
    (api,) = summarise([loop(100), loop(300)], NOW)
    assert [phase.name for phase in api.phases] == ["detected", "settled", "stopped", "spawned", "ready"]
    assert sum(phase.share for phase in api.phases) == pytest.approx(1, abs=0.001)
    ready = api.phases[-1]
    assert (ready.count, ready.p50, ready.worst) == (2, 196 * MS, 296 * MS)
    assert ready.share == pytest.approx(392 / 400)


def test_serving_the_first_request_is_shown_and_not_counted(loop: Make) -> None:
    one = loop(100)
    one.stamps["served"] = HOUR
    assert one.waited == 100 * MS
    (api,) = summarise([one], NOW)
    assert api.worst == 100 * MS
    served = api.phases[-1]
    assert (served.name, served.p50, served.share) == ("served", HOUR - 100 * MS, 0)


def test_a_served_stamp_before_ready_does_not_break_the_shares(loop: Make) -> None:
    one = loop(100)
    one.stamps["served"] = 50 * MS
    (api,) = summarise([one], NOW)
    assert {phase.name: phase.share for phase in api.phases}["served"] == 0


def test_loops_of_the_container_way_have_phases_of_their_own(loop: Make) -> None:
    (api,) = summarise([loop(stamps={"edited": 0, "build": 60, "push": 80, "rollout": 100})], NOW)
    assert {phase.name: phase.share for phase in api.phases} == {"build": 0.6, "push": 0.2, "rollout": 0.2}
    assert api.p50 == 100


def test_the_trend_sets_the_last_day_beside_the_week_before(loop: Make) -> None:
    loops = [
        *(loop(80, started_at=NOW - hours * HOUR) for hours in (1, 2, 23)),
        *(loop(ready, started_at=NOW - days * DAY) for days, ready in ((2, 90), (3, 100), (7.9, 500))),
        loop(9_999, started_at=NOW - 9 * DAY),
    ]
    (api,) = summarise(loops, NOW)
    trend = api.trend
    assert (trend.recent, trend.recent_count) == (80 * MS, 3)
    assert (trend.before, trend.before_count) == (100 * MS, 3)
    assert trend.change == pytest.approx(-0.2)


def test_the_report_is_json_and_has_the_last_loops_with_their_stamps(loop: Make) -> None:
    loops = [loop(100 + n, id=n, started_at=NOW - n * HOUR) for n in range(1, 6)]
    data = json.loads(json.dumps(report(loops, NOW, last=2)))
    assert [each["service"] for each in data["services"]] == ["api"]
    assert data["services"][0]["count"] == 5
    assert [each["id"] for each in data["loops"]] == [2, 1]
    assert data["loops"][-1]["stamps"]["ready"] == 101 * MS
    assert report(loops, NOW, last=0)["loops"] == []
