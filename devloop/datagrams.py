"""Datagrams to one destination, whatever carries them: the link to a remote, another local service, the host."""

from __future__ import annotations

from typing import Protocol


class DatagramClient(Protocol):
    """Who sends datagrams to one destination, and is told what comes back. Called from the event loop."""

    def received(self, data: bytes) -> None:
        """A datagram has come from the destination."""

    def refused(self) -> None:
        """Nobody listens there, as an ICMP message says; more may be sent."""

    def ended(self, why: str) -> None:
        """The flow is over, for this reason; empty: what carried it has gone. Another one may be begun."""


class DatagramFlow(Protocol):
    """A way for datagrams to one destination."""

    def send(self, data: bytes) -> bool:
        """Send one. It never waits; False: it was dropped, as more come than its way takes."""

    def close(self) -> None:
        """End it. Its client is not told."""
