"""What a service listens on in its namespace, published on the host's loopback, and held while it reloads.

Connections that arrive while the service is not listening wait, up to `hold` seconds, and then go through. Those
that the old process leaves unanswered when it ends in a reload are given to the new one, where that is safe: the
old one had not accepted them, or the request is one that may be repeated (RFC 9110, 9.2.2).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from devloop.errors import ServiceError
from devloop.net.listeners import Listener
from devloop.net.relay import Relay, Relays, Target
from devloop.net.router import RefusedError, ToService

HOLD = 10.0
"""Seconds that a connection waits for a service that is not listening."""
_FIRST_TRY, _LAST_TRY = 0.001, 0.02
_FOLLOW = 0.25
_REPEAT = 0.5
"""Seconds after OPEN in which the end of the old process may still be noticed."""
_REPEATABLE = re.compile(rb"(GET|HEAD|OPTIONS|TRACE|PUT|DELETE) [^\r\n]+ HTTP/1\.[01]\r\n")


class Gate(Enum):
    """What becomes of new connections to a service."""

    OPEN = "open"
    """They go to the service; if it isn't listening, they wait for it."""
    HELD = "held"
    """It is about to be replaced: they wait until OPEN, without a try."""
    CLOSED = "closed"
    """It is off, or can't be started: they are refused at once."""


class Inner(Protocol):
    """What is needed of a namespace: `devloop.net.inside.Inside`."""

    async def connect(self, port: int) -> socket.socket:
        """A connection to what listens; ConnectionRefusedError at once if nothing does."""

    def listeners(self) -> Iterable[Listener]:
        """What is listened on."""

    def not_accepted(self, port: int) -> frozenset[int]:
        """Connections that wait to be accepted, by the port of who connected."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A port of the service, and where the host finds it."""

    port: int
    host_port: int


class Publisher:
    """The published ports of one service."""

    def __init__(self, service: str, inside: Inner, log: Callable[[str], None], *, hold: float = HOLD) -> None:
        """`log` takes a line for the service's log; `hold` is in seconds."""
        self.service = service
        self.hold = hold
        self._inside = inside
        self._log = log
        self._gate = Gate.OPEN
        self._moved = asyncio.Event()
        self._published: dict[int, tuple[Publication, Relays]] = {}
        self._declared: set[int] = set()
        self._arrivals: dict[int, asyncio.Task[None]] = {}
        self._used: set[int] = set()
        self._unaccepted: set[tuple[int, int]] = set()
        """(port, the engine's own port) of connections that the old process had not accepted."""
        self._opened_at = -_REPEAT

    @property
    def published(self) -> tuple[Publication, ...]:
        """What is published, by port."""
        return tuple(publication for _, (publication, _) in sorted(self._published.items()))

    @property
    def gate(self) -> Gate:
        """What becomes of new connections."""
        return self._gate

    def set_gate(self, gate: Gate) -> None:
        """Say what becomes of new connections: HELD right before the old process is asked to end, OPEN when the
        new one runs, CLOSED if there will be none. What waits is told at once."""
        if gate is Gate.HELD and self._gate is Gate.OPEN:
            self._note_unaccepted()
        if gate is Gate.OPEN:
            self._opened_at = asyncio.get_running_loop().time()
        self._gate = gate
        self._moved.set()
        self._moved = asyncio.Event()

    async def publish(self, port: int, host_port: int | None = None) -> Publication:
        """Publish a port that the service listens on, now or later.

        Without `host_port` it is the same number, or another if that is taken. Raises ServiceError if `host_port`
        is taken.
        """
        self._declared.add(port)
        return await self._publish(port, host_port)

    async def unpublish(self, port: int) -> None:
        """Close the host's listener and its connections; a port that isn't published is passed over."""
        self._declared.discard(port)
        found = self._published.pop(port, None)
        if found is not None:
            await found[1].close()

    async def follow(self, changed: Callable[[tuple[Publication, ...]], None] = lambda _: None) -> None:
        """Publish whatever the service begins to listen on, until cancelled.

        `changed` is called when something was published or has ended. Ports that were published by `publish` stay
        when nothing listens any more, others go, unless the service is being reloaded.
        """
        refused: set[int] = set()
        while True:
            try:
                ports = {found.port for found in self._inside.listeners() if found.on_loopback}
            except OSError:
                return  # the namespace is gone
            new, gone = ports - self._published.keys() - refused, set[int]()
            for port in sorted(new):
                try:
                    await self._publish(port, None)
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

        Waits for a service that is not listening. Raises RefusedError after `hold` seconds, or when it is off.
        """
        self._used.add(port)
        deadline = asyncio.get_running_loop().time() + self.hold
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    while self._gate is Gate.HELD:
                        await self._moved.wait()
                    if self._gate is Gate.CLOSED:
                        raise RefusedError(f"a connection to port {port} was refused: {self.service} is not running")
                    try:
                        return await self._inside.connect(port)
                    except ConnectionRefusedError:
                        await self._arrival(port)
        except TimeoutError:
            raise RefusedError(
                f"a connection to port {port} waited {self.hold:g} s for {self.service} to listen there"
            ) from None

    def may_repeat(self, port: int, relay: Relay) -> bool:
        """Whether a connection that was lost without an answer goes to the new process."""
        if self._gate is Gate.CLOSED:
            return False
        if self._gate is Gate.OPEN and asyncio.get_running_loop().time() - self._opened_at > _REPEAT:
            return False
        source = relay.target.transport.get_extra_info("sockname")[1]
        return (port, source) in self._unaccepted or _REPEATABLE.match(relay.early) is not None

    async def close(self) -> None:
        """Unpublish everything, and break every connection."""
        self.set_gate(Gate.CLOSED)
        for port in tuple(self._published):
            await self.unpublish(port)
        await asyncio.gather(*self._arrivals.values())

    async def _arrival(self, port: int) -> None:
        """Until it may be worth a try again. One task looks for all that wait for the same port."""
        task = self._arrivals.get(port)
        if task is None or task.done():
            task = self._arrivals[port] = asyncio.create_task(self._look(port))
            task.add_done_callback(lambda done: self._arrivals.pop(port, None))
        await asyncio.shield(task)

    async def _look(self, port: int) -> None:
        """Until something listens, the gate has moved, or nobody can be waiting any more."""
        delay, ends = _FIRST_TRY, asyncio.get_running_loop().time() + self.hold
        while asyncio.get_running_loop().time() < ends:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), delay)
                return
            delay = min(delay * 1.5, _LAST_TRY)
            with contextlib.suppress(OSError):
                if any(found.port == port for found in self._inside.listeners()):
                    return

    async def _publish(self, port: int, host_port: int | None) -> Publication:
        found = self._published.get(port)
        if found is not None and host_port in (None, found[0].host_port):
            return found[0]
        socks = self._host_sockets(port, host_port)
        if found is not None:
            await found[1].close()

        async def route(relay: Relay) -> Target:
            return ToService(self, port)

        relays = Relays(route, self._failed)
        for sock in socks:
            await relays.listen(sock)
        publication = Publication(port, socks[0].getsockname()[1])
        self._published[port] = (publication, relays)
        return publication

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
