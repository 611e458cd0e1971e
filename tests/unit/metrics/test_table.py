from __future__ import annotations

from collections.abc import Callable

import pytest

from devloop.metrics.stats import DAY, summarise
from devloop.metrics.table import duration, stats_table
from devloop.protocol import Loop, Outcome

from .conftest import NOW


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, "-"),
        (0, "0.0 µs"),
        (1_840, "1.8 µs"),
        (1_840_000, "1.8 ms"),
        (9_999_000, "10.0 ms"),
        (99_960_000, "100 ms"),
        (118_400_000, "118 ms"),
        (999_600_000, "1.00 s"),
        (1_240_000_000, "1.24 s"),
        (59_940_000_000, "59.9 s"),
        (125_000_000_000, "2 min 05 s"),
    ],
)
def test_durations_have_three_figures_and_the_unit_that_fits(ns: int | None, text: str) -> None:
    assert duration(ns) == text


def test_the_table(loop: Callable[..., Loop]) -> None:
    loops = [
        *(loop(ready) for ready in (100, 120, 140)),
        loop(outcome=Outcome.FAILED),
        loop(200, started_at=NOW - 2 * DAY),
        loop(250, service="worker"),
    ]
    text = stats_table(summarise(loops, NOW))
    assert text == (
        "service  loops     p50     p95   worst  failed  last 24 h against 7 days\n"
        "api          4  130 ms  191 ms  200 ms       1  ▼ 120 ms, 40% faster\n"
        "worker       1  250 ms  250 ms  250 ms       0  250 ms, no loops before\n"
        "\n"
        "Where the time goes\n"
        "\n"
        "service  detected  settled  stopped  spawned  ready\n"
        "api          <1 %     <1 %     <1 %     <1 %   97 %\n"
        "worker       <1 %     <1 %     <1 %     <1 %   98 %"
    )
    assert max(map(len, text.splitlines())) <= 80


def test_an_empty_history_says_what_to_do() -> None:
    assert "edit a watched file" in stats_table(())
