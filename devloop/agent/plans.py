"""What follows for Envoy from all attachments of a namespace.

It is a function of three things: which Services lead here (their records, so that an agent that has just been started
goes on where the last one ended), where the original pods are (EndpointSlices of the shadow Services), and which
developers are there.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from . import entitled
from .certificates import Termination
from .destinations import EVERYWHERE, Destinations
from .leaving import Leaving
from .member import Member
from .objects import is_marked, is_swapped, listeners_of
from .plan import Local, PortPlan, ServicePlan
from .pods import PodWay
from .protocols import ENCRYPTED, Protocol
from .spec import Spec
from .view import View, own_pair

Document = dict[str, Any]
FIRST_LISTENER = 20000


class Plans:
    """See the module. `_changed` is called when something of it may be another."""

    def __init__(self, folder: Path, destinations: Destinations = EVERYWHERE) -> None:
        self._members: dict[str, Member] = {}
        self._pods = PodWay(folder, lambda: filter(self._is_given, self._members.values()), self._changed, destinations)
        self._claimed: dict[str, dict[int, int]] = {}
        """Listeners by port, of Services that a developer is about to lead here."""
        self._leaving = Leaving(self._original)
        self._last: dict[str, ServicePlan] = {}
        self._left: list[Member] = []
        """Who has left, and still answers what they were asked before."""
        self._trying: Member | None = None
        """Who has just come, and is not taken yet: Envoy may refuse what they ask for."""
        self._view = View(None, self._changed, destinations)

    def _changed(self) -> None:
        raise NotImplementedError

    def _is_given(self, member: Member) -> bool:
        """The cluster says that its developer gets what it asks for, and not the agent's memory alone."""
        if member.spec.way == "pods":
            return entitled.has_marker(self._view.services, member.spec, member.connection.key)
        service = self._view.services.get(member.spec.service)
        return service is not None and entitled.is_holder(service, member.spec)

    async def _listeners(self, name: str) -> dict[int, int]:
        """Where each port of a Service is listened for; numbers that nobody has yet for those that are new."""
        service = await self._view.service(name)
        known = {**self._leaving.listeners(name), **self._claimed.get(name, {}), **listeners_of(service)}
        used = {number for ports in self._claimed.values() for number in ports.values()} | set(known.values())
        for each in self._view.services.values():
            used |= set(listeners_of(each).values())
        for plan in self._leaving.plans:
            used |= {port.listener for port in plan.ports}
        out: dict[int, int] = {}
        candidate = FIRST_LISTENER
        for port in service["spec"].get("ports", []):
            number = port["port"]
            if number not in known:
                while candidate in used:
                    candidate += 1
                used.add(candidate)
                known[number] = candidate
            out[number] = known[number]
        self._claimed[name] = out
        return out

    def _endpoints(self, name: str, port: int) -> tuple[tuple[str, int], ...]:
        """The original pods, as they are or were last."""
        return tuple(self._view.pods(name, port)) or self._known(name, port)

    def _also(self, name: str) -> Mapping[str, str]:
        """Their addresses of the other family."""
        last = self._last.get(name)
        return self._view.also(name) or (last.ports[0].also if last is not None and last.ports else {})

    def _originals(self, name: str, port: int) -> list[list[tuple[str, int]]]:
        """The same: each one's address, and then that of the other family."""
        also = self._also(name)
        return [
            [(each, number) for each in (address, also.get(address)) if each is not None]
            for address, number in self._endpoints(name, port)
        ]

    def _known(self, name: str, port: int) -> tuple[tuple[str, int], ...]:
        """The pods as they were, if the shadow Service has just gone and comes again, or its port has another name."""
        if self._view.tells(name, port):
            return ()
        if name not in self._last:
            return self._leaving.endpoints(name, port)
        return next((each.endpoints for each in self._last[name].ports if each.number == port), ())

    def _plan(self, service: Document) -> ServicePlan:
        name = service["metadata"]["name"]
        listeners = {**self._claimed.get(name, {}), **listeners_of(service)}
        members = [
            each
            for each in self._members.values()
            if each.spec.service == name and each.spec.way == "service" and (each.taken or each is self._trying)
        ]
        members.sort(key=lambda each: (each.spec.since, each.spec.id))
        also = self._also(name)
        ports = [
            PortPlan(
                each["port"],
                listeners[each["port"]],
                protocol,
                self._endpoints(name, each["port"]),
                also,
                tls,
            )
            for each in service["spec"].get("ports", [])
            if each["port"] in listeners
            for protocol, tls in [self._speaks(name, each["port"])]
        ]
        led = is_swapped(service)
        live = tuple(
            Local(each.spec, each.up and not each.silent, each.deaf)
            if not led or entitled.is_holder(service, each.spec)
            # Envoy has its routes, so that it may refuse them; nobody gets a request by them before the record says so.
            else Local(replace(each.spec, fail="open"), False, each.deaf)
            for each in members
        )
        return ServicePlan(name, tuple(ports), live, service["spec"].get("sessionAffinity") == "ClientIP", led=led)

    def _speaks(self, name: str, port: int, *, pods: bool = False) -> tuple[Protocol, Termination | None]:
        """What a port speaks, and with what TLS is ended there; by the pods' way, or at the Service.

        A Service that leads here is asked about those alone whom its record names: what the others bring would be
        shown to everybody's clients.
        Where it is ended, it stays so while anybody is connected, whoever has brought the certificate: else connections
        that have begun so would have nobody to lead them on. Before a Service is led here, none has begun.
        """
        service = self._view.services.get(name)
        led = service is not None and is_swapped(service) and not pods
        members = [
            each
            for each in self._members.values()
            if each.spec.service == name and (each.spec.way == "pods") is pods
            if each.taken or each is self._trying
            if not (led or pods) or self._is_given(each)
        ]
        members.sort(key=lambda each: each.began)
        before = [
            each
            for plan in (*self._last.values(), *self._leaving.plans)
            if plan.name == name and bool(plan.pod) is pods and plan.led
            for each in plan.ports
        ]
        protocol = self._view.protocol(name, port)
        was = next((each for each in before if each.number == port and each.protocol in ENCRYPTED), None)
        if protocol not in ENCRYPTED:
            if protocol == "detect" and (was is not None or any(port in each.encrypted for each in members)):
                protocol = "tls"
            else:
                return protocol, None
        brought = next((each.tls[port] for each in members if port in each.tls), None)
        return protocol, brought or (was.tls if was is not None else None)

    def _original(self, plan: ServicePlan) -> ServicePlan:
        """The same Service, with its own address in place of the pods: they may be others by now, and the shadow that
        has told of them has gone."""
        service = self._view.services.get(plan.name)
        if plan.pod or service is None or is_marked(service):
            return plan
        address = service["spec"].get("clusterIP")
        if address in (None, "", "None"):
            return plan
        also = own_pair(service)
        ports = (replace(each, endpoints=((address, each.number),), also=also) for each in plan.ports)
        return replace(plan, ports=tuple(ports))

    def _plans(self) -> list[ServicePlan]:
        """All Services that lead here, are about to, or whose clients are still connected here."""
        now = time.monotonic()
        pods = self._pods.plans(partial(self._speaks, pods=True))
        plans = {each.key: each for each in (*self._services(pods), *pods)}
        for name in self._last.keys() - plans.keys():
            self._leaving.leave(self._last[name], now)
        self._leaving.back(plans)
        self._last = plans
        fading = {each.spec.id: each.spec for each in self._left if each.spec.id not in self._members}.values()
        return [
            replace(plan, fading=tuple(each for each in fading if _leads(plan, each)))
            for plan in (*plans.values(), *self._leaving.now(now).values())
        ]

    def _services(self, pods: Iterable[ServicePlan]) -> Iterator[ServicePlan]:
        """Those of Services.

        A listener is one Service's: a record is anybody's who may write Services, and goes along when one is copied
        (`kubectl get -o yaml`, another name, `apply`). Envoy would refuse two of a kind, and with them what is
        everybody's. It belongs to a Service that somebody here holds, or else to the oldest one.
        """
        held = {each.spec.service for each in self._members.values() if each.spec.way == "service"}

        def order(service: Document) -> tuple[bool, str, str]:
            meta = service["metadata"]
            return meta["name"] not in held, str(meta.get("creationTimestamp") or ""), meta["name"]

        led = [
            each
            for each in self._view.services.values()
            if is_swapped(each) or each["metadata"]["name"] in self._claimed
        ]
        names = {each["metadata"]["name"] for each in led}
        others = (*pods, *(each for each in self._leaving.plans if each.pod or each.name not in names))
        taken = {port.listener for plan in others for port in plan.ports}
        for service in sorted(led, key=order):
            plan = self._plan(service)
            ports = [
                each for each in plan.ports if FIRST_LISTENER <= each.listener < 65536 and each.listener not in taken
            ]
            taken |= {each.listener for each in ports}
            yield replace(plan, ports=tuple(ports))


def _leads(plan: ServicePlan, spec: Spec) -> bool:
    """A plan of the kind that has led to this attachment: of its Service, at the address or in the pods."""
    return spec.service == plan.name and (spec.way == "pods") == bool(plan.pod)
