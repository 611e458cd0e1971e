"""Ports on the host's loopback that lead to dependencies: the portable way's stand-in for a namespace."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from devloop.errors import DevloopError
from devloop.net.own import own_relays
from devloop.net.publish import loopback_listeners
from devloop.net.rebinding import Names
from devloop.relay import Relay, Relays, Target

_TRIES = 20


@dataclass(frozen=True, slots=True)
class _Forward:
    port: int
    """Here."""
    relays: Relays
    starting: asyncio.Task[None]


class Forwards:
    """All forwards of an engine."""

    def __init__(
        self,
        log: Callable[[str], None],
        *,
        names: Names | None = None,
        spared: Callable[[Target], bool] | None = None,
    ) -> None:
        """`log` takes a line for the project's log. `names` are those that HTTP requests may be for, None: any; targets
        that are `spared` take them for others, too."""
        self._log = log
        self._names = names
        self._spared = spared
        self._open: dict[tuple[str, int], _Forward] = {}
        self._released: set[Relays] = set()

    async def add(self, name: str, port: int, route: Callable[[], Awaitable[Target]]) -> int:
        """Listen for a dependency's port; the port here, the same number if it is free.

        `route` is asked for each connection. One that is there already keeps its number.
        """
        local = self.open(name, port, route)
        await asyncio.shield(self._open[name, port].starting)
        return local

    def open(
        self,
        name: str,
        port: int,
        route: Callable[[], Awaitable[Target]],
        *,
        spared: Collection[int] = (),
        address: str | None = None,
    ) -> int:
        """The same for who can't wait: a connection is taken from now on, and answered in a moment.

        Numbers that are `spared` are not taken. With an `address` it is that one and this very port, or OSError.
        """
        found = self._open.get((name, port))
        if found is not None:
            return found.port

        async def target(relay: Relay) -> Target:
            return await route()

        def failed(relay: Relay, error: Exception) -> None:
            what = error.what if isinstance(error, DevloopError) else str(error) or type(error).__name__
            self._log(f"can't connect to {name}:{port}: {what}")

        socks = _free(port, spared) if address is None else [_listener(address, port)]
        relays = own_relays(target, failed, names=self._names, spared=self._spared)
        starting = asyncio.get_running_loop().create_task(relays.listen(*socks), name=f"forward {name}:{port}")
        made = self._open[name, port] = _Forward(socks[0].getsockname()[1], relays, starting)
        starting.add_done_callback(lambda done: self._started((name, port), made))
        return made.port

    def _started(self, key: tuple[str, int], forward: _Forward) -> None:
        failed = forward.starting.cancelled() or forward.starting.exception() is not None
        if failed and self._open.get(key) is forward:
            del self._open[key]

    @property
    def relays(self) -> tuple[Relays, ...]:
        """Of every port, those that were let go of while connections were open too."""
        return (*(each.relays for each in self._open.values()), *self._released)

    @property
    def open_ports(self) -> tuple[tuple[str, int, int], ...]:
        """Each dependency, its port and its port here."""
        return tuple((name, port, each.port) for (name, port), each in sorted(self._open.items()))

    def port(self, name: str, port: int) -> int | None:
        """Where a dependency's port is here; None if there is no forward for it."""
        found = self._open.get((name, port))
        return found.port if found is not None else None

    def release(self, name: str, port: int) -> None:
        """Let go of the port at once; what is open goes on. One that isn't there is passed over."""
        found = self._open.pop((name, port), None)
        if found is not None:
            found.relays.stop()
            self._released = {each for each in self._released if len(each)} | {found.relays}

    async def remove(self, name: str, port: int) -> None:
        """Stop, and break what is open; one that isn't there is passed over."""
        found = self._open.pop((name, port), None)
        if found is not None:
            await found.relays.close()

    async def close(self) -> None:
        """Stop all."""
        for name, port in tuple(self._open):
            await self.remove(name, port)
        for relays in self._released:
            await relays.close()


def _free(port: int, spared: Collection[int] = ()) -> list[socket.socket]:
    if port not in spared:
        try:
            return loopback_listeners(port)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    tried: list[list[socket.socket]] = []
    try:
        # The kernel picks one; one that is spared is held until another has been picked.
        while len(tried) < _TRIES:
            socks = loopback_listeners(0)
            if socks[0].getsockname()[1] not in spared:
                return socks
            tried.append(socks)
        raise OSError(errno.EADDRINUSE, "no port is free")
    finally:
        for sock in (sock for socks in tried for sock in socks):
            sock.close()


def _listener(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(4096)
    except BaseException:
        sock.close()
        raise
    return sock
