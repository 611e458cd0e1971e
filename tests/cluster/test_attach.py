"""An intercept at a real cluster: made, used and left, with a developer's rights, in a `restricted` namespace."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from devloop.attach import Phase, personal

from . import kit
from .attaching import Here, Load, ask, client_pod, engine, objects_of, run_service
from .conftest import Namespace
from .kit import ApiClient

pytestmark = pytest.mark.role("attach")


async def test_an_intercept_of_all_and_nothing_of_it_is_left(
    admin: ApiClient, namespace: Namespace, tmp_path: Path
) -> None:
    await asyncio.gather(run_service(admin, namespace.name), client_pod(admin, namespace.name))
    before = await objects_of(admin, namespace.name)
    async with engine(namespace.developer, tmp_path) as ada, Here() as here:
        assert (await ask(namespace)).startswith("api-")
        found = await ada.attachments.attach(ada.wanted(here), here)
        assert found.state.phase is Phase.ATTACHED
        await kit.eventually(lambda: ask(namespace), "here", 10)
        assert (await objects_of(admin, namespace.name)).keys() > before.keys()
        await ada.attachments.leave(found)
        assert await objects_of(admin, namespace.name) == before
        assert (await ask(namespace)).startswith("api-")


async def test_no_request_fails_when_it_comes_and_goes(admin: ApiClient, namespace: Namespace, tmp_path: Path) -> None:
    await asyncio.gather(run_service(admin, namespace.name), client_pod(admin, namespace.name))
    async with engine(namespace.developer, tmp_path) as ada, Here() as here:
        load = Load(namespace, rate=300, connections=16, requests_per_connection=10)
        await asyncio.sleep(1)
        for _ in range(3):
            found = await ada.attachments.attach(ada.wanted(here, routes=(personal("ada"),)), here)
            await asyncio.sleep(1)
            await ada.attachments.leave(found)
            await asyncio.sleep(0.5)
        found = await ada.attachments.attach(ada.wanted(here), here)
        await asyncio.sleep(2)
        await ada.attachments.leave(found)
        await asyncio.sleep(1)
        result = await load.stop()
    assert result["failed"] == 0, str(result)
    assert result["counts"]["here"] > 50, str(result)
