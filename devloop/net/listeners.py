"""Which ports something listens on, by TCP and by UDP, in the network namespace that a netlink socket was made in.

Asked of the kernel directly (sock_diag(7)), which walks only the listening sockets: tens of microseconds,
where reading /proc/net/tcp grows with every open connection. No privilege is needed.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass

from devloop.net.netlink import NETLINK_SOCK_DIAG, connect, dump

_SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
_ESTABLISHED, _CLOSE, _CLOSE_WAIT, _LISTEN = 1, 7, 8, 10  # include/net/tcp_states.h
_ID = struct.Struct(">HH16s16s")


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP socket that listens, or a UDP socket that is connected to nobody."""

    port: int
    address: str
    """Where: an address, "0.0.0.0" or "::" for all of the family ("::" of both, as a rule)."""

    @property
    def on_loopback(self) -> bool:
        """Whether a connection to 127.0.0.1 or ::1 reaches it."""
        return self.address in ("0.0.0.0", "::", "::1", "::ffff:0.0.0.0") or self.address.startswith("127.")


def diag_socket() -> socket.socket:
    """A socket to ask with, of the network namespace that this process is in."""
    return connect(NETLINK_SOCK_DIAG)


def _ask(
    sock: socket.socket, family: int, states: int, port: int = 0, protocol: int = socket.IPPROTO_TCP
) -> list[tuple[int, int, bytes, int]]:
    """(port, other side's port, address, inode) of each socket in these states."""
    query = struct.pack("=BBBxI", family, protocol, 0, states)
    query += _ID.pack(port, 0, b"", b"") + struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
    found = []
    for body in dump(sock, _SOCK_DIAG_BY_FAMILY, query):
        own, other, source, _ = _ID.unpack_from(body, 4)
        # inet_diag_msg: 4 bytes, the id (48), then expires, rqueue, wqueue, uid, inode.
        found.append((own, other, source, struct.unpack_from("=I", body, 4 + 48 + 16)[0]))
    return found


def listeners(sock: socket.socket) -> frozenset[Listener]:
    """Everything that listens. Raises OSError."""
    found = set()
    for family, length in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            for port, _, source, _ in _ask(sock, family, 1 << _LISTEN):
                found.add(Listener(port, socket.inet_ntop(family, source[:length])))
    return frozenset(found)


def datagram_listeners(sock: socket.socket) -> frozenset[Listener]:
    """Every UDP socket that takes datagrams from anybody. Raises OSError."""
    found = set()
    for family, length in ((socket.AF_INET, 4), (socket.AF_INET6, 16)):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6, or without udp_diag
            for port, _, source, _ in _ask(sock, family, 1 << _CLOSE, protocol=socket.IPPROTO_UDP):
                found.add(Listener(port, socket.inet_ntop(family, source[:length])))
    return frozenset(found)


def waiting(sock: socket.socket, port: int) -> frozenset[int]:
    """Connections to `port` that no process has accepted yet, by the port of who connected.

    They have no inode, because accept(2) is what makes a file of them.
    """
    found = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(FileNotFoundError):
            states = 1 << _ESTABLISHED | 1 << _CLOSE_WAIT
            found |= {other for own, other, _, inode in _ask(sock, family, states, port) if inode == 0}
    return frozenset(found)
