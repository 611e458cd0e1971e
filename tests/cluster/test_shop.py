"""examples/shop in the cluster: the other half of the main job, by the ways that devloop goes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from devloop.remote.roles import Role

from . import kit
from .conftest import Given, Namespace, Target
from .kit import client
from .project import deployed_shop

PRODUCTS = 6

# The shop takes seconds to start: one for all the tests here, which therefore share a loop.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(cluster: Target) -> AsyncIterator[Namespace]:
    async with deployed_shop(cluster, Given(Role.ATTACH, agent=False)) as namespace:
        yield namespace


async def pods_of(developer: Path, namespace: str, name: str) -> list[Any]:
    async with kit.connect(developer) as api:
        found = await client.CoreV1Api(api).list_namespaced_pod(
            namespace, label_selector=f"app.kubernetes.io/name={name}"
        )
    pods: list[Any] = found.items
    return pods


async def test_its_names_resolve_from_a_pod(shop: Namespace) -> None:
    async with kit.connect(shop.developer) as api:
        core = client.CoreV1Api(api)
        services = {each.metadata.name: each for each in (await core.list_namespaced_service(shop.name)).items}
    (store,) = await pods_of(shop.developer, shop.name, "store")
    apis = await pods_of(shop.developer, shop.name, "api")
    zone = f"{shop.name}.svc.cluster.local"

    async def ask(*words: str) -> list[str]:
        # As a developer, whose Role allows exec.
        ran = await kit.execute(shop.developer, shop.name, "store-0", "dig", "+short", "+timeout=2", *words)
        return ran.stdout.split("\n")[:-1]

    for name in ("web", "api", "store"):
        await kit.eventually(partial(ask, "+search", name), [services[name].spec.cluster_ip])
    # Headless: the pods themselves.
    assert services["store-nodes"].spec.cluster_ip == "None"
    assert await ask(f"store-nodes.{zone}") == [store.status.pod_ip]
    # A StatefulSet's pod by its own name, a pod by its address, and where a named port is.
    assert await ask(f"store-0.store-nodes.{zone}") == [store.status.pod_ip]
    dashed = apis[0].status.pod_ip.replace(".", "-")
    assert await ask(f"{dashed}.{shop.name}.pod.cluster.local") == [apis[0].status.pod_ip]
    assert await ask("SRV", f"_redis._tcp.store-nodes.{zone}") == [f"0 100 6379 store-0.store-nodes.{zone}."]
    assert await ask("SRV", f"_http._tcp.api.{zone}") == [f"0 100 8080 api.{zone}."]


async def test_a_port_forward_reaches_the_page_and_what_stands_behind_it(shop: Namespace) -> None:
    (web,) = await pods_of(shop.developer, shop.name, "web")
    async with kit.forward(shop.developer, shop.name, web.metadata.name, 8080) as page:
        status, body = await page.get("/")
    assert status == 200
    assert b"<html" in body.lower()
    for api in await pods_of(shop.developer, shop.name, "api"):
        async with kit.forward(shop.developer, shop.name, api.metadata.name, 8080) as connection:
            status, body = await connection.get("/products")
        assert status == 200
        assert len(json.loads(body)) == PRODUCTS


async def test_a_port_forward_to_a_port_that_nobody_listens_on_says_so(shop: Namespace) -> None:
    (web,) = await pods_of(shop.developer, shop.name, "web")
    async with kit.forward(shop.developer, shop.name, web.metadata.name, 9) as nothing:
        with pytest.raises(OSError, match="refused"):
            await nothing.receive()


async def test_an_order_goes_through_the_queue_to_the_worker(shop: Namespace) -> None:
    order = """
import json, sys, urllib.request
body = json.dumps({"product": "tea", "quantity": 1}).encode()
request = urllib.request.Request("http://api:8080/orders", body, {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request, timeout=5))["id"])
"""
    ran = await kit.execute(shop.developer, shop.name, "store-0", "python3", "-c", order)
    assert ran.code == 0, ran.stderr
    number = ran.stdout.strip()

    async def state() -> str:
        asked = await kit.execute(
            shop.developer, shop.name, "store-0", "curl", "-s", f"http://api:8080/orders/{number}"
        )
        return str(json.loads(asked.stdout).get("status"))

    await kit.eventually(state, "shipped")


async def test_exec_gives_output_errors_and_the_exit_code(shop: Namespace) -> None:
    script = 'echo "$STORE_DATA"; echo wrong >&2; exit 3'
    ran = await kit.execute(shop.developer, shop.name, "store-0", "sh", "-c", script)
    assert ran == kit.Ran(3, "/data\n", "wrong\n")
    ran = await kit.execute(shop.developer, shop.name, "store-0", "redis-cli", "info", "server")
    assert "redis_version:" in ran.stdout  # the real one, and not the example's stand-in


async def test_the_developer_may_not_change_what_runs(shop: Namespace) -> None:
    async with kit.connect(shop.developer) as api:
        apps = client.AppsV1Api(api)
        (web,) = [
            each for each in (await apps.list_namespaced_deployment(shop.name)).items if each.metadata.name == "web"
        ]
        container = {"name": "web", "image": "devloop.test/base:1"}
        patch = {"spec": {"template": {"spec": {"containers": [container]}}}}
        for attempt in (
            apps.delete_namespaced_deployment("web", shop.name),
            apps.patch_namespaced_deployment("web", shop.name, patch),
            client.CoreV1Api(api).list_node(),
        ):
            with pytest.raises(client.ApiException) as refused:
                await attempt
            assert refused.value.status == 403
        assert (await apps.read_namespaced_deployment("web", shop.name)).metadata.generation == (
            web.metadata.generation
        )
