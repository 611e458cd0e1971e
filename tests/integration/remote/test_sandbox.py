"""The sandbox keeps the links' contract, and its cluster answers like one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from devloop.remote.sandbox import Echo, Forward, Page, SandboxCluster, SandboxLink, SandboxService

from .contract import LinkContract, Rig, ended

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
async def rig(target_ports: tuple[int, ...]) -> AsyncIterator[Rig]:
    behind = {100 + index: Forward(port) for index, port in enumerate(target_ports)}
    cluster = SandboxCluster((SandboxService("target", behind),))
    link = SandboxLink(cluster)
    link.start()
    await link.ready(10)

    async def cut() -> None:
        for connection in server_connections(link):
            connection.abort()

    yield Rig(link, "target", tuple(behind), 109, "nobody", cut)
    await link.close()


def server_connections(link: SandboxLink) -> list[object]:
    """The sandbox's own end of the SSH connection."""
    return [link._carrier.connection] if link._carrier else []  # type: ignore[attr-defined]


class TestSandbox(LinkContract):
    pass


@pytest.fixture
async def shop() -> AsyncIterator[SandboxLink]:
    services = (
        SandboxService("web", {80: Page("hello"), 7: Echo()}),
        SandboxService("api", {8080: Page()}, environment={"LOG": "debug"}, files={"/etc/api.toml": "a = 1"}),
    )
    link = SandboxLink(SandboxCluster(services, namespace="shop", aliases={"db.vpc.internal": "api"}))
    link.start()
    yield link
    await link.close()


async def get(link: SandboxLink, host: str, port: int, path: str) -> bytes:
    reader, writer = await link.open(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    await ended(writer)
    return answer.partition(b"\r\n\r\n")[2]


async def test_services_answer_by_every_name_and_by_address(shop: SandboxLink) -> None:
    address = shop.backend.addresses()["web"]
    for host in ("web", "web.shop", "web.shop.svc", "WEB.shop.svc.cluster.local.", address):
        assert await get(shop, host, 80, "/") == b"hello"
    said = json.loads(await get(shop, "db.vpc.internal", 8080, "/orders?limit=1"))
    assert (said["service"], said["path"]) == ("api", "/orders?limit=1")


async def test_its_resolver_knows_its_names_and_no_others(shop: SandboxLink) -> None:
    addresses = shop.backend.addresses()
    answer = await shop.lookup("web.shop.svc.cluster.local")
    assert answer.answer[0][0].address == addresses["web"]
    assert (await shop.lookup("db.vpc.internal")).answer[0][0].address == addresses["api"]
    backward = await shop.lookup(f"{'.'.join(reversed(addresses['api'].split('.')))}.in-addr.arpa", "PTR")
    assert backward.answer[0][0].target.to_text() == "api.shop.svc.cluster.local."
    assert (await shop.lookup("nobody.shop.svc.cluster.local")).rcode() == 3  # NXDOMAIN
    no_data = await shop.lookup("web.shop.svc.cluster.local", "AAAA")
    assert (no_data.rcode(), no_data.answer) == (0, [])
    assert no_data.authority[0].rdtype == 6  # SOA: how long "there is none" holds
    assert (await shop.resolver()).search[0] == "shop.svc.cluster.local"
