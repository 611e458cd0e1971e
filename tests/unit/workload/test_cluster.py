"""The cluster in memory keeps the contract, and what follows an object gets through what goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from devloop.remote.workload import follow as following
from devloop.remote.workload import references as kinds
from devloop.remote.workload.cluster import Cluster
from devloop.remote.workload.fake import FakeCluster
from devloop.remote.workload.kube import selector
from devloop.remote.workload.model import Absence, Object

from .contract import CONTRACT, Store


class InMemory:
    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster

    async def put(self, name: str, data: dict[str, str], labels: dict[str, str] | None = None) -> Any:
        item = {"metadata": {"name": name, "labels": labels or {}}, "data": data}
        return await self.cluster.put(kinds.CONFIG_MAP, item)

    async def delete(self, name: str) -> None:
        await self.cluster.delete(kinds.CONFIG_MAP, name)


@pytest.fixture
def store(cluster: FakeCluster) -> InMemory:
    return InMemory(cluster)


@pytest.mark.parametrize("clause", CONTRACT, ids=lambda each: each.__name__)
async def test_contract(
    clause: Callable[[Cluster, Store], Awaitable[None]], cluster: FakeCluster, store: InMemory
) -> None:
    await clause(cluster, store)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "BACKOFF_SECONDS", (0.001, 0.01))


async def after(states: AsyncIterator[Object | Absence]) -> Any:
    async with asyncio.timeout(5):
        state = await anext(states)
    return state if isinstance(state, Absence) else state["data"]["a"]


async def test_a_version_that_is_too_old_is_read_anew(cluster: FakeCluster, store: InMemory) -> None:
    await store.put("one", {"a": "1"})
    states = following.follow(cluster, kinds.CONFIG_MAP, "one")
    assert await after(states) == "1"
    await store.put("one", {"a": "2"})
    await cluster.compact()
    assert await after(states) == "2"
    assert [verb for verb, _, _ in cluster.asked].count("list") == 2


async def test_a_lost_connection_comes_back(cluster: FakeCluster, store: InMemory) -> None:
    await store.put("one", {"a": "1"})
    states = following.follow(cluster, kinds.CONFIG_MAP, "one")
    assert await after(states) == "1"
    pending = asyncio.ensure_future(after(states))
    await asyncio.sleep(0)
    await cluster.cut()
    await store.put("one", {"a": "2"})
    await asyncio.sleep(0.02)
    assert not pending.done()
    cluster.mend()
    assert await pending == "2"


@pytest.mark.parametrize("verb", ["list", "watch"])
async def test_what_may_not_be_watched_is_polled(cluster: FakeCluster, store: InMemory, verb: str) -> None:
    cluster.forbidden.add((verb, "configmaps"))
    await store.put("one", {"a": "1"})
    states = following.follow(cluster, kinds.CONFIG_MAP, "one", poll=0.001)
    assert await after(states) == "1"
    await store.put("one", {"a": "2"})
    assert await after(states) == "2"
    await store.delete("one")
    assert await after(states) is Absence.MISSING


def test_selectors() -> None:
    expressions = [
        {"key": "a", "operator": "In", "values": ["x", "y"]},
        {"key": "b", "operator": "NotIn", "values": ["z"]},
        {"key": "c", "operator": "Exists"},
        {"key": "d", "operator": "DoesNotExist"},
    ]
    text = selector({"matchLabels": {"app": "web"}, "matchExpressions": expressions})
    assert text == "app=web,a in (x,y),b notin (z),c,!d"
