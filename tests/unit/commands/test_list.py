"""`devloop list`: who holds what, from the leases and the Services' records."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from devloop.agent import objects
from devloop.agent.spec import Header, Match, Route, Spec
from devloop.commands.holdings import LEASE, holdings, moment
from devloop.commands.list import document, notes, survey, table
from devloop.config.model import Mode
from devloop.remote.workload import references as kinds
from devloop.remote.workload.fake import FakeCluster
from tests.unit.core import playbook

SINCE = "2026-01-02T11:12:00Z"
BLUE = Route((Header("x-team", Match("exact", "blue")),))


def spec(id: str, user: str = "bob", service: str = "api", **more: Any) -> Spec:
    fields = {"kind": "intercept", "ports": {80: 8080}, **more}
    return Spec(id, user, "studio", since=SINCE, service=service, **fields)


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
async def cluster() -> FakeCluster:
    found = FakeCluster()
    for name in ("api", "worker"):
        template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": []}}
        body = {"metadata": {"name": name}, "spec": {"replicas": 1, "template": template}, "status": {}}
        await found.put(kinds.DEPLOYMENT, body)
    await found.put(kinds.SERVICE, service("api"))
    return found


def service(name: str) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80, "targetPort": 8000}]
    return {"metadata": {"name": name, "uid": f"uid-{name}"}, "spec": {"selector": {"app": name}, "ports": ports}}


async def attach(cluster: FakeCluster, *specs: Spec, ago: float = 1.0) -> None:
    """As `devloop.attach` writes it: the lease, the shadow, the Service."""
    renewed = objects.stamp(datetime.now(UTC) - timedelta(seconds=ago))
    for each in specs:
        lease = objects.lease(each, replicas=2 if each.workload else None)
        lease["spec"]["renewTime"] = renewed
        await cluster.put(LEASE, lease)
        if each.service:
            found = dict(await cluster.get(kinds.SERVICE, each.service))
            held = objects.record(found)
            await cluster.put(kinds.SERVICE, objects.shadow(found))
            holders = {**(held.holders if held else {}), each.id: each.document()}
            await cluster.put(kinds.SERVICE, objects.swapped(found, {80: 20000}, holders))


async def test_nobody_holds_anything(cluster: FakeCluster) -> None:
    found = await survey(cluster)
    data = document(found, {}, {})
    assert [each["held_by"] for each in data["workloads"]] == [[], []]
    assert (data["attachments"], data["held_by_nobody"], notes(found)) == ([], [], [])
    assert table(found, {}, {}).splitlines()[1].split() == ["deployment/api", "0/1", "api:80"]


async def test_an_intercepted_service_is_listed_with_its_workload_and_who_holds_it(cluster: FakeCluster) -> None:
    await attach(cluster, spec("one", routes=(BLUE,)), spec("two", user="ada", routes=(Route(share=10.0),)))
    found = await survey(cluster)
    rows = table(found, {}, {}).splitlines()
    held = "bob@studio intercept x-team=blue since 02 Jan 11:12"
    assert rows[1].split(maxsplit=3) == ["deployment/api", "0/1", "api:80", held]
    assert rows[2].strip() == "ada@studio intercept 10 % of all requests since 02 Jan 11:12"
    assert "devloop" not in table(found, {}, {}), "the shadow is nothing that people know"
    [api, worker] = document(found, {}, {})["workloads"]
    assert api["services"] == [{"name": "api", "ports": [80]}]
    first = api["held_by"][0]
    assert (first["user"], first["host"], first["kind"], first["since"]) == ("bob", "studio", "intercept", SINCE)
    assert (first["routes_text"], first["ports"], first["alive"]) == ("x-team=blue", {"80": 8080}, True)
    assert worker["held_by"] == []


async def test_a_replaced_workload_is_held_though_no_traffic_is_taken(cluster: FakeCluster) -> None:
    await attach(cluster, spec("one", kind="replace", service="", ports={}, workload="deployment/worker"))
    found = await survey(cluster)
    assert "bob@studio replace since 02 Jan 11:12" in table(found, {}, {})
    assert [len(each["held_by"]) for each in document(found, {}, {})["workloads"]] == [0, 1]


async def test_who_has_gone_is_told_with_what_to_do(cluster: FakeCluster) -> None:
    await attach(cluster, spec("one"), ago=75)
    found = await survey(cluster)
    assert "gone for 45 s" in table(found, {}, {})
    assert document(found, {}, {})["attachments"][0]["alive"] is False
    assert "bob@studio has gone: `devloop leave --take-over`" in notes(found)[0]


async def test_what_nobody_holds_and_what_stands_for_nothing_is_told(cluster: FakeCluster) -> None:
    await attach(cluster, spec("one"))
    await cluster.delete(LEASE, "devloop-one")
    await cluster.put(kinds.SERVICE, service("lone"))
    await attach(cluster, spec("two", service="lone"))
    lost = service("lost")
    lost["spec"]["selector"] = dict(objects.AGENT_SELECTOR)
    await cluster.put(kinds.SERVICE, lost)
    found = await survey(cluster)
    assert found.nobodys == {"api": True, "lost": False}
    text = "\n".join(notes(found))
    assert "holds all requests of lone (intercept)" in text and "no workload here stands behind it" in text
    assert "Service api leads to devloop's agent, and nobody holds it: `devloop leave --take-over` puts it back" in text
    assert "Service lost leads to devloop's agent, and nobody holds it: it does not say" in text


async def test_leases_that_may_not_be_listed_are_named(cluster: FakeCluster) -> None:
    await attach(cluster, spec("one"))
    cluster.forbidden.add(("list", "leases"))
    found = await survey(cluster)
    assert notes(found) == ["you may not list: leases (the Role devloop-attach)"]
    assert document(found, {}, {})["unseen"] == ["leases"]
    assert found.nobodys == {}, "it is not known"


def test_times_are_those_of_a_clock() -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    assert moment(now.strftime("%Y-%m-%dT%H:%M:%SZ")) == now.strftime("%H:%M")
    assert moment("soon") == "soon"


def test_a_lease_that_nobody_can_read_is_passed_over() -> None:
    assert holdings([{"metadata": {"name": "x", "annotations": {objects.SPEC: "{"}}, "spec": {}}]) == []


async def test_a_service_has_the_mode_that_it_has_now(cluster: FakeCluster) -> None:
    """devloop.toml says how it starts; the engine, how it is."""
    found = await survey(cluster)
    services = {"deployment/api": playbook.service("api", mode=Mode.REMOTE)}
    assert "api (remote, not up)" in table(found, services, {})
    assert "api (local)" in table(found, services, {"api": "local"})
    assert [each["mode"] for each in document(found, services, {"api": "local"})["workloads"]] == ["local", None]
    assert document(found, services, {})["workloads"][0]["mode"] is None
