"""Envoy's access log as records: one line for each request that is over. Pure; shared with the engine.

The line is the one that `envoy.py` asks for. It has no query and no body. The agent passes lines on as they are and
only counts them; the engine makes records of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Answered = Literal["local", "original", "nobody"]
_FIELDS = 13


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
    attachment: str
    """Whose route took it; empty: nobody's."""
    started: float
    """Unix time, by the cluster's clock."""
    protocol: str
    """HTTP/1.1, HTTP/2, or empty."""
    flags: str
    """Envoy's response flags, empty if all went well."""

    @property
    def failed_over(self) -> bool:
        """A developer's route took it, and the original pods answered."""
        return bool(self.attachment) and self.answered == "original"


def service_of(line: str) -> str | None:
    """The Service that a line is about; None if it is no such line."""
    parts = line.split("\t", 2)
    return parts[1] if len(parts) == 3 and parts[0] == "r" else None


def read(line: str) -> Request | None:
    """A line; None if it is something else that Envoy has printed."""
    parts = line.rstrip("\n").split("\t", _FIELDS - 1)
    if len(parts) != _FIELDS or parts[0] != "r":
        return None
    _, service, port, route, host, status, flags, micros, millis, started, protocol, method, path = parts
    route = "" if route == "-" else route
    answered: Answered = "original"
    if host == "-":
        answered = "nobody"
    elif host.startswith("/"):
        answered = "local"
    try:
        return Request(
            service=service,
            port=int(port),
            method=method,
            path=path,
            status=int(status),
            milliseconds=int(micros) / 1000 if micros.isdecimal() else float(millis),
            answered=answered,
            attachment="" if route == "original" else route,
            started=float(started),
            protocol="" if protocol == "-" else protocol,
            flags="" if flags == "-" else flags,
        )
    except ValueError:
        return None
