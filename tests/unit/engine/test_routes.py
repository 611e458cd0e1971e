"""Where a connection goes: here, through the link, or out from the host."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from devloop.engine.names import Names
from devloop.engine.routes import Routes
from devloop.net.router import Destination, Dial, HostLoopback, RefusedError, ToLink, ToService
from devloop.remote.catalog import Catalog, ClusterService, ListedWorkload, ServicePort
from devloop.remote.link import OpenError, Refusal
from devloop.remote.standing import Domain, Standings
from tests.unit.core.playbook import service

from .fakes import FakeLink

SEARCH = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local")
UDP = (ServicePort("statsd", 8125, 9125), ServicePort("dns", 53, 5353))
HEADLESS = "nodes.shop.svc.cluster.local"


class Rig:
    def __init__(self, *local: str, networks: tuple[str, ...] = (), routed: bool = False) -> None:
        http = ServicePort("http", 80, 8080)
        catalog = Catalog(
            "shop",
            (
                ClusterService("api", "shop", ("10.96.0.5", "fd00::5"), (http,), {"app": "api"}),
                ClusterService("web", "shop", ("10.96.0.6",), (http,), {"app": "web"}),
                ClusterService("nodes", "shop", (), (ServicePort("", 6379, 6379),), {"app": "store"}),
                ClusterService("stats", "shop", ("10.96.0.7",), (), {"app": "api"}, udp=UDP),
            ),
            {
                f"deployment/{name}": ListedWorkload(f"deployment/{name}", {"app": name})
                for name in ("api", "web", "store")
            },
        )
        services = [service("api", ports={"http": 7081}), service("store", ports={"redis": 6379}), service("new")]
        self.standings = Standings(services, {"shop": catalog}, Domain.of("shop", SEARCH))
        self.local = set(local)
        self.link = FakeLink(f"{HEADLESS} 5 A 10.244.0.7")
        names = Names(self.link, lambda: self.standings, self.is_local, ())  # type: ignore[arg-type]
        self.names = names
        self.routes = Routes(
            self.link,  # type: ignore[arg-type]
            names,
            lambda: self.standings,
            self.is_local,
            self.ports,
            networks,
            lambda _: routed,
        )

    def is_local(self, name: str) -> bool:
        return name in self.local

    async def ports(self, name: str) -> Any:
        return f"ports of {name}"

    async def to(self, address: str, port: int) -> Any:
        return await self.routes.route("web", Destination(address, port))

    def virtual(self, name: str) -> str:
        return self.standings.by_service[name].virtual


async def test_a_toggle_moves_the_next_connection() -> None:
    rig = Rig()
    assert await rig.to("10.96.0.5", 80) == ToLink(rig.link, "10.96.0.5", 80)  # type: ignore[arg-type]
    rig.local.add("api")
    for address in ("10.96.0.5", "fd00::5"):
        assert await rig.to(address, 80) == ToService("ports of api", 7081)  # type: ignore[arg-type]
    rig.local.clear()
    assert await rig.to("10.96.0.5", 80) == ToLink(rig.link, "10.96.0.5", 80)  # type: ignore[arg-type]


async def test_a_port_that_its_service_does_not_have_is_the_clusters_to_refuse() -> None:
    rig = Rig("api")
    assert await rig.to("10.96.0.5", 81) == ToLink(rig.link, "10.96.0.5", 81)  # type: ignore[arg-type]


async def test_localhost_is_the_hosts() -> None:
    assert await Rig().to("127.0.0.1", 5432) == HostLoopback(5432, "127.0.0.1")
    assert await Rig().to("::1", 5432) == HostLoopback(5432, "::1")


async def test_the_internet_and_the_hosts_own_networks_are_reached_from_the_host() -> None:
    assert await Rig().to("93.184.216.34", 443) == Dial("93.184.216.34", 443)
    assert await Rig(routed=True).to("192.168.1.9", 22) == Dial("192.168.1.9", 22)
    assert await Rig().to("169.254.169.254", 80) == Dial("169.254.169.254", 80)


async def test_private_addresses_that_the_host_knows_no_way_to_are_the_clusters() -> None:
    rig = Rig()
    assert isinstance(await rig.to("10.244.3.4", 8080), ToLink)
    assert isinstance(await rig.to("fd00:1::9", 8080), ToLink)


async def test_what_the_resolver_has_given_and_what_is_configured_goes_through_the_link() -> None:
    rig = Rig(networks=("192.168.0.0/16", "203.0.113.0/24"), routed=True)
    assert isinstance(await rig.to("192.168.1.9", 5432), ToLink)
    assert isinstance(await rig.to("203.0.113.7", 5432), ToLink)
    assert isinstance(await rig.to("10.20.0.9", 5432), Dial)
    rig.names.seen["10.20.0.9"] = "db.rds.internal"
    assert isinstance(await rig.to("10.20.0.9", 5432), ToLink)


async def test_an_address_of_devloops_own_goes_on_to_lead_there_after_a_toggle() -> None:
    rig = Rig("store")
    address = rig.virtual("store")
    assert await rig.to(address, 6379) == ToService("ports of store", 6379)  # type: ignore[arg-type]
    rig.local.clear()
    assert await rig.to(address, 6379) == ToLink(rig.link, "10.244.0.7", 6379)  # type: ignore[arg-type]


async def test_what_is_neither_here_nor_there_is_refused() -> None:
    rig = Rig()
    with pytest.raises(RefusedError, match="no address in the remote"):
        await rig.to(rig.virtual("new"), 80)


async def test_the_port_on_the_host_leads_to_it_wherever_it_is() -> None:
    rig = Rig("api", "store")
    assert await rig.routes.front("api", 7081) == ToService("ports of api", 7081)  # type: ignore[arg-type]
    rig.local.clear()
    assert await rig.routes.front("api", 7081) == ToLink(rig.link, "10.96.0.5", 80)  # type: ignore[arg-type]
    assert await rig.routes.front("store", 6379) == ToLink(rig.link, "10.244.0.7", 6379)  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match="no Service of the remote leads to its port 80"):
        await rig.routes.front("new", 80)


async def test_a_service_of_the_cluster_is_here_while_what_it_leads_to_is() -> None:
    rig = Rig("api", "store")
    assert await rig.routes.cluster_service("api", "shop", 80) == ToService("ports of api", 7081)  # type: ignore[arg-type]
    assert await rig.routes.cluster_service("nodes", "shop", 6379) == ToService("ports of store", 6379)  # type: ignore[arg-type]
    rig.local.clear()
    assert await rig.routes.cluster_service("api", "shop", 80) == ToLink(rig.link, "10.96.0.5", 80)  # type: ignore[arg-type]
    assert await rig.routes.cluster_service("nodes", "shop", 1) == ToLink(rig.link, "10.244.0.7", 1)  # type: ignore[arg-type]
    for name, namespace in (("gone", "shop"), ("api", "elsewhere")):
        with pytest.raises(RefusedError, match="no Service"):
            await rig.routes.cluster_service(name, namespace, 80)


async def test_a_name_that_no_resolver_knows_is_left_to_a_host_but_not_to_a_cluster() -> None:
    rig = Rig("store")
    assert await rig.routes.name(HEADLESS, 6379) == ToService("ports of store", 6379)  # type: ignore[arg-type]
    with pytest.raises(RefusedError):
        await rig.routes.name("nobody.shop.svc.cluster.local", 80)
    rig.standings = Standings([], {}, Domain(""))
    assert await rig.routes.name("db.vm", 5432) == ToLink(rig.link, "db.vm", 5432)  # type: ignore[arg-type]


async def test_datagrams_go_where_the_service_is_by_the_ports_that_are_udps() -> None:
    rig = Rig()

    async def to(address: str, port: int) -> Any:
        return await rig.routes.datagrams("web", Destination(address, port))

    there = await to("10.96.0.7", 8125)
    assert there == ToLink(rig.link, "10.96.0.7", 8125)  # type: ignore[arg-type]
    assert await to("10.244.3.4", 514) == ToLink(rig.link, "10.244.3.4", 514)  # type: ignore[arg-type]
    assert await to("93.184.216.34", 443) == Dial("93.184.216.34", 443)
    assert not rig.routes.stale(there)
    rig.local.add("api")
    assert rig.routes.stale(there)
    assert await to("10.96.0.7", 8125) == ToService("ports of api", 9125)  # type: ignore[arg-type]
    # Port 80 of this one is TCP's alone: what the cluster makes of it is the cluster's to say.
    assert await to("10.96.0.5", 80) == ToLink(rig.link, "10.96.0.5", 80)  # type: ignore[arg-type]
    assert rig.routes.is_dns_service("10.96.0.7") and not rig.routes.is_dns_service("10.96.0.5")


class Refusing:
    """A link at whose other end nothing listens at some addresses."""

    def __init__(self, *refused: str, why: Refusal = Refusal.REFUSED) -> None:
        self.refused = refused
        self.why = why
        self.tried: list[str] = []

    async def connect(self, factory: Any, host: str, port: int) -> Any:
        self.tried.append(host)
        if host in self.refused:
            raise OpenError(self.why, host, port, "no")
        return "a transport", factory()


async def test_a_service_of_two_families_is_reached_at_the_address_that_its_pods_listen_on() -> None:
    rig = Rig()
    target = await rig.routes.cluster_service("api", "shop", 80)
    assert isinstance(target, ToLink) and target.also == "fd00::5"
    for link, tried in (
        (Refusing(), ["10.96.0.5"]),
        (Refusing("10.96.0.5"), ["10.96.0.5", "fd00::5"]),
    ):
        side = asyncio.Protocol()
        assert await replace(target, link=link).connect(side) == "a transport"  # type: ignore[arg-type]
        assert link.tried == tried
    for link in (Refusing("10.96.0.5", "fd00::5"), Refusing("10.96.0.5", why=Refusal.LINK_DOWN)):
        with pytest.raises(OpenError):
            await replace(target, link=link).connect(asyncio.Protocol())  # type: ignore[arg-type]
    assert link.tried == ["10.96.0.5"], "a link that is down is not asked twice"


async def test_a_name_that_has_ipv6_addresses_alone_leads_there() -> None:
    rig = Rig()
    rig.link.records = FakeLink(f"{HEADLESS} 5 AAAA fd00:10:244::7").records
    assert await rig.routes.name(HEADLESS, 6379) == ToLink(rig.link, "fd00:10:244::7", 6379)  # type: ignore[arg-type]
    rig.link.records = FakeLink(f"{HEADLESS} 5 A 10.244.0.7", f"{HEADLESS} 5 AAAA fd00:10:244::7").records
    target = await rig.routes.name(HEADLESS, 6379)
    assert isinstance(target, ToLink)
    assert (target.host, target.also) == ("10.244.0.7", "fd00:10:244::7")


async def test_an_ipv6_address_is_reached_through_the_link_or_by_a_route_of_the_hosts() -> None:
    rig = Rig()
    assert rig.routes.reached("fd00::5")
    assert rig.routes.reached("127.0.0.1")
    assert not rig.routes.reached("fe80::1"), "without its interface it leads nowhere"
