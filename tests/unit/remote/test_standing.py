"""Names, addresses and ports of the project's services, as others in the remote have them."""

from __future__ import annotations

import asyncio
from typing import Any

from devloop.config.model import Place
from devloop.remote.catalog import Catalog, survey
from devloop.remote.standing import Domain, Standings
from devloop.remote.workload import references as kinds
from devloop.remote.workload.fake import FakeCluster
from tests.unit.core.playbook import service

SEARCH = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local")
DOMAIN = Domain.of("shop", SEARCH)


def a_service(name: str, address: str, *ports: dict[str, Any], selector: str = "") -> dict[str, Any]:
    spec = {"clusterIP": address, "clusterIPs": [address], "ports": list(ports), "selector": {"app": selector or name}}
    return {"metadata": {"name": name}, "spec": spec}


def a_workload(name: str, **ports: int) -> dict[str, Any]:
    containers = [{"name": "main", "ports": [{"name": n, "containerPort": p} for n, p in ports.items()]}]
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": containers}}
    return {"metadata": {"name": name}, "spec": {"template": template}}


def surveyed(**workloads: dict[str, int]) -> FakeCluster:
    cluster = FakeCluster("shop")

    async def fill() -> None:
        for name, ports in workloads.items():
            await cluster.put(kinds.DEPLOYMENT, a_workload(name, **ports))

    asyncio.run(fill())
    return cluster


def catalog(cluster: FakeCluster, *services: dict[str, Any], stateful: tuple[str, ...] = ()) -> Catalog:
    async def fill() -> Catalog:
        for each in services:
            await cluster.put(kinds.SERVICE, each)
        for name in stateful:
            await cluster.put(kinds.STATEFUL_SET, a_workload(name))
        return await survey(cluster)

    return asyncio.run(fill())


HTTP = {"name": "http", "port": 80, "targetPort": "web"}


def test_a_service_stands_for_the_workload_of_its_name_and_the_services_that_select_it() -> None:
    found = catalog(
        surveyed(api={"web": 8080}, other={}),
        a_service("api", "10.96.0.5", HTTP),
        a_service("public", "10.96.0.6", HTTP, selector="api"),
        a_service("other", "10.96.0.7", HTTP),
    )
    standings = Standings([service("api")], {"shop": found}, DOMAIN)
    api = standings.by_service["api"]
    assert api.workload is not None
    assert api.workload.reference == "deployment/api"
    assert [each.name for each in api.counterparts] == ["api", "public"]
    assert standings.by_address["10.96.0.6"] is api
    assert "10.96.0.7" not in standings.by_address
    assert standings.by_name == {}, "the cluster's own addresses are good wherever it runs"


def test_ports_are_matched_by_name_then_by_number() -> None:
    admin = {"name": "admin", "port": 9000, "targetPort": 9001}
    found = catalog(surveyed(api={"web": 8080}), a_service("api", "10.96.0.5", HTTP, admin))
    declared = Standings([service("api", ports={"http": 7081})], {"shop": found}, DOMAIN).by_service["api"]
    assert declared.local_port("10.96.0.5", 80) == 7081
    assert declared.local_port("10.96.0.5", 9000) == 9001
    assert declared.local_port("10.96.0.5", 81) is None
    bare = Standings([service("api")], {"shop": found}, DOMAIN).by_service["api"]
    assert bare.local_port("10.96.0.5", 80) == 8080, "as its container names it"
    there = declared.there(7081)
    assert there is not None
    assert (there[0].name, there[1]) == ("api", 80)
    assert declared.there(1234) is None


def test_ports_of_udp_are_apart_from_those_of_tcp() -> None:
    statsd = {"name": "statsd", "port": 8125, "targetPort": 9125, "protocol": "UDP"}
    dns = {"name": "dns", "port": 53, "targetPort": 5353, "protocol": "UDP"}
    found = catalog(surveyed(api={"web": 8080}), a_service("api", "10.96.0.5", HTTP, statsd, dns))
    standings = Standings([service("api", ports={"http": 7081})], {"shop": found}, DOMAIN)
    api = standings.by_service["api"]
    assert api.local_udp_port("10.96.0.5", 8125) == 9125
    assert (api.local_port("10.96.0.5", 8125), api.local_udp_port("10.96.0.5", 80)) == (None, None)
    assert standings.dns_servers == {"10.96.0.5"}
    named = Standings([service("api", ports={"statsd": 7125})], {"shop": found}, DOMAIN).by_service["api"]
    assert named.local_udp_port("10.96.0.5", 8125) == 7125
    new = Standings([service("new")], {"shop": found}, DOMAIN).by_service["new"]
    assert new.local_udp_port(new.virtual, 8125) == 8125
    system = Standings([], {"kube-system": found}, DOMAIN)
    assert system.dns_servers == frozenset(), "devloop answers in the cluster's resolver's place"


def test_one_port_on_either_side_is_the_same_whatever_it_is_called() -> None:
    found = catalog(surveyed(store={}), a_service("store", "10.96.0.5", {"port": 6379}))
    store = Standings([service("store", ports={"redis": 7379})], {"shop": found}, DOMAIN).by_service["store"]
    assert store.local_port("10.96.0.5", 6379) == 7379


def test_a_headless_service_gets_an_address_of_devloops_own_while_it_is_local() -> None:
    headless = {"metadata": {"name": "nodes"}, "spec": {"clusterIP": "None", "selector": {"app": "store"}, "ports": []}}
    found = catalog(FakeCluster("shop"), headless, stateful=("store",))
    standings = Standings([service("store")], {"shop": found}, DOMAIN)
    store = standings.by_service["store"]
    assert set(standings.by_name) == {
        "nodes.shop.svc.cluster.local",
        "store-0.nodes.shop.svc.cluster.local",
    }
    assert standings.by_address[store.virtual] is store
    assert store.local_port(store.virtual, 6379) == 6379


def test_what_the_remote_does_not_have_is_found_by_its_own_name() -> None:
    standings = Standings([service("new", ports={"http": 8080})], {"shop": Catalog("shop")}, DOMAIN)
    new = standings.by_name["new.shop.svc.cluster.local"]
    assert new.local_port(new.virtual, 8080) == 8080
    assert new.workload is None


def test_a_host_without_a_cluster_completes_names_by_its_search_list() -> None:
    standings = Standings([service("api")], {}, Domain.of("", ("corp.example",)))
    assert set(standings.by_name) == {"api", "api.corp.example"}


def test_the_places_words_win() -> None:
    found = catalog(
        surveyed(web={}, api={"web": 8080}),
        a_service("web", "10.96.0.4", HTTP),
        a_service("api", "10.96.0.5", HTTP),
    )
    places = {
        "front": Place("deploy/web"),
        "alone": Place(none=True),
        "named": Place(none=True, names=("api",)),
    }
    standings = Standings([service(n, place=p) for n, p in places.items()], {"shop": found}, DOMAIN)
    front, alone, named = standings.by_service.values()
    assert [each.name for each in front.counterparts] == ["web"]
    assert (alone.workload, alone.counterparts) == (None, ())
    assert [each.name for each in named.counterparts] == ["api"]


def test_what_may_not_be_listed_is_missing_and_the_rest_is_there() -> None:
    cluster = surveyed(api={})
    cluster.forbidden = {("list", "services"), ("list", "cronjobs")}
    found = catalog(cluster)
    assert found.services == ()
    assert found.by_name("api") is not None


def a_rollout(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": f"rollout-{name}"}, "spec": spec}


def test_a_rollout_stands_before_the_deployment_that_lends_it_its_template() -> None:
    cluster = surveyed(api={"web": 8080})
    own = a_workload("own")["spec"]["template"]

    async def roll() -> None:
        lent = {"kind": "Deployment", "name": "api"}
        await cluster.put(kinds.ROLLOUT, a_rollout("api", workloadRef=lent))
        await cluster.put(kinds.ROLLOUT, a_rollout("lost", workloadRef={**lent, "name": "gone"}))
        await cluster.put(kinds.ROLLOUT, a_rollout("own", template=own))

    asyncio.run(roll())
    found = catalog(cluster, a_service("api", "10.96.0.5", HTTP))
    (api,) = Standings([service("api")], {"shop": found}, DOMAIN).by_service.values()
    assert api.workload is not None and api.workload.reference == "rollout/api"
    assert api.workload.ports == {"web": 8080} and [each.name for each in api.counterparts] == ["api"]
    assert found.by_reference("rollouts.argoproj.io/own") is not None and found.by_reference("ro/lost") is None


async def test_a_rollout_s_running_pod_is_that_of_its_newest_revision() -> None:
    from devloop.remote.workload.find import find

    cluster = FakeCluster("shop")
    deployment = a_workload("api")
    deployment["spec"]["selector"] = {"matchLabels": {"app": "api"}}
    await cluster.put(kinds.DEPLOYMENT, deployment)
    await cluster.put(kinds.ROLLOUT, a_rollout("api", workloadRef={"kind": "Deployment", "name": "api"}))
    owner = [{"kind": "Rollout", "name": "api", "uid": "rollout-api", "controller": True}]
    template = deployment["spec"]["template"]
    for revision, name in ((2, "api-old"), (10, "api-new")):
        meta = {"name": name, "uid": name, "labels": {"app": "api"}, "ownerReferences": owner}
        meta["annotations"] = {"rollout.argoproj.io/revision": str(revision)}
        await cluster.put(kinds.REPLICA_SET, {"metadata": meta, "spec": {}})
        by = [{"kind": "ReplicaSet", "name": name, "uid": name, "controller": True}]
        pod = {"name": f"{name}-1", "uid": f"{name}-1", "labels": {"app": "api"}, "ownerReferences": by}
        await cluster.put(kinds.POD, {"metadata": pod, "spec": template["spec"], "status": {"phase": "Running"}})
    found = await find(cluster, "rollout/api")
    assert found.pod["metadata"]["name"] == "api-new-1"


def test_a_local_headless_service_has_an_address_of_each_family_that_its_name_has() -> None:
    for families, expected in (
        (["IPv4", "IPv6"], {4, 6}),
        (["IPv6"], {6}),
        (None, {4}),  # an API server of before
    ):
        spec = {"clusterIP": "None", "selector": {"app": "store"}, "ports": [], "ipFamilies": families}
        found = catalog(FakeCluster("shop"), {"metadata": {"name": "nodes"}, "spec": spec}, stateful=("store",))
        # What the remote does not have at all gets what its Services have first.
        standings = Standings([service("store"), service("new")], {"shop": found}, DOMAIN)
        for name, versions in (("store", expected), ("new", {min(expected)})):
            standing = standings.by_service[name]
            addresses = {version: standing.virtuals(version) for version in (4, 6)}
            assert {version for version, known in addresses.items() if known} == versions
            for (address,) in filter(None, addresses.values()):
                assert standings.by_address[address] is standing and standing.local_port(address, 6379) == 6379


def test_the_port_of_a_headless_service_is_its_pods() -> None:
    ports = [{"name": "http", "port": 80, "targetPort": 8080}, {"name": "more", "port": 81, "targetPort": "more"}]
    spec = {"clusterIP": "None", "selector": {"app": "api"}, "ports": ports}
    found = catalog(surveyed(api={"more": 9090}), {"metadata": {"name": "api"}, "spec": spec})
    api = Standings([service("api")], {"shop": found}, DOMAIN).by_service["api"]
    assert [(port, there[1] if (there := api.there(port)) else None) for port in (8080, 9090)] == [
        (8080, 8080),
        (9090, 9090),
    ]
    found = catalog(surveyed(api={"more": 9090}), a_service("api", "10.96.0.5", *ports))
    api = Standings([service("api")], {"shop": found}, DOMAIN).by_service["api"]
    assert [there[1] for port in (8080, 9090) if (there := api.there(port))] == [80, 81]
