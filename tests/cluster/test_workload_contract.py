"""The real cluster keeps the contract that the one in memory keeps (tests/unit/workload/contract.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from devloop.remote.workload import references as kinds
from devloop.remote.workload.cluster import AbsentError, Cluster
from devloop.remote.workload.follow import follow
from devloop.remote.workload.model import Absence
from tests.unit.workload.contract import CONTRACT, Store

from .conftest import Namespace
from .kit import ApiClient, client
from .test_workload import connected

pytestmark = pytest.mark.role("attach", agent=False)


class AsAdmin:
    def __init__(self, admin: ApiClient, namespace: str) -> None:
        self.core = client.CoreV1Api(admin)
        self.namespace = namespace

    async def put(self, name: str, data: dict[str, str], labels: dict[str, str] | None = None) -> Any:
        body = {"metadata": {"name": name, "labels": labels or {}}, "data": data}
        try:
            return await self.core.replace_namespaced_config_map(name, self.namespace, body)
        except client.ApiException as problem:
            if problem.status != 404:
                raise
        return await self.core.create_namespaced_config_map(self.namespace, body)

    async def delete(self, name: str) -> None:
        await self.core.delete_namespaced_config_map(name, self.namespace)


@pytest.mark.parametrize("clause", CONTRACT, ids=lambda each: each.__name__)
async def test_contract(
    clause: Callable[[Cluster, Store], Awaitable[None]], admin: ApiClient, namespace: Namespace
) -> None:
    async with connected(namespace.developer, namespace.name) as cluster:
        await clause(cluster, AsAdmin(admin, namespace.name))


async def test_what_is_forbidden_is_said_so(namespace: Namespace) -> None:
    async with connected(namespace.developer, namespace.name) as cluster:
        with pytest.raises(AbsentError) as caught:
            await cluster.get(kinds.SERVICE, "kubernetes", namespace="default")
    assert caught.value.absence is Absence.FORBIDDEN


async def test_following_outlives_a_lost_connection(
    admin: ApiClient, namespace: Namespace, behind_gate: Callable[[Path], Path], gate: Any
) -> None:
    store = AsAdmin(admin, namespace.name)
    await store.put("one", {"a": "1"})
    async with connected(behind_gate(namespace.developer), namespace.name) as cluster:
        states = follow(cluster, kinds.CONFIG_MAP, "one")
        async with asyncio.timeout(60):
            await anext(states)
            pending = asyncio.ensure_future(anext(states))
            with gate.closed(2):
                await store.put("one", {"a": "2"})
                state = await pending
        assert not isinstance(state, Absence)
        assert state["data"] == {"a": "2"}
        await states.aclose()  # type: ignore[attr-defined]
