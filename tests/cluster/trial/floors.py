"""How much of what may go wrong, by kind of event: the one table that the trial is judged by.

What is not here is zero. A floor is argued: its reason says why nothing better is possible. A floor is one event's,
not a run's.
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
    clients: tuple[str, ...] = ("",)
    each: bool = False
    """And one more for each connection that was there before the event: a long trial has many."""


ASKED = ("web post", "web socket", "web greeted", "checkout", "prices")
"""Clients whose requests nobody may repeat: POST, gRPC, WebSocket, lines of plain TCP. A GET is never lost."""
UNDER_WAY = Floor(
    12,
    "what a process or a link that is killed had read is lost, unless it may be repeated (RFC 9110, 9.2.2): a POST, a "
    "gRPC call, a stream, a line of a TCP connection; one for each connection at most",
    clients=ASKED,
    each=True,
)
RELOADED = Floor(
    6,
    "a gRPC call that reaches the process that ends in two pieces, its headers and its message, can't be told from one "
    "that this process has read",
    clients=("checkout", "prices"),
)
FLOORS: dict[str, dict[str, Floor]] = {
    "toggle": {"failed": RELOADED},
    "reload": {"failed": RELOADED},
    "crash": {"failed": UNDER_WAY},
    "api-server-cut": {"failed": UNDER_WAY},
    "engine-killed": {"failed": UNDER_WAY},
    "engine-gone": {"failed": UNDER_WAY},
    "agent-killed": {
        "failed": Floor(
            30,
            "what goes through the agent is cut, and new connections are refused from when the API server has "
            "forgotten its pod, and with it the Service's only address, until the engine has heard of that and has led "
            "the Service back, and the node has that, too",
        )
    },
    "port-renamed": {
        "failed": Floor(
            6,
            "kube-proxy finds a port's addresses by the port's name, and the endpoints get the new one some hundredths "
            "of a second after the Service: without devloop, 13 of 16 renames refused connections, for 22 ms on "
            "average and 60 ms at most, on a busy machine",
        )
    },
    "move": {
        "failed": Floor(
            8,
            "a request that is sent in the very moment in which its connection is ended reads a reset; a WebSocket "
            "that is quiet for 0.1 s looks like HTTP/1.1 between two requests, and its next message reads one",
            clients=("web", "color"),
        )
    },
    "service-deleted": {
        "failed": Floor(
            60, "while there is no Service, its name leads nowhere, for 0.1 s to 5 s more", clients=("color",)
        )
    },
}
"""By kind of event, with 200 requests/s on two busy cores. What it came to is in docs/cluster-tests.md."""


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
            if floor is not None and floor.each:
                most += len({(each.client, each.opened) for each in covered if each.opened < row.event.began})
            if len(covered) > most or len(covered) < len(failures):
                first = next(each for each in failures if each not in covered or len(covered) > most)
                found.append(f"{row.event.name}: {len(failures)} {kind}, {most} allowed; the first is {first}")
        floor = allowed.get("astray")
        if (strays := row.astray.total()) > (floor.most if floor is not None else 0):
            found.append(f"{row.event.name}: {strays} astray: {dict(row.astray)}")
        if row.unsaid:
            found.append(f"{row.event.name}: devloop does not tell of what goes past: {dict(row.unsaid)}")
    return found
