"""Where a connection of a service goes: what a `Router` may answer.

A router is asked once for each new connection, so that a toggle is effective for the next one. It may wait, for a
link that is being reconnected, for example: the client's connection is accepted already and waits with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from devloop.agent.addresses import host_port
from devloop.datagrams import DatagramClient, DatagramFlow
from devloop.dial import connect
from devloop.errors import DevloopError, ServiceError
from devloop.relay import MovedError, Relay, Side, Target

P = TypeVar("P", bound=asyncio.Protocol)

CONNECT_TIMEOUT = 20.0
"""Seconds for a connection from the host; less than the kernel's two minutes, more than three lost SYNs."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a service wanted to go: an address in its canonical form (never ::ffff:…), and a port."""

    address: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether it means the machine itself: nothing inside listens there, and the host does."""
        return self.address == "::1" or self.address.startswith("127.")

    def __str__(self) -> str:
        return host_port(self.address, self.port)


class RefusedError(ServiceError):
    """The connection shall be refused; `what` is the line for the service's log."""


class OffError(RefusedError, MovedError):
    """The service is not running here; whoever is asked for the route again may know where it is now."""


class Router(Protocol):
    """Decides where the connections of local services go."""

    async def route(self, service: str, destination: Destination) -> Target:
        """The target of a new connection of `service`.

        For a destination on the loopback this should be `HostLoopback`. Raises RefusedError, with a reason for the
        log, or any DevloopError.
        """


class DatagramRouter(Protocol):
    """Decides where the datagrams of local services go."""

    async def datagrams(self, service: str, destination: Destination) -> Target:
        """The target of a new flow of `service`: a `ToLink`, `ToService` or `Dial`. Raises DevloopError."""

    def stale(self, target: Target) -> bool:
        """Whether it led to a service that has moved since: here, or to the remote."""


class LocalDatagrams(Protocol):
    """A local service's UDP: `devloop.net.datagrams.Udp`."""

    def peer(self, port: int, client: DatagramClient, source: Destination | None = None) -> DatagramFlow:
        """A way to what listens on a UDP port of it; `source`: whom it sees the datagrams come from, if it can."""


class Link(Protocol):
    """What carries connections to the remote: `devloop.remote.link.Link`."""

    async def datagrams(self, client: DatagramClient, address: str, port: int) -> DatagramFlow:
        """A UDP socket at the other end, connected to an address there; waits while the link is away.

        Raises DevloopError.
        """

    async def connect(self, factory: Callable[[], P], host: str, port: int) -> tuple[asyncio.Transport, P]:
        """(transport, protocol), after the other end has connected; waits while the link is away.

        Raises OSError or DevloopError.
        """


_ELSEWHERE = ("refused", "unreachable", "timeout")
"""`devloop.remote.link.Refusal`: why an address was not reached, where another of the same may be."""


@dataclass(frozen=True, slots=True)
class ToLink:
    """Through the link to a host and port as the remote sees them; a name is resolved there."""

    link: Link
    host: str
    port: int
    stands_for: str = field(default="", compare=False)
    """The project's service that this leads to while that is in the remote, if it is one."""
    also: str = field(default="", compare=False)
    """The same in the other family, "" if there is none: what is there may listen on one of them alone."""

    async def connect(self, side: asyncio.Protocol) -> Any:
        """Part of `Target`."""
        try:
            transport, _ = await self.link.connect(lambda: side, self.host, self.port)
        except DevloopError as problem:
            if not self.also or getattr(problem, "refusal", "") not in _ELSEWHERE:
                raise
            transport, _ = await self.link.connect(lambda: side, self.also, self.port)
        return transport


@dataclass(frozen=True, slots=True)
class Dial:
    """From the host's own network: the internet, a VPN, a container. `host` is an address."""

    host: str
    port: int

    async def connect(self, side: asyncio.Protocol) -> Any:
        """Part of `Target`."""
        return await connect_socket(await _dial(self.host, self.port), side)


@dataclass(frozen=True, slots=True)
class HostLoopback:
    """The host's own localhost.

    `localhost` is ::1 first for most programs, and the other family is tried by them only if that is refused. The
    proxy has accepted already, so it tries both families itself.
    """

    port: int
    address: str = "127.0.0.1"

    async def connect(self, side: asyncio.Protocol) -> Any:
        """Part of `Target`."""
        other = "127.0.0.1" if ":" in self.address else "::1"
        try:
            sock = await _dial(self.address, self.port)
        except OSError as first:
            try:
                sock = await _dial(other, self.port)
            except OSError:
                raise first from None
        return await connect_socket(sock, side)


class Ports(Protocol):
    """What has ports that another service can connect to: `devloop.net.publish.Publisher`."""

    @property
    def generation(self) -> int:
        """Which of the service's processes `open` leads to, by number."""

    async def open(self, port: int) -> socket.socket:
        """A connection to what the service listens on, waiting while it reloads. Raises OSError, ServiceError."""

    def may_repeat(self, port: int, relay: Relay) -> bool:
        """Whether a connection that was lost unanswered goes to the service's new process."""

    def served(self) -> None:
        """The process that runs now has answered a connection."""

    def incoming(self, port: int, client: DatagramClient) -> DatagramFlow:
        """A way for datagrams to what it listens on; some wait while it reloads. Raises OSError, ServiceError."""


@dataclass(frozen=True, slots=True)
class ToService:
    """Another local service (or the same), by the port that it listens on in its namespace."""

    service: Ports
    port: int
    stands_for: str = field(default="", compare=False)
    """The project's service that this leads to while that is here."""

    async def connect(self, side: asyncio.Protocol) -> Any:
        """Part of `Target`."""
        sock = await self.service.open(self.port)
        if isinstance(side, Side):
            side.note = self.service.generation
        return await connect_socket(sock, side)

    def may_repeat(self, relay: Relay) -> bool:
        """Part of `Repeatable`."""
        return self.service.may_repeat(self.port, relay)

    def answered(self, relay: Relay) -> None:
        """The service has begun to answer."""
        if relay.target.note == self.service.generation:  # and not the process before
            self.service.served()


async def connect_socket(sock: socket.socket, side: asyncio.Protocol) -> Any:
    """Make a connected socket the transport of a protocol; closes it if that fails."""
    try:
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: side, sock=sock)
    except BaseException:
        sock.close()
        raise
    return transport


async def _dial(host: str, port: int) -> socket.socket:
    async with asyncio.timeout(CONNECT_TIMEOUT):
        sock = await connect(host, port)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock


def canonical(address: str) -> str:
    """An address without a scope, and IPv4 as IPv4, where a dual-stack socket tells ::ffff:…"""
    address = address.partition("%")[0]
    if address.startswith("::ffff:") and "." in address:
        return address[7:]
    return address
