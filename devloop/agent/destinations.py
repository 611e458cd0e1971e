"""Where the agent connects to, and where it does not, whoever asks.

A developer names destinations freely, and the agent's pod stands where they do not: on a node of the cluster. So it
keeps from them what is meant for that node or for the agent alone: metadata services of clouds, which give out the
node's credentials; other link-local addresses; the agent's own loopback and ports. The check is on the address that is
connected to, after names are resolved, so that a name that leads there is no way around it.

What an administrator allows (DEVLOOP_AGENT_ALLOW in the agent's manifest), and the resolvers of the agent's own
resolv.conf at port 53 (NodeLocal DNSCache has a link-local address), are excepted.

The node's own address is not denied: pods speak to agents on their node by `status.hostIP`, and the kubelet there asks
who comes.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

VARIABLE = "DEVLOOP_AGENT_ALLOW"
DNS = 53
OWN_PORTS = range(20000, 30000)
"""Of the agent's own: where Envoy listens for Services (`plans.FIRST_LISTENER`, up to that of `pods.py`). Their
endpoints name this pod, so whoever has looked one up may come here."""
_METADATA = "a metadata service, which gives out what is the node's"
_LINK_LOCAL = "link-local: on the node, or beside it"
_LOOPBACK = "the agent's own loopback"
DENIED: tuple[tuple[str, str], ...] = (
    # RFC 3927; AWS, Google, Azure, Oracle, OpenStack, … at .169.254; ECS, EKS at .170.x
    ("169.254.0.0/16", _LINK_LOCAL),
    ("fe80::/10", _LINK_LOCAL),  # RFC 4291, 2.5.6; OpenStack at fe80::a9fe:a9fe
    ("100.100.100.200/32", _METADATA),  # Alibaba
    ("192.0.0.192/32", _METADATA),  # Oracle Cloud Classic
    # Azure's wire server: a node's extensions and their secrets. Of Microsoft's range, so nobody else's; its resolver
    # at port 53 is for who has it in resolv.conf.
    ("168.63.129.16/32", _METADATA),
    ("fd00:ec2::/32", _METADATA),  # AWS: ::254 (instances), ::23 (EKS Pod Identity), its time and DNS servers
    ("fd20:ce::254/128", _METADATA),  # Google
    ("fd00:c1::a9fe:a9fe/128", _METADATA),  # Oracle
    ("fd00:42::42/128", _METADATA),  # Scaleway
    ("fd00:a9fe:a9fe::/48", _METADATA),  # Akamai (Linode)
    ("127.0.0.0/8", _LOOPBACK),
    ("::1/128", _LOOPBACK),
    ("0.0.0.0/8", _LOOPBACK),  # RFC 1122, 3.2.1.3: this host; Linux connects to itself
    ("::/128", _LOOPBACK),
    ("224.0.0.0/4", "multicast"),
    ("ff00::/8", "multicast"),
    ("255.255.255.255/32", "broadcast"),
)
_DENIED: tuple[tuple[Network, str], ...] = tuple((ipaddress.ip_network(each), why) for each, why in DENIED)
_METADATA_IPV4 = frozenset(
    int(ipaddress.IPv4Address(each))
    for each in (
        *("169.254.169.254", "169.254.170.2", "169.254.170.23", "169.254.0.23", "169.254.42.42"),
        *("100.100.100.200", "192.0.0.192", "168.63.129.16"),
    )
)
"""Looked for at the end of any IPv6 address: a NAT64 may have a prefix of the network's own (RFC 6052, 2.2)."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")


class DeniedError(PermissionError):
    """The agent connects to no such address; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Destinations:
    """See the module. `allowed`: what an administrator allows; `resolvers`: addresses whose port 53 is."""

    allowed: tuple[Network, ...] = ()
    resolvers: frozenset[str] = frozenset()

    @classmethod
    def of(cls, allowed: str, resolv_conf: str = "") -> Destinations:
        """From what DEVLOOP_AGENT_ALLOW says (addresses and networks, with commas or spaces), and a resolv.conf.

        ValueError, for people.
        """
        networks = tuple(ipaddress.ip_network(each) for each in allowed.replace(",", " ").split())
        lines = (each.split() for each in resolv_conf.splitlines())
        named = (line[1] for line in lines if len(line) > 1 and line[0] == "nameserver")
        return cls(networks, frozenset(str(found) for each in named if (found := _read(each)) is not None))

    def check(self, address: str, port: int) -> None:
        """Raises DeniedError where nobody is connected to: a text that is no address, too."""
        if why := self.denial(address, port):
            raise DeniedError(f"{address} is not connected to: it is {why} ({VARIABLE} can allow it)")

    def denial(self, address: str, port: int) -> str:
        """Why this address is denied; empty: it is not."""
        found, denied = _known(address)
        if found is None:
            return "no address"
        if self._allows(found) or (port == DNS and str(found) in self.resolvers):
            return ""
        for each, why in denied:
            if not self._allows(each):
                return why
        if port in OWN_PORTS or not _own(found):
            return ""
        return "the agent's own"

    def _allows(self, address: Address) -> bool:
        return any(address in each for each in self.allowed)


EVERYWHERE = Destinations((ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")))
"""Nothing is denied: for a server that stands in for an agent on somebody's own machine."""


def _read(text: str) -> Address | None:
    """An address, without its zone; one of IPv4 that is written as IPv6 (RFC 4291, 2.5.5.2) as what it is."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found


@lru_cache(4096)
def _known(text: str) -> tuple[Address | None, tuple[tuple[Address, str], ...]]:
    """The address, and what is denied of it and of those that it leads to."""
    found = _read(text)
    if found is None:
        return None, ()
    return found, tuple((each, why) for each in (found, *_inside(found)) for network, why in _DENIED if each in network)


def _inside(address: Address) -> Iterator[Address]:
    """Addresses of IPv4 that one of IPv6 leads to, by whoever translates or unwraps it."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    number = int(address)
    last = ipaddress.IPv4Address(number & 0xFFFFFFFF)
    if address in _NAT64 or (number >> 32 == 0 and number > 0xFFFF):
        yield last  # RFC 6052, 2.1; RFC 4291, 2.5.5.1
    elif int(last) in _METADATA_IPV4:
        yield last
    if address in _NAT64_LOCAL:
        # RFC 8215. Which of RFC 6052's lengths a prefix has, nobody says; below 96, bits 64 to 71 are left out.
        without = (number >> 64 << 56) | (number & ((1 << 56) - 1))
        read = (last, *(ipaddress.IPv4Address(without >> (88 - prefix) & 0xFFFFFFFF) for prefix in (48, 56, 64)))
        yield from (each for each in read if each.is_link_local or each.is_loopback or int(each) in _METADATA_IPV4)
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo


def _own(address: Address) -> bool:
    """Whether it is one of this machine's: what is sent there has it as its source, too. Sends nothing."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as made:
            made.connect((str(address), 9))
            return bool(_read(made.getsockname()[0]) == address)
    except OSError:
        return False
