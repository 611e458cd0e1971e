"""What an attachment is: one developer's claim on one Service or workload. Pure; shared with the engine.

The same document stands in the lease that holds the claim (`objects.py`), in the Service that is changed, and in
what the engine tells the agent, so that whoever is alive can read what everybody else has done.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

Kind = Literal["intercept", "wiretap", "replace"]
How = Literal["exact", "prefix", "regex"]
Fail = Literal["open", "closed"]
Way = Literal["service", "pods"]
"""Where traffic is taken: at the Service's address, or in each pod (a door; see `door.py`)."""
Inside = Literal["tls", "plain"]
"""What the local service speaks on ports that speak TLS in the cluster."""
Document = dict[str, Any]

HOLD_SECONDS = 10.0
WHOLE = 100.0
MAX_HOLD_SECONDS = 86400.0
MAX_ROUTES = 256
MAX_TEXT = 256
MAX_PATTERN = 1024
_NAME = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"


class SpecError(ValueError):
    """A document says something that an attachment can't be; the text is for people."""


@dataclass(frozen=True, slots=True)
class Match:
    """How a text has to be. A regular expression is RE2's and has to match all of it."""

    how: How
    value: str

    def __post_init__(self) -> None:
        if self.how == "regex":
            if len(self.value) > MAX_PATTERN:
                raise SpecError(f"a regular expression has {MAX_PATTERN} characters at most")
            try:
                re.compile(self.value)
            except (re.error, OverflowError, RecursionError) as problem:  # a number, or groups, without end
                raise SpecError(f"the regular expression {self.value!r}: {problem}") from None

    def __str__(self) -> str:
        return {"exact": "=", "prefix": "^=", "regex": "~"}[self.how] + self.value


@dataclass(frozen=True, slots=True)
class Header:
    """A condition on a header; with `entry`, on that entry of a list like `baggage` (W3C Baggage, 3.3)."""

    name: str
    match: Match
    entry: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", self.name):
            raise SpecError(f"{self.name!r} is no name of a header")
        if self.entry and self.match.how != "exact":
            raise SpecError("an entry of a header is matched exactly")

    @property
    def key(self) -> tuple[str, str]:
        """Two conditions on the same key can exclude each other."""
        return self.name.lower(), self.entry

    def __str__(self) -> str:
        return f"{self.name.lower()}:{self.entry}{self.match}" if self.entry else f"{self.name.lower()}{self.match}"


@dataclass(frozen=True, slots=True)
class Route:
    """Which requests are taken: those that meet every condition, and of these a share in percent."""

    headers: tuple[Header, ...] = ()
    path: Match | None = None
    method: str = ""
    share: float = WHOLE
    sni: str = ""
    """The name of the server that a client of TLS asks for (RFC 6066, 3); `*.NAME` is any below NAME."""

    def __post_init__(self) -> None:
        if self.sni and (self.headers or self.path or self.method or self.share != WHOLE):
            raise SpecError(
                f"a route by the server's name ({self.sni}) has no other condition: what is inside is not seen"
            )
        if self.sni and not re.fullmatch(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?", self.sni):
            raise SpecError(f"{self.sni!r} is no name of a server: as in api.example.com, or *.example.com")
        if not 0 < self.share <= WHOLE:
            raise SpecError(f"a share is above 0 and up to 100 percent, and this is {self.share:g}")
        if self.path is not None and self.path.how != "regex" and not self.path.value.startswith("/"):
            raise SpecError(f"a path starts with a slash, and this is {self.path.value!r}")

    @property
    def conditional(self) -> bool:
        """It looks at the request; on plain TCP there is nothing to look at."""
        return bool(self.headers or self.path or self.method or self.sni)

    @property
    def looks_inside(self) -> bool:
        """It looks at what HTTP says, and not at the name alone by which TLS is asked."""
        return bool(self.headers or self.path or self.method)

    def __str__(self) -> str:
        parts = [str(each) for each in self.headers]
        parts += [f"path{self.path}"] if self.path else []
        parts += [f"method={self.method}"] if self.method else []
        parts += [f"sni={self.sni}"] if self.sni else []
        text = " and ".join(parts) or "all requests"
        return text if self.share == WHOLE else f"{self.share:g} % of {text}"


ALL = Route()


def personal(user: str) -> Route:
    """The default route: the W3C `baggage` entry `devloop=USER`, which OpenTelemetry hands on by itself."""
    return Route((Header("baggage", Match("exact", quote(user, safe="")), "devloop"),))


@dataclass(frozen=True, slots=True)
class Spec:
    """One attachment. `ports` maps a Service's port numbers to the local service's."""

    id: str
    user: str
    host: str
    kind: Kind
    since: str
    """When it began, as the API writes times: 2026-11-21T11:00:00Z."""
    service: str = ""
    ports: Mapping[int, int] = field(default_factory=dict)
    routes: tuple[Route, ...] = (ALL,)
    fail: Fail = "open"
    hold: float = HOLD_SECONDS
    workload: str = ""
    """KIND/NAME in lower case; for `replace`."""
    way: Way = "service"
    datagrams: Mapping[int, int] = field(default_factory=dict)
    """As `ports`, of UDP: taken in the pods alone, and as a whole."""
    local: Inside = "tls"

    @property
    def who(self) -> str:
        """For people."""
        return f"{self.user}@{self.host}"

    def document(self) -> Document:
        """As JSON has it."""
        return {
            "id": self.id,
            "user": self.user,
            "host": self.host,
            "kind": self.kind,
            "since": self.since,
            "service": self.service,
            "ports": {str(port): local for port, local in self.ports.items()},
            "routes": [_route_document(each) for each in self.routes],
            "fail": self.fail,
            "hold": self.hold,
            "workload": self.workload,
            # Only where it is news: a record that was made before there were two ways says the same as one from now.
            **({"way": self.way} if self.way != "service" else {}),
            **({"udp": {str(port): local for port, local in self.datagrams.items()}} if self.datagrams else {}),
            **({"local": self.local} if self.local != "tls" else {}),
        }

    @classmethod
    def read(cls, document: object) -> Spec:
        """From JSON that may be anybody's. Raises SpecError."""
        try:
            assert isinstance(document, dict)
            kind, fail = document["kind"], document.get("fail", "open")
            if kind not in ("intercept", "wiretap", "replace") or fail not in ("open", "closed"):
                raise SpecError(f"there is no {kind!r} that fails {fail!r}")
            found = cls(
                id=str(document["id"]),
                user=str(document["user"]),
                host=str(document["host"]),
                kind=kind,
                since=str(document["since"]),
                service=str(document.get("service", "")),
                ports={int(port): int(local) for port, local in document.get("ports", {}).items()},
                routes=tuple(_route(each) for each in document.get("routes", [{}])),
                fail=fail,
                hold=float(document.get("hold", HOLD_SECONDS)),
                workload=str(document.get("workload", "")),
                way="pods" if document.get("way") == "pods" else "service",
                datagrams={int(port): int(local) for port, local in document.get("udp", {}).items()},
                local="plain" if document.get("local") == "plain" else "tls",
            )
        except (KeyError, TypeError, AttributeError, AssertionError, ValueError) as problem:
            raise SpecError(f"this is no attachment: {type(problem).__name__}: {problem}") from None
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", found.id):
            raise SpecError(f"{found.id[:80]!r} is no id of an attachment")  # it becomes a part of file names
        if found.service and not re.fullmatch(_NAME, found.service):
            raise SpecError(f"{found.service[:80]!r} is no name of a Service")
        if found.workload and not re.fullmatch(f"[a-z]{{1,63}}/{_NAME}", found.workload):  # a part of the API's paths
            raise SpecError(f"{found.workload[:80]!r} is no workload")
        pairs = (*found.ports.items(), *found.datagrams.items())
        if not all(0 < port < 65536 > local >= 0 for port, local in pairs):
            raise SpecError("a port is a number up to 65535")
        if not 0 <= found.hold <= MAX_HOLD_SECONDS:  # NaN is neither
            raise SpecError(f"a request waits for {MAX_HOLD_SECONDS:g} s at most")
        if len(found.routes) > MAX_ROUTES or any(len(each.headers) > MAX_ROUTES for each in found.routes):
            raise SpecError(f"an attachment has {MAX_ROUTES} routes at most, and a route as many headers")
        if max(map(len, (found.user, found.host, found.since))) > MAX_TEXT:
            raise SpecError(f"a name has {MAX_TEXT} characters at most")
        return found


def _route_document(route: Route) -> Document:
    out: Document = {}
    if route.headers:
        out["headers"] = [
            {"name": each.name, each.match.how: each.match.value} | ({"entry": each.entry} if each.entry else {})
            for each in route.headers
        ]
    if route.path:
        out["path"] = {route.path.how: route.path.value}
    if route.method:
        out["method"] = route.method
    if route.share != WHOLE:
        out["share"] = route.share
    if route.sni:
        out["sni"] = route.sni
    return out


def _match(document: Mapping[str, Any]) -> Match:
    hows: tuple[How, ...] = ("exact", "prefix", "regex")
    for how in hows:
        if how in document:
            return Match(how, str(document[how]))
    raise SpecError("a condition is exact, prefix or regex")


def _route(document: Mapping[str, Any]) -> Route:
    return Route(
        tuple(
            Header(str(each["name"]), _match(each), str(each.get("entry", ""))) for each in document.get("headers", [])
        ),
        _match(document["path"]) if "path" in document else None,
        str(document.get("method", "")).upper(),
        float(document.get("share", WHOLE)),
        str(document.get("sni", "")).lower(),
    )
