"""Envoy's access log as records: one line for each request that is over. Pure; shared with the engine.

The line is the one that `envoy.py` asks for (`LINE`). It has no query and no body. The agent passes lines on as they
are and only counts them, by who answered; the engine makes records of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Answered = Literal["local", "original", "nobody"]
ORIGINAL, NOBODY = "original", "nobody"

LINE = (
    "r\t{service}\t{port}\t%UPSTREAM_HOST%\t%RESPONSE_FLAGS%\t%RESPONSE_CODE_DETAILS%\t"
    "%RESPONSE_CODE%\t%ROUTE_NAME%\t%GRPC_STATUS_NUMBER%\t%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%\t%DURATION%\t%START_TIME(%s.%3f)%\t%PROTOCOL%\t"
    "{what}\n"
)
"""A line, in Envoy's words. What tells who answered stands at its beginning: the agent reads no further."""
HTTP, TCP = "%REQ(:METHOD)%\t%PATH(NQ:PATH)%", "TCP\t-"
"""`what`. %PATH(NQ…)%: without the query, which may hold a secret."""
_FIELDS = 15
_SOCKET = re.compile(r"/([a-z0-9-]+)-[0-9]+(?:@[^/]*)?\.sock$")
"""`plan.socket_path`."""
_FAILED = frozenset(("UF", "UH", "UO", "NC", "NR", "URX", "DPE"))
"""Flags of a plain connection that no host has taken ("Response Flags" in Envoy's documentation of access logs)."""
_CLIENT_LEFT = frozenset(("DC", "DR"))


@dataclass(frozen=True, slots=True)
class Request:
    """A request that went through the agent, or a plain connection (method `TCP`)."""

    service: str
    port: int
    method: str
    path: str
    """Without its query."""
    status: int
    """0: it ended without an answer."""
    milliseconds: float
    answered: Answered
    """`local` is any developer's local service: see `by`."""
    attachment: str
    """Whose route took it; empty: nobody's."""
    started: float
    """Unix time, by the cluster's clock."""
    protocol: str
    """HTTP/1.1, HTTP/2, or empty."""
    flags: str
    """Envoy's response flags, empty if all went well."""
    by: str = ""
    """The attachment whose local service answered; empty if none did."""
    grpc: int | None = None
    """The status of a gRPC call (its trailer `grpc-status`)."""

    @property
    def failed_over(self) -> bool:
        """A developer's route took it, and the original pods answered."""
        return bool(self.attachment) and self.answered == "original"


def service_of(line: str) -> str | None:
    """The Service that a line is about; None if it is no such line."""
    parts = line.split("\t", 2)
    return parts[1] if len(parts) == 3 and parts[0] == "r" else None


def answerer(line: str) -> str:
    """Who answered the request of a line: ORIGINAL, NOBODY, or the attachment's id after a slash."""
    parts = line.split("\t", 7)
    return _answerer(*parts[3:7]) if len(parts) == 8 else NOBODY


def _answerer(host: str, flags: str, details: str, status: str) -> str:
    """Envoy names the host that it tried last; whether that has answered is in the details of the response.

    A client that leaves in the middle of an answer has got one. A plain connection has no details: there the flags
    say whether anybody took it.
    """
    if host == "-":
        return NOBODY
    several = set(flags.split(","))
    if details == "-":
        answered = several.isdisjoint(_FAILED)
    else:
        answered = details.startswith("via_upstream") or (status != "0" and not several.isdisjoint(_CLIENT_LEFT))
    if not answered:
        return NOBODY
    found = _SOCKET.search(host)
    return f"/{found[1]}" if found else ORIGINAL


def read(line: str) -> Request | None:
    """A line; None if it is something else that Envoy has printed."""
    parts = line.rstrip("\n").split("\t", _FIELDS - 1)
    if len(parts) != _FIELDS or parts[0] != "r":
        return None
    _, service, port, host, flags, details, status, route, grpc, micros, millis, started, protocol, method, path = parts
    who = _answerer(host, flags, details, status)
    answered: Answered = "local"
    if not who.startswith("/"):
        answered = "original" if who == ORIGINAL else "nobody"
    by = who[1:] if answered == "local" else ""
    if method == "TCP":
        route = by  # no route has led it there
    try:
        return Request(
            service=service,
            port=int(port),
            method=method,
            path=path,
            status=int(status),
            milliseconds=int(micros) / 1000 if micros.isdecimal() else float(millis),
            answered=answered,
            attachment="" if route in ("-", "original") else route,
            started=float(started),
            protocol="" if protocol == "-" else protocol,
            flags="" if flags == "-" else flags,
            by=by,
            grpc=int(grpc) if grpc.isdecimal() else None,
        )
    except ValueError:
        return None
