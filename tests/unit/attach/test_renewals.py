"""Leases are renewed in time, whatever one of the requests does."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from devloop.agent.spec import Spec
from devloop.attach import renewals
from devloop.attach.attachment import Attachment
from devloop.attach.renewals import Renewals
from devloop.attach.seam import Wanted

SECONDS = 0.3


def attachment(name: str) -> Attachment:
    spec = Spec(name, "ada", "h", "intercept", "now", name, {80: 1})
    return Attachment(spec, Wanted("intercept", name), cast(Any, None), lambda _: None)


class Claims:
    seconds = SECONDS

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.renewed: dict[str, int] = {}
        self.news = asyncio.Event()
        self.outcomes: list[Any] = []

    async def renew(self, spec: Spec) -> bool:
        self.asked.append(spec.id)
        outcome = self.outcomes.pop(0) if self.outcomes else True
        if outcome == "hangs":
            await asyncio.Event().wait()
        if outcome == "slow":
            await asyncio.sleep(SECONDS / 3)
        if isinstance(outcome, Exception):
            raise outcome
        self.renewed[spec.id] = self.renewed.get(spec.id, 0) + 1
        self.news.set()
        return bool(outcome)


async def run(claims: Claims, *names: str, until: int = 1) -> list[Attachment]:
    """Until each was renewed so often; those whose lease was lost."""
    held = [attachment(each) for each in names]
    lost: list[Attachment] = []
    task = asyncio.create_task(Renewals(cast(Any, claims), lambda: held, lost.append).renewing())
    async with asyncio.timeout(5):
        while any(claims.renewed.get(each, 0) < until for each in names):
            claims.news.clear()
            await claims.news.wait()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return lost


async def test_one_request_that_hangs_costs_no_lease() -> None:
    claims = Claims()
    claims.outcomes = ["hangs"]
    assert await run(claims, "one", "two", "three") == []
    assert claims.asked[:3] == ["one", "two", "three"], "none waits for another"
    assert claims.asked.count("one") >= 2, "a try beside the one that hangs"


async def test_what_fails_is_tried_again_before_the_lease_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewals, "PAUSE_SECONDS", 0.0)
    claims, one = Claims(), attachment("one")
    claims.seconds = 3600.0  # the next round is far away
    claims.outcomes = [OSError("the network is gone"), TimeoutError()]
    async with asyncio.timeout(5):
        await Renewals(cast(Any, claims), lambda: [one], lambda _: None)._renew(one)
    assert claims.asked == ["one"] * 3 and claims.renewed == {"one": 1}


@pytest.mark.slow
async def test_an_api_server_that_is_slow_is_waited_for() -> None:
    """Longer than it takes until the next try."""
    claims = Claims()
    claims.outcomes = ["slow"] * 50
    assert await run(claims, "one", until=2) == []


async def test_a_lease_that_has_gone_is_told() -> None:
    claims = Claims()
    claims.outcomes = [False]
    [lost] = await run(claims, "one")
    assert lost.spec.id == "one"
