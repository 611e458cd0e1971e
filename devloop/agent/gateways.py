"""Where a pod's node is, from inside the pod. Pure, but for reading two files of /proc."""

from __future__ import annotations

import ipaddress
import socket
import struct
from pathlib import Path

_UP_GATEWAY = 0x3
"""RTF_UP and RTF_GATEWAY, in `Flags` of /proc/net/route."""


def ipv4(text: str) -> list[str]:
    """The default routes' gateways in /proc/net/route (addresses in hex, in the machine's byte order)."""
    found = []
    for line in text.splitlines()[1:]:
        parts = line.split()
        if len(parts) > 7 and parts[1] == parts[7] == "00000000" and int(parts[3], 16) & _UP_GATEWAY == _UP_GATEWAY:
            found.append(socket.inet_ntoa(struct.pack("=I", int(parts[2], 16))))
    return found


def ipv6(text: str) -> list[str]:
    """The same in /proc/net/ipv6_route."""
    found = []
    for line in text.splitlines():
        parts = line.split()
        if len(parts) > 8 and parts[1] == "00" and set(parts[4]) != {"0"}:
            found.append(str(ipaddress.IPv6Address(bytes.fromhex(parts[4]))))
    return found


def gateways() -> list[str]:
    """Of this network namespace. With most networks it is the node's own address there, from which its kubelet
    connects; with the others that is one of `status.hostIPs`."""
    found: list[str] = []
    for path, read in (("/proc/net/route", ipv4), ("/proc/net/ipv6_route", ipv6)):
        if Path(path).exists():
            found += read(Path(path).read_text())
    return found
