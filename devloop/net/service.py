"""The network of one service: what each way gives it, and the way that is a namespace of its own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from devloop.agent.tasks import background
from devloop.errors import DevloopError
from devloop.net.datagrams import Udp
from devloop.net.host import HostPorts
from devloop.net.inside import Inside, remove_made, seqpacket_pair
from devloop.net.mounts import Bind
from devloop.net.proxy import Proxy
from devloop.net.publish import Gate, Publisher
from devloop.net.router import DatagramRouter, Destination, Router
from devloop.relay import Relays

if TYPE_CHECKING:
    from devloop.net.dns import DnsServer, Resolver


DNS_PORT = 53


class Holder(Protocol):
    """Who holds the namespace: `devloop.local.process.Holder`."""

    def namespace(self, sock: socket.socket) -> None:
        """Have it speak as a `devloop.net.namespace.Namespace` over this socket, which stays the caller's."""


class LocalNetwork(Protocol):
    """The network of one local service, whichever way it has it: `ServiceNetwork` and `devloop.net.onhost.OnHost`."""

    @property
    def lost(self) -> bool:
        """It is good for nothing any more: close it and open another."""

    @property
    def pid(self) -> int | None:
        """The process whose namespaces are the service's; None: its network and files are the host's."""

    @property
    def publisher(self) -> Publisher:
        """Its ports, and what becomes of connections to them."""

    @property
    def relays(self) -> tuple[Relays, ...]:
        """The connections that it has made, as far as they go through something of its own."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is different from its pod's network because of the way; a sentence each."""

    @property
    def made(self) -> tuple[str, ...]:
        """Empty folders and files that were made on the host to mount on (`remove_made`)."""

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """Variables of its workload and its configuration, so that they are right here. There may be more."""

    def follow(self, changed: Callable[[], None], *, except_for: Collection[int] = ()) -> None:
        """See that what it begins to listen on is on the host, but for some ports; `changed` is told."""

    async def mount(self, binds: Sequence[Bind], remove: Sequence[str] = ()) -> dict[str, str]:
        """Put files and folders of the host where the service finds them; target → why for those that failed."""

    async def connect(self, port: int) -> socket.socket:
        """A connection to what listens on its localhost, now; ConnectionRefusedError at once if nothing does."""

    def set_gate(self, gate: Gate) -> None:
        """What becomes of new connections to it."""

    async def close(self) -> None:
        """Break every connection to it."""


class ServiceRouter(Router, DatagramRouter, Protocol):
    """Decides where all goes that leaves a service."""

    def is_dns_service(self, address: str) -> bool:
        """Whether a Service of the remote's is there that answers DNS questions itself, and not for everybody."""


class ServiceNetwork:
    """One service's namespace, its proxy, its DNS server and its published ports.

    It is good for one holder: when that is gone (`lost`), close it and open another.
    """

    def __init__(
        self,
        service: str,
        router: ServiceRouter,
        resolver: Resolver,
        host_ports: HostPorts,
        log: Callable[[str], None],
        *,
        hold: float,
        fronts: Callable[[], Collection[int]] = frozenset,
    ) -> None:
        """`log` takes a line for the service's log; `hold` is in seconds.

        `fronts` are host ports that lead to this very service, besides those that are published here.
        """
        self.service = service
        self.notes: tuple[str, ...] = ()
        self.inside: Inside
        self.publisher: Publisher
        self.lost = False
        self._router = router
        self._resolver = resolver
        self._host_ports = host_ports
        self._log = log
        self._hold = hold
        self._fronts = fronts
        self._proxy: Proxy | None = None
        self._dns: DnsServer | None = None
        self._udp: Udp | None = None
        self._follow: asyncio.Task[None] | None = None
        self._made: list[str] = []

    async def open(self, holder: Holder, addresses: Sequence[str] = ()) -> None:
        """Move the holder into a namespace; what it starts from then on is in it. Raises DevloopError."""
        from devloop.net.dns import DnsServer  # late: dnspython takes 200 ms

        ours, theirs = seqpacket_pair()
        self.inside = Inside(self.service, ours, self._was_lost)
        self.publisher = Publisher(self.service, self.inside, self._log, hold=self._hold)
        try:
            with theirs:
                holder.namespace(theirs)
            await (self.inside.enter(addresses) if addresses else self.inside.enter())
            self._proxy = Proxy(self.service, self.inside.proxy, self._router, self._log)
            await self._proxy.start()
            self._udp = self.publisher.datagrams = Udp(self.service, self.inside, self._router, self._log)
            self._udp.start()
            self._dns = DnsServer(self.inside.dns_udp, self.inside.dns_tcp, self._resolver, self._to_other_server)
            await self._dns.start()
            await self._host_ports.add(self.inside, self._own_host_ports)
        except BaseException:
            await self.close()
            raise

    @property
    def pid(self) -> int | None:
        """See `LocalNetwork`."""
        return self.inside.pid

    @property
    def relays(self) -> tuple[Relays, ...]:
        """See `LocalNetwork`."""
        return () if self._proxy is None else (self._proxy.relays,)

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """As it is: names, addresses and paths are what they are in the pod."""
        return dict(env)

    def _to_other_server(self, client: Destination, address: str, data: bytes) -> bool:
        """A question at port 53 of a DNS server of the remote's own goes there as it is."""
        if self._udp is None or not self._router.is_dns_service(address):
            return False
        self._udp.sent(client, Destination(address, DNS_PORT), data)
        return True

    def _own_host_ports(self) -> frozenset[int]:
        return frozenset(each.host_port for each in self.publisher.published) | frozenset(self._fronts())

    def _was_lost(self) -> None:
        self.lost = True

    def follow(self, changed: Callable[[], None], *, except_for: Collection[int] = ()) -> None:
        """Publish on the host what the service begins to listen on, but for some ports; `changed` is told."""
        if self._follow is None:
            self._follow = background(
                self.publisher.follow(lambda _: changed(), except_for=except_for), name="what the service listens on"
            )

    async def mount(self, binds: Sequence[Bind], remove: Sequence[str] = ()) -> dict[str, str]:
        """Put files and folders of the host at absolute paths inside; target → why for those that failed."""
        mounted = await self.inside.mount(binds, remove)
        self._made = list(mounted.made)
        return mounted.failed

    @property
    def made(self) -> tuple[str, ...]:
        """Empty folders and files that were made on the host to mount on (`remove_made`)."""
        return tuple(self._made)

    async def connect(self, port: int) -> socket.socket:
        """A connection to what listens inside, now; ConnectionRefusedError at once if nothing does."""
        try:
            return await self.inside.connect(port)
        except ConnectionRefusedError:
            if not self.inside.ipv6:
                raise
            return await self.inside.connect(port, "::1")

    def set_gate(self, gate: Gate) -> None:
        """What becomes of new connections to it."""
        if self.publisher.gate is not gate:
            self.publisher.set_gate(gate)

    async def close(self) -> None:
        """Break every connection and let the namespace go; the holder stays in it until it ends."""
        if self._follow is not None:
            self._follow.cancel()
            await asyncio.gather(self._follow, return_exceptions=True)
        self._host_ports.remove(self.inside)
        with contextlib.suppress(OSError, DevloopError):
            await self.publisher.close()
        if self._udp is not None:
            self._udp.close()
        if self._dns is not None:
            await self._dns.close()
        if self._proxy is not None:
            await self._proxy.close()
        self.inside.close()

    def remove_made(self) -> None:
        """Remove what was made on the host to mount on; to be called when the holder has ended."""
        remove_made(self._made)
        self._made.clear()
