"""Which connections lead to a pod's ports, by the tables of its network: /proc/net/tcp and tcp6; and how many packets
each has carried, as `ss` of iproute2 prints it. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from . import gateways

TABLES = ("/proc/net/tcp", "/proc/net/tcp6", "/proc/net/route", "/proc/net/ipv6_route")
"""What `read` wants, one after the other, in one text. Anybody in a pod may read them."""
CLOCK = "uptime"
"""What a line begins with that has the seconds at which packets were counted, of a clock of that machine."""
_ESTABLISHED = "01"
_HEAD = "local_address"
_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)
_PACKETS = re.compile(r"data_segs_(in|out):(\d{1,10})(?!\d)", re.ASCII)
_COOKIE = re.compile(r"sk:([0-9a-f]{1,16})", re.ASCII)


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
class Carried:
    """What one connection has carried since it was made."""

    port: int
    client: str
    client_port: int
    cookie: str
    """By which the kernel tells the socket from a later one with the same ends."""
    packets: tuple[int, int] = field(compare=False)
    """How many with something in them came, and how many went."""


@dataclass(frozen=True, slots=True)
class Network:
    """What a pod's tables say."""

    connections: tuple[Connection, ...]
    gateways: tuple[str, ...]
    """Where its node connects from, with most networks."""
    carried: tuple[Carried, ...] = ()
    """Of those connections of which it was said."""
    at: float | None = None
    """When that was counted, by `CLOCK`; None: it was not."""


class _Led(Protocol):
    @property
    def port(self) -> int: ...
    @property
    def client(self) -> str: ...


L = TypeVar("L", bound=_Led)


def read(text: str) -> Network:
    """`TABLES` as `cat` prints them, and `CLOCK` and what `ss -tineH` prints, before or after. Lines that are none of
    theirs are passed over. ValueError: no table is there."""
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
    found = *gateways.ipv4("\n".join(["", *routes])), *gateways.ipv6("\n".join(routes6))
    return Network(tuple(connections), found, *_carried(text))


def others(found: Iterable[L], ports: Collection[int], known: Collection[str]) -> list[L]:
    """Those to one of these ports whose client is neither known nor within the pod."""
    passed = {str(ipaddress.ip_address(each)) for each in known}
    return [
        each
        for each in found
        if each.port in ports and each.client not in passed and not ipaddress.ip_address(each.client).is_loopback
    ]


def _connection(fields: list[str]) -> Connection:
    client, client_port = _end(fields[2])
    sent, received = fields[4].split(":")
    queued = int(sent, 16) > 0 or int(received, 16) > 0
    return Connection(_end(fields[1])[1], client, client_port, int(fields[9]), queued)


def _carried(text: str) -> tuple[tuple[Carried, ...], float | None]:
    """A connection is a line with its ends, and an indented one with what the kernel counts of it."""
    at: float | None = None
    found: dict[Carried, Carried] = {}
    said = False
    ends: Carried | None = None
    for line in text.splitlines():
        fields = line.split(None, 4)
        if len(fields) == 2 and fields[0] == CLOCK:
            at, ends = float(fields[1]) if _SECONDS.fullmatch(fields[1]) else None, None
        elif ends is not None and line[:1].isspace():
            counted = dict(_PACKETS.findall(line))
            said = said or bool(counted)
            # `ss` leaves out what is zero, on kernels that count and on those that don't (before 4.6).
            made = replace(ends, packets=(int(counted.get("in", 0)), int(counted.get("out", 0))))
            found[made] = made
            ends = None
        else:
            ends = _ends(fields)
    return (tuple(found.values()), at) if said and at is not None else ((), None)


def _ends(fields: list[str]) -> Carried | None:
    """None: it is no connection's line."""
    if len(fields) < 5 or not (fields[0].isdecimal() and fields[1].isdecimal()):
        return None
    cookie = _COOKIE.search(fields[4])
    if cookie is None:
        return None
    try:
        (_, port), (client, client_port) = map(_spoken, fields[2:4])
        return Carried(port, client, client_port, cookie[1], (0, 0))
    except ValueError:
        return None


def _spoken(text: str) -> tuple[str, int]:
    """10.0.0.5:8080, [::1]:8080 or [fe80::1]%eth0:8080. ValueError."""
    address, _, port = text.rpartition(":")
    found = ipaddress.ip_address(address.partition("%")[0].strip("[]"))
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return str(found), int(port)


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
