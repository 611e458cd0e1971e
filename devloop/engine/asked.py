"""What a client's `attach` asks for, besides what devloop.toml says. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from devloop.config.model import Attach, AttachKind, Matching, RouteRule
from devloop.errors import UsageError

KINDS = ("intercept", "replace", "wiretap")
MATCHES = ("exact", "prefix", "regex")


@dataclass(frozen=True, slots=True)
class Asked:
    """None is what devloop.toml says."""

    kind: AttachKind | None = None
    routes: tuple[RouteRule, ...] | None = None
    """Empty: the developer's own `baggage` entry."""
    ports: Mapping[str, int | None] | None = None
    way: str | None = None
    take_over: bool = False

    def of(self, attach: Attach) -> Attach:
        """devloop.toml's attachment with what is asked for."""
        kind = self.kind
        if kind is None:
            kind = AttachKind.INTERCEPT if attach.kind is AttachKind.INGEST else attach.kind
        return replace(
            attach,
            kind=kind,
            routes=attach.routes if self.routes is None else self.routes,
            ports=attach.ports if self.ports is None else self.ports,
            way=self.way or attach.way,
        )


def asked(params: Mapping[str, Any]) -> Asked:
    """Read the parameters of `attach` (`devloop.protocol.METHODS`). Raises UsageError."""
    kind, way = params.get("kind"), params.get("way")
    if kind not in (None, *KINDS):
        raise UsageError(f"there is no kind of attachment {kind!r}", hint=", ".join(KINDS))
    if way not in (None, "service", "pods"):
        raise UsageError(f"traffic is taken at the service or in the pods, not {way!r}")
    ports = params.get("ports")
    if ports is not None and not (
        isinstance(ports, dict) and all(each is None or (isinstance(each, int) and each > 0) for each in ports.values())
    ):
        raise UsageError("`ports` is an object: the Service's port, and the local one or null")
    return Asked(
        None if kind is None else AttachKind(kind), _routes(params.get("routes")), ports or None, way,
        bool(params.get("take_over", False)),
    )  # fmt: skip


def _routes(said: Any) -> tuple[RouteRule, ...] | None:
    match said:
        case None:
            return None
        case "personal":
            return ()
        case "all":
            return (RouteRule(),)
        case [_, *_]:
            try:
                return tuple(map(_route, said))
            except (KeyError, TypeError, ValueError, AttributeError, StopIteration):
                pass
    raise UsageError('`routes` is "personal", "all", or an array of conditions: headers, path, method, share, sni')


def _route(said: Mapping[str, Any]) -> RouteRule:
    headers = {str(name).lower(): _matching(each) for name, each in (said.get("headers") or {}).items()}
    path = _matching(said["path"]) if said.get("path") else None
    share = float(said.get("share") or 100.0)
    if not 0 < share <= 100:
        raise ValueError(share)
    return RouteRule(headers, path, str(said.get("method") or "").upper(), share, str(said.get("sni") or "").lower())


def _matching(said: Mapping[str, Any]) -> Matching:
    ((how, value),) = said.items()
    if how not in MATCHES or not isinstance(value, str):
        raise ValueError(how)
    return Matching(how, value)
