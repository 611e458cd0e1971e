"""On which ports the host's own loopback listens, kept in step in every namespace.

A connection inside to a port of localhost that nothing inside listens on goes to the host's only if the host
listens there, so that everything else is refused by the kernel at once: "is it up yet?" stays a question that a
connection answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from typing import Protocol

from devloop.agent.tasks import background
from devloop.errors import DevloopError
from devloop.net.listeners import diag_socket, listeners

INTERVAL = 0.25
"""Seconds between two looks, each of which takes some 50 µs."""


class Listening(Protocol):
    """A namespace that is told: `devloop.net.inside.Inside`."""

    async def set_host_ports(self, ports: Collection[int]) -> None:
        """The ports."""


class HostPorts:
    """Looks at the host's listeners, for all namespaces of an engine."""

    def __init__(self) -> None:
        self._diag = diag_socket()
        self._told: dict[Listening, Callable[[], Collection[int]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def add(self, namespace: Listening, except_for: Callable[[], Collection[int]]) -> None:
        """Keep a namespace in step; it is up to date when this returns.

        `except_for` are the host ports that are published for the service itself: a connection to one of them from
        inside means that it is not listening, and must be refused instead of going round.
        """
        self._told[namespace] = except_for
        await self.look()
        if self._task is None:
            self._task = background(self._watch(), name="host listeners")

    def remove(self, namespace: Listening) -> None:
        """Let go of a namespace."""
        self._told.pop(namespace, None)

    async def look(self) -> None:
        """Look now, for a caller that knows of a change: a port was published."""
        ports = {found.port for found in listeners(self._diag) if found.on_loopback}
        for namespace, except_for in tuple(self._told.items()):
            with contextlib.suppress(DevloopError):  # its holder is gone, which is told elsewhere
                await namespace.set_host_ports(ports - set(except_for()))

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._diag.close()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            with contextlib.suppress(OSError):
                await self.look()
