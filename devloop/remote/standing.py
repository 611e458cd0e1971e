"""How the project's services stand in the remote: under which names and addresses others reach them. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from devloop.config.model import Service
from devloop.remote.catalog import Catalog, ClusterService, ListedWorkload, ServicePort

VIRTUAL = ipaddress.ip_network("198.19.0.0/16")
"""Addresses for local services that the remote has none for: the second half of RFC 2544's range, which no real
network uses. The first half has the services' own (`devloop.net.namespace.ADDRESSES`)."""


VIRTUAL_6 = ipaddress.ip_network("2001:2:0:8000::/49")
"""The same in IPv6: the second half of RFC 5180's range."""


@dataclass(frozen=True, slots=True)
class Domain:
    """How names are completed at the other end."""

    namespace: str
    cluster: str | None = None
    """"cluster.local"; None where there is no cluster."""
    search: tuple[str, ...] = ()

    @classmethod
    def of(cls, namespace: str, search: tuple[str, ...]) -> Domain:
        """From a pod's search list, which has "svc.DOMAIN" in it (Kubernetes' DNS specification)."""
        cluster = next((each[4:] for each in search if each.startswith("svc.")), None)
        return cls(namespace, cluster, search)

    def full(self, name: str, namespace: str) -> str:
        """A Service's full name."""
        return f"{name}.{namespace}.svc.{self.cluster}" if self.cluster else name


@dataclass(frozen=True, slots=True)
class Standing:
    """One service of the project."""

    service: str
    virtual: str
    """An address of its own, good whatever the remote has."""
    workload: ListedWorkload | None = None
    counterparts: tuple[ClusterService, ...] = ()
    """The Services that lead to it."""
    names: frozenset[str] = frozenset()
    """Full names that are answered with `virtual` while it is local: those that the remote has no address for."""
    declared: Mapping[str, int] = field(default_factory=dict)
    """The ports that it listens on here, by name."""
    virtual_6: str = ""
    """As `virtual`, in IPv6."""
    families: frozenset[int] = frozenset({4})
    """The IP versions that `names` have addresses of."""

    def is_virtual(self, address: str) -> bool:
        """Whether an address is its own, and none of the remote's."""
        return address in (self.virtual, self.virtual_6)

    def virtuals(self, version: int) -> tuple[str, ...]:
        """What `names` are answered with, while it is local, by who asks for addresses of this IP version."""
        return (self.virtual if version == 4 else self.virtual_6,) if version in self.families else ()

    def local_port(self, address: str, port: int) -> int | None:
        """The port here that a connection to one of its addresses means; None for one that no Service has."""
        if not self.counterparts:
            return port
        for each in self.counterparts:
            found = each.port(port)
            if found is not None and (self.is_virtual(address) or address in each.addresses):
                return self._here(found.name, found.target, alone=len(each.ports) == 1)
        # A headless Service leads to the pod itself, on whichever port that listens.
        return port if self.is_virtual(address) else None

    def local_udp_port(self, address: str, port: int) -> int | None:
        """The same for a datagram. What it listens on by UDP has the number that it has in its container."""
        if not self.counterparts:
            return port
        for each in self.counterparts:
            found = each.udp_port(port)
            if found is not None and (self.is_virtual(address) or address in each.addresses):
                return self._here(found.name, found.target, alone=False)
        return port if self.is_virtual(address) else None

    def _here(self, name: str, target: int | str, *, alone: bool) -> int:
        for key in (name, target):
            if isinstance(key, str) and key in self.declared:
                return self.declared[key]
        if alone and len(self.declared) == 1:
            return next(iter(self.declared.values()))
        if isinstance(target, int):
            return target
        ports = self.workload.ports if self.workload else {}
        return ports.get(target, 0)

    def there(self, port: int) -> tuple[ClusterService, int] | None:
        """The Service that leads to this port of it in the remote, and the port to ask for at its name or address."""
        for each in self.counterparts:
            for found in each.ports:
                if self._here(found.name, found.target, alone=len(each.ports) == 1) == port:
                    # The addresses of a headless Service are its pods', at which its own port means nothing.
                    return each, found.port if each.addresses else self._in_the_pod(found)
        return None

    def _in_the_pod(self, port: ServicePort) -> int:
        if isinstance(port.target, int):
            return port.target
        return self.workload.ports.get(port.target, port.port) if self.workload else port.port


class Standings:
    """All services of a project, looked up by name and by address."""

    def __init__(self, services: Iterable[Service], catalogs: Mapping[str, Catalog], domain: Domain) -> None:
        """`catalogs` are those of the namespaces that the project uses, by name."""
        self.domain = domain
        self.catalogs = catalogs
        self.by_service: dict[str, Standing] = {}
        self.problems: dict[str, Exception] = {}
        """Service → why it is not known how it stands; no other is the worse for it."""
        for index, service in enumerate(services):
            own = Standing(service.name, str(VIRTUAL[index + 1]), virtual_6=str(VIRTUAL_6[index + 1]))
            try:
                self.by_service[service.name] = _standing(service, catalogs, domain, own)
            except Exception as problem:
                self.by_service[service.name] = own
                self.problems[service.name] = problem

    @cached_property
    def by_address(self) -> dict[str, Standing]:
        """Cluster IPs and virtual addresses."""
        found = {}
        for standing in self.by_service.values():
            found[standing.virtual] = found[standing.virtual_6] = standing
            for each in standing.counterparts:
                found.update(dict.fromkeys(each.addresses, standing))
        return found

    @cached_property
    def by_name(self) -> dict[str, Standing]:
        """Full names that get a virtual address."""
        return {name: standing for standing in self.by_service.values() for name in standing.names}

    @cached_property
    def dns_servers(self) -> frozenset[str]:
        """Cluster IPs that answer DNS questions, but for the cluster's own resolver: devloop answers in its place."""
        services = (each for name, c in self.catalogs.items() if name != "kube-system" for each in c.services)
        return frozenset(a for each in services if each.udp_port(53) is not None for a in each.addresses)

    @cached_property
    def addresses(self) -> frozenset[str]:
        """Every cluster IP that is known."""
        return frozenset(a for c in self.catalogs.values() for each in c.services for a in each.addresses)


def _standing(service: Service, catalogs: Mapping[str, Catalog], domain: Domain, own: Standing) -> Standing:
    place = service.place
    namespace = place.namespace or domain.namespace
    catalog = catalogs.get(namespace, Catalog(namespace))
    workload = None
    if not place.none:
        workload = catalog.by_reference(place.workload) if place.workload else catalog.by_name(service.name)
    if place.names:
        counterparts = tuple(each for each in catalog.services if each.name in place.names)
    elif workload is not None:
        counterparts = catalog.leading_to(workload)
    else:
        counterparts = tuple(each for each in catalog.services if each.name == service.name)
    known = {each.name: each for each in counterparts}
    names = set()
    for name in place.names or (*known, *(() if counterparts else (service.name,))):
        if name not in known or not known[name].addresses:
            full = domain.full(name, namespace)
            names |= {full, *(f"{name}.{suffix}" for suffix in domain.search if not domain.cluster)}
            if workload is not None and workload.reference.startswith("statefulset/") and domain.cluster:
                names.add(f"{service.name}-0.{full}")
    # A name that the remote does not have gets what its Services have as a rule.
    families = {version for each in counterparts if not each.addresses for version in each.families}
    usual = next((each.families[:1] for each in catalog.services if each.families), (4,))
    return replace(
        own,
        families=frozenset(families or usual),
        workload=workload,
        counterparts=counterparts,
        names=frozenset(names),
        declared=service.ports,
    )
