"""What a service listens on in its namespace, published on the host's loopback, and held while it reloads.

Connections that arrive while the service is not listening wait, up to `hold` seconds, and then go through. Those
that the old process leaves unanswered when it ends in a reload are given to the new one, where that is safe: the
client had sent nothing, or the old process had not accepted them, or the request is one that may be repeated
(RFC 9110, 9.2.2).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from devloop.agent.datagrams import DatagramSocket
from devloop.agent.tasks import background
from devloop.datagrams import DatagramClient, DatagramFlow
from devloop.errors import ServiceError
from devloop.net.listeners import Listener
from devloop.net.own import own_relays
from devloop.net.repeat import repeatable
from devloop.net.router import Destination, LocalDatagrams, OffError, RefusedError, ToService
from devloop.relay import Relay, Relays, Target

HOLD = 10.0
"""Seconds that a connection waits for a service that is not listening."""
WAITING, WAITING_BYTES = 64, 1 << 18
"""Datagrams of one flow that wait for a service that reloads, and their bytes; the oldest go first."""
HOST_FLOWS = 256
"""Flows of datagrams into a service that has the host's network. Each is a socket."""
_FIRST_TRY, _LAST_TRY = 0.001, 0.02
_FOLLOW = 0.25


class Gate(Enum):
    """What becomes of new connections to a service."""

    OPEN = "open"
    """They go to the service; if it isn't listening, they wait for it."""
    HELD = "held"
    """It is about to be replaced: they wait until OPEN, without a try."""
    CLOSED = "closed"
    """It is off, or can't be started: they are refused at once."""


class _WithdrawnError(ServiceError):
    """Who asked for the port to be published was overtaken by who ended that."""


class Inner(Protocol):
    """What is needed of a namespace: `devloop.net.inside.Inside`."""

    async def connect(self, port: int, address: str = "127.0.0.1") -> socket.socket:
        """A connection to what listens; ConnectionRefusedError at once if nothing does."""

    def listeners(self) -> Iterable[Listener]:
        """What is listened on."""

    def datagram_listeners(self) -> Iterable[Listener]:
        """UDP sockets that take datagrams from anybody. OSError."""

    def takes_datagrams(self, listener: Listener) -> bool:
        """Whether what devloop sends in reaches one of them."""

    def not_accepted(self, port: int) -> frozenset[int]:
        """Connections that wait to be accepted, by the port of who connected."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A port of the service, and where the host finds it."""

    port: int
    host_port: int


class Held:
    """A way for datagrams into a service. While that reloads, the last `WAITING` wait for its next process."""

    def __init__(self, publisher: Publisher, port: int, way: DatagramFlow, client: DatagramClient) -> None:
        self.client = client
        self.closed: Callable[[], object] = lambda: None
        self._publisher = publisher
        self._port = port
        self._way = way
        self._kept: deque[bytes] = deque()
        self._waiting: asyncio.Task[None] | None = None

    def send(self, data: bytes) -> bool:
        """See `DatagramFlow`."""
        if self._waiting is None:
            if self._publisher.hears(self._port):
                return self._way.send(data)
            if self._publisher.gate is Gate.CLOSED:
                return False
            self._waiting = background(self._wait(), name="datagrams wait for a reload")
        self._kept.append(data)
        if len(self._kept) > WAITING or sum(map(len, self._kept)) > WAITING_BYTES:
            self._kept.popleft()
            return False
        return True

    async def _wait(self) -> None:
        if await self._publisher.heard(self._port):
            while self._kept:
                self._way.send(self._kept.popleft())
        self._kept.clear()
        self._waiting = None

    def close(self) -> None:
        """See `DatagramFlow`."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        self._kept.clear()
        self._way.close()
        self.closed()


class Publisher:
    """The published ports of one service."""

    def __init__(self, service: str, inside: Inner, log: Callable[[str], None], *, hold: float = HOLD) -> None:
        """`log` takes a line for the service's log; `hold` is in seconds."""
        self.service = service
        self.hold = hold
        self._inside = inside
        self._log = log
        self.generation = 0
        """Counts the service's processes: one more whenever the gate opens."""
        self._hears: dict[int, int] = {}
        """By UDP port, the process (`generation`) of which it is known to listen there."""
        self._host_flows: OrderedDict[Held, None] = OrderedDict()
        self.datagrams: LocalDatagrams | None = None
        """The service's UDP; None where it has no network of its own."""
        self.on_served: Callable[[], None] = lambda: None
        """Called once for each of the service's processes, when it first answers a connection."""
        self._told = -1
        self._gate = Gate.OPEN
        self._closed = False
        self._moved = asyncio.Event()
        self._published: dict[int, tuple[Publication, Relays]] = {}
        self._declared: set[int] = set()
        self._arrivals: dict[int, asyncio.Task[None]] = {}
        self._used: set[int] = set()
        self._unaccepted: set[tuple[int, int]] = set()
        """(port, the engine's own port) of connections that the old process had not accepted."""

    @property
    def published(self) -> tuple[Publication, ...]:
        """What is published, by port."""
        return tuple(publication for _, (publication, _) in sorted(self._published.items()))

    @property
    def gate(self) -> Gate:
        """What becomes of new connections."""
        return self._gate

    def set_gate(self, gate: Gate) -> None:
        """Say what becomes of new connections: HELD or CLOSED right before the old process is asked to end, OPEN when
        the new one runs. CLOSED: there will be none. What waits is told at once."""
        if gate is not Gate.OPEN and self._gate is Gate.OPEN:
            self._note_unaccepted()
        if gate is Gate.OPEN and self._gate is not Gate.OPEN:
            self.generation += 1
        self._gate = gate
        self._moved.set()
        self._moved = asyncio.Event()

    def listening(self) -> Iterable[Listener] | None:
        """What is listened on now; None if that can't be asked."""
        try:
            return self._inside.listeners()
        except OSError:
            return None

    def served(self) -> None:
        """The process that runs now has answered a connection: `on_served` is told of the first one."""
        if self._told != self.generation:
            self._told = self.generation
            self.on_served()

    async def publish(self, port: int, host_port: int | None = None) -> Publication:
        """Publish a port that the service listens on, now or later.

        Without `host_port` it is the same number, or another if that is taken. Raises ServiceError if `host_port`
        is taken, or if this is closed or the port unpublished meanwhile.
        """
        self._declared.add(port)
        return await self._publish(port, host_port)

    async def unpublish(self, port: int) -> None:
        """Close the host's listener and its connections; a port that isn't published is passed over."""
        self._declared.discard(port)
        found = self._published.pop(port, None)
        if found is not None:
            await found[1].close()

    async def follow(
        self, changed: Callable[[tuple[Publication, ...]], None] = lambda _: None, *, except_for: Collection[int] = ()
    ) -> None:
        """Publish whatever the service begins to listen on, but for some ports, until cancelled or closed.

        `changed` is called when something was published or has ended. Ports that were published by `publish` stay
        when nothing listens any more, others go, unless the service is being reloaded.
        """
        refused: set[int] = set()
        while not self._closed:
            try:
                ports = {found.port for found in self._inside.listeners() if found.on_loopback}
            except OSError:
                return  # the namespace is gone
            new, gone = ports - self._published.keys() - refused - set(except_for), set[int]()
            for port in sorted(new):
                try:
                    await self._publish(port, None)
                except _WithdrawnError:
                    continue
                except ServiceError as error:
                    refused.add(port)
                    self._log(str(error))
            if self._gate is Gate.OPEN:
                gone = self._published.keys() - ports - self._declared
                for port in gone:
                    await self.unpublish(port)
                refused &= ports
            if new - refused or gone:
                changed(self.published)
            await asyncio.sleep(_FOLLOW)

    async def open(self, port: int) -> socket.socket:
        """A connection to what the service listens on; the caller closes it.

        Waits for a service that is not listening. Raises RefusedError after `hold` seconds, OffError when it is off.
        """
        self._used.add(port)
        deadline = asyncio.get_running_loop().time() + self.hold
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    while self._gate is Gate.HELD:
                        await self._moved.wait()
                    if self._gate is Gate.CLOSED:
                        raise OffError(f"a connection to port {port} was refused: {self.service} is not running")
                    generation, moved = self.generation, self._moved
                    try:
                        sock = await self._connect(port)
                    except ConnectionError:
                        # Refused; or reset, as the process ended before this connection of its queue was known here.
                        await self._arrival(port, moved)
                        continue
                    if self._gate is Gate.OPEN and generation == self.generation:
                        return sock
                    sock.close()  # it led to the old process, and nothing was sent
        except TimeoutError:
            raise RefusedError(
                f"a connection to port {port} waited {self.hold:g} s for {self.service} to listen there"
            ) from None

    def may_repeat(self, port: int, relay: Relay) -> bool:
        """Whether a connection that was lost without an answer goes to the new process, or wherever the service is."""
        if self._gate is Gate.OPEN and relay.target.note == self.generation:
            return False  # the process that is there has ended it
        if repeatable(relay.early):
            return True
        # What had been accepted may have been acted on. The kernel resets what was not, so anything that ends in good
        # order was accepted after all, between the look at the queue and the old process' end.
        source = relay.target.transport.get_extra_info("sockname")
        return relay.target.broken and source is not None and (port, source[1]) in self._unaccepted

    # Datagrams

    def incoming(self, port: int, client: DatagramClient, source: Destination | None = None) -> DatagramFlow:
        """A way for datagrams to what listens on a UDP port, which keeps some while the service reloads.

        `source` is whom the service sees them come from, where it has a network of its own and that is nobody else's.
        Raises RefusedError, OSError.
        """
        if self.datagrams is not None:
            return Held(self, port, self.datagrams.peer(port, client, source), client)
        self._end_host_flows(HOST_FLOWS - 1)  # a socket each
        made = Held(self, port, DatagramSocket("127.0.0.1", port, client.received, client.refused), client)
        self._host_flows[made] = None
        made.closed = lambda: self._host_flows.pop(made, None)
        return made

    def _end_host_flows(self, most: int) -> None:
        """But for so many, the oldest first."""
        while len(self._host_flows) > most:
            oldest = next(iter(self._host_flows))
            oldest.close()
            oldest.client.ended("")

    def listening_datagrams(self) -> tuple[list[Listener], frozenset[int]] | None:
        """UDP sockets of it, and the ports at which what is sent in reaches one; None if that can't be asked."""
        try:
            found = list(self._inside.datagram_listeners())
        except OSError:
            return None
        return found, frozenset(each.port for each in found if self._inside.takes_datagrams(each))

    def hears(self, port: int) -> bool:
        """Whether the process that runs now reads datagrams to this port, or may: where nobody can tell."""
        if self._gate is not Gate.OPEN:
            return False
        if self._hears.get(port) != self.generation:
            there = self.listening_datagrams()
            if there is not None and port not in there[1]:
                return False
            self._hears[port] = self.generation
        return True

    async def heard(self, port: int) -> bool:
        """Wait for `hears`, for `hold` seconds; False: nobody does by then, or the service is off."""
        delay = _FIRST_TRY
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.hold):
                while self._gate is not Gate.CLOSED:
                    if self.hears(port):
                        return True
                    moved = self._moved
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(None if self._gate is Gate.HELD else delay):
                            await moved.wait()
                    delay = min(delay * 1.5, _LAST_TRY)
        return False

    async def close(self) -> None:
        """Unpublish everything for good, and break every connection."""
        self._closed = True
        self.set_gate(Gate.CLOSED)
        self._end_host_flows(0)
        for port in tuple(self._published):
            await self.unpublish(port)
        await asyncio.gather(*self._arrivals.values())

    async def _connect(self, port: int) -> socket.socket:
        try:
            return await self._inside.connect(port)
        except ConnectionRefusedError:
            # Node's `localhost` is ::1 alone where that stands first in the hosts file, and nginx's [::] is IPv6 alone.
            with contextlib.suppress(OSError):
                if any(found.port == port and found.address in ("::1", "::") for found in self._inside.listeners()):
                    return await self._inside.connect(port, "::1")
            raise

    async def _arrival(self, port: int, moved: asyncio.Event) -> None:
        """Until it may be worth a try again, at once if the gate has `moved` since the last one.

        One task looks for all that wait for the same port.
        """
        if moved.is_set():
            return
        task = self._arrivals.get(port)
        if task is None or task.done():
            task = self._arrivals[port] = asyncio.create_task(self._look(port, moved))
            task.add_done_callback(lambda done: self._arrivals.pop(port, None))
        await asyncio.shield(task)

    async def _look(self, port: int, moved: asyncio.Event) -> None:
        """Until something listens, the gate has moved, or nobody can be waiting any more."""
        delay, ends = _FIRST_TRY, asyncio.get_running_loop().time() + self.hold
        while asyncio.get_running_loop().time() < ends:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await moved.wait()
                return
            delay = min(delay * 1.5, _LAST_TRY)
            with contextlib.suppress(OSError):
                if any(found.port == port for found in self._inside.listeners()):
                    return

    async def _publish(self, port: int, host_port: int | None) -> Publication:
        found = self._published.get(port)
        if found is not None and host_port in (None, found[0].host_port):
            return found[0]
        if self._closed:
            raise self._withdrawn(port)
        socks = self._host_sockets(port, host_port)

        async def route(relay: Relay) -> Target:
            return ToService(self, port)

        relays = own_relays(route, self._failed)
        publication = Publication(port, socks[0].getsockname()[1])
        # Before anything is waited for, so that `close` and `unpublish` find it.
        made = self._published[port] = (publication, relays)
        try:
            await relays.listen(*socks)
        except BaseException as error:
            if self._published.get(port) is made:
                del self._published[port]
            elif isinstance(error, OSError):
                raise self._withdrawn(port) from None
            raise
        finally:
            if found is not None:
                await found[1].close()
        return publication

    def _withdrawn(self, port: int) -> ServiceError:
        return _WithdrawnError(f"port {port} was not published: its publication was ended first", where=self.service)

    def _host_sockets(self, port: int, host_port: int | None) -> list[socket.socket]:
        try:
            return loopback_listeners(port if host_port is None else host_port)
        except OSError as error:
            taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
            if host_port is None and taken:
                return loopback_listeners(0)
            why = "is taken" if error.errno == errno.EADDRINUSE else f"can't be used: {error.strerror}"
            raise ServiceError(
                f"port {host_port or port} of localhost {why}, so port {port} is not published there",
                where=self.service,
                hint="end what holds it, or publish on another port",
            ) from None

    def _failed(self, relay: Relay, error: Exception) -> None:
        self._log(error.what if isinstance(error, ServiceError) else f"a connection was broken: {error}")

    def _note_unaccepted(self) -> None:
        """Remember which connections the old process has not accepted: it has seen nothing of them."""
        self._unaccepted.clear()
        for port in self._used:
            with contextlib.suppress(OSError):
                self._unaccepted |= {(port, source) for source in self._inside.not_accepted(port)}


def loopback_listeners(port: int) -> list[socket.socket]:
    """Listening sockets on 127.0.0.1 and, where there is IPv6, ::1, at one port; 0 picks a free one. OSError."""
    socks: list[socket.socket] = []
    try:
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError:
                continue  # no IPv6
            socks.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((address, socks[0].getsockname()[1] if len(socks) > 1 else port))
            except OSError as error:
                if family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL:
                    socks.pop().close()
                    continue
                raise
            sock.listen(4096)
    except BaseException:
        for sock in socks:
            sock.close()
        raise
    return socks
