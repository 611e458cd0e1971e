"""What services may depend on: every name, address and port that the remote and the project tell of."""

from __future__ import annotations

from devloop.config.model import Place
from devloop.engine.needs import Need, needs
from devloop.remote.catalog import Catalog, ClusterService, ListedWorkload, ServicePort
from devloop.remote.standing import Domain, Standings
from tests.unit.core.playbook import service

SEARCH = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local")


class Route:
    """Remembers what it is asked."""

    async def cluster_service(self, name: str, namespace: str, port: int) -> str:
        return f"{namespace}/{name}:{port}"

    async def front(self, name: str, port: int) -> str:
        return f"{name}:{port}"


SHOP = Domain.of("shop", SEARCH)


def found(domain: Domain = SHOP) -> dict[str, Need]:
    http = ServicePort("http", 80, 8080)
    shop = Catalog(
        "shop",
        (
            ClusterService("api", "shop", ("10.96.0.5", "fd00::5"), (http, ServicePort("", 81, 81)), {"app": "api"}),
            ClusterService("nodes", "shop", (), (), {"app": "store"}),
        ),
        {"deployment/api": ListedWorkload("deployment/api", {"app": "api"})},
    )
    infra = Catalog("infra", (ClusterService("api", "infra", ("10.96.0.9",), (http,), {}),))
    services = [service("api", ports={"http": 7081}), service("new", ports={"a": 1, "b": 2}, place=Place(names=("n",)))]
    by_name = {each.name: each for each in services}
    catalogs = {"shop": shop, "infra": infra} if domain.cluster else {}
    standings = Standings(services, catalogs, domain)
    return {each.full: each for each in needs(standings, by_name, Route())}  # type: ignore[arg-type]


def test_a_service_of_the_cluster_has_all_of_its_names_and_addresses() -> None:
    api = found()["api.shop.svc.cluster.local"]
    long = {"api.shop", "api.shop.svc", "api.shop.svc.cluster.local"}
    assert api.names("shop") == {"api", *long}
    assert api.names("infra") == long
    assert (api.ports, api.addresses, api.any_port) == ((80, 81), {"10.96.0.5", "fd00::5"}, False)
    assert (api.service, api.here) == ("api", {80: 7081, 81: 81})


def test_the_same_name_in_two_namespaces_is_two() -> None:
    assert {"api.shop.svc.cluster.local", "api.infra.svc.cluster.local"} <= set(found())


def test_what_has_no_address_of_its_own_may_have_any_port() -> None:
    assert found()["nodes.shop.svc.cluster.local"].any_port


async def test_a_service_that_the_remote_does_not_have_is_found_by_its_own_names_and_ports() -> None:
    new = found()["n.shop.svc.cluster.local"]
    assert new.names("shop") == {"n", "n.shop", "n.shop.svc", "n.shop.svc.cluster.local"}
    assert (new.ports, new.service) == ((1, 2), "new")
    assert await new.route(2) == "new:2"
    assert await found()["api.infra.svc.cluster.local"].route(80) == "infra/api:80"


def test_without_a_cluster_names_are_those_of_the_search_domains() -> None:
    api = found(Domain.of("", ("corp.example", "example")))["api"]
    assert api.names("") == {"api", "api.corp.example", "api.example"}
