"""Ports on the host's loopback that lead to dependencies: the portable way's stand-in for a namespace."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable

from devloop.errors import DevloopError
from devloop.net.publish import loopback_listeners
from devloop.relay import Relay, Relays, Target


class Forwards:
    """All forwards of an engine."""

    def __init__(self, log: Callable[[str], None]) -> None:
        """`log` takes a line for the project's log."""
        self._log = log
        self._open: dict[tuple[str, int], tuple[int, Relays]] = {}

    async def add(self, name: str, port: int, route: Callable[[], Awaitable[Target]]) -> int:
        """Listen for a dependency's port; the port here, the same number if it is free.

        `route` is asked for each connection. One that is there already keeps its number.
        """
        found = self._open.get((name, port))
        if found is not None:
            return found[0]

        async def target(relay: Relay) -> Target:
            return await route()

        def failed(relay: Relay, error: Exception) -> None:
            what = error.what if isinstance(error, DevloopError) else str(error) or type(error).__name__
            self._log(f"can't connect to {name}:{port}: {what}")

        relays = Relays(target, failed)
        socks = _free(port)
        local: int = socks[0].getsockname()[1]
        # Before anything is waited for, so that `close`, and another who adds the same, find it.
        made = self._open[name, port] = (local, relays)
        try:
            await relays.listen(*socks)
        except BaseException:
            if self._open.get((name, port)) is made:
                del self._open[name, port]
            raise
        return local

    async def remove(self, name: str, port: int) -> None:
        """Stop, and break what is open; one that isn't there is passed over."""
        found = self._open.pop((name, port), None)
        if found is not None:
            await found[1].close()

    async def close(self) -> None:
        """Stop all."""
        for name, port in tuple(self._open):
            await self.remove(name, port)


def _free(port: int) -> list[socket.socket]:
    try:
        return loopback_listeners(port)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
    return loopback_listeners(0)
