"""What the services of a project may depend on, as far as catalogs and the project tell: names, addresses, ports."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from devloop.config.model import Service
from devloop.engine.routes import Routes
from devloop.relay import Target
from devloop.remote.standing import Domain, Standing, Standings


@dataclass(frozen=True, slots=True)
class Need:
    """One dependency."""

    full: str
    """The name that tells it from all others."""
    hosts: frozenset[str]
    """Names that everybody may call it by."""
    short: str
    """What it is called in its own namespace alone; "" if there is no such name."""
    namespace: str
    route: Callable[[int], Awaitable[Target]]
    ports: tuple[int, ...] = ()
    addresses: frozenset[str] = frozenset()
    any_port: bool = False
    """It may have others: a headless Service's pods, an alias."""
    service: str = ""
    """The project's service that it leads to while that is local."""
    here: Mapping[int, int] = field(default_factory=dict)
    """Its port → the one that this service listens on."""

    def names(self, namespace: str) -> frozenset[str]:
        """What it is called by a service of this namespace."""
        return self.hosts | {self.short} if self.short and namespace == self.namespace else self.hosts


def needs(standings: Standings, services: Mapping[str, Service], routes: Routes) -> list[Need]:
    """All dependencies that are known by themselves."""
    domain = standings.domain
    found = []
    leading = {(s.name, s.namespace): each for each in standings.by_service.values() for s in each.counterparts}
    for catalog in standings.catalogs.values():
        for each in catalog.services:
            standing = leading.get((each.name, each.namespace))
            ports = tuple(port.port for port in each.ports)
            found.append(
                Need(
                    domain.full(each.name, each.namespace),
                    _hosts(each.name, each.namespace, domain),
                    each.name,
                    each.namespace,
                    partial(routes.cluster_service, each.name, each.namespace),
                    ports,
                    frozenset(each.addresses),
                    any_port=not each.addresses,
                    service=standing.service if standing else "",
                    here=_here(standing, each.addresses, ports) if standing else {},
                )
            )
    for name, standing in standings.by_service.items():
        if standing.counterparts or name not in services:
            continue
        place = services[name].place
        namespace = place.namespace or domain.namespace
        declared = tuple(standing.declared.values())
        found += [
            Need(
                domain.full(each, namespace),
                _hosts(each, namespace, domain),
                each,
                namespace,
                partial(routes.front, name),
                declared,
                service=name,
                here={port: port for port in declared},
            )
            for each in place.names or (name,)
        ]
    return found


def _hosts(name: str, namespace: str, domain: Domain) -> frozenset[str]:
    """Kubernetes' DNS specification; without a cluster, a name in each of the search domains."""
    if domain.cluster is None:
        return frozenset(f"{name}.{suffix}" for suffix in domain.search)
    return frozenset(f"{name}.{namespace}{rest}" for rest in ("", ".svc", f".svc.{domain.cluster}"))


def _here(standing: Standing, addresses: Collection[str], ports: Iterable[int]) -> dict[int, int]:
    address = next(iter(addresses), standing.virtual)
    found = {port: standing.local_port(address, port) for port in ports}
    return {port: here for port, here in found.items() if here}
