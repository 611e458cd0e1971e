"""The transparent proxy: every TCP connection that leaves a service's namespace ends here, on the engine's loop.

Where the service wanted to go is the accepted socket's own address (see `devloop.net.rules`: nothing is translated).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from devloop.errors import DevloopError
from devloop.net.router import Destination, RefusedError, Router, canonical
from devloop.net.rules import PROXY_PORT
from devloop.relay import Relay, Relays, Target


class Proxy:
    """The proxy of one service."""

    def __init__(self, service: str, listener: socket.socket, router: Router, log: Callable[[str], None]) -> None:
        """`listener` is `Inside.proxy`, which is closed with the proxy; `log` takes a line for the service's log."""
        self.service = service
        self._listener = listener
        self._router = router
        self._log = log
        self.relays = Relays(self._route, self._failed)

    def __len__(self) -> int:
        """Connections that are open."""
        return len(self.relays)

    async def start(self) -> None:
        """Accept from now on."""
        await self.relays.listen(self._listener)

    async def close(self) -> None:
        """Break every connection. Returns when all are closed."""
        await self.relays.close()

    async def _route(self, relay: Relay) -> Target:
        destination = _destination(relay)
        if destination.port == PROXY_PORT:
            raise RefusedError(f"{destination} is devloop's own port in a namespace: pick another")
        return await self._router.route(self.service, destination)

    def _failed(self, relay: Relay, error: Exception) -> None:
        destination = _destination(relay)
        if isinstance(error, RefusedError):
            self._log(error.what)
        elif isinstance(error, DevloopError):
            self._log(f"can't connect to {destination}: {error.what}")
        elif isinstance(error, OSError) and error.errno == errno.ECONNREFUSED:
            pass  # an everyday answer, which the service sees as a reset
        else:
            self._log(f"can't connect to {destination}: {str(error) or type(error).__name__}")


def _destination(relay: Relay) -> Destination:
    return Destination(canonical(relay.address[0]), relay.address[1])
