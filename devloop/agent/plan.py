"""What Envoy is to do: which Services lead here, where their pods are, and which developers have what. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .spec import Spec

Protocol = Literal["http", "http2", "tcp", "detect"]


@dataclass(frozen=True, slots=True)
class PortPlan:
    """One port of a Service."""

    number: int
    listener: int
    """Where Envoy listens in the agent's pod; the Service's targetPort."""
    protocol: Protocol
    endpoints: tuple[tuple[str, int], ...]
    """The original pods' addresses, or the shadow Service's."""


@dataclass(frozen=True, slots=True)
class Local:
    """An attachment as the agent sees it now."""

    spec: Spec
    up: bool
    """Its developer is there and the local service is not known to be down."""


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """One Service that leads to the agent. `locals` are in the order in which they came."""

    name: str
    ports: tuple[PortPlan, ...]
    locals: tuple[Local, ...] = ()
    sticky: bool = False
    """The Service asks for `sessionAffinity: ClientIP`."""


def socket_path(folder: str, attachment: str, port: int) -> str:
    """Where the agent listens for what is one developer's, on one port of the Service."""
    return f"{folder}/{attachment}-{port}.sock"


def protocol_of(port: Mapping[str, Any]) -> Protocol:
    """What a Service's port speaks: its appProtocol, or its name (as Istio reads it), or it is to be detected."""
    said = str(port.get("appProtocol") or "").lower()
    said = said.removeprefix("kubernetes.io/")
    if said:
        known: dict[str, Protocol] = {
            "http": "http",
            "ws": "http",
            "h2c": "http2",
            "http2": "http2",
            "grpc": "http2",
            "grpc-web": "http",
        }
        return known.get(said, "tcp")
    name = str(port.get("name") or "").lower()
    first = name.split("-")[0]
    if first in ("http2", "grpc", "h2c") and not name.startswith("grpc-web"):
        return "http2"
    if first in ("http", "ws", "grpc"):
        return "http"
    if first in ("https", "tls", "tcp", "mysql", "mongo", "redis", "postgres", "postgresql", "smtp", "amqp", "ssh"):
        return "tcp"
    return "detect"


def taking(plan: ServicePlan, port: PortPlan, *kinds: str) -> list[Local]:
    """The attachments of these kinds that have something of this port."""
    return [each for each in plan.locals if each.spec.kind in kinds and port.number in each.spec.ports]
