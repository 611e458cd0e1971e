"""Connections to an original pod that its door makes, because a NetworkPolicy keeps the agent from that pod.

Envoy connects to a loopback port of the agent's pod, one for each door and port. The agent asks the door, and the door
connects from within its pod to the original and to the agent, where it shows the key that it was given. So no packet
goes to the pod that the pod has not asked for: the policy of the pod's clients is kept, and nobody is let in by it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import secrets
import weakref
from typing import Protocol, cast

from .door import BACK_PORT, DIAL_SECONDS
from .splice import Inward, Onward
from .strangers import Stranger, Strangers

log = logging.getLogger("agent.back")

KEY_CHARACTERS = 32
SHOW_SECONDS = 3.0
"""How long a connection may take to show its key."""
STRANGERS, STRANGERS_EACH = 1024, 512
"""So many may not have shown it yet, in all and from one address; see `strangers.py`. A door brings as many at once as
its pod's clients have connected, and each is a stranger for a round trip."""


class Bringer(Protocol):
    """A door, as far as this goes."""

    address: str

    def bring(self, port: int, key: str) -> None:
        """Ask for a connection to that port of the original; it comes with that key."""


class Back:
    """The agent's end, for all doors."""

    def __init__(self, port: int = BACK_PORT) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._loopback: dict[Bringer, dict[int, asyncio.Server]] = {}
        self._forgotten: weakref.WeakSet[Bringer] = weakref.WeakSet()
        self._open: set[Inward] = set()
        self.waiting: dict[str, tuple[str, Onward, asyncio.Future[None]]] = {}
        """By key: the address that it has to come from, what it is for, and who waits."""
        self.strangers = Strangers(total=STRANGERS, each=STRANGERS_EACH, seconds=SHOW_SECONDS)

    async def start(self) -> None:
        """Let doors bring what they are asked for. OSError."""
        if self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: _Arrival(self), None, self._port)

    async def listen(self, door: Bringer, port: int) -> int:
        """A loopback port that leads to that port of the door's pod, until the door is forgotten. OSError."""

        async def dial(onward: Onward) -> None:
            key = secrets.token_hex(KEY_CHARACTERS // 2)
            arrived = asyncio.get_running_loop().create_future()
            self.waiting[key] = (door.address, onward, arrived)
            door.bring(port, key)
            try:
                async with asyncio.timeout(2 * DIAL_SECONDS):
                    await arrived
            finally:
                self.waiting.pop(key, None)

        def came() -> Inward:
            made = Inward(dial, self._open.discard)
            self._open.add(made)
            return made

        if port not in self._loopback.get(door, {}):
            server = await asyncio.get_running_loop().create_server(came, "127.0.0.1", 0)
            kept = self._loopback.setdefault(door, {}).setdefault(port, server)
            number = int(kept.sockets[0].getsockname()[1])
            if kept is not server:  # somebody else was quicker
                server.close()
            if door in self._forgotten:  # meanwhile
                self.forget(door)
            return number
        return int(self._loopback[door][port].sockets[0].getsockname()[1])

    def forget(self, door: Bringer) -> None:
        """A door is gone; what goes through it ends by itself."""
        self._forgotten.add(door)
        for each in self._loopback.pop(door, {}).values():
            each.close()

    def close(self) -> None:
        """Take no more."""
        for door in list(self._loopback):
            self.forget(door)
        if self._server is not None:
            self._server.close()
            self._server = None


class _Arrival(asyncio.Protocol):
    """A connection that shows its key first, and is then what was waited for."""

    def __init__(self, back: Back) -> None:
        self._back = back
        self._said = b""
        self._transport: asyncio.Transport | None = None
        self._stranger: Stranger | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peername = transport.get_extra_info("peername")
        if peername is None:  # it has gone already
            self._transport.abort()
            return
        self._stranger = self._back.strangers.arrived(plain(peername[0]), self._transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._stranger is None or self._transport is None or self._transport.is_closing():
            return
        self._said += data
        if len(self._said) < KEY_CHARACTERS:
            return
        self._stranger.known()
        key, rest = self._said[:KEY_CHARACTERS].decode(errors="replace"), self._said[KEY_CHARACTERS:]
        address, onward, arrived = self._back.waiting.get(key, ("", None, None))
        if onward is None or arrived is None or arrived.done() or self._stranger.address != address:
            log.info("a connection that nobody has asked for")
            self._transport.abort()
            return
        self._transport.set_protocol(onward)
        onward.connection_made(self._transport)
        if rest:
            onward.data_received(rest)
        arrived.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stranger is not None:
            self._stranger.known()


def plain(address: str) -> str:
    """An address in its one form: IPv4 as such, and IPv6 compressed."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)
