"""An SSH connection as a carrier: each connection of a service is a channel (RFC 4254, 7.2 "direct-tcpip").

Importing this imports asyncssh (0.2 s): only what dials does.

SSH has one window for each channel and one TCP connection for all. asyncssh watches the windows alone, so that a
client with much to send would put its whole window into the socket's buffer, and everybody else's next byte behind
it. Here the socket's own pressure goes to the channels as well: while it is full, those that write are paused.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import asyncssh

from devloop.agent.forward import NEAR_WINDOW_BYTES, TcpChannel
from devloop.agent.forward import WINDOW_BYTES as WINDOW_BYTES
from devloop.agent.lane import Laned
from devloop.agent.packets import PACKET_BYTES as PACKET_BYTES
from devloop.agent.packets import SMALL
from devloop.agent.unsent import bound_unsent
from devloop.datagrams import DatagramClient, DatagramFlow
from devloop.remote.said import said

from .datagrams import DatagramSession
from .dns import DnsOverTcp
from .lanes import PATIENCE_TRIPS, Burst, Dial, Lanes
from .link import (
    CarrierLostError,
    Kind,
    NameLookupError,
    NoDatagramsError,
    OpenError,
    Refusal,
    Resolver,
)

P = TypeVar("P", bound=asyncio.Protocol)

KEEPALIVE_SECONDS = 1.5
KEEPALIVE_COUNT = 2
"""A peer that says nothing for KEEPALIVE_SECONDS * (KEEPALIVE_COUNT + 1) is gone."""
CIPHERS = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
BYTES_PER_SECOND = 400e6
"""So much a window lets through; no link was quicker so far."""
RESOLV_CONF = "cat /etc/resolv.conf"
"""devloop's agent answers this one command itself; a host's shell runs it."""


def window(trip: float) -> int:
    """The window of a new channel, in bytes, where a round trip takes so many seconds; infinity: it is not known."""
    return int(min(NEAR_WINDOW_BYTES + trip * BYTES_PER_SECOND, WINDOW_BYTES))


class Channel(Laned, asyncssh.SSHTCPSession[bytes], asyncio.Transport):
    """One channel: asyncssh's session on one side, asyncio's transport on the other."""

    def __init__(self, carrier: SshCarrier, protocol: asyncio.Protocol, host: str, port: int) -> None:
        asyncio.Transport.__init__(self, {"peername": (host, port)})
        Laned.__init__(self)
        self.number = 0
        """What the agent knows it by; 0: it can have no lane."""
        self.burst = Burst()
        self._carrier = carrier
        self._protocol = protocol
        self._full = False  # the channel's window, or the buffer before it
        self._held = False  # the protocol was told to pause

    # asyncssh's side

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        """The channel is open."""
        self.channel = chan
        self._protocol.connection_made(self)

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        """Bytes from the other end."""
        if not self.closing:
            self._protocol.data_received(data)
        self.got(len(data))

    def eof_received(self) -> bool:
        """The other end sends no more."""
        self.deliver_end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel has ended."""
        self._carrier.writers.discard(self)
        self.over()
        lost = ConnectionResetError(str(exc)) if exc is not None else None
        self._protocol.connection_lost(lost)

    def pause_writing(self) -> None:
        """The channel's window is used up."""
        self._full = True
        self.pressure()

    def resume_writing(self) -> None:
        """There is room again."""
        self._full = False
        self.pressure()

    def pressure(self) -> None:
        """Tell the protocol, if that changes anything for it."""
        hold = self.lane.full if self.by_lane and self.lane else self._full or self._carrier.congested
        if hold and self._carrier.congested:
            # Its window may open while the socket takes nothing, and it writes nothing by which it would be told later.
            self._carrier.writers.add(self)
        if hold != self._held:
            self._held = hold
            if hold:
                self._protocol.pause_writing()
            else:
                self._protocol.resume_writing()

    # The lane's side

    def deliver(self, data: memoryview) -> None:
        """Bytes by the lane. Small ones are handed on as bytes of their own, as from the channel."""
        self._protocol.data_received(cast(bytes, data if len(data) >= SMALL else bytes(data)))

    def deliver_end(self) -> None:
        """The other end sends no more. As in asyncio, the protocol says whether it stays open for writing."""
        if not self._protocol.eof_received():
            self.close()

    def flow(self) -> None:
        """Bytes go by another way now, or that one takes more."""
        self.pressure()

    def busy(self) -> None:
        """Ask for a lane, when it has been so for a while."""
        carrier = self._carrier
        if carrier.lanes is None or not self.number or self.closing:
            return
        if self.burst.goes_on(time.monotonic()) >= PATIENCE_TRIPS * carrier.trip:
            carrier.lanes.offer(self)

    # asyncio's side

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        if self.closing or not data or self.channel is None:
            return
        if self.by_lane:
            self.send(data)
            return
        carrier = self._carrier
        carrier.writers.add(self)
        try:
            self.send(data)
        except OSError:  # asyncssh: not open any more; connection_lost comes
            return
        if carrier.congested:
            self.pressure()

    def writelines(self, list_of_data: Any) -> None:
        """Send several."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """A half-close is a message of its own (RFC 4254, 5.3)."""
        return True

    def write_eof(self) -> None:
        """Send no more; what is received goes on."""
        if not self.closing and self.channel is not None:
            self.finish()

    def get_write_buffer_size(self) -> int:
        """Bytes that wait for the window, or for the lane."""
        if self.by_lane and self.lane is not None:
            return int(self.lane.transport.get_write_buffer_size())
        return self.channel.get_write_buffer_size() if self.channel is not None else 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """As in asyncio."""
        if self.channel is not None:
            self.channel.set_write_buffer_limits(high, low)

    def pause_reading(self) -> None:
        """Take no more; the window closes."""
        if self.channel is not None and not self.closing:
            self.hold(True)

    def resume_reading(self) -> None:
        """Go on."""
        if self.channel is not None and not self.closing:
            self.hold(False)

    def is_closing(self) -> bool:
        """It has ended, or is about to."""
        return self.closing

    def close(self) -> None:
        """Send what was written, then end."""
        if self.channel is not None:
            self.end()

    def abort(self) -> None:
        """End now; what waits for the window is dropped."""
        self.closing = True
        if self.channel is not None:
            self.channel.abort()

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who hears it."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Somebody else hears it from now on."""
        self._protocol = cast(asyncio.Protocol, protocol)


class SshCarrier:
    """A connected SSH client connection."""

    direct = ""

    def __init__(
        self,
        connection: asyncssh.SSHClientConnection,
        kind: Kind,
        where: str,
        *,
        notes: tuple[str, ...] = (),
        resolver: Resolver | None = None,
        lane: Dial | None = None,
        snug: bool = False,
    ) -> None:
        """`lane` makes what lanes run over, where the other end is an agent.

        `snug`: windows are no larger than the way is long. It is for a server that sends faster than this end takes, by
        a way with large buffers; OpenSSH's is slower, and loses a sixth of its speed by it.
        """
        self.kind = kind
        self.notes = notes
        self.connection = connection
        self.where = where
        self.congested = False
        self.writers: set[Channel] = set()
        self.lanes = Lanes(connection, lane) if lane is not None else None
        self._snug = snug
        self._next = 0
        self.trip = float("inf")
        """The quickest answer so far, in seconds: a round trip, and a little more."""
        self._resolver = resolver
        self._reading: asyncio.Task[Resolver] | None = None
        self._dns: DnsOverTcp | None = None
        self._datagrams: asyncio.Task[DatagramSession] | None = None
        self._reason = ""
        owner = connection.get_owner()  # it is forgotten when the connection ends
        self._client = owner if isinstance(owner, Client) else None
        # asyncssh's protocol has no use for the two; its transport calls them whenever its buffer is full.
        hooks: Any = connection
        hooks.pause_writing = self._pause
        hooks.resume_writing = self._resume
        bound_unsent(connection.get_extra_info("socket"))  # by the API server there is none: the websocket's is bounded

    def _pause(self) -> None:
        self.congested = True
        for channel in list(self.writers):
            channel.pressure()

    def _resume(self) -> None:
        self.congested = False
        writers, self.writers = self.writers, set()
        for channel in writers:
            channel.pressure()

    @property
    def over(self) -> bool:
        """It has ended."""
        return self.connection.is_closed()

    async def connect(self, factory: Callable[[], P], host: str, port: int) -> tuple[asyncio.Transport, P]:
        """Open a channel. Raises OpenError and CarrierLostError."""
        protocol = factory()
        session = Channel(self, protocol, host, port)
        try:
            channel = TcpChannel.of(self.connection, window(self.trip) if self._snug else WINDOW_BYTES)
            if self.lanes is not None:
                session.number = self._next = self._next % 0xFFFFFFFF + 1
            began = time.monotonic()
            opening = channel.ask(session, host, port, session.number)
            try:
                await opening
                self.trip = min(self.trip, time.monotonic() - began)
            except asyncio.CancelledError:
                if not opening.cancelled():  # it came just now
                    session.abort()
                raise
        except asyncssh.ChannelOpenError as problem:
            if self.over or problem.reason == "SSH connection closed":
                raise CarrierLostError(problem.reason) from problem
            raise refused(problem, host, port, agent=self.kind == "agent") from problem
        except (asyncssh.Error, OSError) as problem:
            raise CarrierLostError(str(problem)) from problem
        return session, protocol

    async def datagrams(self, client: DatagramClient, address: str, port: int) -> DatagramFlow:
        """A flow of the one session with datagrams, which is begun for the first. Raises as `Link.datagrams`."""
        if self.kind != "agent":
            what = "the sandbox has no UDP" if self.kind == "sandbox" else "the link is SSH to a host, which has no UDP"
            raise NoDatagramsError(what, where=self.where)
        while True:
            if self.over:
                raise CarrierLostError(self._reason or "the connection has ended")
            if self._datagrams is None:
                beginning = DatagramSession.begin(self.connection, self.where)
                self._datagrams = asyncio.create_task(beginning, name="datagrams")
                # Who waits for it may be gone by then.
                self._datagrams.add_done_callback(lambda done: done.cancelled() or done.exception())
            asked = self._datagrams
            # Shielded: one client that goes must not end what others wait for.
            session = await asyncio.shield(asked)
            if not session.over:
                return session.flow(client, address, port)
            if self._datagrams is asked:
                self._datagrams = None

    async def resolver(self) -> Resolver:
        """What resolv.conf says there, read once for a connection."""
        if self._resolver is None:
            if self._reading is None:
                self._reading = asyncio.create_task(self._read(), name="resolv.conf")
            self._resolver = await asyncio.shield(self._reading)
        return self._resolver

    async def _read(self) -> Resolver:
        hint = "Give `[remote] resolver`, the address of a DNS server that the host reaches by TCP."
        try:
            async with asyncio.timeout(5):
                text = await said(self.connection, RESOLV_CONF, check=False)
        except (asyncssh.Error, OSError, TimeoutError, ValueError) as problem:
            if self.over:
                raise CarrierLostError(str(problem)) from problem
            what = f"its /etc/resolv.conf can't be read: {problem or 'no answer'}"
            raise NameLookupError(what, where=self.where, hint=hint) from problem
        found = Resolver.parse(text)
        if not found.nameservers:
            raise NameLookupError("its /etc/resolv.conf names no resolver", where=self.where, hint=hint)
        return found

    async def query(self, message: bytes) -> bytes:
        """Ask the first nameserver there, by TCP."""
        if self._dns is None:
            address = (await self.resolver()).nameservers[0]
            if self._dns is None:
                self._dns = DnsOverTcp(self.connect, address, self.where)
        return await self._dns.query(message)

    async def check(self) -> None:
        """One round trip: the server answers any global request, if only with a failure (RFC 4254, 4)."""
        make: Any = self.connection._make_global_request
        began = time.monotonic()
        await make(b"keepalive@openssh.com")
        self.trip = min(self.trip, time.monotonic() - began)

    async def lost(self) -> str:
        """Wait for the end of the connection."""
        await self.connection.wait_closed()
        if self._dns is not None:
            self._dns.close()
        if self.lanes is not None:
            self.lanes.close()
        ended = self._client.ended if self._client is not None else None
        return self._reason or (str(ended) if ended else "") or "the other end closed the connection"

    def abort(self, reason: str) -> None:
        """End it at once."""
        self._reason = self._reason or reason
        self.connection.abort()

    async def close(self) -> None:
        """End it in order."""
        if self._dns is not None:
            self._dns.close()
        if self._reading is not None:
            self._reading.cancel()
        if self._datagrams is not None:
            self._datagrams.cancel()
        if self.lanes is not None:
            self.lanes.close()
        self.connection.close()
        try:
            async with asyncio.timeout(2):
                await self.connection.wait_closed()
        except TimeoutError:
            self.connection.abort()
            await self.connection.wait_closed()


class Client(asyncssh.SSHClient):
    """Remembers why the connection ended."""

    ended: Exception | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Keep the reason for the link's state."""
        self.ended = exc


# What SSH servers say when a connection was not made: RFC 4254 has one code for all of these (2, "connect
# failed"). OpenSSH sends strerror's or gai_strerror's text, asyncssh an OSError's with its number.
_TEXTS = (
    (Refusal.REFUSED, re.compile(r"refused|errno 111\b|errno 61\b", re.I)),
    (
        Refusal.UNKNOWN_HOST,
        re.compile(r"not known|name resolution|no address|nodename|resolve|unknown host|errno -[2-5]\b", re.I),
    ),
    (Refusal.UNREACHABLE, re.compile(r"unreachable|no route|errno 11[3]\b|errno 101\b", re.I)),
    (Refusal.TIMEOUT, re.compile(r"timed out|timeout|errno 110\b", re.I)),
)
_SAYS = {
    Refusal.REFUSED: "connection refused",
    Refusal.UNKNOWN_HOST: "there is no host of this name at the other end",
    Refusal.UNREACHABLE: "the other end does not reach it",
    Refusal.TIMEOUT: "the other end's connection timed out",
    Refusal.PROHIBITED: "the SSH server does not allow this connection",
}


def refused(problem: asyncssh.ChannelOpenError, host: str, port: int, *, agent: bool = False) -> OpenError:
    """What a refused channel means; `agent`: it is devloop's agent that has refused it, and no SSH server."""
    refusal = Refusal.UNREACHABLE
    if problem.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
        refusal = Refusal.PROHIBITED
    else:
        for candidate, pattern in _TEXTS:
            if pattern.search(problem.reason):
                refusal = candidate
                break
    hint = None
    if refusal is Refusal.PROHIBITED:
        if agent:
            hint = "docs/links.md, Where the agent does not connect to, says how an administrator allows it."
            return OpenError(refusal, host, port, problem.reason, hint=hint)
        hint = "In sshd_config: AllowTcpForwarding, PermitOpen; in authorized_keys: permitopen, no-port-forwarding."
    return OpenError(refusal, host, port, f"{_SAYS[refusal]} ({problem.reason})", hint=hint)
