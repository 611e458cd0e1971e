"""What the shop's services hold of the cluster's traffic, and the requests that went through."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from devloop.protocol import AttachmentStatus, RequestRecord

if TYPE_CHECKING:
    from devloop.testing.fake_engine import FakeEngine

SECOND, MILLI = 1_000_000_000, 1_000_000
HELD = "bob@studio holds all requests of search (intercept) since 2026-11-21T11:12:00Z (Take another route: a header \
of your own, a path, a share.)"
"""Why the search is refused."""
RESTS = "an autoscaler keeps worker-hpa: it rests while the workload has no replicas"


def attached(now: int) -> Mapping[str, tuple[AttachmentStatus, ...]]:
    """Service → its attachments: one of each kind, and one that was refused."""
    mine = AttachmentStatus(
        "intercept", "web", "attached", now - 190 * SECOND, ("baggage:devloop=ada",), local_rate=1.4, original_rate=12.2
    )
    queue = AttachmentStatus("replace", "deployment/worker", "attached", now - 400 * SECOND, notes=(RESTS,))
    refused = AttachmentStatus("intercept", "search", "refused", now - 41 * SECOND, ("all requests",), HELD)
    return {"web": (mine,), "worker": (queue,), "search": (refused,)}


def requests(clock: Callable[[], int] = time.time_ns) -> list[RequestRecord]:
    """What went through the web's Service in the last seconds, oldest first."""
    now = clock()
    rows = [
        ("GET", "/", 200, 4.1, "original", "HTTP/1.1"),
        ("GET", "/assets/shop.css", 304, 0.8, "original", "HTTP/2"),
        ("GET", "/basket", 200, 12.4, "local", "HTTP/1.1"),
        ("POST", "/basket/items", 201, 38.0, "local", "HTTP/1.1"),
        ("GET", "/orders/7781", 404, 3.3, "original", "HTTP/1.1"),
        ("POST", "/shop.Prices/Quote", 200, 7.9, "original", "HTTP/2"),
        ("GET", "/basket", 200, 11.8, "local", "HTTP/1.1"),
        ("DELETE", "/basket/items/2", 500, 21.0, "local", "HTTP/1.1"),
        ("GET", "/a/path/that/is/longer/than/a/screen/of/eighty/columns/can/show", 200, 2.2, "original", "HTTP/2"),
        ("GET", "/live", 101, 61_204.0, "local", "HTTP/1.1"),
        ("GET", "/basket", 200, 214.0, "original", "HTTP/1.1"),
        ("GET", "/search", 0, 1_500.0, "nobody", "HTTP/1.1"),
        ("TCP", "", 0, 3_100.0, "original", ""),
    ]  # fmt: skip
    first = now - len(rows) * SECOND
    found = [
        RequestRecord(
            "web", first + n * SECOND + 37 * MILLI - int(took * MILLI), method, path, status, int(took * MILLI), by,
            protocol,
        )
        for n, (method, path, status, took, by, protocol) in enumerate(rows)
    ]  # fmt: skip
    found[10] = replace(found[10], failed_over=True)
    return found


async def passing(fake: FakeEngine, service: str, rate: float, seed: int = 5) -> None:
    """Requests go through for as long as it is not cancelled, `rate` a second, and the figures follow."""
    dice = random.Random(seed)
    tick, debt = 0.1, 0.0
    kinds = requests(fake.clock)[:9]
    while True:
        await asyncio.sleep(tick)
        status = fake.status(service)
        if not any(each.phase in ("attached", "failed open") for each in status.attachments):
            continue
        debt += rate * tick
        number, debt = int(debt), debt % 1
        chosen = [replace(dice.choice(kinds), service=service, at=fake.clock()) for _ in range(number)]
        if chosen:
            fake.hear(*chosen)
        if dice.random() < tick:
            here = rate * dice.uniform(0.1, 0.4)
            figures = {"local_rate": round(here, 1), "original_rate": round(rate - here, 1)}
            moved = tuple(
                replace(each, **figures) if each.phase == "attached" and each.routes else each  # type: ignore[arg-type]
                for each in status.attachments
            )
            fake.update(service, attachments=moved)
