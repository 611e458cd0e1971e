"""While Envoy is away: nobody is told that they are attached, and Services don't go on leading to nobody.

Envoy that has ended is back within some tenths of a second, and with it all that it knew. Where its container ends
again and again, the node lets it wait. Then the agent leads Services back to their pods; each engine makes it as it was
when Envoy is there again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

log = logging.getLogger("agent")

BACK_SECONDS = 2.0
"""Envoy is started again within 0.3 s, if nothing keeps it."""
WHY = "Envoy at the agent has ended, and is started again"


class Told(Protocol):
    """An engine."""

    def away(self, why: str) -> None:
        """Envoy is away, and why; empty: it is back."""


class Outage:
    """`engines`: who is told. `lead_back`: lead every Service that leads here to its pods; it fails for none."""

    def __init__(self, engines: Collection[Told], lead_back: Callable[[], Awaitable[None]]) -> None:
        self._engines = engines
        self._lead_back = lead_back
        self.why = ""

    async def see(self, away: float, *, ran: bool) -> None:
        """For how many seconds Envoy has been away now; 0 if it runs. Called a few times in a second. `ran`: it has run
        before, so that somebody may have been told that they are attached."""
        why = WHY if away and ran else ""
        if why != self.why:
            self.why = why
            log.info("%s", why or "Envoy is back")
            for each in list(self._engines):
                each.away(why)
        if away > BACK_SECONDS:
            await self._lead_back()
