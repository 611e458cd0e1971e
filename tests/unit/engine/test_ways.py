"""With `network = "ports"`, what of the remote has ports on localhost: what is named, and nothing else."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from devloop.config.model import Condition, Remote, RemoteKind, Service
from devloop.engine.ways import PortsWay
from devloop.remote.catalog import Catalog, ClusterService, ServicePort
from devloop.remote.standing import Domain, Standings
from tests.unit.core.playbook import service

SEARCH = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local")


class Routes:
    """Nothing is asked of it here."""

    async def cluster_service(self, name: str, namespace: str, port: int) -> None: ...

    async def front(self, name: str, port: int) -> None: ...

    def through_link(self, host: str) -> bool:
        return False


@dataclass
class Made:
    way: PortsWay
    web: Service

    @property
    def open(self) -> list[str]:
        """What has a port, without the domain."""
        return sorted(each.replace(".svc.cluster.local", "") for each in self.way.forwarded())

    @property
    def closed(self) -> list[str]:
        return [each.split(".")[0] for each in self.way.closed()]


Make = Callable[..., Made]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[PortsWay] = []

    def new(*, forward: Sequence[str] = (), depends_on: Sequence[str] = (), services: Sequence[Service] = ()) -> Made:
        web = service("web", depends_on=dict.fromkeys(depends_on, Condition.READY))
        names = {"api": "10.96.0.5", "db": "10.96.0.6", "my-cache": "10.96.0.7"}
        listed = [
            ClusterService(
                name, "shop", (address,), (ServicePort("", 80, 8080), ServicePort("", 81, 81)), {"app": name}
            )
            for name, address in names.items()
        ]
        project = {each.name: each for each in (web, *services)}
        setting: Any = SimpleNamespace(
            routes=Routes(),
            remote=Remote(RemoteKind.KUBERNETES, forward=tuple(forward)),
            notice=lambda *words: None,
            project=SimpleNamespace(services=project),
            standings=Standings(project.values(), {"shop": Catalog("shop", tuple(listed))}, Domain.of("shop", SEARCH)),
        )
        way = PortsWay(setting)
        made.append(way)
        way.update()
        return Made(way, web)

    yield new
    for each in made:
        await each.close()


def links(prefix: str, address: str) -> dict[str, str]:
    return {
        f"{prefix}_SERVICE_HOST": address,
        f"{prefix}_SERVICE_PORT": "80",
        f"{prefix}_PORT": f"tcp://{address}:80",
        f"{prefix}_PORT_80_TCP_ADDR": address,
        f"{prefix}_PORT_80_TCP_PORT": "80",
    }


async def test_nothing_is_open_that_nothing_names(make: Make) -> None:
    made = make()
    assert (made.open, made.closed) == ([], ["api", "db", "my-cache"])
    found = made.way.environment(made.web, {"URL": "http://api:80/", "NAME": "db"})
    assert made.open == ["api.shop:80"] and made.closed == ["db", "my-cache"]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", found.env["URL"])
    made.way.update()
    assert made.open == ["api.shop:80"]  # programs that run know it


async def test_links_of_services_open_none_and_lead_where_their_service_is_open(make: Make) -> None:
    made = make()
    env = {**links("API", "10.96.0.5"), **links("MY_CACHE", "10.96.0.7"), "URL": "http://my-cache:81"}
    found = made.way.environment(made.web, env)
    assert made.open == ["my-cache.shop:80", "my-cache.shop:81"] and made.closed == ["api", "db"]
    assert {name: found.env[name] for name in links("API", "")} == links("API", "10.96.0.5")
    assert found.env["MY_CACHE_SERVICE_HOST"] == "127.0.0.1"
    assert found.env["MY_CACHE_SERVICE_PORT"] == str(made.way.forwarded()["my-cache.shop.svc.cluster.local:80"])
    assert not any("API" in note for note in found.notes)


@pytest.mark.parametrize(
    ("forward", "opened"),
    [(("db",), {"db"}), (("db.shop", "api"), {"db", "api"}), (("*",), {"api", "db", "my-cache"}), (("nobody",), set())],
)
async def test_what_is_asked_for_is_open_from_the_beginning(
    make: Make, forward: tuple[str, ...], opened: set[str]
) -> None:
    made = make(forward=forward)
    assert {each.split(".")[0] for each in made.open} == opened


async def test_what_a_service_depends_on_is_open(make: Make) -> None:
    made = make(depends_on=["api"], services=[service("api"), service("db")])
    assert {each.split(".")[0] for each in made.open} == {"api"}


async def test_names_that_a_request_may_be_for(make: Make) -> None:
    own = make().way._is_own
    assert all(map(own, ("api", "api.shop.svc", "api.shop.svc.cluster.local", "pod-0.nodes.shop.svc.cluster.local")))
    assert not any(map(own, ("api.shop", "other", "evil.test", "api.shop.svc.evil.test")))  # `.shop` is for sale
