"""What Envoy is to do: which Services lead here, where their pods are, and which developers have what. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .certificates import Termination
from .protocols import Protocol
from .spec import Spec


@dataclass(frozen=True, slots=True)
class PortPlan:
    """One port of a Service."""

    number: int
    listener: int
    """Where Envoy listens in the agent's pod; the Service's targetPort."""
    protocol: Protocol
    endpoints: tuple[tuple[str, int], ...]
    """The original pods' addresses, or the shadow Service's."""
    also: Mapping[str, str] = field(default_factory=dict)
    """In a dual-stack cluster: one of these addresses to the same pod's of the other family. A client has come by
    either, and the pod may listen on one of them alone."""
    tls: Termination | None = None
    """With what TLS is ended here and made anew; None: what is inside can't be seen. For the protocol `tls`."""


@dataclass(frozen=True, slots=True)
class Local:
    """An attachment as the agent sees it now."""

    spec: Spec
    up: bool
    """Its developer is there and the local service is not known to be down."""
    deaf: frozenset[int] = frozenset()
    """Ports of the Service at which it is down all the same: nothing listens there."""


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """One Service that leads to the agent, or one pod of it whose door does. `locals`: in the order of their coming."""

    name: str
    ports: tuple[PortPlan, ...]
    locals: tuple[Local, ...] = ()
    sticky: bool = False
    """The Service asks for `sessionAffinity: ClientIP`."""
    pod: str = ""
    """The pod's tag (`doors.tag_of`), if this is about one pod's traffic: its original is that pod and no other."""
    clients: tuple[str, ...] = ()
    """Who may connect: the addresses of that pod, from which its door comes. Empty: everybody."""
    led: bool = True
    """Clients come here. False: a developer is about to lead the Service here, and nobody has said so in its record."""
    leaving: bool = False
    """Nobody new comes: who is connected is served by the original, and asked to connect anew with each answer."""
    listening: bool = True
    """False: nobody is connected any more."""
    fading: tuple[Spec, ...] = ()
    """Attachments that no route leads to any more: requests wait for their local services, or were just refused there,
    and Envoy asks the next one in the same cluster."""

    @property
    def key(self) -> str:
        """What tells it from all others."""
        return f"{self.name}{self.at}"

    @property
    def at(self) -> str:
        """What its names end with. A Service's name has no `@`."""
        return f"@{self.pod}" if self.pod else ""


def socket_path(folder: str, attachment: str, port: int, at: str = "") -> str:
    """Where the agent listens for what is one developer's, on one port of the Service (of one pod of it)."""
    return f"{folder}/{attachment}-{port}{at}.sock"


def local_name(plan: ServicePlan, port: PortPlan, spec: Spec) -> str:
    """The name of Envoy's cluster for one developer's attachment."""
    return f"local-{spec.id}-{port.number}{plan.at}"


def grpc_name(plan: ServicePlan, port: PortPlan, spec: Spec) -> str:
    """The same for its gRPC calls, on ports that speak TLS: see `routes.variants`."""
    return f"{local_name(plan, port, spec)}-grpc"


def sni_name(plan: ServicePlan, port: PortPlan, spec: Spec) -> str:
    """The name of Envoy's cluster for the connections that a developer takes by their server's name."""
    return f"sni-{spec.id}-{port.number}{plan.at}"


def original_name(plan: ServicePlan, port: PortPlan) -> str:
    """The name of Envoy's cluster for the original pods."""
    return f"original-{plan.name}-{port.number}{plan.at}"


def table_name(plan: ServicePlan, port: PortPlan, version: int) -> str:
    """The name of Envoy's table of routes."""
    return f"{plan.name}-{port.number}{plan.at}-h{version}"


def reaching(plan: ServicePlan, port: PortPlan) -> list[Spec]:
    """The attachments that have a cluster of this port."""
    found = [each.spec for each in taking(plan, port, "intercept", "replace", "wiretap")]
    return found + [each for each in plan.fading if port.number in each.ports]


def taking(plan: ServicePlan, port: PortPlan, *kinds: str) -> list[Local]:
    """The attachments of these kinds that have something of this port, as they stand there."""
    found = [each for each in plan.locals if each.spec.kind in kinds and port.number in each.spec.ports]
    return [replace(each, up=False) if port.number in each.deaf else each for each in found]
