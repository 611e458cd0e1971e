"""Which of the ports that services declare are really there on the host, for services that have its network.

A service is started only if its ports are free, so what listens on one while it runs is its own, or what it has started
(a container's proxy, say). What does not listen has no port, whatever devloop.toml says.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable, Mapping

from devloop.core.service import ServiceLife
from devloop.local.ports import taken
from devloop.net.listeners import diag_socket, listeners

LOOK = 1.0
"""Seconds between two looks at services that run: a program may listen at any time after its start."""


class Listening:
    """One engine's."""

    def __init__(self) -> None:
        self._diag: socket.socket | None = None
        self._asked = False

    def published(self, ports: Mapping[str, int]) -> dict[str, int]:
        """Those of these ports that something listens on now, by name."""
        if not ports:
            return {}
        there = self._there()
        return {name: port for name, port in ports.items() if (taken(port) if there is None else port in there)}

    def of(self, life: ServiceLife) -> dict[str, int]:
        """Those of a service that has the host's network."""
        return {} if life.pid is None else self.published(life.spec.ports)

    @staticmethod
    async def follow(
        lives: Callable[[], Iterable[ServiceLife]],
        of: Callable[[ServiceLife], dict[str, int]],
        changed: Callable[[str], None],
    ) -> None:
        """Say whose ports, as `of` has them, have changed, for as long as this is not cancelled."""
        known: dict[str, dict[str, int]] = {}
        while True:
            await asyncio.sleep(LOOK)
            for life in list(lives()):
                if life.spec.ports and (found := of(life)) != known.get(life.spec.name, {}):
                    known[life.spec.name] = found
                    changed(life.spec.name)

    def close(self) -> None:
        """Look no more."""
        self._asked = True
        if self._diag is not None:
            self._diag.close()
            self._diag = None

    def _there(self) -> set[int] | None:
        """Every port that localhost has; None if the kernel can't be asked."""
        if not self._asked:
            self._asked = True
            with contextlib.suppress(OSError, AttributeError):  # another system, or a sandbox that has no netlink
                self._diag = diag_socket()
        if self._diag is None:
            return None
        try:
            return {each.port for each in listeners(self._diag) if each.on_loopback}
        except OSError:
            return None
