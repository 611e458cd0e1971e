"""Leases are renewed three times within their duration, each by itself: one request that hangs costs no lease."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from devloop.agent.tasks import background
from devloop.failures import contained

from .attachment import Attachment
from .claims import Claims

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0
"""After one that has failed."""
AT_ONCE = 3
"""Tries of one lease that may be under way."""


class Renewals:
    """One engine's. `those` gives the attachments whose leases are to be renewed, `lost` hears of one whose lease has
    gone, or is somebody else's."""

    def __init__(
        self, claims: Claims, those: Callable[[], Iterable[Attachment]], lost: Callable[[Attachment], None]
    ) -> None:
        self._claims = claims
        self._those = those
        self._lost = lost

    async def renewing(self) -> None:
        """For good."""
        running: dict[Attachment, asyncio.Task[None]] = {}

        def begin(found: Attachment) -> None:
            task = running[found] = background(self._renew(found), name=f"lease of {found.spec.id}")
            task.add_done_callback(lambda _: running.pop(found, None))

        try:
            while True:
                await asyncio.sleep(self._claims.seconds / 3)
                for each in self._those():
                    if each not in running:
                        begin(each)
        finally:
            for task in running.values():
                task.cancel()

    async def _renew(self, found: Attachment) -> None:
        """Until it is renewed. A try that takes long goes on beside the next one: the API server may just be slow."""
        tries: set[asyncio.Task[bool]] = set()
        pause = self._claims.seconds / 6
        try:
            while found in self._those():
                if len(tries) < AT_ONCE:
                    tries.add(asyncio.create_task(self._claims.renew(found.spec)))
                done, tries = await asyncio.wait(tries, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                problems = [problem for each in done if (problem := each.exception()) is not None]
                if len(done) > len(problems):
                    if not any(each.exception() is None and each.result() for each in done):
                        self._lost(found)
                    return
                for problem in problems:  # whatever it is, the other leases are to be renewed
                    log.info("the lease of %s is not renewed: %s", found.spec.id, problem)
                    contained(problem, f"the lease of {found.spec.id} can't be renewed")
                if problems:
                    await asyncio.sleep(min(PAUSE_SECONDS, pause))
        finally:
            for each in tries:
                each.cancel()
            await asyncio.gather(*tries, return_exceptions=True)
