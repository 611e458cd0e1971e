"""UDP that a service's namespace refuses, told in the service's log, once a while for each destination.

The rules of the namespace (`devloop.net.rules`) refuse it at once and send the packet's head here by way of
nfnetlink_log.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

from devloop.net.netlink import attributes, messages
from devloop.net.router import Destination, canonical

QUIET = 60.0
"""Seconds in which the same destination is not told of again."""
_PACKET = 4 << 8  # NFNL_SUBSYS_ULOG, NFULNL_MSG_PACKET
_PAYLOAD = 9  # NFULA_PAYLOAD


class RefusedUdp:
    """Reads what was refused for one service."""

    def __init__(self, sock: socket.socket, log: Callable[[str], None]) -> None:
        """`sock` is `Inside.udp_log`; `log` takes a line for the service's log."""
        self._sock = sock
        self._log = log
        self._told: dict[Destination, float] = {}
        asyncio.get_running_loop().add_reader(sock, self._readable)

    def close(self) -> None:
        """Stop; the socket stays its owner's."""
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(65536)
        except OSError:
            return  # ENOBUFS: more was refused than is told of
        now = asyncio.get_running_loop().time()
        for kind, _, body in messages(data):
            packet = attributes(body[4:]).get(_PAYLOAD, b"") if kind == _PACKET else b""
            destination = udp_destination(packet)
            if destination is None or now - self._told.get(destination, -QUIET) < QUIET:
                continue
            if len(self._told) > 1000:
                self._told.clear()
            self._told[destination] = now
            self._log(f"UDP to {destination} was refused: only TCP and DNS leave a service's network namespace")


def udp_destination(packet: bytes) -> Destination | None:
    """Where an IPv4 or IPv6 packet with UDP in it goes (RFC 791, RFC 8200, RFC 768); None for anything else."""
    if len(packet) < 20:
        return None
    if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_UDP:
        start, address = (packet[0] & 15) * 4, socket.inet_ntop(socket.AF_INET, packet[16:20])
    elif packet[0] >> 4 == 6 and len(packet) >= 40 and packet[6] == socket.IPPROTO_UDP:
        start, address = 40, socket.inet_ntop(socket.AF_INET6, packet[24:40])
    else:
        return None
    if len(packet) < start + 4:
        return None
    return Destination(canonical(address), struct.unpack_from(">H", packet, start + 2)[0])
