"""What is in the remote's namespace: its Services and workloads, as far as names and ports go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from devloop.agent import objects
from devloop.remote.workload import references as kinds
from devloop.remote.workload.cluster import AbsentError, Cluster
from devloop.remote.workload.model import Absence, Object
from devloop.remote.workload.references import Kind

_KINDS = (
    kinds.ROLLOUT,
    kinds.DEPLOYMENT,
    kinds.STATEFUL_SET,
    kinds.DAEMON_SET,
    kinds.JOB,
    kinds.CRON_JOB,
)
"""In the order in which a workload is looked for by its name alone. A Rollout may lend the template of a Deployment of
the same name, and its pods are the ones that run."""


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a Service."""

    name: str
    port: int
    target: int | str
    """The container's port: its number, or its name."""


@dataclass(frozen=True, slots=True)
class ClusterService:
    """One Service."""

    name: str
    namespace: str
    addresses: tuple[str, ...]
    """Its cluster IPs; none if it is headless or an alias."""
    ports: tuple[ServicePort, ...]
    """Of TCP."""
    selector: Mapping[str, str]
    external: str = ""
    """Of an ExternalName: the name that it stands for."""
    udp: tuple[ServicePort, ...] = ()
    """Those of UDP."""
    families: tuple[int, ...] = (4,)
    """The IP versions that its name has addresses of."""

    def port(self, number: int) -> ServicePort | None:
        """The port of this number."""
        return next((each for each in self.ports if each.port == number), None)

    def udp_port(self, number: int) -> ServicePort | None:
        """The same of UDP."""
        return next((each for each in self.udp if each.port == number), None)


@dataclass(frozen=True, slots=True)
class ListedWorkload:
    """One workload: what it is called, and what its pods are like."""

    reference: str
    """"deployment/web"."""
    labels: Mapping[str, str]
    """Its pods'."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """Named ports of its containers."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """One namespace."""

    namespace: str
    services: tuple[ClusterService, ...] = ()
    workloads: Mapping[str, ListedWorkload] = field(default_factory=dict)
    """By reference."""
    refused: frozenset[str] = frozenset()
    """What may not be listed, in the plural: "deployments"."""

    def may_read(self, reference: str) -> bool:
        """Whether what "deploy/web" means may be looked up; for a name alone, whether any workload may."""
        kind, _ = kinds.parse(reference)
        kinds_of = (kind,) if kind is not None else _KINDS
        return not all(each.plural in self.refused for each in kinds_of if each is not kinds.ROLLOUT)

    def by_name(self, name: str) -> ListedWorkload | None:
        """The workload of this name; of several, the first kind of those that people mean most often."""
        found = (self.workloads.get(f"{kind.name.lower()}/{name}") for kind in _KINDS)
        return next((each for each in found if each is not None), None)

    def by_reference(self, reference: str) -> ListedWorkload | None:
        """The workload that "deploy/web" means, or "web" if only one is called that."""
        kind, name = kinds.parse(reference)
        kinds_of = (kind,) if kind is not None else _KINDS
        found = [each for one in kinds_of if (each := self.workloads.get(f"{one.name.lower()}/{name}")) is not None]
        return found[0] if len(found) == 1 else None

    def leading_to(self, workload: ListedWorkload) -> tuple[ClusterService, ...]:
        """The Services that select its pods."""
        return tuple(
            each
            for each in self.services
            if each.selector and all(workload.labels.get(key) == value for key, value in each.selector.items())
        )


async def survey(cluster: Cluster) -> Catalog:
    """Look at the namespace. What may not be listed is missing. Raises RemoteError where nothing can be asked."""
    refused: set[str] = set()
    services, *listings = await asyncio.gather(
        _listed(cluster, kinds.SERVICE, refused), *(_listed(cluster, kind, refused) for kind in _KINDS)
    )
    workloads = {}
    deployments = {each["metadata"]["name"]: each for each in listings[_KINDS.index(kinds.DEPLOYMENT)]}
    for kind, items in zip(_KINDS, listings, strict=True):
        for item in items:
            lender = (item["spec"].get("workloadRef") or {}).get("name") if kind is kinds.ROLLOUT else None
            found = _workload(kind, deployments.get(lender, item) if lender else item, item["metadata"]["name"])
            if found is not None:
                workloads[found.reference] = found
    # An intercepted Service leads to the agent; what counts is what it is without that.
    own = [objects.owners(dict(item)) for item in services if not objects.shadows(dict(item))]
    return Catalog(cluster.namespace, tuple(map(_service, own)), workloads, frozenset(refused))


async def _listed(cluster: Cluster, kind: Kind, refused: set[str]) -> Iterable[Object]:
    try:
        return (await cluster.listing(kind)).items
    except AbsentError as absent:
        if absent.absence is Absence.FORBIDDEN:
            refused.add(kind.plural)
        return ()


def _service(item: Object) -> ClusterService:
    spec: Any = item["spec"]
    addresses = spec.get("clusterIPs") or [spec.get("clusterIP") or "None"]
    tcp, udp = (
        tuple(
            ServicePort(each.get("name") or "", each["port"], each.get("targetPort") or each["port"])
            for each in spec.get("ports") or []
            if each.get("protocol", "TCP") == protocol
        )
        for protocol in ("TCP", "UDP")
    )
    metadata = item["metadata"]
    return ClusterService(
        metadata["name"],
        metadata["namespace"],
        tuple(each for each in addresses if each not in ("", "None")),
        tcp,
        spec.get("selector") or {},
        str(spec.get("externalName") or "") if spec.get("type") == "ExternalName" else "",
        udp,
        tuple(6 if each == "IPv6" else 4 for each in spec.get("ipFamilies") or ("IPv4",)),
    )


def _workload(kind: Kind, item: Object, name: str) -> ListedWorkload | None:
    """None: it has no template."""
    spec: Any = item["spec"]
    if kind is kinds.CRON_JOB:
        spec = spec["jobTemplate"]["spec"]
    template = spec.get("template")
    if template is None:
        return None
    ports = {
        port["name"]: port["containerPort"]
        for container in template["spec"]["containers"]
        for port in container.get("ports") or []
        if port.get("name")
    }
    labels = (template.get("metadata") or {}).get("labels") or {}
    return ListedWorkload(f"{kind.name.lower()}/{name}", labels, ports)
