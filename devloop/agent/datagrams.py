"""UDP between a developer's engine and the cluster: how datagrams go by an SSH session, and the agent's end of it.

A session with the command `COMMAND` carries *flows*: what one socket of a local service says to one destination, and
what comes back. Both ends send records, each with its length in front, so that datagrams keep their sizes (0 too):

    length (4 bytes, of what follows) · kind (1) · the flow's number (4) · what it says

OPEN is the engine's: the destination's port (2 bytes) and address. DATA is a datagram, in both directions. END: the
flow is over; from the agent with the reason, as text. REFUSED is the agent's: nobody listens there (an ICMP message,
ECONNREFUSED); the flow goes on, as it does for a socket.

The engine alone says when a flow has been idle for too long: two clocks would disagree. When the session ends, so do
its flows. A record that can't be read ends the session, and the engine begins another.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .destinations import EVERYWHERE, Destinations

log = logging.getLogger("agent")

COMMAND = "datagrams 1"
"""The SSH session. Its number is the version of these records: an agent that knows another one refuses."""
OPEN, DATA, END, REFUSED = 1, 2, 3, 4
MAX_BYTES = 65_527
"""The largest datagram there is (IPv6, RFC 8200; 65,507 in IPv4)."""
MAX_FLOWS = 4096
"""In one session. Each is a socket of the agent's."""
READS = 32
"""Datagrams that are read of one socket before it is another's turn."""
BUFFER_BYTES = 1 << 20
"""Asked of the kernel for what has arrived and was not read yet; it gives what its own limit allows."""
UNREAD_BYTES = 1 << 20
"""The other end of a session that lets more wait is hung up on. Datagrams are dropped long before that."""
_HEAD = struct.Struct(">IBI")
_LENGTH = 4


class RecordError(ValueError):
    """What the other end says is no record."""


class Record(NamedTuple):
    """One record."""

    kind: int
    flow: int
    body: bytes = b""


def written(record: Record) -> bytes:
    """As it is sent."""
    return _HEAD.pack(_HEAD.size - _LENGTH + len(record.body), record.kind, record.flow) + record.body


class Records:
    """Takes records out of what comes, however it was cut. It keeps one record's bytes at most."""

    def __init__(self) -> None:
        self._rest = b""

    def read(self, data: bytes) -> Iterator[Record]:
        """Those that are whole now. Raises RecordError at one that is none, after those before it."""
        rest, at = self._rest + data, 0
        while len(rest) - at >= _LENGTH:
            length = int.from_bytes(rest[at : at + _LENGTH], "big")
            body = length - (_HEAD.size - _LENGTH)
            if not 0 <= body <= MAX_BYTES:
                raise RecordError(f"a record of {length} bytes")
            if len(rest) - at < _LENGTH + length:
                break
            _, kind, flow = _HEAD.unpack_from(rest, at)
            if not OPEN <= kind <= REFUSED:
                raise RecordError(f"a record of kind {kind}")
            at += _HEAD.size
            yield Record(kind, flow, rest[at : at + body])
            at += body
        self._rest = rest[at:]


class RecordSession:
    """One end of an SSH session of records, by asyncssh's channel, which writes bytes. It is over with its connection,
    and at a record that can't be read."""

    WHAT = "datagrams"
    """What it carries, for the log."""

    def __init__(self, channel: Any = None) -> None:
        self.over = False
        self._channel = channel
        self._records = Records()
        self._stuck = False
        """The other end takes no more now: what is more is dropped."""

    def received(self, data: bytes) -> None:
        """What the other end says."""
        if self.over:
            return
        try:
            for record in self._records.read(data):
                self._do(record)
        except RecordError as problem:
            log.warning("a session with %s is ended: %s", self.WHAT, problem)
            self.ended()
            self._hang_up()

    def stuck(self, now: bool) -> None:
        """Whether the channel's window is used up."""
        self._stuck = now

    def ended(self) -> None:
        """The session is over."""
        if not self.over:
            self.over = True
            self._end_all()

    def _write(self, record: Record) -> None:
        if self.over:
            return
        with contextlib.suppress(OSError):  # it is being closed, and `ended` comes
            self._channel.write(written(record))
        if self._stuck and self._channel.get_write_buffer_size() > UNREAD_BYTES:
            log.warning("a session with %s is ended: nobody reads it", self.WHAT)
            self.ended()
            self._channel.abort()  # `close` would keep what waits until somebody reads it

    def _do(self, record: Record) -> None:
        """One record. Raises RecordError."""
        raise NotImplementedError

    def _end_all(self) -> None:
        """Its flows are over."""
        raise NotImplementedError

    def _hang_up(self) -> None:
        self._channel.exit(1)


def destination(address: str, port: int) -> bytes:
    """What OPEN says."""
    return port.to_bytes(2, "big") + address.encode()


def destination_of(body: bytes) -> tuple[str, int]:
    """(address, port). Raises RecordError for what is no address."""
    try:
        return str(ipaddress.ip_address(body[2:].decode("ascii"))), int.from_bytes(body[:2], "big")
    except ValueError as problem:  # UnicodeDecodeError is one
        raise RecordError(f"no address: {body[2:60]!r}") from problem


class DatagramSocket:
    """A UDP socket that is connected to one destination, read by the event loop."""

    def __init__(self, address: str, port: int, received: Callable[[bytes], None], refused: Callable[[], None]) -> None:
        """`refused`: an ICMP message has said that nobody listens there. Raises OSError."""
        self._received = received
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            self._sock.connect((address, port))
            self._loop.add_reader(self._sock.fileno(), self._readable)
        except BaseException:
            self._sock.close()
            raise

    def send(self, data: bytes) -> bool:
        """Send one. False: it was dropped, as the kernel takes no more now, or no datagram of this size."""
        for _ in range(2):
            try:
                self._sock.send(data)
            except ConnectionRefusedError:
                self._refused()  # an earlier one was; this one has not been sent yet
                if self._sock.fileno() < 0:
                    return False
            except OSError:
                return False
            else:
                return True
        return False

    def _readable(self) -> None:
        for _ in range(READS):
            if self._sock.fileno() < 0:
                return
            try:
                data = self._sock.recv(MAX_BYTES)
            except ConnectionRefusedError:
                self._refused()
            except OSError:
                return  # BlockingIOError: all read; else an ICMP message that says no more than a lost datagram does
            else:
                self._received(data)

    def close(self) -> None:
        """End it."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()


class Datagrams(RecordSession):
    """The agent's end of one session."""

    def __init__(self, channel: Any, destinations: Destinations = EVERYWHERE) -> None:
        super().__init__(channel)
        self._destinations = destinations
        self._flows: dict[int, DatagramSocket] = {}

    def __len__(self) -> int:
        """Flows that there are."""
        return len(self._flows)

    def _do(self, record: Record) -> None:
        flow = self._flows.get(record.flow)
        if record.kind == OPEN:
            if flow is None:
                self._open(record)
        elif record.kind == DATA:
            if flow is None:
                self._end(record.flow, "there is no such flow")
            else:
                flow.send(record.body)
        elif record.kind == END and flow is not None:
            del self._flows[record.flow]
            flow.close()

    def _open(self, record: Record) -> None:
        number = record.flow
        try:
            address, port = destination_of(record.body)
            if len(self._flows) >= MAX_FLOWS:
                raise RecordError(f"there are {MAX_FLOWS} flows")
            self._destinations.check(address, port)
            self._flows[number] = DatagramSocket(
                address, port, lambda data: self._tell(DATA, number, data), lambda: self._tell(REFUSED, number)
            )
        except OSError as problem:
            self._end(number, problem.strerror or str(problem))
        except RecordError as problem:
            self._end(number, str(problem))

    def _end(self, number: int, why: str) -> None:
        self._write(Record(END, number, why.encode()[:200]))

    def _tell(self, kind: int, number: int, body: bytes = b"") -> None:
        # Who can't take it at this speed loses it, as on any network: nothing is kept for later.
        if not self._stuck:
            self._write(Record(kind, number, body))

    def _end_all(self) -> None:
        flows, self._flows = self._flows, {}
        for each in flows.values():
            each.close()
