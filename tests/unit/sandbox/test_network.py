"""Which pod a connection goes to, and what names mean, from the objects alone."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import Any

import pytest

from devloop.net.router import Destination, Dial, RefusedError
from devloop.remote.link import OpenError, Refusal
from devloop.remote.workload import references as kinds
from devloop.sandbox import controllers, network
from devloop.sandbox.endpoints import slices
from devloop.sandbox.network import Network, PodNames, PodRouter, give_addresses
from devloop.sandbox.objects import ENDPOINT_SLICE, Objects
from devloop.sandbox.status import State, is_ready, phase, status


class FakePod:
    """Notes what it was asked for."""

    def __init__(self) -> None:
        self.coming = False
        self.asked: list[int] = []

    async def connect(self, port: int) -> socket.socket:
        self.asked.append(port)
        if port == 9:
            raise ConnectionRefusedError
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours


class Shop:
    """A Service `web` with two pods, and one that has no address of its own."""

    def __init__(self) -> None:
        self.objects = Objects("shop")
        self.pods: dict[str, FakePod] = {}
        self.network = Network(self.objects, self.pods.get)
        self.network.opened.set()
        ports = [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]
        ports.append({"name": "odd", "port": 81, "targetPort": 9, "protocol": "TCP"})
        services: list[dict[str, Any]] = [
            {"metadata": {"name": "web"}, "spec": {"type": "ClusterIP", "selector": {"app": "web"}, "ports": ports}},
            {
                "metadata": {"name": "nodes"},
                "spec": {"type": "ClusterIP", "selector": {"app": "web"}, "clusterIP": "None", "clusterIPs": ["None"]},
            },
            {"metadata": {"name": "out"}, "spec": {"type": "ExternalName", "externalName": "db.example.org"}},
            {"metadata": {"name": "none"}, "spec": {"type": "ClusterIP", "selector": {"app": "none"}, "ports": ports}},
        ]
        for each in give_addresses(list(services)):
            self.objects.put(kinds.SERVICE, each)
        template = {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "main", "ports": [{"name": "http", "containerPort": 8000}]}]},
        }
        owner = {
            "metadata": {"name": "web", "uid": "1"},
            "spec": {"replicas": 2, "serviceName": "nodes", "template": template},
        }
        for made in controllers.pods(kinds.STATEFUL_SET, owner, random.Random(1)):
            self.objects.put(kinds.POD, made.object)
            self.pods[made.object["metadata"]["name"]] = FakePod()
        self.ready("web-0", "web-1")

    def ready(self, *names: str) -> None:
        """These pods are ready, and no others."""
        for index, item in enumerate(self.objects.all(kinds.POD)):
            state = State("main", "", "main", {"running": {}}, ready=item["metadata"]["name"] in names)
            self.objects.put(kinds.POD, {**item, "status": status([state], f"10.244.0.{10 + index}", "t", "t")})
        for service in self.objects.all(kinds.SERVICE):
            for each in slices(service, self.objects.all(kinds.POD)):
                self.objects.put(ENDPOINT_SLICE, each)

    async def asks(self, host: str, port: int, times: int = 1) -> list[tuple[str, int]]:
        """Which pods so many connections go to."""
        for _ in range(times):
            found = await self.network.connect(host, port)
            assert isinstance(found, socket.socket)
            found.close()
        asked = [(name, each) for name, pod in sorted(self.pods.items()) for each in pod.asked]
        for pod in self.pods.values():
            pod.asked.clear()
        return asked

    async def refusal(self, host: str, port: int) -> Refusal:
        with pytest.raises(OpenError) as refused:
            await self.network.connect(host, port)
        return refused.value.refusal


async def test_a_service_takes_its_pods_in_turn() -> None:
    shop = Shop()
    address = shop.objects.get(kinds.SERVICE, "web")["spec"]["clusterIP"]
    for host in ("web", "web.shop.svc.cluster.local", address):
        assert await shop.asks(host, 80, 4) == [("web-0", 8000)] * 2 + [("web-1", 8000)] * 2


async def test_only_ready_pods_are_taken() -> None:
    shop = Shop()
    shop.ready("web-1")
    assert await shop.asks("web", 80, 3) == [("web-1", 8000)] * 3
    shop.ready()
    assert await shop.refusal("web", 80) is Refusal.REFUSED


async def test_pods_by_name_and_address_on_any_port() -> None:
    shop = Shop()
    shop.ready("web-1")
    assert await shop.asks("web-1.nodes.shop.svc.cluster.local", 7) == [("web-1", 7)]
    assert await shop.asks("10.244.0.10", 7) == [("web-0", 7)]  # ready or not
    assert await shop.asks("nodes", 7) == [("web-1", 7)]  # a headless Service has no ports of its own


async def test_refusals() -> None:
    shop = Shop()
    assert await shop.refusal("web", 82) is Refusal.REFUSED  # no such port
    assert await shop.refusal("web", 81) is Refusal.REFUSED  # nothing listens in the pod
    assert await shop.refusal("none", 80) is Refusal.REFUSED  # no pod at all
    assert await shop.refusal("nobody", 80) is Refusal.UNKNOWN_HOST
    assert await shop.refusal("web.elsewhere", 80) is Refusal.UNKNOWN_HOST
    assert await shop.refusal("10.96.200.200", 80) is Refusal.UNREACHABLE
    del shop.pods["web-0"]
    assert await shop.refusal("10.244.0.10", 80) is Refusal.UNREACHABLE


async def test_a_connection_waits_for_pods_that_are_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop()
    shop.ready()
    shop.pods["web-0"].coming = True
    waiting = asyncio.create_task(shop.asks("web", 80))
    await asyncio.sleep(0)
    assert not waiting.done()
    shop.ready("web-0")
    assert await waiting == [("web-0", 8000)]
    shop.ready()
    monkeypatch.setattr(network, "COMING_SECONDS", 0.01)
    assert await shop.refusal("web", 80) is Refusal.REFUSED


async def test_a_pods_connections_are_routed() -> None:
    shop = Shop()
    router = PodRouter(shop.network)
    assert await router.route("web-0", Destination("93.184.215.14", 443)) == Dial("93.184.215.14", 443)
    with pytest.raises(RefusedError):
        await router.route("web-0", Destination("127.0.0.1", 80))
    refused = await router.route("web-0", Destination("10.244.0.10", 9))
    with pytest.raises(ConnectionRefusedError):
        await refused.connect(asyncio.Protocol())


async def test_names_for_pods() -> None:
    shop = Shop()
    names = PodNames(shop.network)

    async def values(name: str, kind: str) -> list[tuple[str, str]]:
        answer = await names.lookup(name, kind)
        assert answer is not None
        return [(each.type, each.value) for each in answer.records]

    suffix = "shop.svc.cluster.local"
    address = shop.objects.get(kinds.SERVICE, "web")["spec"]["clusterIP"]
    assert await values(f"web.{suffix}", "A") == [("A", address)]
    assert await values(f"web.{suffix}", "AAAA") == []
    nodes = await values(f"nodes.{suffix}", "A")
    assert sorted(nodes) == [("A", "10.244.0.10"), ("A", "10.244.0.11")]  # in any order, as CoreDNS shuffles
    assert await values(f"web-1.nodes.{suffix}", "A") == [("A", "10.244.0.11")]
    assert await values(f"_http._tcp.web.{suffix}", "SRV") == [("SRV", f"0 100 80 web.{suffix}.")]
    assert await values(f"out.{suffix}", "A") == [("CNAME", "db.example.org.")]
    missing = await names.lookup(f"nobody.{suffix}", "A")
    assert missing is not None
    assert not missing.exists
    assert await names.lookup("example.org", "A") is None  # the host's resolvers are asked


async def test_without_pods_each_service_port_says_why() -> None:
    shop = Shop()
    shop.network.not_running = "it is not Linux"
    assert callable(await shop.network.connect("web", 80))
    assert await shop.refusal("web", 82) is Refusal.REFUSED
    assert await shop.refusal("nobody", 80) is Refusal.UNKNOWN_HOST


def test_addresses_are_given_once() -> None:
    made: list[Any] = [
        {"metadata": {"name": name}, "spec": {"type": "ClusterIP", **({"clusterIP": fixed} if fixed else {})}}
        for name, fixed in (("a", ""), ("b", "10.96.0.100"), ("c", "None"), ("d", ""))
    ]
    found = [each["spec"].get("clusterIP") for each in give_addresses(made)]
    assert found == ["10.96.0.101", "10.96.0.100", "None", "10.96.0.102"]


def main(**more: Any) -> State:
    return State("main", "", "main", **more)


RUNS: dict[str, Any] = {"running": {}}


def test_phases() -> None:
    ended: dict[str, Any] = {"terminated": {"exitCode": 0}}
    failed: dict[str, Any] = {"terminated": {"exitCode": 1}}
    assert phase([main()]) == "Pending"
    assert phase([main(state=RUNS)]) == "Running"
    assert phase([main(state={"waiting": {}}, last=failed)]) == "Running"
    assert phase([main(state=ended, over=True)]) == "Succeeded"
    assert phase([main(state=failed, over=True)]) == "Failed"
    assert phase([main(state=ended, over=True), main(state=RUNS)]) == "Running"
    assert phase([State("first", "", "init", failed, over=True), main()]) == "Failed"
    assert is_ready([State("first", "", "init", ended), main(ready=True)])
    assert not is_ready([State("side", "", "sidecar", RUNS), main(ready=True)])


def test_endpoints_of_pods_that_name_a_port_differently() -> None:
    shop = Shop()
    web = shop.objects.get(kinds.SERVICE, "web")
    one, two = shop.objects.all(kinds.POD)
    other = {**two, "spec": {"containers": [{"name": "main", "ports": [{"name": "http", "containerPort": 9000}]}]}}
    ports = [[port["port"] for port in each["ports"]] for each in slices(web, [one, other])]
    assert ports == [[8000, 9], [9000, 9]]
    ended = {**two, "status": {**two["status"], "phase": "Succeeded"}}
    assert [len(each["endpoints"]) for each in slices(web, [one, ended])] == [1]
    hidden = {**web, "spec": {**web["spec"], "publishNotReadyAddresses": True}}
    shop.ready()
    assert slices(hidden, shop.objects.all(kinds.POD))[0]["endpoints"][0]["conditions"]["ready"] is True
