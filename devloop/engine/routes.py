"""Where the connections of local services go: to one another, through the link, or out from the host."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from devloop.engine.names import Names
from devloop.net.router import Destination, Dial, HostLoopback, Ports, RefusedError, ToLink, ToService
from devloop.relay import Target
from devloop.remote.link import Link, NameLookupError
from devloop.remote.standing import Standing, Standings

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_ROUTES = Path("/proc/net/route")
_ROUTES_6 = Path("/proc/net/ipv6_route")


class Routes:
    """The `Router` of one project."""

    def __init__(
        self,
        link: Link,
        names: Names,
        standings: Callable[[], Standings],
        is_local: Callable[[str], bool],
        ports: Callable[[str], Awaitable[Ports]],
        networks: tuple[str, ...] = (),
        routed: Callable[[str], bool] | None = None,
    ) -> None:
        """`ports` gives a local service's ports, once there is something behind them. `networks` are CIDRs that lie
        behind the link; `routed` says whether the host itself knows a way to a private address."""
        self._link = link
        self._names = names
        self._standings = standings
        self._is_local = is_local
        self._ports = ports
        self._networks: tuple[Network, ...] = tuple(map(ipaddress.ip_network, networks))
        self._routed = routed or host_has_route

    async def route(self, service: str, destination: Destination) -> Target:
        """See `devloop.net.router.Router`."""
        if destination.is_loopback:
            return HostLoopback(destination.port, destination.address)
        address, port = destination.address, destination.port
        standing = self._standings().by_address.get(address)
        if standing is not None and self._is_local(standing.service):
            here = standing.local_port(address, port)
            if here is not None:
                return await self._here(standing.service, here)
        if standing is not None and standing.is_virtual(address):
            return await self._there(standing, port)
        if self.through_link(address):
            return ToLink(self._link, address, port, _moves(standing, address, port))
        return Dial(address, port)

    async def datagrams(self, service: str, destination: Destination) -> Target:
        """See `devloop.net.router.DatagramRouter`."""
        address, port = destination.address, destination.port
        standing = self._standings().by_address.get(address)
        moves = ""
        if standing is not None and (here := standing.local_udp_port(address, port)) is not None:
            if self._is_local(standing.service):
                return await self._here(standing.service, here)
            moves = standing.service
        if standing is not None and standing.is_virtual(address):
            if self._is_local(standing.service):
                raise RefusedError(f"{standing.service} is here, and has no UDP port {port}")
            return await self._there(standing, port)
        return ToLink(self._link, address, port, moves) if self.through_link(address) else Dial(address, port)

    def is_dns_service(self, address: str) -> bool:
        """See `devloop.net.service.ServiceRouter`."""
        return address in self._standings().dns_servers

    async def cluster_service(self, name: str, namespace: str, port: int) -> Target:
        """Where a connection to a Service of the cluster goes: here, if what it leads to is, or there."""
        standings = self._standings()
        catalog = standings.catalogs.get(namespace)
        service = next((each for each in catalog.services if each.name == name), None) if catalog else None
        if service is None:
            raise RefusedError(f"there is no Service {name} in {namespace} any more")
        standing = next((each for each in standings.by_service.values() if service in each.counterparts), None)
        if standing is not None and self._is_local(standing.service):
            here = standing.local_port(service.addresses[0] if service.addresses else standing.virtual, port)
            if here is not None:
                return await self._here(standing.service, here)
        address = service.addresses[0] if service.addresses else standing.virtual if standing is not None else ""
        moves = _moves(standing, address, port)
        if service.addresses:
            return self._to_either(service.addresses, port, moves)
        return await self._to_name(standings.domain.full(name, namespace), port, moves)

    async def name(self, name: str, port: int) -> Target:
        """Where a connection to a full name goes."""
        standing = self._standings().by_name.get(name)
        if standing is not None and self._is_local(standing.service):
            here = standing.local_port(standing.virtual, port)
            if here is not None:
                return await self._here(standing.service, here)
        try:
            return await self._to_name(name, port, _moves(standing, standing.virtual if standing else "", port))
        except (NameLookupError, RefusedError):
            if self._standings().domain.cluster:
                raise
            return ToLink(self._link, name, port)  # a host has a hosts file of its own

    async def front(self, service: str, port: int) -> Target:
        """Where a connection to a service's port on the host's loopback goes: here or there. Raises RefusedError."""
        if self._is_local(service):
            return await self._here(service, port)
        standing = self._standings().by_service.get(service)
        found = standing.there(port) if standing else None
        if found is None:
            raise RefusedError(f"{service} is not here, and no Service of the remote leads to its port {port}")
        there, number = found
        if there.addresses:
            return self._to_either(there.addresses, number, service)
        return await self._to_name(self._standings().domain.full(there.name, there.namespace), number, service)

    def stale(self, target: Target) -> bool:
        """Whether the service that this led to when it was found has moved since: here, or to the remote."""
        service: str = getattr(target, "stands_for", "")
        return bool(service) and isinstance(target, ToService) is not self._is_local(service)

    async def _here(self, service: str, port: int) -> Target:
        return ToService(await self._ports(service), port, service)

    async def _there(self, standing: Standing, port: int) -> Target:
        """A connection to a virtual address of a service that has moved to the remote since the name was asked for."""
        for name in sorted(standing.names):
            return await self._to_name(name, port, standing.service)
        for each in standing.counterparts:
            return self._to_either(each.addresses, port, standing.service)
        raise RefusedError(f"{standing.service} is not here, and the remote does not have it")

    async def _to_name(self, name: str, port: int, moves: str = "") -> Target:
        found = await self._names.addresses(name)
        if not found:
            raise RefusedError(f"{name} has no address in the remote")
        return self._to_either(found, port, moves)

    def _to_either(self, addresses: Sequence[str], port: int, moves: str) -> Target:
        """To the first of these, and if it is not reached to the first one of the other family."""
        first, *rest = addresses
        return ToLink(
            self._link, first, port, moves, next((each for each in rest if (":" in each) != (":" in first)), "")
        )

    def reached(self, address: str) -> bool:
        """Whether a connection to an address has a way at all: through the link, or from the host."""
        return self.through_link(address) or _host_reaches(address)

    def through_link(self, address: str) -> bool:
        """Whether an address that is no local service's is reached through the link."""
        if address in self._names.seen or address in self._standings().addresses:
            return True
        ip = ipaddress.ip_address(address)
        if any(ip in network for network in self._networks if ip.version == network.version):
            return True
        # Private, and this host would only hand it to its default gateway: a pod's address that was learned elsewhere.
        return ip.is_private and not ip.is_link_local and not self._routed(address)


def _host_reaches(address: str) -> bool:
    """Whether the host has any route to an address. Nothing is sent."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((address, 9))
    except OSError:
        return False
    return True


def _moves(standing: Standing | None, address: str, port: int) -> str:
    """The service that answers at this address and port while it is here; empty if none does."""
    if standing is None or standing.local_port(address, port) is None:
        return ""
    return standing.service


def host_has_route(address: str) -> bool:
    """Whether the host has a route to this address besides its default one: an own network, a VPN, a container's."""
    ip = ipaddress.ip_address(address)
    try:
        return _in_ipv4_routes(int(ip)) if ip.version == 4 else _in_ipv6_routes(ip)
    except OSError:
        return True  # no Linux: the host is asked, as before


def _in_ipv4_routes(number: int) -> bool:
    raw = struct.unpack("=I", struct.pack(">I", number))[0]  # the file has the kernel's words, in the host's order
    for line in _ROUTES.read_text().splitlines()[1:]:
        fields = line.split()
        net, mask = int(fields[1], 16), int(fields[7], 16)
        if mask and raw & mask == net:
            return True
    return False


def _in_ipv6_routes(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    for line in _ROUTES_6.read_text().splitlines():
        fields = line.split()
        length = int(fields[1], 16)
        network = ipaddress.ip_network((socket.inet_ntop(socket.AF_INET6, bytes.fromhex(fields[0])), length))
        if length and fields[9] != "lo" and ip in network:
            return True
    return False
