"""The network of the sandbox: which pod a name or an address leads to, for its pods and for the link alike."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from devloop.net.host import HostPorts, Listening
from devloop.net.router import Destination, Dial, RefusedError, connect_socket
from devloop.remote.kubernetes.names import ClusterNames, Namespace, addresses
from devloop.remote.link import OpenError, Refusal
from devloop.remote.sandbox import Handler, Page, page
from devloop.remote.workload import references as kinds
from devloop.remote.workload.model import Object

from .endpoints import behind
from .objects import ENDPOINT_SLICE, Objects

if TYPE_CHECKING:
    from devloop.net.dns import Answer, Kept

SERVICES = ipaddress.ip_network("10.96.0.0/16")
PODS = ipaddress.ip_network("10.244.0.0/16")
COMING_SECONDS = 10.0
"""How long a connection to a Service waits whose only pods are still at their first start."""


class Pod(Protocol):
    """What is needed of a pod that runs."""

    @property
    def coming(self) -> bool:
        """It is at its first start, and nothing has gone wrong yet."""

    async def connect(self, port: int) -> socket.socket:
        """A connection to what listens on its address. Raises OSError and DevloopError."""


class Names(ClusterNames):
    """The names of the sandbox's objects, which are always as they are now."""

    def __init__(self, objects: Objects) -> None:
        @dataclass(frozen=True)
        class Api:
            namespace: str = objects.namespace

        api: Any = Api()  # of the API only its namespace is asked: `namespace` below reads the objects
        super().__init__(api)
        self._objects = objects
        self._made: tuple[int, Namespace] = (-1, Namespace("", 0.0))

    async def namespace(self, name: str) -> Namespace:
        """A namespace's objects; one that is not ours has none."""
        objects = self._objects
        if name != objects.namespace:
            return Namespace(name, time.monotonic())
        if self._made[0] != objects.version:
            found = Namespace(name, time.monotonic())
            found.services = {each["metadata"]["name"]: dict(each) for each in objects.all(kinds.SERVICE)}
            found.pods = {each["metadata"]["name"]: dict(each) for each in objects.all(kinds.POD)}
            for each in objects.all(ENDPOINT_SLICE):
                service = each["metadata"]["labels"]["kubernetes.io/service-name"]
                found.slices.setdefault(service, []).append(dict(each))
            self._made = (objects.version, found)
        return self._made[1]

    async def service(self, host: str) -> Object | None:
        """The Service that a name or an address means."""
        found = await self.namespace(self._objects.namespace)
        try:
            return found.at(str(ipaddress.ip_address(host)))[0]
        except ValueError:
            hostname, name, namespace = self.split(host)
            return found.services.get(name) if namespace == found.name and not hostname else None


class Network:
    """Connections to Services and pods."""

    def __init__(self, objects: Objects, pods: Callable[[str], Pod | None]) -> None:
        """`pods` gives a pod that runs, by its name."""
        self.objects = objects
        self.names = Names(objects)
        self.notes: tuple[str, ...] = ()
        """Part of the link's `Backend`."""
        self.not_running = ""
        """Why there are no pods at all, on this machine."""
        self.opened = asyncio.Event()
        """The objects are there: before, connections and questions wait."""
        self._pods = pods
        self._turns: dict[tuple[str, int], int] = {}

    @property
    def namespace(self) -> str:
        """Part of the link's `Backend`."""
        return self.objects.namespace

    async def connect(self, host: str, port: int) -> socket.socket | Handler:
        """Part of the link's `Backend`: a connection to a pod behind a name or an address. Raises OpenError."""
        await self.opened.wait()
        if self.not_running:
            return await self._stand_in(host, port)
        until = time.monotonic() + COMING_SECONDS
        while True:
            targets = await self.names.targets(host, port)
            if targets:
                # Each port of a Service has its own turn: two that are asked in step would never see all pods.
                turn = self._turns[host, port] = self._turns.get((host, port), -1) + 1
                target = targets[turn % len(targets)]
                pod = self._pods(target.pod)
                if pod is None:
                    raise OpenError(Refusal.UNREACHABLE, host, port, f"pod {target.pod} has ended")
                return await self._to(pod, target.port, host, port)
            if not await self._coming(host):
                raise OpenError(Refusal.REFUSED, host, port, "no ready pod stands behind it")
            try:
                async with asyncio.timeout(max(0.0, until - time.monotonic())):
                    await self.objects.changed()
            except TimeoutError:
                raise OpenError(Refusal.REFUSED, host, port, "its pods are not ready yet") from None

    async def _to(self, pod: Pod, number: int, host: str, port: int) -> socket.socket:
        try:
            return await pod.connect(number)
        except ConnectionRefusedError as problem:
            raise OpenError(Refusal.REFUSED, host, port, f"nothing listens on port {number} of its pod") from problem
        except Exception as problem:
            raise OpenError(Refusal.UNREACHABLE, host, port, str(problem) or type(problem).__name__) from problem

    async def _coming(self, host: str) -> bool:
        """Whether a pod behind this Service will be ready soon, as far as one can tell."""
        service = await self.names.service(host)
        if service is None:
            return False
        names = [each["metadata"]["name"] for each in self.objects.all(kinds.POD) if behind(service, each)]
        return any(pod.coming for name in names if (pod := self._pods(name)) is not None)

    async def _stand_in(self, host: str, port: int) -> Handler:
        """Without pods, what each port of a Service says."""
        service = await self.names.service(host)
        if service is None:
            raise OpenError(Refusal.UNKNOWN_HOST, host, port, "no Service has this name")
        if service["spec"].get("ports") and not any(each["port"] == port for each in service["spec"]["ports"]):
            raise OpenError(Refusal.REFUSED, host, port, "the Service has no such port")
        name = service["metadata"]["name"]
        return page(name, Page(f"{name} does not run: {self.not_running}\n"))

    async def query(self, wire: bytes) -> bytes:
        """Part of the link's `Backend`: what the cluster's resolver answers."""
        await self.opened.wait()
        return await self.names.answer(wire)


class PodNames:
    """The names of the sandbox for its pods: a `devloop.net.dns.NameSource`."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def lookup(self, name: str, type: str) -> Answer | None:
        """Part of `NameSource`."""
        import dns.message
        import dns.rcode

        from devloop.net.dns import Answer, Record

        wire = await self._network.query(dns.message.make_query(f"{name}.", type).to_wire())
        answer = dns.message.from_wire(wire)
        if answer.rcode() == dns.rcode.REFUSED:
            return None
        records = [
            Record(dns.rdatatype.to_text(rrset.rdtype), each.to_text(), rrset.ttl, rrset.name.to_text())
            for rrset in answer.answer
            for each in rrset
        ]
        return Answer(tuple(records), answer.rcode() != dns.rcode.NXDOMAIN)

    def kept(self, name: str, type: str) -> Kept | None:
        """Part of `NameSource`. It keeps nothing."""
        return None


@dataclass(frozen=True, slots=True)
class _ToPod:
    """A `devloop.net.relay.Target`: a pod, by its own or its Service's address."""

    network: Network
    destination: Destination

    async def connect(self, side: asyncio.Protocol) -> Any:
        """Part of `Target`."""
        try:
            found = await self.network.connect(self.destination.address, self.destination.port)
        except OpenError as problem:
            if problem.refusal is Refusal.REFUSED:
                # An everyday answer, which the pod sees; not a line in its log each time.
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)) from problem
            raise
        assert isinstance(found, socket.socket)
        return await connect_socket(found, side)


class PodRouter:
    """Where the connections of pods go: a `devloop.net.service.ServiceRouter`."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def route(self, service: str, destination: Destination) -> Any:
        """Part of `Router`."""
        if destination.is_loopback:
            raise RefusedError(f"nothing listens on {destination}: localhost is the pod's own")
        address = ipaddress.ip_address(destination.address)
        if address in SERVICES or address in PODS:
            return _ToPod(self._network, destination)
        return Dial(destination.address, destination.port)

    async def datagrams(self, service: str, destination: Destination) -> Any:
        """Part of `DatagramRouter`: out of the sandbox, and not within it."""
        address = ipaddress.ip_address(destination.address)
        if address in SERVICES or address in PODS:
            raise RefusedError("the sandbox has no UDP")
        return Dial(destination.address, destination.port)

    def stale(self, target: Any) -> bool:
        """Part of `DatagramRouter`."""
        return False

    def is_dns_service(self, address: str) -> bool:
        """Part of `ServiceRouter`."""
        return False


class NoHostPorts(HostPorts):
    """The host's localhost is not a pod's: nothing of it is shown inside."""

    def __init__(self) -> None:
        """Without a look at the host."""

    async def add(self, namespace: Listening, except_for: Callable[[], Collection[int]]) -> None:
        """See `HostPorts`: nothing is told."""

    def remove(self, namespace: Listening) -> None:
        """See `HostPorts`."""

    async def close(self) -> None:
        """See `HostPorts`."""


def give_addresses(services: list[Object]) -> list[Object]:
    """Services with an address of their own each, where the manifest leaves it open."""
    taken = {address for each in services for address in addresses(dict(each))}
    taken |= {str(each["spec"].get("clusterIP")) for each in services}
    free = (str(each) for each in SERVICES.hosts() if int(each) >= int(SERVICES[100]) and str(each) not in taken)
    made: list[Object] = []
    for each in services:
        spec = dict(each["spec"])
        if spec["type"] != "ExternalName" and spec.get("clusterIP") != "None":
            spec["clusterIP"] = spec.get("clusterIP") or next(free)
            spec["clusterIPs"] = [spec["clusterIP"]]
        made.append({**each, "spec": spec})
    return made
