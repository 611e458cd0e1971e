"""What the clients report, counted by event and by client. Pure: lines and times go in, tables come out."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Line = Mapping[str, Any]
Plans = Mapping[str, Mapping[str, Any]]
"""By client: its plan, with the `service` that it asks and whether it holds its connection."""
KINDS = ("failed", "stuck", "wrong")
LOCAL = "local-"
"""What the names begin with under which local services answer."""
MARGIN = 0.5
"""Seconds for a change of a Service to reach the node's proxy, and clients' requests that were on their way."""


@dataclass
class Event:
    """Something that was done, and until when what happens counts as its doing."""

    name: str
    began: float
    """Seconds since the epoch, as the clients' clocks have it: one machine, one clock."""
    ended: float = 0.0
    until: float = float("inf")
    note: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """From `since` to `until`, every new request to `service` is answered here, or none is."""

    service: str
    here: bool
    since: float
    until: float
    said: int | None = None
    """How many connections from before devloop has said that there still are; None: it has said that it can't know."""
    moved: bool = False
    """Those that speak HTTP/1.1 have been moved: theirs come here, too."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One request that was not answered as it should be, as a client has told it."""

    client: str
    at: float
    took: float
    kind: str
    error: str
    opened: float
    calls: int
    origin: str = ""
    """The event after which its connection was made."""

    @property
    def moment(self) -> float:
        """When it went wrong. What hangs, went wrong when it began; a stream is cut at its end."""
        return self.at + (0.0 if self.kind == "stuck" else min(self.took, 3.0))

    def __str__(self) -> str:
        return (
            f"{self.client}: {self.kind} after {self.took:.2f} s, on a connection from {self.at - self.opened:.1f} s "
            f"before ({self.origin}) with {self.calls} answers: {self.error}"
        )


@dataclass
class Row:
    """One event's figures."""

    event: Event
    answered: Counter[str] = field(default_factory=Counter)
    """By client."""
    failures: list[Failure] = field(default_factory=list)
    astray: Counter[str] = field(default_factory=Counter)
    """Answers to new connections from the wrong side, by client."""
    past: Counter[str] = field(default_factory=Counter)
    """Answers on held connections from the original while devloop had all of the service's requests, by client."""
    unsaid: Counter[str] = field(default_factory=Counter)
    """Those of `past` of whose connections devloop has said that there is none, or that it has moved them."""

    def count(self, kind: str) -> int:
        return sum(each.kind == kind for each in self.failures)

    def errors(self, kind: str) -> Counter[str]:
        """Failures of a kind by client, when the connection was made, and the beginning of what was said."""
        return Counter(
            f"{each.client} (from {each.origin}): {each.error[:160]}" for each in self.failures if each.kind == kind
        )


def tabulate(events: list[Event], claims: Iterable[Claim], lines: Iterable[Line], plans: Plans) -> list[Row]:
    """Each line to the event that it followed. What came before the first event is the first row, `start`."""
    rows = [Row(each) for each in events]
    begins = [each.began for each in events]

    def row_at(moment: float) -> Row | None:
        index = bisect_right(begins, moment)
        return rows[index - 1] if index else None

    by_service: dict[str, list[Claim]] = defaultdict(list)
    for claim in claims:
        by_service[claim.service].append(claim)
    for line in lines:
        client = line["client"]
        if "kind" in line:
            made = row_at(line["opened"])
            failure = Failure(**line, origin=made.event.name if made else "before")
            if (row := row_at(failure.moment)) is not None:
                row.failures.append(failure)
            continue
        if (row := row_at(line["until"])) is None:
            continue
        row.answered[client] += line["ok"]
        plan = plans.get(client, {})
        for claim in by_service.get(plan.get("service", ""), ()):
            if claim.since + MARGIN <= line["since"] and line["until"] <= claim.until:
                strays = sum(count for who, count in line["who"].items() if who.startswith(LOCAL) is not claim.here)
                if not strays:
                    continue
                if not plan.get("held") or not claim.here:
                    row.astray[client] += strays
                    continue
                row.past[client] += strays
                if claim.said == 0 or (claim.moved and plan["kind"] == "http"):
                    row.unsaid[client] += strays
    return rows


def table(rows: Iterable[Row], *, heads: bool = True) -> str:
    """For people: a line for each event, and below it what its failures said."""
    head = f"{'event':<34}{'s':>6}{'requests':>10}{'failed':>8}{'stuck':>7}{'wrong':>7}"
    head += "".join(f"{each:>8}" for each in ("astray", "past", "unsaid"))
    out = [head] if heads else []
    for row in rows:
        event = row.event
        took = f"{event.ended - event.began:.1f}" if event.ended else ""
        counts = "".join(f"{row.count(kind):>{width}}" for kind, width in zip(KINDS, (8, 7, 7), strict=True))
        sides = "".join(f"{each.total():>8}" for each in (row.astray, row.past, row.unsaid))
        out.append(f"{event.name:<34}{took:>6}{row.answered.total():>10}{counts}{sides}")
        for kind in KINDS:
            out += [f"    {count:>5} {kind:<7}{text}" for text, count in row.errors(kind).most_common(12)]
        out += [f"    {count:>5} astray {name}" for name, count in row.astray.most_common(6)]
        out += [f"    {count:>5} unsaid {name}" for name, count in row.unsaid.most_common(6)]
        if event.note:
            out.append(f"          {event.note}")
    return "\n".join(out)


def by_kind(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """Sums over a run: by kind of event, how many times, and what failed."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        sums = found[row.event.name.partition(" ")[0]]
        sums["times"] += 1
        sums["requests"] += row.answered.total()
        for kind in KINDS:
            sums[kind] += row.count(kind)
        sums["astray"] += row.astray.total()
        sums["past"] += row.past.total()
        sums["unsaid"] += row.unsaid.total()
    return {name: dict(sums) for name, sums in found.items()}
