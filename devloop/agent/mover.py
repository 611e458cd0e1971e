"""Ends connections that lead to a pod, from within its network, when nothing is under way on them.

It is what an ephemeral container with NET_ADMIN runs for `devloop move`: clients that were connected before a Service
was attached connect anew then, and arrive where the Service leads now. The kernel ends a connection by sock_diag's
SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY): its client reads a reset, as from any server that closes what lies idle.

What a connection is in the midst of can't be read from outside, but when bytes last went which way can (`order.py`),
and whether all have arrived. `due` says what is taken for "between two requests".
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .gateways import gateways
from .order import Order

PLAN = "DEVLOOP_MOVE"
"""The variable with the plan, as JSON: see `Plan`."""
MESSAGE = Path("/dev/termination-log")
"""What stands there when a container ends is in its pod's status."""
CLIENTS = 60
"""So many are named: a message has 4,096 bytes."""
LOOK_SECONDS = 0.01
QUIET_MS = 100
"""So long after an answer nothing more of it is expected."""
DOUBTFUL_MS = 10_000
"""The same where nothing tells which came last, the request or the answer: both were in one tick of the clock."""
STREAMS_MS = 5000
"""HTTP/2: the last word of a call may be the client's (it opens windows, answers pings), so quiet is all there is."""
_BY_FAMILY, _DESTROY = 20, 21  # linux/sock_diag.h
_INFO = 2  # INET_DIAG_INFO, linux/inet_diag.h
_ESTABLISHED = 1
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_ID_BYTES = 48


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be ended."""

    ports: Mapping[int, str]
    """The pod's own ports, and what each speaks (`plan.protocol_of`)."""
    known: Collection[str]
    """Addresses of clients that are left alone: the agent's, the node's."""
    seconds: float
    """How long a connection may take to be between two requests."""
    force: bool = False
    """End all at once, whatever is under way."""

    def text(self) -> str:
        """For the variable."""
        return json.dumps(
            {"ports": self.ports, "known": list(self.known), "seconds": self.seconds, "force": self.force}
        )

    @classmethod
    def read(cls, text: str) -> Plan:
        """The reverse. ValueError, KeyError."""
        found = json.loads(text)
        ports = {int(port): str(speaks) for port, speaks in found["ports"].items()}
        return cls(ports, tuple(map(str, found["known"])), float(found["seconds"]), bool(found["force"]))


@dataclass(frozen=True, slots=True)
class Connection:
    """One that is established, as sock_diag tells it."""

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
    more_asked: bool = False
    """More packets with something in them came than went: the client has the last word, unless it asks at length."""


def due(found: Connection, speaks: str, asked: bool | None) -> bool:
    """Whether it is between two requests, as far as that can be told.

    `asked`: whether the last bytes that passed were the client's; None: none have passed while it was looked at.
    """
    if found.queued or speaks == "tcp":
        return False
    quiet = min(found.sent_ms, found.received_ms)
    if speaks == "http2":
        return quiet >= STREAMS_MS
    if asked is None and found.sent_ms == found.received_ms:
        return quiet >= DOUBTFUL_MS and not found.more_asked
    if asked is None:
        asked = found.sent_ms > found.received_ms
    return not asked and quiet >= (QUIET_MS if speaks == "http" else STREAMS_MS)  # it may be HTTP/2


def parsed(body: bytes) -> Connection:
    """An inet_diag_msg with its attributes."""
    family = body[0]
    identity = body[4 : 4 + _ID_BYTES]
    port, client_port = struct.unpack_from(">HH", identity)
    length = 4 if family == socket.AF_INET else 16
    address = ipaddress.ip_address(identity[20 : 20 + length])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    unread, unsent = struct.unpack_from("=II", body, 4 + _ID_BYTES + 4)
    unacked = sent = received = came = went = 0
    at = 4 + _ID_BYTES + 20
    while at + 4 <= len(body):
        size, kind = struct.unpack_from("=HH", body, at)
        if size < 4:
            break
        if kind == _INFO and size >= 4 + 56:
            # struct tcp_info: tcpi_unacked, tcpi_last_data_sent and tcpi_last_data_recv, which count milliseconds.
            unacked = struct.unpack_from("=I", body, at + 4 + 24)[0]
            sent, received = (struct.unpack_from("=I", body, at + 4 + offset)[0] for offset in (44, 52))
        if kind == _INFO and size >= 4 + 160:
            came, went = struct.unpack_from("=II", body, at + 4 + 152)  # tcpi_data_segs_in, tcpi_data_segs_out
        at += (size + 3) & ~3
    waits = bool(unread or unsent or unacked)
    return Connection(family, identity, port, str(address), client_port, waits, sent, received, came > went)


def connections(sock: socket.socket, ports: Collection[int]) -> list[Connection]:
    """All that lead to one of these ports. OSError."""
    found: list[Connection] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        query = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 1 << _ESTABLISHED)
        query += struct.pack(">HH", 0, 0) + bytes(32) + struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            found += [each for each in map(parsed, _ask(sock, _BY_FAMILY, _DUMP, query)) if each.port in ports]
    return found


def destroy(sock: socket.socket, found: Connection) -> bool:
    """End it; False: it has ended by itself. OSError, with EOPNOTSUPP where the kernel can't."""
    query = struct.pack("=BBBxI", found.family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF) + found.identity
    try:
        list(_ask(sock, _DESTROY, _ACK, query))
    except FileNotFoundError:
        return False
    return True


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


def move(plan: Plan, known: Collection[str]) -> tuple[int, Counter[str]]:
    """End what the plan says. Returns how many were ended, and by client how many were not. OSError."""
    passed = {*known, *plan.known}
    ended = 0
    until = time.monotonic() + plan.seconds
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 4))  # NETLINK_SOCK_DIAG
        order: Order | None = None
        if not plan.force:
            with contextlib.suppress(OSError):  # then the clock alone tells
                order = stack.enter_context(contextlib.closing(Order(plan.ports)))
        while True:
            left: Counter[str] = Counter()
            found = connections(sock, plan.ports)
            known_order = order is not None and order.read()  # after that: it is newer than what was found
            for each in found:
                if each.client in passed or ipaddress.ip_address(each.client).is_loopback:
                    continue
                asked = order.asked.get((each.port, each.client, each.client_port)) if order and known_order else None
                if plan.force or due(each, plan.ports[each.port], asked):
                    ended += destroy(sock, each)
                else:
                    left[each.client] += 1
            if not left or time.monotonic() >= until:
                return ended, left
            time.sleep(LOOK_SECONDS)


def fitting(left: Counter[str]) -> dict[str, int]:
    """Who was left, most first, as many as fit in a pod's status. All others are one, without an address."""
    shown = dict(left.most_common(CLIENTS))
    rest = left.total() - sum(shown.values())
    return {**shown, "": rest} if rest else shown


def main() -> int:
    """The exit code: 0, or 1 if nothing can be ended here; then the message says why."""
    try:
        ended, left = move(Plan.read(os.environ.get(PLAN, "")), gateways())
        said = {"ended": ended, "left": fitting(left)}
        code = 0
    except OSError as problem:
        why = problem.strerror or str(problem)
        if problem.errno == errno.EOPNOTSUPP:
            why = "the node's kernel can't end connections of others (CONFIG_INET_DIAG_DESTROY)"
        said, code = {"error": why}, 1
    except (ValueError, KeyError) as problem:
        said, code = {"error": f"this is no plan: {problem}"}, 1
    text = json.dumps(said)
    print(text)
    with contextlib.suppress(OSError):
        MESSAGE.write_text(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
