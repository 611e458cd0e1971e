"""Which connections lead to a pod's ports, by the tables of its network: /proc/net/tcp and tcp6. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass

from . import gateways

TABLES = ("/proc/net/tcp", "/proc/net/tcp6", "/proc/net/route", "/proc/net/ipv6_route")
"""What `read` wants, one after the other, in one text. Anybody in a pod may read them."""
_ESTABLISHED = "01"
_HEAD = "local_address"


@dataclass(frozen=True, slots=True)
class Connection:
    """One that is established."""

    port: int
    """The pod's own."""
    client: str
    """The other end's address."""
    client_port: int
    inode: int
    """The socket's, by which its owner knows it."""
    queued: bool
    """Bytes wait on it, in one direction or the other."""


@dataclass(frozen=True, slots=True)
class Network:
    """What a pod's tables say."""

    connections: tuple[Connection, ...]
    gateways: tuple[str, ...]
    """Where its node connects from, with most networks."""


def read(text: str) -> Network:
    """`TABLES` as `cat` prints them. Lines that are none of theirs are passed over. ValueError: no table is there."""
    if _HEAD not in text:
        raise ValueError("there is no table of connections")
    connections, routes, routes6 = [], [], []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) > 9 and fields[0].endswith(":") and fields[0][:-1].isdecimal():
            if fields[3] == _ESTABLISHED:
                connections.append(_connection(fields))
        elif len(fields) == 11 and len(fields[1]) == 8:
            routes.append(line)
        elif len(fields) == 10 and len(fields[0]) == 32:
            routes6.append(line)
    return Network(tuple(connections), (*gateways.ipv4("\n".join(["", *routes])), *gateways.ipv6("\n".join(routes6))))


def others(network: Network, ports: Collection[int], known: Collection[str]) -> list[Connection]:
    """Those to one of these ports whose client is neither known nor within the pod."""
    passed = {str(ipaddress.ip_address(each)) for each in known}
    return [
        each
        for each in network.connections
        if each.port in ports and each.client not in passed and not ipaddress.ip_address(each.client).is_loopback
    ]


def _connection(fields: list[str]) -> Connection:
    client, client_port = _end(fields[2])
    sent, received = fields[4].split(":")
    queued = int(sent, 16) > 0 or int(received, 16) > 0
    return Connection(_end(fields[1])[1], client, client_port, int(fields[9]), queued)


def _end(text: str) -> tuple[str, int]:
    """An address and a port. The kernel prints an address as words of its own byte order: here a small one's, as all
    processors have that run containers."""
    address, _, port = text.partition(":")
    raw = bytes.fromhex(address)
    words = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    found = ipaddress.ip_address(words)
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return str(found), int(port, 16)
