"""One object of the cluster, followed: its state now, and each state after."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from devloop.errors import RemoteError

from .cluster import AbsentError, Cluster, ExpiredError
from .model import Absence, Object
from .references import Kind

POLL_SECONDS = 60.0
"""Between looks where watching is not allowed: what the kubelet takes by default."""
BACKOFF_SECONDS = (0.2, 15.0)
"""Before the first and, at most, any later attempt to reach the API server again."""


async def follow(
    cluster: Cluster, kind: Kind, name: str, *, poll: float = POLL_SECONDS
) -> AsyncGenerator[Object | Absence, None]:
    """Every state of an object, beginning with the one that it has now; goes on until it is cancelled.

    A list with the name's field selector gives the resourceVersion, a watch goes on from there. When that
    has become too old (410 Gone) the list is made anew; when the connection breaks, it is tried again, with
    longer and longer waits. A Role may allow just this name, and may forbid to watch it: it is then polled.
    States in between may be passed over, and none is given twice in a row.
    """
    seen: tuple[str, str] | Absence | None = None
    wait = BACKOFF_SECONDS[0]
    while True:
        try:
            listing = await cluster.listing(kind, name=name)
            state: Object | Absence = listing.items[0] if listing.items else Absence.MISSING
            if (mark := _mark(state)) != seen:
                seen = mark
                yield state
            wait = BACKOFF_SECONDS[0]
            version = listing.version
            while True:
                began = time.monotonic()
                async with aclosing(cluster.watch(kind, name, version)) as events:
                    async for event in events:
                        version = event.object["metadata"]["resourceVersion"]
                        if event.type == "BOOKMARK":
                            continue
                        state = Absence.MISSING if event.type == "DELETED" else event.object
                        if (mark := _mark(state)) != seen:
                            seen = mark
                            yield state
                if time.monotonic() - began < 1:
                    await asyncio.sleep(wait)  # a server that ends each watch at once is not asked in a storm
        except ExpiredError:
            await asyncio.sleep(BACKOFF_SECONDS[0])
        except AbsentError:
            async with aclosing(_polled(cluster, kind, name, poll)) as states:
                async for state in states:
                    if (mark := _mark(state)) != seen:
                        seen = mark
                        yield state
        except RemoteError:
            await asyncio.sleep(wait * random.uniform(0.8, 1.2))
            wait = min(wait * 2, BACKOFF_SECONDS[1])


async def _polled(cluster: Cluster, kind: Kind, name: str, seconds: float) -> AsyncGenerator[Object | Absence, None]:
    while True:
        try:
            yield await cluster.get(kind, name)
        except AbsentError as absent:
            yield absent.absence
        except RemoteError:
            pass  # the next look may reach it
        await asyncio.sleep(seconds)


def _mark(state: Object | Absence) -> tuple[str, str] | Absence:
    if isinstance(state, Absence):
        return state
    return state["metadata"]["uid"], state["metadata"]["resourceVersion"]
