"""Connections as the kernel's sock_diag tells them, and their end by it (SOCK_DESTROY: CONFIG_INET_DIAG_DESTROY)."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

_BY_FAMILY, _DESTROY = 20, 21  # linux/sock_diag.h
_INFO, _SOCKOPT = 2, 22  # INET_DIAG_INFO, INET_DIAG_SOCKOPT, linux/inet_diag.h
_TRANSPARENT = 0x20 if sys.byteorder == "little" else 0x04
_ESTABLISHED = 1
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_ID_BYTES = 48
CLIENTS = 60
"""So many are named: a message in a pod's status has 4,096 bytes."""


@dataclass(frozen=True, slots=True)
class Info:
    """Of struct tcp_info, what another socket has to know that takes a connection over."""

    options: int
    """TCPI_OPT_…"""
    send_scale: int
    receive_scale: int
    segment: int
    advertised: int
    """The longest segment that it has asked for."""
    send_window: int


@dataclass(frozen=True, slots=True)
class Connection:
    """One that is established."""

    family: int
    identity: bytes
    """Its inet_diag_sockid, by which the kernel finds this very socket again."""
    port: int
    client: str
    client_port: int
    queued: bool
    """Bytes wait to be sent, to be acknowledged or to be read."""
    sent_ms: int
    """Since the pod last sent something."""
    received_ms: int
    """Since the client's last bytes came."""
    packets: tuple[int, int] | None = None
    """How many with something in them came, and how many went, since it was made; None: a kernel before 4.6."""
    address: str = ""
    """The pod's own."""
    under_way: int = 0
    """Bytes that were sent and not acknowledged."""
    transparent: bool = False
    """It may have another's address: a door's, or one that was taken over."""
    info: Info | None = None

    @property
    def more_asked(self) -> bool:
        """More packets with something came than went: the client has the last word, unless it asks at length."""
        return self.packets is not None and self.packets[0] > self.packets[1]

    @property
    def ends(self) -> tuple[int, str, int]:
        """The pod's port, the client's address and its port."""
        return self.port, self.client, self.client_port


def parsed(body: bytes) -> Connection:
    """An inet_diag_msg with its attributes."""
    family = body[0]
    identity = body[4 : 4 + _ID_BYTES]
    port, client_port = struct.unpack_from(">HH", identity)
    unread, unsent = struct.unpack_from("=II", body, 4 + _ID_BYTES + 4)
    unacked = sent = received = later = 0
    transparent, info, packets = False, None, None
    at = 4 + _ID_BYTES + 20
    while at + 4 <= len(body):
        size, kind = struct.unpack_from("=HH", body, at)
        if size < 4:
            break
        found = body[at + 4 : at + size]
        if kind == _INFO and len(found) >= 56:
            # tcpi_unacked, tcpi_last_data_sent and tcpi_last_data_recv, which count milliseconds.
            unacked = struct.unpack_from("=I", found, 24)[0]
            sent, received = (struct.unpack_from("=I", found, offset)[0] for offset in (44, 52))
        if kind == _INFO and len(found) >= 160:
            later, _, *counted = struct.unpack_from("=IIII", found, 144)  # notsent, min_rtt, data_segs_in and _out
            packets = counted[0], counted[1]
        if kind == _INFO and len(found) >= 232:
            scales = found[6] if sys.byteorder == "little" else found[6] >> 4 | (found[6] & 15) << 4
            long, advertised, window = (struct.unpack_from("=I", found, each)[0] for each in (16, 84, 228))
            info = Info(found[5], scales & 15, scales >> 4, long, advertised, window)
        if kind == _SOCKOPT and found:
            transparent = bool(found[0] & _TRANSPARENT)
        at += (size + 3) & ~3
    return Connection(
        family,
        identity,
        port,
        _address(family, identity[20:36]),
        client_port,
        bool(unread or unsent or unacked),
        sent,
        received,
        packets,
        _address(family, identity[4:20]),
        max(0, unsent - later),
        transparent,
        info,
    )


def _address(family: int, raw: bytes) -> str:
    found = ipaddress.ip_address(raw[: 4 if family == socket.AF_INET else 16])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return str(found)


def opened() -> socket.socket:
    """What the other functions ask by. OSError."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 4)  # NETLINK_SOCK_DIAG


def connections(sock: socket.socket, ports: Collection[int], *, taken_over: bool = False) -> list[Connection]:
    """All that lead to one of these ports, by the server's socket: not to one that was put between (a door's). Those by
    way of one (`takeover.py`) only if `taken_over`. OSError."""
    found = _established(sock)
    between = {(each.client_port, each.address, each.port) for each in found if each.transparent}
    led = [each for each in found if each.port in ports and not each.transparent]
    return [each for each in led if taken_over or each.ends not in between]


def _established(sock: socket.socket) -> list[Connection]:
    found: list[Connection] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        query = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 1 << _ESTABLISHED)
        query += struct.pack(">HH", 0, 0) + bytes(32) + struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            found += map(parsed, _ask(sock, _BY_FAMILY, _DUMP, query))
    return found


def destroy(sock: socket.socket, found: Connection) -> bool:
    """End it; False: it has ended by itself. OSError, with EOPNOTSUPP where the kernel can't."""
    query = struct.pack("=BBBxI", found.family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF) + found.identity
    try:
        list(_ask(sock, _DESTROY, _ACK, query))
    except FileNotFoundError:
        return False
    return True


def fitting(left: Counter[str]) -> dict[str, int]:
    """Who was left, most first, as many as fit in a pod's status. All others are one, without an address."""
    shown = dict(left.most_common(CLIENTS))
    rest = left.total() - sum(shown.values())
    return {**shown, "": rest} if rest else shown


def _ask(sock: socket.socket, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    sock.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, 1, 0) + body)
    while True:
        data = sock.recv(1 << 17)
        at = 0
        while at + _HEADER.size <= len(data):
            size, answer, *_ = _HEADER.unpack_from(data, at)
            if answer == _DONE:
                return
            if answer == _ERROR:
                number = -struct.unpack_from("=i", data, at + _HEADER.size)[0]
                if number:
                    raise OSError(number, os.strerror(number))
                return
            yield data[at + _HEADER.size : at + size]
            at += (size + 3) & ~3
