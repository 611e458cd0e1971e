"""Services of an agent that is gone are led back to their pods at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from devloop.agent import objects
from devloop.agent.tasks import background
from devloop.attach.bridge import Bridge
from devloop.attach.claims import Claims
from devloop.remote.kubernetes.api import ApiError
from tests.waiting import until

from .fake_api import Document, FakeApi, service
from .test_restoration import attach, spec

PATH = "/api/v1/namespaces/space/pods"


def pod(*, ready: bool = True, ending: bool = False) -> Document:
    meta: Document = {"name": "devloop-agent", "labels": {}}
    if ending:
        meta["deletionTimestamp"] = "2026-11-28T10:00:00Z"
    return {"metadata": meta, "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}}


class Watched(FakeApi):
    """An API server whose pods can be watched."""

    def __init__(self) -> None:
        super().__init__(service())
        self.pods = [pod()]
        self.events: asyncio.Queue[tuple[str, Document] | Exception] = asyncio.Queue()

    async def find(self, path: str) -> Document | None:
        return {"items": self.pods} if path == PATH else await super().find(path)

    async def get(self, path: str, **query: str) -> Document:
        return cast(Document, await self.find(path)) if path == PATH else await super().get(path, **query)

    async def watch(self, path: str, **query: str) -> AsyncIterator[tuple[str, Document]]:
        assert path == PATH and query == {"labelSelector": "app.kubernetes.io/name=devloop-agent"}
        while True:
            event = await self.events.get()
            if isinstance(event, Exception):
                raise event
            yield event


@contextlib.asynccontextmanager
async def bridging(api: Watched) -> AsyncIterator[list[str]]:
    gone: list[str] = []
    claims = Claims(cast(Any, api))
    bridge = Bridge(cast(Any, api), claims, lambda: {"api"}, lambda: gone.append("gone"))
    task = background(bridge.watching(), name="bridge")
    try:
        yield gone
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def led(api: Watched) -> bool:
    return objects.is_swapped(api.objects["/api/v1/namespaces/space/services/api"])


async def seen(api: Watched) -> None:
    """Until the watch has taken all that there was."""
    await until(api.events.empty)
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("how", ["deleted", "its container has ended"])
async def test_an_agent_that_is_killed_leaves_no_service_without_pods(how: str) -> None:
    api = Watched()
    await attach(cast(Any, api), spec())
    async with bridging(api) as gone:
        api.events.put_nowait(("ADDED", pod()))
        await seen(api)
        assert led(api) and not gone
        api.pods = [] if how == "deleted" else [pod(ready=False)]
        api.events.put_nowait(("DELETED", pod()) if how == "deleted" else ("MODIFIED", pod(ready=False)))
        await seen(api)
        assert not led(api) and gone == ["gone"]
    # The lease stays: its holder comes again with the next agent.
    assert await Claims(cast(Any, api)).leases()


async def test_an_agent_that_ends_in_order_does_it_by_itself() -> None:
    api = Watched()
    await attach(cast(Any, api), spec())
    api.pods = [pod(ending=True)]
    async with bridging(api) as gone:
        api.events.put_nowait(("MODIFIED", pod(ending=True)))
        await seen(api)
        assert led(api) and not gone


async def test_another_one_that_is_ready_keeps_the_service() -> None:
    api = Watched()
    await attach(cast(Any, api), spec())
    async with bridging(api) as gone:
        api.events.put_nowait(("DELETED", pod()))
        await seen(api)
        assert led(api) and gone == ["gone"]


async def test_a_watch_that_is_cut_is_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devloop.attach.bridge.AGAIN_SECONDS", (0.0, 0.0, 0.0))
    api = Watched()
    await attach(cast(Any, api), spec())
    async with bridging(api):
        for problem in (ApiError(403, "Forbidden", "pods", where="here"), TimeoutError(), OSError("reset")):
            api.events.put_nowait(problem)
            await seen(api)
        api.pods = []
        api.events.put_nowait(("DELETED", pod()))
        await seen(api)
        assert not led(api)
