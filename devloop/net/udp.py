"""UDP packets, made and taken apart: what a raw socket sends into a namespace (RFC 791, RFC 8200, RFC 768, RFC 4443).

An answer has to come from the address and port that were asked. A socket that is bound there would do, but it takes
the port away from the service: whoever sends from the port that it sends to (SIP, gossip, NTP) has it already. A raw
socket needs no port, one is enough for all flows, and it can say, too, that nobody listens.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

from devloop.net.router import Destination, canonical

RECVORIGDSTADDR_4, RECVORIGDSTADDR_6 = 20, 74
"""IP_RECVORIGDSTADDR and IPV6_RECVORIGDSTADDR (linux/in.h, linux/in6.h)."""
LONGEST_4, LONGEST_6 = 65_507, 65_488
"""What a datagram may hold here, in bytes. IPv4: a packet's 65,535. IPv6: lo's 65,536, as nobody cuts what is raw."""
_UDP, _ICMP, _ICMP_6 = 17, 1, 58
_HOPS = 64


def original(ancillary: Iterable[tuple[int, int, bytes]]) -> Destination | None:
    """Where a datagram was sent to (ip(7), IP_RECVORIGDSTADDR)."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == RECVORIGDSTADDR_4 and len(data) >= 8:
            return Destination(socket.inet_ntop(socket.AF_INET, data[4:8]), int.from_bytes(data[2:4], "big"))
        if level == socket.IPPROTO_IPV6 and kind == RECVORIGDSTADDR_6 and len(data) >= 24:
            address = canonical(socket.inet_ntop(socket.AF_INET6, data[8:24]))
            return Destination(address, int.from_bytes(data[2:4], "big"))
    return None


def datagram(source: Destination, to: Destination, data: bytes) -> bytes | None:
    """A whole packet; None if there is no such large one."""
    if len(data) > (LONGEST_6 if ":" in to.address else LONGEST_4):
        return None
    head = _udp(source, to, len(data))
    if ":" not in to.address:
        return _ip(source.address, to.address, _UDP, len(head) + len(data)) + head + data
    # In IPv6 there is no datagram without a checksum.
    found = checksum(_pseudo(source.address, to.address, _UDP, len(head) + len(data)) + head + data)
    head = head[:6] + found.to_bytes(2, "big")
    return _ip(source.address, to.address, _UDP, len(head) + len(data)) + head + data


def unreachable(source: Destination, to: Destination) -> bytes:
    """The packet that says to `source` that nobody listens at `to`: ICMP's "port unreachable"."""
    four = ":" not in to.address
    lost = _ip(source.address, to.address, _UDP, 8) + _udp(source, to, 0)
    body = struct.pack(">BBHI", *((3, 3) if four else (1, 4)), 0, 0) + lost
    protocol = _ICMP if four else _ICMP_6
    pseudo = b"" if four else _pseudo(to.address, source.address, protocol, len(body))
    body = body[:2] + checksum(pseudo + body).to_bytes(2, "big") + body[4:]
    return _ip(to.address, source.address, protocol, len(body)) + body


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); never 0, which would mean in UDP that there is none."""
    # The sum of 16-bit words with its carries is the number modulo 2**16 - 1.
    return ~(int.from_bytes(data + bytes(len(data) % 2), "big") % 0xFFFF) & 0xFFFF


def _udp(source: Destination, to: Destination, size: int) -> bytes:
    return struct.pack(">HHHH", source.port, to.port, 8 + size, 0)


def _ip(source: str, to: str, protocol: int, size: int) -> bytes:
    """The head of a packet. In IPv4 its identification and its checksum are the kernel's to fill in (raw(7))."""
    if ":" in to:
        head = struct.pack(">IHBB", 6 << 28, size, protocol, _HOPS)
        return head + socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, to)
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + size, 0, 0, _HOPS, protocol, 0)
    return head + socket.inet_aton(source) + socket.inet_aton(to)


def _pseudo(source: str, to: str, protocol: int, size: int) -> bytes:
    """What is summed up before an IPv6 packet's own bytes (RFC 8200, 8.1)."""
    addresses = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, to)
    return addresses + struct.pack(">II", size, protocol)
