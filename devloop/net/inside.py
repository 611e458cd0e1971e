"""The engine's end of a service's namespace: the sockets that were made in it, and more of them when needed.

`Inside` speaks with `devloop.net.namespace.Namespace`, which runs in the service's holder.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devloop.dial import dial
from devloop.errors import EngineError, ServiceError
from devloop.net.listeners import Listener, datagram_listeners, listeners, waiting
from devloop.net.mounts import Bind
from devloop.net.namespace import ADDRESSES
from devloop.net.rules import PROXY_PORT

_POOL = 48
"""Sockets asked for at once; more are asked for when half of them are used."""
_OWN_PORTS = frozenset({53, PROXY_PORT})
_MESSAGE_FDS = 64


def seqpacket_pair() -> tuple[socket.socket, socket.socket]:
    """(the engine's, the holder's): the second goes to the holder, by SCM_RIGHTS or by inheritance."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@dataclass(frozen=True, slots=True)
class Mounted:
    """What became of a request to mount."""

    made: tuple[str, ...]
    """Empty folders and files that were made on the host to mount on. To be removed (`remove_made`) when the
    holder has ended."""
    failed: dict[str, str]
    """Target → why."""


class Inside:
    """One service's namespace, from outside. Everything of it must be used on one event loop."""

    def __init__(self, service: str, sock: socket.socket, lost: Callable[[], None] = lambda: None) -> None:
        """`sock` is the engine's of `seqpacket_pair`; `lost` is called once if the holder goes away."""
        self.service = service
        self.user_namespace = False
        self.ipv6 = False
        self.pid = 0
        """The holder's, whose namespaces `devloop.net.enter` goes into."""
        self.low_ports = False
        """Whether an ordinary user may listen on ports below 1024 in it."""
        self.proxy: socket.socket
        """Listens for all TCP connections that leave the service; for `devloop.net.proxy.Proxy`."""
        self.dns_udp: socket.socket
        self.dns_tcp: socket.socket
        self.datagrams: socket.socket
        """Gets all UDP that leaves the service but for DNS; for `devloop.net.datagrams.Udp`."""
        self.raw: dict[int, socket.socket] = {}
        """By family: sends whole packets into it, which the rules leave alone."""
        self.addresses: tuple[str, ...] = ()
        """The service's own, one a family."""
        self._diag: socket.socket
        self._sock = sock
        self._lost = lost
        self._closed = False
        self._answers: deque[asyncio.Future[tuple[dict[str, Any], list[int]]]] = deque()
        self._pool: deque[socket.socket] = deque()
        self._refill: asyncio.Task[None] | None = None
        self._host_ports: frozenset[int] = frozenset()
        self._outgoing: deque[bytes] = deque()
        sock.setblocking(False)
        asyncio.get_running_loop().add_reader(sock, self._readable)

    async def enter(self, addresses: Sequence[str] = ADDRESSES) -> None:
        """Have the holder make the namespaces and move into them; to be awaited before it starts anything.

        `addresses` are the service's own, one a family: its pod's, for example. Raises ServiceError, which says
        what the machine lacks and how to mend it.
        """
        answer, fds = await self._ask(op="enter", addresses=list(addresses))
        if "error" in answer:
            from devloop.net.check import explain

            raise explain(answer["step"], answer["errno"], answer["error"])
        socks = [socket.socket(fileno=fd) for fd in fds]
        for sock in socks:
            sock.setblocking(False)
        self.proxy, self.dns_udp, self.dns_tcp, self._diag, self.datagrams, *raw = socks
        self.raw = {each.family: each for each in raw}
        self.addresses = tuple(addresses)
        self.user_namespace, self.ipv6 = answer["user"], answer["ipv6"]
        self.low_ports = answer["low_ports"]
        self.pid = answer["pid"]
        await self._fill()

    async def connect(self, port: int, address: str = "127.0.0.1") -> socket.socket:
        """A connection to what listens inside on this port; the caller closes it.

        Raises ConnectionRefusedError at once if nothing does, EngineError if the holder is gone.
        """
        sock = await self._socket()
        try:
            if self.ipv6 and ":" not in address:
                address = f"::ffff:{address}"
            await dial(sock, (address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    async def mount(self, binds: Sequence[Bind], remove: Sequence[str] = ()) -> Mounted:
        """Put files and folders of the host at absolute paths inside; what was there is hidden.

        Processes that run already see them too. Raises EngineError if the holder is gone.
        """
        items = [{"source": b.source, "target": b.target, "read_only": b.read_only} for b in binds]
        answer, _ = await self._ask(op="mount", binds=items, remove=list(remove))
        if "error" in answer:
            raise ServiceError(f"can't mount: {answer['error']}", where=self.service)
        return Mounted(tuple(answer["made"]), answer["failed"])

    async def set_host_ports(self, ports: Collection[int]) -> None:
        """Say on which ports the host's loopback listens: only those are tried there, the rest is refused.

        Ports that the engine publishes for this very service must not be among them.
        """
        wanted = frozenset(ports)
        if wanted == self._host_ports:
            return
        add, remove = sorted(wanted - self._host_ports), sorted(self._host_ports - wanted)
        self._host_ports = wanted
        answer, _ = await self._ask(op="ports", add=add, remove=remove)
        if "error" in answer:
            self._host_ports = frozenset()
            raise ServiceError(f"can't change the rules of the namespace: {answer['error']}", where=self.service)

    def listeners(self) -> frozenset[Listener]:
        """What the service listens on. Takes tens of microseconds. Raises OSError when closed."""
        return frozenset(found for found in listeners(self._diag) if found.port not in _OWN_PORTS)

    def datagram_listeners(self) -> frozenset[Listener]:
        """The same of UDP: sockets that take datagrams from anybody."""
        return frozenset(found for found in datagram_listeners(self._diag) if found.port not in _OWN_PORTS)

    def takes_datagrams(self, listener: Listener) -> bool:
        """Whether what comes from outside reaches it."""
        return listener.address in ("0.0.0.0", "::", *self.addresses)

    def not_accepted(self, port: int) -> frozenset[int]:
        """Connections to a port that the service has not accepted yet, by the port of who connected."""
        return waiting(self._diag, port)

    def close(self) -> None:
        """Close every socket that is not in use elsewhere. The holder takes it as a goodbye."""
        self._let_go()
        for name in ("proxy", "dns_udp", "dns_tcp", "_diag", "datagrams"):
            made: socket.socket | None = getattr(self, name, None)
            if made is not None:
                made.close()
        for sock in self.raw.values():
            sock.close()

    def _let_go(self) -> None:
        """Close what is spoken through with the holder; the other sockets may be in use."""
        if self._closed:
            return
        self._closed = True
        asyncio.get_running_loop().remove_reader(self._sock)
        asyncio.get_running_loop().remove_writer(self._sock)
        if self._refill is not None:
            self._refill.cancel()
        self._sock.close()
        for sock in self._pool:
            sock.close()
        self._pool.clear()
        while self._answers:
            answer = self._answers.popleft()
            if not answer.done():
                answer.set_exception(self._gone())

    def _gone(self) -> EngineError:
        return EngineError(
            "the process that holds its namespace is gone", where=self.service, hint="restart the service"
        )

    async def _socket(self) -> socket.socket:
        if len(self._pool) < _POOL // 2 and (self._refill is None or self._refill.done()):
            self._refill = asyncio.create_task(self._fill())
        while not self._pool:
            if self._refill is None or self._refill.done():
                self._refill = asyncio.create_task(self._fill())
            # Others wait for the same; whoever is cancelled must not take it from them.
            await asyncio.shield(self._refill)
        return self._pool.popleft()

    async def _fill(self) -> None:
        answer, fds = await self._ask(op="sockets", count=_POOL)
        if "error" in answer:
            raise EngineError(f"can't make sockets: {answer['error']}", where=self.service)
        for fd in fds:
            sock = socket.socket(fileno=fd)
            sock.setblocking(False)
            self._pool.append(sock)

    async def _ask(self, **message: Any) -> tuple[dict[str, Any], list[int]]:
        if self._closed:
            raise self._gone()
        answer: asyncio.Future[tuple[dict[str, Any], list[int]]] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        self._outgoing.append(json.dumps(message).encode())
        self._writable()
        return await answer

    def _writable(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._outgoing:
                self._sock.send(self._outgoing[0])
                self._outgoing.popleft()
        except BlockingIOError:
            loop.add_writer(self._sock, self._writable)
        except OSError:
            pass  # the reader notices that the holder is gone
        else:
            loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, 1 << 20, _MESSAGE_FDS)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            if not self._closed:
                self._let_go()
                self._lost()
            return
        answer = self._answers.popleft()
        if answer.done():  # who asked was cancelled
            for fd in fds:
                os.close(fd)
        else:
            answer.set_result((json.loads(data), list(fds)))


def remove_made(made: Sequence[str]) -> None:
    """Remove what was made on the host to mount on (`Mounted.made`); what is no longer empty stays."""
    for path in map(Path, reversed(made)):
        with contextlib.suppress(OSError):
            if path.is_dir():
                path.rmdir()
            elif path.stat().st_size == 0:
                path.unlink()
