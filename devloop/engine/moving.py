"""Connections of this machine's clients to a service that has been toggled: they follow it, as far as can be."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from devloop.net.router import ToService
from devloop.protocol import EarlierConnections
from devloop.relay import Relay, Relays, Target

Sources = Callable[[], Iterable[tuple[str, Relays]]]
"""Who the clients are, and what relays their connections: of all that there are now."""
_TELL = 0.1
"""Seconds in which several changes of the counts are one."""


class Moving:
    """Those of one project. What each connection can do is `devloop.relay.Relay.leave`."""

    def __init__(self, sources: Sources, stale: Callable[[Target], bool], changed: Callable[[], None]) -> None:
        """`stale` says whether what a connection leads to has been toggled since; `changed` is told, now and then, when
        `earlier` is another."""
        self._sources = sources
        self._stale = stale
        self._changed = changed
        self._left = asyncio.Event()
        self._some = False
        """Some may still lead to where their service was: statuses are asked for often, and connections are many."""
        self._telling: asyncio.TimerHandle | None = None

    def toggled(self) -> None:
        """A service is here now, or in the remote, and new connections go there."""
        self._some = True
        for _, relays in self._sources():
            relays.reroute(self._stale, self._has_left)
        self._has_left()

    async def drained(self, service: str, seconds: float) -> None:
        """Wait until what is under way on connections to where the service was has ended, or for so long."""
        try:
            async with asyncio.timeout(seconds):
                while any(relay.busy for _, relay in self._leaving(service)):
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            pass

    def earlier(self, service: str) -> tuple[EarlierConnections, ...]:
        """How many connections still lead to where the service was, by client."""
        if not self._some:
            return ()
        found = Counter((client, _where(relay)) for client, relay in self._leaving(service))
        return tuple(EarlierConnections(client, number, to) for (client, to), number in sorted(found.items()))

    def end(self, service: str, *, force: bool) -> int:
        """End them, so that their clients make others. Returns how many. What moves by itself when its request is
        answered is left alone, unless `force`."""
        found = [relay for _, relay in self._leaving(service) if force or not relay.busy]
        for relay in found:
            relay.reset()
        return len(found)

    def close(self) -> None:
        """Tell nobody any more."""
        if self._telling is not None:
            self._telling.cancel()

    def _leaving(self, service: str) -> Iterator[tuple[str, Relay]]:
        for client, relays in self._sources():
            for relay in relays:
                if relay.leaving and getattr(relay.leads_to, "stands_for", "") == service:
                    yield client, relay

    def _has_left(self) -> None:
        self._left.set()
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(_TELL, self._tell)

    def _tell(self) -> None:
        self._telling = None
        self._some = any(relay.leaving for _, relays in self._sources() for relay in relays)
        self._changed()


def _where(relay: Relay) -> str:
    return "local" if isinstance(relay.leads_to, ToService) else "remote"
