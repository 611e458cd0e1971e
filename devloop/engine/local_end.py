"""One local service as its traffic sees it: where its connections go, and whether anything takes them there."""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from devloop.datagrams import DatagramClient, DatagramFlow
from devloop.errors import DevloopError
from devloop.net.listeners import Listener

if TYPE_CHECKING:
    from devloop.net.publish import Publisher
    from devloop.net.router import Ports

P = TypeVar("P", bound=asyncio.Protocol)
GRACE_SECONDS = 1.0
"""How long a service that is ready may take to listen on a port that none of its processes has listened on yet."""
_SHOWN = 5


class _Ear:
    """Whether a service listens where its traffic is led to, by TCP or by UDP. `kind` names such a port.

    `at_once`: what a process does not listen on yet is deaf, but for a reload: a datagram does not wait, as a
    connection does, and nobody can give it to the original later.
    """

    def __init__(self, kind: str, *, at_once: bool = False) -> None:
        self.deaf: Mapping[int, str] = {}
        self._kind = kind
        self._at_once = at_once
        self._expected: set[int] = set()
        self._taken: set[int] = set()
        """Ports that a process of it has listened on: another one will, as a rule."""
        self._last: frozenset[int] = frozenset()
        """All that it listened on when each of the expected ports was there."""
        self._quiet: dict[int, float] = {}

    def expect(self, ports: Iterable[int]) -> None:
        """Look for these, too."""
        self._expected |= set(ports)

    def begin(self) -> None:
        """The next process is looked at from its start."""
        self._quiet.clear()
        if self._at_once:
            self._taken.clear()

    def off(self) -> dict[int, str]:
        """What is deaf while nothing runs, and until the next process listens."""
        return {port: f"nothing listens on {self._kind} {port}" for port in self._expected} if self._at_once else {}

    def look(
        self,
        found: list[Listener],
        there: frozenset[int],
        now: float,
        hold: float,
        *,
        own: bool,
        ready_since: float | None,
    ) -> dict[int, str]:
        """The expected ports that are deaf now, each with the reason. `there`: those that are reached."""
        ready = ready_since is not None
        deaf: dict[int, str] = {}
        for port in sorted(self._expected):
            if ready and port in there:
                self._quiet.pop(port, None)
                self._taken.add(port)
                self._last = there
                continue
            # One that was there a moment ago may be a reloader's of its own, within the process that we know.
            began = now if port in self._taken or ready_since is None else ready_since
            since = self._quiet.setdefault(port, began)
            elsewhere = port not in there and ready and own and bool(there - self._last)
            patience = hold if port in self._taken and not elsewhere else 0 if self._at_once else GRACE_SECONDS
            if now - since >= patience:
                others = [(each.port, "" if each.port in there else each.address) for each in found] if own else []
                deaf[port] = _why(port, self._kind, others, ready=ready, listens=port in there)
        return deaf


class Local:
    """One service as its traffic sees it: `devloop.attach.LocalEnd`."""

    def __init__(self, ports: Callable[[], Any], end: Callable[[], Awaitable[None]]) -> None:
        """`end` stops its process, for good."""
        self._ports = ports
        self._end = end
        self._handing_over: asyncio.Event | None = None
        self._running = False
        self._ready_since: float | None = None
        self._listeners: list[Callable[[], None]] = []
        self._tcp, self._udp = _Ear("port"), _Ear("UDP port", at_once=True)
        self._waiting: defaultdict[int, set[asyncio.Timeout]] = defaultdict(set)

    async def connect(self, factory: Callable[[], P], port: int) -> tuple[asyncio.Transport, P]:
        """See `LocalEnd`."""
        sock: socket.socket | None
        try:
            found: Ports = await self._ports()
            sock = await self._open(found, port)
        except (OSError, DevloopError):
            if self._handing_over is None:
                raise
            sock = None
        if self._handing_over is not None:
            if sock is not None:
                sock.close()  # it leads to a process that ends
            await self._handing_over.wait()  # its caller knows for how long
            raise ConnectionRefusedError("its workload runs again")
        assert sock is not None
        try:
            return await asyncio.get_running_loop().create_connection(factory, sock=sock)
        except BaseException:
            sock.close()
            raise

    async def _open(self, ports: Ports, port: int) -> socket.socket:
        if port in self.deaf:
            raise ConnectionRefusedError(self.deaf[port])
        try:
            async with asyncio.timeout(None) as waiting:
                self._waiting[port].add(waiting)
                try:
                    return await ports.open(port)
                finally:
                    self._waiting[port].discard(waiting)
        except TimeoutError:
            if waiting.expired():
                raise ConnectionRefusedError(self.deaf.get(port, "nothing listens there")) from None
            raise

    @property
    def running(self) -> bool:
        """See `LocalEnd`."""
        return self._running

    def set_running(self, running: bool) -> None:
        """Say whether it runs, or will in a moment."""
        if not running:
            self._tcp.begin()
            self._udp.begin()
        if running is not self._running and self._handing_over is None:
            self._running = running
            for each in tuple(self._listeners):
                each()

    # Whether it listens.

    @property
    def deaf(self) -> Mapping[int, str]:
        """See `LocalEnd`."""
        return self._tcp.deaf

    @property
    def deaf_datagrams(self) -> Mapping[int, str]:
        """See `LocalEnd`."""
        return self._udp.deaf

    def expect(self, ports: Iterable[int], datagrams: Iterable[int] = ()) -> None:
        """Connections are to come to these ports of it, and datagrams to these."""
        self._tcp.expect(ports)
        self._udp.expect(datagrams)

    async def datagrams(self, client: DatagramClient, port: int, source: tuple[str, int]) -> DatagramFlow:
        """See `LocalEnd`."""
        from devloop.net.router import Destination

        found: Publisher = await self._ports()
        return found.incoming(port, client, Destination(*source))

    def set_ready(self, since: float | None) -> None:
        """Say since when it is ready, in monotonic seconds; None: it is not."""
        self._ready_since = since

    def look(
        self,
        listening: Iterable[Listener] | None,
        now: float,
        hold: float,
        *,
        own: bool = True,
        datagrams: tuple[Iterable[Listener], frozenset[int]] | None = None,
    ) -> None:
        """Take in what it listens on; None where that is not known. `own`: nothing else is among them. `datagrams`: its
        UDP sockets, and the ports at which they are reached.

        A port that nothing has listened on for a moment while it runs is deaf. One that an earlier process listened
        on has `hold` seconds, as requests wait for a reload; but if the new process has opened another port instead.
        """
        if self._handing_over is not None:
            return  # its process ends, and requests wait for the workload's pods
        deaf: Mapping[int, str] = {}
        udp: Mapping[int, str] = self._udp.off() if not self._running else {}
        if self._running and listening is not None:
            found = list(listening)
            there = frozenset(each.port for each in found if each.on_loopback)
            deaf = self._tcp.look(found, there, now, hold, own=own, ready_since=self._ready_since)
        if self._running and datagrams is not None:
            udp = self._udp.look(list(datagrams[0]), datagrams[1], now, hold, own=own, ready_since=self._ready_since)
        self._say(deaf, udp)

    def _say(self, deaf: Mapping[int, str], udp: Mapping[int, str]) -> None:
        if (deaf, udp) == (self._tcp.deaf, self._udp.deaf):
            return
        self._tcp.deaf, self._udp.deaf = deaf, udp
        for port in deaf:
            for each in self._waiting.pop(port, ()):
                if not each.expired():
                    each.reschedule(asyncio.get_running_loop().time())
        for listener in tuple(self._listeners):
            listener()

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """See `LocalEnd`."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def hand_over(self) -> asyncio.Event:
        """Its process is about to stop, and its workload to come back: connections wait for that, until this is set."""
        if self._handing_over is None:
            self._handing_over = asyncio.Event()
        return self._handing_over

    async def stop(self) -> Callable[[], None]:
        """See `LocalEnd`."""
        waiting = self.hand_over()

        def over() -> None:
            waiting.set()
            if self._handing_over is waiting:
                self._handing_over = None
                self.set_running(False)

        try:
            await self._end()
        except BaseException:
            over()
            raise
        return over


def _why(port: int, kind: str, found: Iterable[tuple[int, str]], *, ready: bool, listens: bool) -> str:
    """Why a port takes nothing, for people. `found`: where it listens, with the address that alone is reached."""
    if listens:
        return f"it listens on {kind} {port}, but is not ready"
    what = "" if ready else "it is not ready, and "
    nothing = f"{what}nothing listens on {kind} {port}"
    others = sorted(set(found))
    if not others:
        return nothing
    names = [f"{number} of {address} alone" if address else str(number) for number, address in others[:_SHOWN]]
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    return f"{nothing}; it listens on {', '.join(names)}{more}"
