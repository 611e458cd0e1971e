"""How much of what may go wrong, by kind of event: the one table that the trial is judged by.

What is not here is zero. A floor is argued: its reason says why nothing better is possible, or it is a fault that is
known, with its point in issue 13, and goes when that is mended. A floor is one event's, not a run's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .figures import KINDS, Row


@dataclass(frozen=True, slots=True)
class Floor:
    """At most so many; `clients` are the beginnings of the names of those that it is for, all by default."""

    most: int
    reason: str
    fault: str = ""
    """The point of issue 13 that is to mend it; empty where nothing better is possible."""
    clients: tuple[str, ...] = ("",)


LEFT = Floor(4, "0 in the one run since listeners stay until their last connection has ended: to be zero", "2")
REFUSED = Floor(40, "until the Service leads elsewhere, its new connections are refused", "2")
UNDER_WAY = Floor(
    12,
    "what a process or a link that is killed had read is lost, unless it may be repeated (RFC 9110, 9.2.2): a POST, a "
    "gRPC call, a stream, a line of a TCP connection; one for each connection at most",
)
RELOADED = Floor(
    6,
    "a gRPC call that reaches the process that ends in two pieces, its headers and its message, can't be told from one "
    "that this process has read",
)
FLOORS: dict[str, dict[str, Floor]] = {
    "leave": {"failed": LEFT},
    "toggle": {"failed": RELOADED},
    "two-developers": {"failed": LEFT},
    "pods-taken": {"failed": LEFT},
    "end": {"failed": UNDER_WAY},
    "reload": {"failed": RELOADED},
    "crash": {"failed": UNDER_WAY},
    "api-server-cut": {"failed": UNDER_WAY},
    "engine-killed": {"failed": UNDER_WAY},
    "engine-gone": {"failed": UNDER_WAY},
    "agent-killed": {"failed": REFUSED},
    "apply": {"failed": Floor(12, "0.4 s in which the Service's selector fits no pod; streams are cut", "2")},
    "port-renamed": {"failed": REFUSED},
    "service-deleted": {
        "failed": Floor(
            60, "while there is no Service, its name leads nowhere, for 0.1 s to 5 s more", clients=("color",)
        )
    },
}
"""By kind of event. Measured in November 2026, with 200 requests/s on two busy cores. Seed 13, since listeners stay:
leave, toggle, two-developers, pods-taken 0, reload and engine-killed 1, apply 4, agent-killed and service-deleted 7. In
earlier runs of seeds 1, 2 and 13: end 0 to 13, port-renamed 1 to 4, api-server-cut 0 to 2; all others 0.

`past` is shown and not judged: connections that clients hold from before stay with the original (point 3).
"""


def above(rows: Iterable[Row]) -> list[str]:
    """What is above its floor, in words; empty if nothing is."""
    found = []
    for row in rows:
        allowed = FLOORS.get(row.event.name.partition(" ")[0], {})
        for kind in KINDS:
            floor = allowed.get(kind)
            failures = [each for each in row.failures if each.kind == kind]
            covered = [each for each in failures if floor is not None and each.client.startswith(floor.clients)]
            most = floor.most if floor is not None else 0
            if len(covered) > most or len(covered) < len(failures):
                first = next(each for each in failures if each not in covered or len(covered) > most)
                found.append(f"{row.event.name}: {len(failures)} {kind}, {most} allowed; the first is {first}")
        floor = allowed.get("astray")
        if (strays := row.astray.total()) > (floor.most if floor is not None else 0):
            found.append(f"{row.event.name}: {strays} astray: {dict(row.astray)}")
    return found
