"""What stands behind a name or an address, from the API's objects: Services, EndpointSlices and pods.

Names are those of Kubernetes' DNS specification (1.1): `SERVICE[.NAMESPACE[.svc[.DOMAIN]]]`,
`HOSTNAME.SERVICE.NAMESPACE.svc.DOMAIN`, `1-2-3-4.NAMESPACE.pod.DOMAIN`; and a pod's own name, as `kubectl
port-forward` takes it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from devloop.remote.link import OpenError, Refusal

from .api import Api, ApiError
from .zone import respond

FRESH_SECONDS = 3.0
"""How old a namespace's objects may be when a name is looked up."""
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """A port of a pod."""

    namespace: str
    pod: str
    port: int


@dataclass(slots=True)
class Namespace:
    """The objects of one namespace, at one moment (monotonic seconds)."""

    name: str
    read: float
    services: dict[str, Object] = field(default_factory=dict)
    slices: dict[str, list[Object]] = field(default_factory=dict)
    """Service → its EndpointSlices."""
    pods: dict[str, Object] = field(default_factory=dict)

    def endpoints(self, service: str) -> Iterator[tuple[Object, Object]]:
        """Each ready endpoint of a Service with the slice that it stands in."""
        for each in self.slices.get(service, ()):
            for endpoint in each.get("endpoints") or []:
                # EndpointSlice: an unset `ready` is to be taken for true.
                if (endpoint.get("conditions") or {}).get("ready") is not False:
                    yield endpoint, each

    def at(self, address: str) -> tuple[Object | None, Object | None]:
        """The Service and the pod that have this address."""
        for service in self.services.values():
            if address in addresses(service):
                return service, None
        for pod in self.pods.values():
            if any(address == each["ip"] for each in pod.get("status", {}).get("podIPs") or []):
                return None, pod
        return None, None


def addresses(service: Object) -> list[str]:
    """A Service's own addresses; a headless one has none."""
    return [each for each in service["spec"].get("clusterIPs") or [] if each and each != "None"]


def ready(pod: Object) -> bool:
    """The pod's condition `Ready`, and it is not on its way out."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = pod.get("status", {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


class ClusterNames:
    """The names of a cluster, as far as this user may see them."""

    def __init__(self, api: Api, domain: str = "cluster.local") -> None:
        self.api = api
        self.domain = domain
        self._known: dict[str, Namespace] = {}
        self._reading: dict[str, asyncio.Task[Namespace]] = {}

    def forget(self) -> None:
        """What is known may be wrong: the next look asks the API."""
        self._known.clear()

    async def refresh(self) -> Namespace:
        """Read our own namespace now. Raises ApiError and ApiUnreachableError."""
        self.forget()
        return await self.namespace(self.api.namespace)

    async def namespace(self, name: str) -> Namespace:
        """A namespace's objects, not older than FRESH_SECONDS."""
        known = self._known.get(name)
        if known is not None and time.monotonic() - known.read < FRESH_SECONDS:
            return known
        task = self._reading.get(name)
        if task is None:
            task = self._reading[name] = asyncio.create_task(self._read(name), name=f"names of {name}")
            task.add_done_callback(lambda done: self._reading.pop(name, None) and done.cancelled())
        return await asyncio.shield(task)

    async def _read(self, name: str) -> Namespace:
        core, discovery = f"/api/v1/namespaces/{name}", f"/apis/discovery.k8s.io/v1/namespaces/{name}"
        services, pods, slices = await asyncio.gather(
            self.api.get(f"{core}/services"),
            self.api.get(f"{core}/pods"),
            self._slices(f"{discovery}/endpointslices"),
        )
        found = Namespace(name, time.monotonic())
        found.services = {each["metadata"]["name"]: each for each in services["items"]}
        found.pods = {each["metadata"]["name"]: each for each in pods["items"]}
        for each in slices:
            service = (each["metadata"].get("labels") or {}).get("kubernetes.io/service-name", "")
            found.slices.setdefault(service, []).append(each)
        self._known[name] = found
        return found

    async def _slices(self, path: str) -> list[Object]:
        """EndpointSlices; none where they may not be read: then selectors say what stands behind a Service."""
        try:
            items: list[Object] = (await self.api.get(path))["items"]
        except ApiError as problem:
            if problem.status != HTTPStatus.FORBIDDEN:
                raise
            return []
        return items

    def split(self, host: str) -> tuple[str, str, str]:
        """(hostname or "", Service or pod, namespace) that a name may mean; the last is ours by default."""
        labels = host.lower().rstrip(".").removesuffix(f".{self.domain}").split(".")
        if len(labels) >= 3 and labels[-1] == "svc":
            labels.pop()
            if len(labels) == 3:
                return labels[0], labels[1], labels[2]
        if len(labels) == 2:
            return "", labels[0], labels[1]
        return "", labels[0] if len(labels) == 1 else "", self.api.namespace

    async def targets(self, host: str, port: int) -> list[Target]:
        """The ready pods and their port that a connection to `host` and `port` leads to; may be empty.

        Raises OpenError for a name or an address that is not there, ApiError, ApiUnreachableError.
        """
        try:
            address = str(ipaddress.ip_address(host))
        except ValueError:
            return await self._by_name(host, port)
        found = await self.namespace(self.api.namespace)
        service, pod = found.at(address)
        if service is None and pod is None:
            found = await self.refresh()
            service, pod = found.at(address)
        if service is not None:
            return self._behind(found, service, port, host)
        if pod is not None:
            return [Target(found.name, pod["metadata"]["name"], port)]
        raise OpenError(
            Refusal.UNREACHABLE,
            host,
            port,
            f"no Service or pod of the namespace {self.api.namespace} has this address",
            hint="Plain port-forwards reach nothing else; the agent would.",
        )

    async def _by_name(self, host: str, port: int) -> list[Target]:
        hostname, name, namespace = self.split(host)
        if not name:
            raise self._unknown(host, port)
        found = await self.namespace(namespace)
        service = found.services.get(name)
        if service is None and name not in found.pods:
            self.forget()
            found = await self.namespace(namespace)
            service = found.services.get(name)
        if hostname:
            for endpoint, _ in found.endpoints(name):
                reference = endpoint.get("targetRef") or {}
                if endpoint.get("hostname") == hostname and reference.get("kind") == "Pod":
                    return [Target(namespace, reference["name"], port)]
            raise self._unknown(host, port)
        if service is not None:
            return self._behind(found, service, port, host)
        if name in found.pods:
            return [Target(namespace, name, port)]
        raise self._unknown(host, port)

    def _unknown(self, host: str, port: int) -> OpenError:
        hint = "Plain port-forwards reach Services and pods; other names need the agent."
        return OpenError(Refusal.UNKNOWN_HOST, host, port, "no Service or pod has this name", hint=hint)

    def _behind(self, found: Namespace, service: Object, port: int, host: str) -> list[Target]:
        """The pods behind a Service, and which of their ports one of its own leads to."""
        name, spec = service["metadata"]["name"], service["spec"]
        if spec.get("type") == "ExternalName":
            what = f"it is an ExternalName Service, which leads to {spec.get('externalName')}"
            hint = "Plain port-forwards reach pods; the agent would reach it."
            raise OpenError(Refusal.UNREACHABLE, host, port, what, hint=hint)
        mapped = next((each for each in spec.get("ports") or [] if each["port"] == port), None)
        headless = not addresses(service)
        if mapped is None and not headless:
            raise OpenError(Refusal.REFUSED, host, port, f"the Service {name} has no port {port}")
        if name not in found.slices:
            return self._selected(found, service, port if headless else (mapped or {}).get("targetPort", port))
        targets = []
        for endpoint, each in found.endpoints(name):
            reference = endpoint.get("targetRef") or {}
            if reference.get("kind") != "Pod":
                continue
            number: int | None = port
            if not headless:
                wanted = (mapped or {}).get("name") or ""
                ports = each.get("ports") or []
                number = next((one["port"] for one in ports if (one.get("name") or "") == wanted), None)
            if number is not None:
                targets.append(Target(found.name, reference["name"], number))
        return targets

    def _selected(self, found: Namespace, service: Object, port: int | str) -> list[Target]:
        """The same from the Service's selector, where EndpointSlices may not be read."""
        selector = service["spec"].get("selector") or {}
        targets = []
        for name, pod in found.pods.items():
            labels = pod["metadata"].get("labels") or {}
            if not selector or not ready(pod) or any(labels.get(k) != v for k, v in selector.items()):
                continue
            number = port if isinstance(port, int) else _named(pod, port)
            if number is not None:
                targets.append(Target(found.name, name, number))
        return targets

    async def half_close(self, namespace: str, pod: str) -> bool:
        """Whether the pod's runtime hands a half-close on (`status.containerStatuses[].containerID`).

        containerd does not: it ends the whole connection a second after either side has finished
        (internal/cri/server/sandbox_portforward_linux.go).
        """
        found = (await self.namespace(namespace)).pods.get(pod, {})
        statuses = found.get("status", {}).get("containerStatuses") or []
        return not any(str(each.get("containerID", "")).startswith("containerd:") for each in statuses)

    async def answer(self, message: bytes) -> bytes:
        """Answer a DNS question, in wire format."""
        return await respond(self, message)


def _named(pod: Object, name: str) -> int | None:
    """A container's port by its name."""
    for container in pod["spec"]["containers"]:
        for port in container.get("ports") or []:
            if port.get("name") == name:
                number: int = port["containerPort"]
                return number
    return None
