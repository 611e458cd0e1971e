"""The sandbox's API keeps the contract of every cluster."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from devloop.remote.workload import references as kinds
from devloop.remote.workload.cluster import AbsentError, Cluster, ExpiredError
from devloop.sandbox import objects as module
from devloop.sandbox.cluster import PodCluster
from devloop.sandbox.objects import Objects
from tests.unit.workload.contract import CONTRACT


class Store:
    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    async def put(self, name: str, data: dict[str, str], labels: dict[str, str] | None = None) -> Any:
        metadata = {"name": name, **({"labels": labels} if labels else {})}
        return self._objects.put(kinds.CONFIG_MAP, {"metadata": metadata, "data": data})

    async def delete(self, name: str) -> Any:
        self._objects.delete(kinds.CONFIG_MAP, name)


@pytest.mark.parametrize("promise", CONTRACT, ids=lambda each: each.__name__)
async def test_contract(promise: Callable[[Cluster, Any], Awaitable[None]]) -> None:
    objects = Objects("shop")
    await promise(PodCluster(objects, lambda name: None), Store(objects))


async def test_a_watch_from_long_ago_has_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HISTORY", 3)
    objects = Objects("shop")
    for number in range(5):
        objects.put(kinds.CONFIG_MAP, {"metadata": {"name": "one"}, "data": {"n": str(number)}})
    with pytest.raises(ExpiredError):
        await anext(objects.watch(kinds.CONFIG_MAP, "one", "1"))
    event = await anext(objects.watch(kinds.CONFIG_MAP, "one", "4"))
    assert event.object["data"] == {"n": "4"}


async def test_an_object_keeps_its_uid_when_it_is_replaced() -> None:
    objects = Objects("shop")
    first = objects.put(kinds.CONFIG_MAP, {"metadata": {"name": "one"}})
    second = objects.put(kinds.CONFIG_MAP, {"metadata": {"name": "one"}, "data": {}})
    assert first["metadata"]["uid"] == second["metadata"]["uid"]
    assert first["metadata"]["resourceVersion"] != second["metadata"]["resourceVersion"]
    assert (second["kind"], second["metadata"]["namespace"]) == ("ConfigMap", "shop")


async def test_a_token_has_claims() -> None:
    token = await PodCluster(Objects("shop"), lambda name: None).token("api", audience="vault", seconds=60)
    claims = token.value.split(".")[1]
    read = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    assert (read["aud"], read["sub"]) == (["vault"], "system:serviceaccount:shop:api")
    assert read["exp"] == token.expires_at


async def test_commands_in_pods_that_are_not_there() -> None:
    cluster = PodCluster(Objects("shop"), lambda name: None)
    with pytest.raises(AbsentError):
        await cluster.run("web", "main", ["true"])
