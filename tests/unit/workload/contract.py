"""What every `Cluster` does: `tests/unit/workload` runs it on the one in memory, `tests/cluster` on a real one.

`store` is the same cluster by another way, with an administrator's rights: `put` and `delete` of ConfigMaps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import pytest

from devloop.remote.workload import references as kinds
from devloop.remote.workload.cluster import AbsentError, Cluster
from devloop.remote.workload.follow import follow
from devloop.remote.workload.model import Absence


class Store(Protocol):
    async def put(self, name: str, data: dict[str, str], labels: dict[str, str] | None = None) -> Any: ...
    async def delete(self, name: str) -> Any: ...


async def gets_and_says_what_is_missing(cluster: Cluster, store: Store) -> None:
    await store.put("one", {"a": "1"})
    assert (await cluster.get(kinds.CONFIG_MAP, "one"))["data"] == {"a": "1"}
    with pytest.raises(AbsentError) as caught:
        await cluster.get(kinds.CONFIG_MAP, "none")
    assert caught.value.absence is Absence.MISSING
    assert "none" in str(caught.value)


async def lists_by_label_and_by_name(cluster: Cluster, store: Store) -> None:
    await store.put("one", {}, {"app": "web", "tier": "a"})
    await store.put("two", {}, {"app": "api"})

    async def names(**selector: Any) -> set[str]:
        found = (await cluster.listing(kinds.CONFIG_MAP, **selector)).items
        return {each["metadata"]["name"] for each in found} - {"kube-root-ca.crt"}

    assert await names() == {"one", "two"}
    assert await names(name="two") == {"two"}
    assert await names(labels={"matchLabels": {"app": "web"}}) == {"one"}
    several = {"key": "app", "operator": "In", "values": ["web", "api"]}
    assert await names(labels={"matchExpressions": [several]}) == {"one", "two"}
    assert await names(labels={"matchExpressions": [several, {"key": "tier", "operator": "DoesNotExist"}]}) == {"two"}


async def watches_from_a_version(cluster: Cluster, store: Store) -> None:
    await store.put("one", {"a": "1"})
    version = (await cluster.listing(kinds.CONFIG_MAP, name="one")).version
    await store.put("other", {})
    await store.put("one", {"a": "2"})
    await store.delete("one")
    seen = []
    async with asyncio.timeout(20):
        async for event in cluster.watch(kinds.CONFIG_MAP, "one", version):
            if event.type != "BOOKMARK":
                seen.append((event.type, event.object["data"]["a"]))
            if event.type == "DELETED":
                break
    assert seen == [("MODIFIED", "2"), ("DELETED", "2")]


async def follows_through_deletion_and_creation(cluster: Cluster, store: Store) -> None:
    await store.put("one", {"a": "1"})
    seen: list[Any] = []
    async with asyncio.timeout(20):
        async for state in follow(cluster, kinds.CONFIG_MAP, "one"):
            seen.append(state if isinstance(state, Absence) else state["data"]["a"])
            if seen == ["1"]:
                await store.put("one", {"a": "2"})
            elif seen == ["1", "2"]:
                await store.delete("one")
            elif seen == ["1", "2", Absence.MISSING]:
                await store.put("one", {"a": "3"})
            else:
                break
    assert seen == ["1", "2", Absence.MISSING, "3"]


async def gives_tokens(cluster: Cluster, store: Store) -> None:
    token = await cluster.token("default", audience="vault", seconds=600)
    assert token.value
    assert token.value not in repr(token)
    again = await cluster.token("default", audience="", seconds=600)
    assert again.value != token.value


async def knows_its_version(cluster: Cluster, store: Store) -> None:
    assert await cluster.version() >= (1, 20)


CONTRACT: list[Callable[[Cluster, Store], Awaitable[None]]] = [
    gets_and_says_what_is_missing,
    lists_by_label_and_by_name,
    watches_from_a_version,
    follows_through_deletion_and_creation,
    gives_tokens,
    knows_its_version,
]
