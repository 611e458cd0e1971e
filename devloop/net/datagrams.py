"""UDP of a service's namespace: each flow goes where its destination is, and what comes back comes from there.

A *flow* is what one socket of the service says to one destination. Where it goes is asked of the router at its first
datagram, and again after a toggle: through the link, to another local service, or out from the host. Nothing is kept
for long: a flow that is still on its way holds a few datagrams, and what comes faster than it goes is dropped, as on
any network.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

from devloop.agent.datagrams import DatagramSocket
from devloop.agent.tasks import background
from devloop.datagrams import DatagramClient, DatagramFlow
from devloop.errors import DevloopError
from devloop.net.router import (
    DatagramRouter,
    Destination,
    Dial,
    RefusedError,
    ToLink,
    ToService,
    canonical,
)
from devloop.net.rules import PROXY_PORT
from devloop.net.udp import datagram, original, unreachable
from devloop.relay import Target

IDLE_SECONDS = 120.0
"""A flow that nobody has used for so long ends. RFC 4787 (4.3, REQ-5) allows no less; a cluster's own connection
tracking, which a pod's datagrams to a Service pass, has the same for flows that are answered."""
MAX_FLOWS = 512
"""Of one service. At one more, the one that was idle for the longest ends: a client with a socket for each question."""
WAITING = 64
WAITING_BYTES = 1 << 20
"""Datagrams of one flow, and bytes of all flows of a service, that wait until a flow is open; the oldest go first."""
RETRY_SECONDS = 5.0
"""So long what was refused stays so, before the router is asked again."""
QUIET_SECONDS = 60.0
"""In which dropped datagrams are not told of again."""
_SWEEP_SECONDS = 10.0
_READS = 64
_MOST_TOLD = 1000
PEER = "198.18.255.254"
"""Where a local service sees another one's datagrams come from, each flow at a port of its own: in the same range that
services' own addresses are of, and nobody's."""
_PEER_PORTS = range(1024, 65000)
_DNS_PORT = 53


class Sockets(Protocol):
    """What is used of a namespace: `devloop.net.inside.Inside`."""

    datagrams: socket.socket
    """Gets all UDP that leaves it, with where it was sent to (IP_RECVORIGDSTADDR)."""
    raw: dict[int, socket.socket]
    """By family: sends whole packets into it."""
    addresses: tuple[str, ...]
    """Its own, one a family."""


class Flow:
    """One. It is the client (`DatagramClient`) of the way by which its datagrams go."""

    def __init__(self, udp: Udp, client: Destination, destination: Destination) -> None:
        self.client = client
        """The service's socket."""
        self.destination = destination
        self.target: Target | None = None
        self.way: DatagramFlow | None = None
        self.refused_at: float | None = None
        self.used = 0.0
        self.waiting: deque[bytes] = deque()
        self.opening: asyncio.Task[None] | None = None
        self._udp = udp

    def received(self, data: bytes) -> None:
        """A datagram has come back."""
        self._udp.answered(self, data)

    def refused(self) -> None:
        """Nobody listens there."""
        self._udp.unreachable(self)

    def ended(self, why: str) -> None:
        """The way is gone; the next datagram begins another."""
        self._udp.lost(self, why)


class Udp:
    """All flows of one service."""

    def __init__(
        self,
        service: str,
        sockets: Sockets,
        router: DatagramRouter,
        log: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`log` takes a line for the service's log; `clock` counts seconds."""
        self.service = service
        self._sockets = sockets
        self._router = router
        self._log = log
        self._clock = clock
        self._flows: OrderedDict[tuple[Destination, Destination], Flow] = OrderedDict()
        """The one that was used last is at the end."""
        self._peers: dict[tuple[Destination, int], Peer] = {}
        """By whom the service sees, and the service's port."""
        self._next_peer = 0
        self._waiting_bytes = 0
        self._told: set[tuple[Destination, str]] = set()
        self._dropped = 0
        self._told_dropped = -QUIET_SECONDS
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Flows that there are."""
        return len(self._flows)

    def start(self) -> None:
        """Take datagrams from now on."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._sockets.datagrams, self._readable)
        self._timer = loop.call_later(_SWEEP_SECONDS, self._sweep)

    def close(self) -> None:
        """End every flow; the sockets stay their owner's."""
        if self._timer is not None:
            self._timer.cancel()
        if self._sockets.datagrams.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sockets.datagrams)
        for flow in tuple(self._flows.values()):
            self._end(flow)
        for peer in tuple(self._peers.values()):
            peer.close()
            peer.client.ended("")

    def expire(self) -> None:
        """End flows that have been idle for too long."""
        until = self._clock() - IDLE_SECONDS
        while self._flows:
            flow = next(iter(self._flows.values()))
            if flow.used > until:
                return
            self._end(flow)

    def _sweep(self) -> None:
        self.expire()
        self._timer = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)

    # Out

    def _readable(self) -> None:
        for _ in range(_READS):  # then somebody else's turn
            try:
                data, ancillary, _, client = self._sockets.datagrams.recvmsg(65535, 256)
            except OSError:
                return  # BlockingIOError: all read
            destination = original(ancillary)
            if destination is not None:
                self.sent(Destination(canonical(client[0]), client[1]), destination, data)

    def sent(self, client: Destination, destination: Destination, data: bytes) -> None:
        """A socket of the service has sent a datagram to a destination outside."""
        peer = self._peers.get((destination, client.port)) if self._peers else None
        if peer is not None:
            peer.client.received(data)
            return
        if destination.address == PEER:
            return
        if destination.port == PROXY_PORT:
            return  # devloop's own in here
        key = (client, destination)
        flow = self._flows.get(key)
        now = self._clock()
        if flow is not None and flow.refused_at is not None:
            if now - flow.refused_at < RETRY_SECONDS:
                self.unreachable(flow)
                return
            self._end(flow)
            flow = None
        elif flow is not None and flow.target is not None and self._router.stale(flow.target):
            self._end(flow)
            flow = None
        if flow is None:
            if len(self._flows) >= MAX_FLOWS:
                self._end(next(iter(self._flows.values())))
            flow = self._flows[key] = Flow(self, client, destination)
            flow.opening = background(self._open(flow), name="datagrams")
        self._use(flow)
        if flow.way is None:
            self._keep(flow, data)
        elif not flow.way.send(data):
            self._drop()

    def _use(self, flow: Flow) -> None:
        flow.used = self._clock()
        self._flows.move_to_end((flow.client, flow.destination))

    def _keep(self, flow: Flow, data: bytes) -> None:
        flow.waiting.append(data)
        self._waiting_bytes += len(data)
        while flow.waiting and (len(flow.waiting) > WAITING or self._waiting_bytes > WAITING_BYTES):
            self._waiting_bytes -= len(flow.waiting.popleft())
            self._drop()

    async def _open(self, flow: Flow) -> None:
        try:
            flow.target = await self._router.datagrams(self.service, flow.destination)
            flow.way = await self._way(flow.target, flow)
        except DevloopError as error:
            self._refuse(flow, error.what)
        except OSError as error:
            self._refuse(flow, error.strerror or str(error))
        else:
            while flow.waiting and flow.way is not None:
                data = flow.waiting.popleft()
                self._waiting_bytes -= len(data)
                if not flow.way.send(data):
                    self._drop()

    async def _way(self, target: Target, flow: Flow) -> DatagramFlow:
        match target:
            case ToLink():
                return await target.link.datagrams(flow, target.host, target.port)
            case ToService():
                return target.service.incoming(target.port, flow)
            case Dial():
                return DatagramSocket(target.host, target.port, flow.received, flow.refused)
        raise RefusedError("nothing takes UDP there")

    # Back

    def answered(self, flow: Flow, data: bytes) -> None:
        """A datagram for the flow's socket, from its destination."""
        if self._is(flow):
            self._use(flow)
            self._inject(datagram(flow.destination, flow.client, data), flow.client)

    def unreachable(self, flow: Flow) -> None:
        """Have the flow's socket see ECONNREFUSED, if it is connected."""
        if self._is(flow):
            self._inject(unreachable(flow.client, flow.destination), flow.client)

    def lost(self, flow: Flow, why: str) -> None:
        """The flow's way is gone."""
        if not self._is(flow):
            return
        if why:
            self._refuse(flow, why)
        else:
            self._end(flow)

    def _inject(self, packet: bytes | None, to: Destination) -> None:
        raw = self._sockets.raw.get(socket.AF_INET6 if ":" in to.address else socket.AF_INET)
        try:
            if packet is None or raw is None:
                raise BlockingIOError
            raw.sendto(packet, (to.address, 0))
        except OSError:
            self._drop()

    def _is(self, flow: Flow) -> bool:
        return self._flows.get((flow.client, flow.destination)) is flow

    def _end(self, flow: Flow) -> None:
        if self._flows.get((flow.client, flow.destination)) is flow:
            del self._flows[flow.client, flow.destination]
        if flow.opening is not None and flow.opening is not asyncio.current_task():
            flow.opening.cancel()
        self._empty(flow)
        if flow.way is not None:
            flow.way.close()
            flow.way = None

    def _empty(self, flow: Flow) -> None:
        self._waiting_bytes -= sum(map(len, flow.waiting))
        flow.waiting.clear()

    def _refuse(self, flow: Flow, why: str) -> None:
        """Nothing goes there, which is told once, and its socket learns it each time."""
        self._empty(flow)
        flow.way = None
        flow.refused_at = self._clock()
        self.unreachable(flow)
        key = (flow.destination, why)
        if key not in self._told:
            if len(self._told) >= _MOST_TOLD:
                self._told.clear()
            self._told.add(key)
            self._log(f"UDP to {flow.destination} is refused: {why}")

    def _drop(self) -> None:
        self._dropped += 1
        now = self._clock()
        if now - self._told_dropped >= QUIET_SECONDS:
            self._told_dropped = now
            self._log(f"UDP datagrams were dropped, {self._dropped} so far: too large, or faster than they can go")

    # In

    def peer(self, port: int, client: DatagramClient, source: Destination | None = None) -> DatagramFlow:
        """A way to what listens on a UDP port in here, for another service's flow, or a client's of the cluster, whom
        the service then sees: `source`. One whose answers could not be told from anything else's, or that has no family
        in here, is at `PEER`, as services are. Raises RefusedError."""
        if source is not None and self._free(source, port):
            made = self._peers[source, port] = Peer(self, source, port, client)
            return made
        for _ in _PEER_PORTS:
            seen = Destination(PEER, _PEER_PORTS[self._next_peer])
            self._next_peer = (self._next_peer + 1) % len(_PEER_PORTS)
            if (seen, port) not in self._peers:
                made = self._peers[seen, port] = Peer(self, seen, port, client)
                return made
        raise RefusedError("too many flows lead there")

    def _free(self, source: Destination, port: int) -> bool:
        """An answer to it leaves the service by `sent`, and means this flow."""
        return (
            (source, port) not in self._peers
            and not source.is_loopback
            and source.address not in (PEER, *self._sockets.addresses)
            and source.port not in (_DNS_PORT, PROXY_PORT)
            and self._own(source) is not None
        )

    def _own(self, source: Destination) -> str | None:
        """The service's own address of the same family."""
        six = ":" in source.address
        if (socket.AF_INET6 if six else socket.AF_INET) not in self._sockets.raw:
            return None
        return next((each for each in self._sockets.addresses if (":" in each) is six), None)

    def deliver(self, peer: Peer, data: bytes) -> bool:
        """A datagram of another service's, to what listens in here; False: it was dropped."""
        own = self._own(peer.seen)
        if own is None:
            return False
        packet = datagram(peer.seen, Destination(own, peer.port), data)
        try:
            if packet is not None:
                self._sockets.raw[socket.AF_INET6 if ":" in own else socket.AF_INET].sendto(packet, (own, 0))
        except OSError:
            return False
        return packet is not None

    def forget(self, peer: Peer) -> None:
        """The other's flow has ended."""
        if self._peers.get((peer.seen, peer.port)) is peer:
            del self._peers[peer.seen, peer.port]


class Peer:
    """Another's flow, as the service sees it that it leads to."""

    def __init__(self, udp: Udp, seen: Destination, port: int, client: DatagramClient) -> None:
        self.seen = seen
        """Whom the service sees: at `PEER`, or a client of the cluster."""
        self.port = port
        """The service's."""
        self.client = client
        self._udp = udp

    def send(self, data: bytes) -> bool:
        """See `DatagramFlow`."""
        return self._udp.deliver(self, data)

    def close(self) -> None:
        """See `DatagramFlow`."""
        self._udp.forget(self)
