"""Statistics as plain text: aligned columns, 80 wide for names of ordinary length, no colour."""

from __future__ import annotations

from collections.abc import Sequence

from devloop.escapes import name
from devloop.metrics.stats import ServiceStats, Trend, phase_order

_STEADY = 0.05
"""A change of the median below a twentieth is noise."""


def duration(ns: int | None) -> str:
    """A time for people: three figures at most, in µs, ms, s or minutes; a hyphen for None."""
    if ns is None:
        return "-"
    for unit, size in (("µs", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000)):
        value = ns / size
        if value < 9.995:
            return f"{value:.2f} {unit}" if unit == "s" else f"{value:.1f} {unit}"
        if value < 99.95:
            return f"{value:.1f} {unit}"
        if value < 999.5 and unit != "s":
            return f"{value:.0f} {unit}"
    minutes, seconds = divmod(round(ns / 1_000_000_000), 60)
    return f"{minutes} min {seconds:02} s"


def stats_table(stats: Sequence[ServiceStats]) -> str:
    """Two tables: each service's times and trend, and the share of its time that each phase takes."""
    if not any(each.count for each in stats):
        return "No loops yet: edit a watched file and save it while `devloop up` runs."
    parts = [
        columns(
            ["service", "loops", "p50", "p95", "worst", "failed", "last 24 h against 7 days"],
            [
                [
                    each.service,
                    str(each.count),
                    duration(each.p50),
                    duration(each.p95),
                    duration(each.worst),
                    str(each.outcomes.get("failed", 0)),
                    trend_text(each.trend),
                ]
                for each in stats
            ],
            "<>>>>><",
        )
    ]
    counted = [each for each in stats if each.total]
    names = sorted({p.name for each in counted for p in each.phases if p.share > 0}, key=phase_order)
    if names:
        rows = []
        for each in counted:
            shares = {phase.name: phase.share for phase in each.phases}
            rows.append([each.service, *(_percent(shares.get(phase)) for phase in names)])
        parts += ["Where the time goes", columns(["service", *names], rows, "<" + ">" * len(names))]
    return "\n\n".join(parts)


def trend_text(trend: Trend) -> str:
    """The trend in a few words; a sign and a word, so that it is told without colour."""
    if trend.recent is None:
        return "-"
    if trend.change is None:
        return f"{duration(trend.recent)}, no loops before"
    if abs(trend.change) < _STEADY:
        return f"= {duration(trend.recent)}, steady"
    sign, word = ("▲", "slower") if trend.change > 0 else ("▼", "faster")
    return f"{sign} {duration(trend.recent)}, {abs(trend.change):.0%} {word}"


def _percent(share: float | None) -> str:
    if share is None:
        return ""
    return "<1 %" if 0 < share < 0.01 else f"{share * 100:.0f} %"


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """Text in columns, two spaces apart, each row on one line. `align` has one of < and > for each column."""
    lines = [head, *(tuple(map(name, row)) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, align, widths, strict=True)).rstrip()
        for line in lines
    )
