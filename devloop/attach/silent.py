"""Which leases nobody renews: they are watched for as long as they hold.

As in leader election (client-go), clocks are not compared: a holder whose clock is behind renews a lease that is over
by anybody else's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from devloop.agent import objects
from devloop.agent.expiry import Expiry
from devloop.agent.objects import Dead, Document

from .claims import Claims

LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Watched:
    """What has come of it."""

    silent: Mapping[str, Dead]
    """By name, the leases that have stood still for their duration, as they were."""
    alive: frozenset[str]


def seconds(leases: Collection[Document]) -> float:
    """How long `watched` takes if nobody renews any of them."""
    now = datetime.now(UTC)
    return max((_duration(each) for each in leases if not _is_fresh(each, now)), default=0.0)


async def watched(claims: Claims, names: Collection[str], *, enough: bool = False) -> Watched:
    """Watch these leases until it is known of each whether somebody renews it. RemoteError.

    One that was renewed within its duration by this machine's clock is alive, so the usual refusal takes no time. With
    `enough`, it ends when one of them is. What is gone meanwhile is neither.
    """
    expiry = Expiry()
    first: dict[str, Dead] = {}
    alive: set[str] = set()
    while True:
        began = time.monotonic()
        now = datetime.now(UTC)
        leases = {name: each for each in await claims.leases() if (name := str(each["metadata"]["name"])) in names}
        for name, each in leases.items():
            if name in first:
                alive |= {name} if first[name] != Dead.seen(each) else set()
            else:
                first[name] = Dead.seen(each)
                alive |= {name} if _is_fresh(each, now) else set()
        rest = {name: each for name, each in leases.items() if name not in alive}
        # Seen after it was asked for, and over before: so the time between is never taken for longer than it was.
        expiry.see(rest.values(), time.monotonic())
        over = expiry.over(began)
        if rest.keys() <= over.keys() or (enough and alive):
            return Watched(over, frozenset(alive))
        await asyncio.sleep(min(LOOK_SECONDS, expiry.next(time.monotonic()) or 0.0))


def _duration(lease: Document) -> float:
    return float((lease.get("spec") or {}).get("leaseDurationSeconds") or objects.LEASE_SECONDS)


def _is_fresh(lease: Document, now: datetime) -> bool:
    return -_duration(lease) <= objects.seconds_over(lease, now) < 0
