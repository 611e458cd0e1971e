"""Statistics of loops. Pure: loops and the time of day go in, numbers come out.

Counted are loops that ended ok and that somebody waited for: those begun by a change or by hand. A first
start, a restart after a crash and one for a new devloop.toml are history, and no feedback loop. A loop's time
goes from its first stamp to `ready`; `served` comes when somebody asks, which may be an hour later, and is
therefore shown as a phase and left out of the sum.

Percentiles interpolate linearly between the two closest ranks: the value at position p·(n-1) of the sorted
values, counted from 0 (Hyndman and Fan's type 7; the default of NumPy and of spreadsheets' PERCENTILE).
All times are nanoseconds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import floor
from typing import Any

from devloop.protocol import PHASES, Cause, Loop, Outcome

DAY = 86_400 * 10**9
"""Nanoseconds in a day."""

WAITED_FOR = frozenset({Cause.CHANGE, Cause.MANUAL})
"""Causes of the loops that are counted."""


@dataclass(frozen=True, slots=True)
class PhaseStats:
    """One phase: the time from the stamp before it to its own."""

    name: str
    count: int
    p50: int
    p95: int
    worst: int
    share: float
    """Of the time of all counted loops, 0 to 1; 0 for what comes after `ready`."""


@dataclass(frozen=True, slots=True)
class Trend:
    """The median of the last 24 hours beside that of the 7 days before them."""

    recent: int | None
    recent_count: int
    before: int | None
    before_count: int
    change: float | None
    """recent / before - 1: -0.2 is a fifth faster. None if either has no loops."""


@dataclass(frozen=True, slots=True)
class ServiceStats:
    """A service's loops in the time looked at."""

    service: str
    count: int
    """Counted loops: what the percentiles are of."""
    p50: int | None
    p95: int | None
    worst: int | None
    worst_id: int | None
    """The loop that took longest."""
    total: int
    """Time spent in counted loops."""
    phases: tuple[PhaseStats, ...]
    outcomes: dict[str, int]
    """How many loops ended how, of those that somebody waited for."""
    causes: dict[str, int]
    """How many loops there are for each cause, of all loops."""
    trend: Trend
    first_at: int | None
    last_at: int | None
    """Unix times of the first and the last loop of any cause."""


def percentile(values: Sequence[int], p: float) -> int:
    """The p-th percentile, p from 0 to 100, by the method above. Raises ValueError if there are no values."""
    if not values:
        raise ValueError("a percentile of nothing")
    return _at(sorted(values), p)


def _at(ordered: Sequence[int], p: float) -> int:
    position = (len(ordered) - 1) * p / 100
    below = floor(position)
    above = min(below + 1, len(ordered) - 1)
    return round(ordered[below] + (ordered[above] - ordered[below]) * (position - below))


def phase_times(loop: Loop) -> dict[str, int]:
    """Phase → how long it took, in the order in which they ended."""
    return {phase: end - begin for phase, begin, end in loop.spans()}


def summarise(loops: Iterable[Loop], now: int, causes: Collection[Cause] = WAITED_FOR) -> tuple[ServiceStats, ...]:
    """Statistics of each service that has loops, by name, from loops in any order. `now` is a Unix time."""
    by_service: dict[str, list[Loop]] = defaultdict(list)
    for loop in loops:
        by_service[loop.service].append(loop)
    return tuple(_service(name, by_service[name], now, causes) for name in sorted(by_service))


def report(loops: Sequence[Loop], now: int, last: int = 100) -> dict[str, Any]:
    """What `devloop stats --json` prints: statistics by service, and the last loops with all their stamps."""
    ordered = sorted(loops, key=lambda loop: (loop.started_at, loop.id))
    return {
        "generated_at": now,
        "services": [asdict(each) for each in summarise(loops, now)],
        "loops": [loop.to_json() for loop in ordered[-last:]] if last else [],
    }


def _service(name: str, loops: list[Loop], now: int, causes: Collection[Cause]) -> ServiceStats:
    waited_for = [loop for loop in loops if loop.cause in causes]
    counted = [loop for loop in waited_for if loop.outcome is Outcome.OK]
    times = sorted(each.waited for each in counted)
    slowest = max(counted, key=lambda each: each.waited, default=None)
    begins = [loop.started_at for loop in loops]
    return ServiceStats(
        service=name,
        count=len(counted),
        p50=_at(times, 50) if times else None,
        p95=_at(times, 95) if times else None,
        worst=times[-1] if times else None,
        worst_id=slowest.id if slowest else None,
        total=sum(times),
        phases=_phases(counted, sum(times)),
        outcomes=_counts(loop.outcome for loop in waited_for),
        causes=_counts(loop.cause for loop in loops),
        trend=_trend(counted, now),
        first_at=min(begins, default=None),
        last_at=max(begins, default=None),
    )


def _counts(words: Iterable[str]) -> dict[str, int]:
    return {str(word): count for word, count in sorted(Counter(words).items())}


def _phases(loops: Sequence[Loop], total: int) -> tuple[PhaseStats, ...]:
    times: dict[str, list[int]] = defaultdict(list)
    within: Counter[str] = Counter()
    for loop in loops:
        end_of_loop = loop.waited
        for phase, begin, end in loop.spans():
            times[phase].append(end - begin)
            if end <= end_of_loop and phase != "served":
                within[phase] += end - begin
    stats = []
    for phase in sorted(times, key=phase_order):
        ordered = sorted(times[phase])
        share = within[phase] / total if total else 0.0
        stats.append(PhaseStats(phase, len(ordered), _at(ordered, 50), _at(ordered, 95), ordered[-1], round(share, 4)))
    return tuple(stats)


def phase_order(phase: str) -> tuple[int, str]:
    """Sort key: the phases of a reload in their order, then others (those of the container way) by name."""
    return (PHASES.index(phase), "") if phase in PHASES else (len(PHASES), phase)


def _trend(loops: Sequence[Loop], now: int) -> Trend:
    recent = [loop.waited for loop in loops if now - DAY <= loop.started_at]
    before = [loop.waited for loop in loops if now - 8 * DAY <= loop.started_at < now - DAY]
    new = percentile(recent, 50) if recent else None
    old = percentile(before, 50) if before else None
    change = round(new / old - 1, 4) if new is not None and old else None
    return Trend(new, len(recent), old, len(before), change)
