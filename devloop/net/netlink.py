"""A little netlink: messages, attributes, and the few requests that a namespace takes (netlink(7), rtnetlink(7)).

Why not ip(8): an ordinary user who owns a user namespace loses the capabilities at exec, a fork and exec of it
cost more than all of these requests together, and not every machine has it.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence

NETLINK_ROUTE = 0  # linux/netlink.h
NETLINK_SOCK_DIAG = 4
NETLINK_NETFILTER = 12

REQUEST = 0x1
ACK = 0x4
DUMP = 0x300
EXCL = 0x200
CREATE = 0x400
APPEND = 0x800

_ERROR = 2
_DONE = 3
_NESTED = 0x8000
_HEADER = struct.Struct("=IHHII")

LOOPBACK = 1
"""The index of lo, which is the first interface of every network namespace."""
_RTM_NEWLINK, _RTM_NEWADDR, _RTM_NEWROUTE = 16, 20, 24  # linux/rtnetlink.h
_IFF_UP = 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 2
_RTA_OIF, _RTA_PREFSRC = 4, 7
_RT_TABLE_LOCAL, _RTPROT_STATIC, _RTN_LOCAL = 255, 4, 2
_RT_SCOPE_HOST = 254

Message = tuple[int, int, bytes]
"""Type, flags, and what follows the header."""


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return struct.pack("=HH", len(data) + 4, kind) + data + bytes(-len(data) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """An attribute with a string, which ends with a zero byte."""
    return attribute(kind, value.encode() + b"\0")


def be32(kind: int, value: int) -> bytes:
    """An attribute with 32 bits in network order, as nf_tables has its numbers."""
    return attribute(kind, value.to_bytes(4, "big"))


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in `data` by their kind; of several of one kind the last."""
    found, at = {}, 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            break
        found[kind & ~_NESTED] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence number and body of each message in a datagram."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        yield kind, sequence, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def connect(protocol: int) -> socket.socket:
    """A netlink socket of the network namespace that this process is in, whoever uses it afterwards."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)


def transact(sock: socket.socket, batch: Sequence[Message]) -> None:
    """Send messages in one datagram and wait for the answer to the last that asks for one.

    Raises OSError with the errno of the first that the kernel refuses; `filename` is its place in the batch.
    """
    data, last = b"", 0
    for number, (kind, flags, body) in enumerate(batch):
        data += _HEADER.pack(_HEADER.size + len(body), kind, flags | REQUEST, number, 0) + body
        data += bytes(-len(data) % 4)
        if flags & ACK:
            last = number
    sock.settimeout(5)  # the kernel answers before send() returns; this is for a kernel that does not
    sock.send(data)
    while True:
        for kind, sequence, body in messages(sock.recv(65536)):
            if kind == _ERROR:
                code = -struct.unpack_from("=i", body)[0]
                if code:
                    raise OSError(code, os.strerror(code), sequence)
                if sequence == last:
                    return


def dump(sock: socket.socket, kind: int, body: bytes) -> Iterator[bytes]:
    """The bodies of all messages that answer a dump request. Raises OSError."""
    header = _HEADER.pack(_HEADER.size + len(body), kind, REQUEST | DUMP, 1, 0)
    sock.send(header + body)
    while True:
        for answer, _, content in messages(sock.recv(262144)):
            if answer == _DONE:
                return
            if answer == _ERROR:
                code = -struct.unpack_from("=i", content)[0]
                raise OSError(code, os.strerror(code))
            yield content


def link_up(sock: socket.socket, index: int = LOOPBACK) -> None:
    """`ip link set … up`."""
    body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP)
    transact(sock, [(_RTM_NEWLINK, ACK, body)])


def add_address(sock: socket.socket, address: str, index: int = LOOPBACK) -> None:
    """`ip addr add ADDRESS dev …`, for this one address (/32, /128), usable at once (no duplicate check)."""
    family, packed = _packed(address)
    flags = _IFA_F_NODAD if family == socket.AF_INET6 else 0
    body = struct.pack("=BBBBI", family, len(packed) * 8, flags, 0, index)
    body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    transact(sock, [(_RTM_NEWADDR, ACK | CREATE, body)])


def local_default(sock: socket.socket, source: str, index: int = LOOPBACK) -> None:
    """`ip route add local default dev lo src SOURCE`: every address of the family is this machine's own."""
    family, packed = _packed(source)
    scope = _RT_SCOPE_HOST if family == socket.AF_INET else 0
    body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, _RT_TABLE_LOCAL, _RTPROT_STATIC, scope, _RTN_LOCAL, 0)
    body += attribute(_RTA_OIF, struct.pack("=I", index)) + attribute(_RTA_PREFSRC, packed)
    transact(sock, [(_RTM_NEWROUTE, ACK | CREATE, body)])


def _packed(address: str) -> tuple[socket.AddressFamily, bytes]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)
