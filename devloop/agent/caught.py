"""A door's datagrams: what clients say to the pod's UDP ports goes to the agent, and what comes back goes to them.

A *flow* is what one client's socket says to one port at one of the pod's addresses. It is known here alone by what it
is; the agent and the engine know it by a number (`inbound.py` has what is said). It ends when nothing has been said
either way for `IDLE_SECONDS`; at one too many, the one that was idle for the longest ends.

An answer leaves by the socket that the question came to, from the address that was asked; the kernel gives it the port
(`rules.py`). So it needs no capability besides the door's own, and no socket for each client.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from .datagrams import BUFFER_BYTES, DATA, END, MAX_BYTES, MAX_FLOWS, OPEN, READS, Record, RecordError, Records, written

log = logging.getLogger("door")

IDLE_SECONDS = 120.0
"""As for a local service's own flows (`net/datagrams.py`)."""
TRANSPARENT = {socket.AF_INET: (socket.SOL_IP, 19), socket.AF_INET6: (socket.IPPROTO_IPV6, 75)}
"""IP_TRANSPARENT and IPV6_TRANSPARENT, which Python's `socket` has no names for: TPROXY gives to no other socket."""
_INFO_4, _INFO_6 = struct.Struct("=i4s4s"), struct.Struct("=16si")
"""in_pktinfo (ip(7)) and in6_pktinfo (RFC 3542, 6.1)."""
_IP_PKTINFO = 8

Key = tuple[int, bytes, Any]
"""The original's port, the address that was asked, packed, and the client's socket address."""


@dataclass(eq=False, slots=True)
class _Flow:
    number: int
    key: Key
    sock: socket.socket
    used: float


class Caught(asyncio.Protocol):
    """See the module; it is also the protocol of the connection to the agent. `lost` is called when that has ended."""

    def __init__(self, lost: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.places: dict[int, int] = {}
        """The original's ports to the door's."""
        self._lost = lost
        self._clock = clock
        self._socks: list[socket.socket] = []
        self._transport: asyncio.Transport | None = None
        self._stuck = False
        self._records = Records()
        self._flows: OrderedDict[Key, _Flow] = OrderedDict()
        """The one that was used last is at the end."""
        self._numbers: dict[int, _Flow] = {}
        self._next = 0

    def __len__(self) -> int:
        """Flows that there are."""
        return len(self._flows)

    @property
    def connected(self) -> bool:
        """The agent is there."""
        return self._transport is not None

    def place(self, port: int) -> None:
        """Have a place for what comes to a port of the original's. OSError."""
        if port in self.places:
            return
        socks = _bound()
        loop = asyncio.get_running_loop()
        for sock in socks:
            loop.add_reader(sock.fileno(), partial(self._readable, sock, port))
        self._socks += socks
        self.places[port] = socks[0].getsockname()[1]

    # --- From clients ---------------------------------------------------------------------------------------------

    def _readable(self, sock: socket.socket, port: int) -> None:
        for _ in range(READS):
            try:
                data, ancillary, _, client = sock.recvmsg(MAX_BYTES, 256)
            except OSError:
                return  # BlockingIOError: all read
            address = _asked(ancillary)
            if address is not None:
                self.came(sock, (port, address, client), data)

    def came(self, sock: socket.socket, key: Key, data: bytes) -> None:
        """A datagram of a client's."""
        if self._transport is None or self._stuck:
            return
        flow = self._flows.get(key)
        if flow is None:
            if len(self._flows) >= MAX_FLOWS:
                self._end(next(iter(self._flows.values())))
            self._next = self._next % 0xFFFFFFFF + 1
            while self._next in self._numbers:
                self._next = self._next % 0xFFFFFFFF + 1
            flow = self._flows[key] = self._numbers[self._next] = _Flow(self._next, key, sock, 0.0)
            said = {"port": key[0], "client": [_plain(key[2][0]), key[2][1]]}
            self._write(Record(OPEN, flow.number, json.dumps(said).encode()))
        self._use(flow)
        self._write(Record(DATA, flow.number, data))

    def _use(self, flow: _Flow) -> None:
        flow.used = self._clock()
        self._flows.move_to_end(flow.key)

    def expire(self) -> None:
        """End flows that have been idle for too long."""
        until = self._clock() - IDLE_SECONDS
        while self._flows and (flow := next(iter(self._flows.values()))).used <= until:
            self._end(flow)

    def _end(self, flow: _Flow) -> None:
        self._forget(flow)
        self._write(Record(END, flow.number))

    def _forget(self, flow: _Flow) -> None:
        del self._flows[flow.key], self._numbers[flow.number]

    def _write(self, record: Record) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(written(record))

    # --- From the agent -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The agent is there."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(BUFFER_BYTES)
        self._stuck = False
        self._records = Records()

    def hello(self, message: dict[str, Any]) -> None:
        """Say who this is, before anything else."""
        if self._transport is not None:
            self._transport.write(json.dumps(message).encode() + b"\n")

    def data_received(self, data: bytes) -> None:
        """Answers, and flows that are over."""
        try:
            for record in self._records.read(data):
                flow = self._numbers.get(record.flow)
                if flow is None:
                    continue
                if record.kind == DATA:
                    self._use(flow)
                    _answer(flow, record.body)
                elif record.kind == END:
                    self._forget(flow)
        except RecordError as problem:
            log.warning("the agent's datagrams: %s", problem)
            self.cut()

    def pause_writing(self) -> None:
        """The agent reads slowly: what comes is dropped, as on any network."""
        self._stuck = True

    def resume_writing(self) -> None:
        """There is room again."""
        self._stuck = False

    def connection_lost(self, exc: Exception | None) -> None:
        """The agent is gone."""
        self._transport = None
        self._flows.clear()
        self._numbers.clear()
        self._lost()

    def cut(self) -> None:
        """Talk to it no more."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """End all."""
        self.cut()
        for sock in self._socks:
            asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()
        self._socks.clear()
        self.places.clear()


def _answer(flow: _Flow, data: bytes) -> None:
    _, asked, client = flow.key
    if flow.sock.family == socket.AF_INET6:
        control = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _INFO_6.pack(asked, 0))
    else:
        control = (socket.IPPROTO_IP, _IP_PKTINFO, _INFO_4.pack(0, asked, bytes(4)))
    with contextlib.suppress(OSError):  # the kernel takes no more now, or the client's port is closed
        flow.sock.sendmsg([data], [control], 0, client)


def _asked(ancillary: list[tuple[int, int, bytes]]) -> bytes | None:
    """The address that a datagram was sent to, packed."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO) and len(data) >= _INFO_4.size:
            return bytes(_INFO_4.unpack_from(data)[2])
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) and len(data) >= _INFO_6.size:
            return bytes(_INFO_6.unpack_from(data)[0])
    return None


def _plain(address: str) -> str:
    return address.partition("%")[0]


def _bound() -> list[socket.socket]:
    """A transparent socket for each family, with one number that is free for both. OSError."""
    for _ in range(20):
        four = _socket(socket.AF_INET, 0)
        try:
            return [four, _socket(socket.AF_INET6, four.getsockname()[1])] if socket.has_ipv6 else [four]
        except OSError as problem:
            if problem.errno != errno.EADDRINUSE:
                return [four]  # a pod without IPv6
            four.close()
    raise OSError(errno.EADDRINUSE, "no UDP port is free for a door")


def _socket(family: socket.AddressFamily, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        made.setsockopt(*TRANSPARENT[family], 1)
        with contextlib.suppress(OSError):
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            made.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        made.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    except BaseException:
        made.close()
        raise
    return made
