"""The agent's end of direct connections: SSH at the pod's own address, for developers whose machine reaches it.

A port-forward, and with it the API server's authentication, stands before this too, in time: the port is open while a
developer is connected who has asked for it in an SSH session (`COMMAND`). Who connects says 32 bytes first, a ticket
that was told in that session and is good once. Without it there is no SSH server: not a byte is answered. With it
everything is as at the loopback, the host key and the developer's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import json
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from .presence import Seat
from .strangers import Strangers
from .tasks import background

log = logging.getLogger("agent")

COMMAND = "direct"
"""The SSH session in which a developer's end asks."""
TICKET_BYTES = 32
TICKET_SECONDS = 5.0
"""So long may a connection take to show one."""
STRANGERS, STRANGERS_EACH = 128, 16
"""So many may have shown none yet, in all and from one address; see `strangers.py`."""
REST_SECONDS = 1.0
"""So long nobody is let in where the process has no descriptors left."""

Login = Callable[[socket.socket, Seat], Awaitable[Any]]
"""Has the SSH server take a connection; returns when its developer has logged in. Any exception: they have not."""


class Direct:
    """The port, and who has a ticket."""

    def __init__(self, port: int | None, login: Login) -> None:
        """`port` 0 is any that is free; with None there is nothing of this."""
        self._port = port
        self._login = login
        self._tickets: dict[Seat, bytes] = {}
        self._listener: socket.socket | None = None
        self._arriving: set[asyncio.Task[None]] = set()
        self._strangers = Strangers(total=STRANGERS, each=STRANGERS_EACH, seconds=TICKET_SECONDS)

    def answer(self, seat: Seat) -> str:
        """What a developer is told, as JSON: the port and a ticket. The port is 0 if there is none."""
        if self._port is not None and self._listener is None:
            try:
                self._listener = _listen(self._port)
            except OSError as problem:
                log.warning("no direct connections: port %d: %s", self._port, problem)
                self._port = None
            else:
                self._hear(self._listener)
        if self._listener is None:
            return json.dumps({"port": 0})
        ticket = self._tickets[seat] = secrets.token_bytes(TICKET_BYTES)
        return json.dumps({"port": self._listener.getsockname()[1], "ticket": ticket.hex()})

    def forget(self, seat: Seat) -> None:
        """The developer has gone."""
        self._tickets.pop(seat, None)
        if not self._tickets:
            self._deafen()

    async def close(self) -> None:
        """Listen no more."""
        self._tickets.clear()
        self._deafen()
        for task in self._arriving:
            task.cancel()
        await asyncio.gather(*self._arriving, return_exceptions=True)

    def _hear(self, listener: socket.socket) -> None:
        if listener is self._listener:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _deafen(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, peer = listener.accept()
        except OSError as problem:
            # Else it has gone again. Without descriptors the kernel would report it ready without end, as asyncio's
            # own servers know.
            if problem.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                loop.call_later(REST_SECONDS, self._hear, listener)
            return
        sock.setblocking(False)
        task = background(self._arrived(sock, str(peer[0])), name="direct")
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    async def _arrived(self, sock: socket.socket, address: str) -> None:
        try:
            asked = asyncio.ensure_future(self._seat(sock))
            with self._strangers.arrived(address, lambda: _end(asked)):
                seat = await _or_none(asked)
            if seat is None:
                sock.close()
            else:
                await self._login(sock, seat)
        except BaseException as problem:
            sock.close()  # asyncssh has, if it has come as far as to take it
            if not isinstance(problem, Exception):
                raise
            log.info("a direct connection: %s", problem or type(problem).__name__)

    async def _seat(self, sock: socket.socket) -> Seat | None:
        """Whose ticket it shows; None if nobody's."""
        loop = asyncio.get_running_loop()
        said = b""
        with contextlib.suppress(OSError):
            while missing := TICKET_BYTES - len(said):
                part = await loop.sock_recv(sock, missing)
                if not part:
                    return None
                said += part
        for seat, ticket in self._tickets.items():
            if ticket and hmac.compare_digest(ticket, said):
                self._tickets[seat] = b""  # once; the seat still keeps the port open
                return seat
        return None


def _end(asked: asyncio.Future[Seat | None]) -> None:
    asked.cancel()


async def _or_none(asked: asyncio.Future[Seat | None]) -> Seat | None:
    """What was asked for; None if it was given up. It is over in any case when this returns."""
    try:
        await asyncio.wait([asked])
    finally:
        asked.cancel()
    return None if asked.cancelled() else asked.result()


def _listen(port: int) -> socket.socket:
    """At every address of the pod, of both families where it has them. Raises OSError."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 can be switched off for a pod alone
            return _quiet(socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True))
    return _quiet(socket.create_server(("", port)))


def _quiet(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    return sock
