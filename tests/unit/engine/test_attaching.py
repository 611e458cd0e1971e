"""What a service of devloop.toml asks for, and its traffic while its workload comes back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from devloop.config.model import Attach, AttachKind, RouteRule
from devloop.engine.attaching import Local, wants
from devloop.errors import UsageError
from devloop.remote.catalog import ClusterService, ListedWorkload, ServicePort
from devloop.remote.standing import Standing
from tests.unit.core.playbook import service

HTTP = ServicePort("http", 80, 8080)
WORKER = Standing(
    "worker",
    "198.19.0.1",
    ListedWorkload("deployment/worker", {"app": "worker"}),
    (ClusterService("worker", "shop", ("10.96.0.5",), (HTTP,), {"app": "worker"}),),
    declared={"http": 8080},
)
MINE = RouteRule(method="GET")
REPLACE = Attach(AttachKind.REPLACE)


def test_a_replace_with_routes_is_refused_for_nobody_would_answer_the_rest() -> None:
    spec = service("worker")
    with pytest.raises(UsageError, match="a replace takes all requests of worker") as problem:
        wants(spec, WORKER, replace(REPLACE, routes=(MINE,)), "ada")
    assert "--kind replace --routes all" in str(problem.value.hint)
    with pytest.raises(UsageError):
        wants(spec, WORKER, replace(REPLACE, routes=(RouteRule(share=50.0),)), "ada")
    for routes in ((), (RouteRule(),)):
        (wanted,) = wants(spec, WORKER, replace(REPLACE, routes=routes), "ada")
        assert wanted.kind == "replace" and not wanted.routes[0].conditional


def standing(*services: ClusterService) -> Standing:
    return replace(WORKER, counterparts=services)


SERVICE = WORKER.counterparts[0]
NODES = replace(SERVICE, name="nodes", addresses=())
INTERCEPT = Attach(AttachKind.INTERCEPT)


def test_the_way_through_the_pods_is_asked_for() -> None:
    spec = service("worker")
    found = wants(spec, standing(SERVICE, NODES), INTERCEPT, "ada")
    assert [(each.service, each.way) for each in found] == [("worker", None), ("nodes", None)]
    asked = wants(spec, standing(SERVICE, NODES), replace(INTERCEPT, way="pods"), "ada")
    assert [(each.service, each.way) for each in asked] == [("worker", "pods"), ("nodes", "pods")]


def test_why_there_is_nothing_to_take() -> None:
    spec = service("worker")
    alias = ClusterService("worker", "shop", (), (), {}, "db.example.com")
    for services, attach, words in (
        ((), INTERCEPT, "no Service of the remote leads to worker"),
        ((alias,), INTERCEPT, "the Service worker is an ExternalName: it is another name of db.example.com"),
        ((replace(SERVICE, ports=()),), INTERCEPT, "leads to one of worker's: worker has none"),
        ((SERVICE,), replace(INTERCEPT, ports={"grpc": None}), r"`ports` names grpc; worker has http \(80\)"),
    ):
        with pytest.raises(UsageError, match=words):
            wants(spec, standing(*services), attach, "ada")


class Ports:
    """A service's ports; its process is there, or not."""

    def __init__(self) -> None:
        self.there = True

    async def get(self) -> Ports:
        return self

    async def open(self, port: int) -> Any:
        if not self.there:
            raise ConnectionRefusedError
        raise AssertionError("connected")


async def test_requests_wait_while_the_workload_comes_back_and_are_refused_when_it_is_there() -> None:
    """Refused is what sends them on to the original's pods; before these are ready it would be an error."""
    ports, heard = Ports(), []

    async def end() -> None:
        ports.there = False
        local.set_running(False)  # as the engine does when a process ends

    local = Local(ports.get, end)
    local.set_running(True)
    local.subscribe(lambda: heard.append(local.running))
    over = await local.stop()
    assert local.running and heard == [], "the agent would send requests to pods that are not there"
    asked = asyncio.ensure_future(local.connect(cast(Any, None), 8080))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not asked.done()
    over()
    with pytest.raises(ConnectionRefusedError):
        await asked
    assert heard == [False]
    # The next process takes connections again.
    ports.there = True
    with pytest.raises(AssertionError, match="connected"):
        await local.connect(cast(Any, None), 8080)


async def test_one_that_can_not_be_stopped_makes_nobody_wait() -> None:
    async def end() -> None:
        raise OSError("no")

    local = Local(Ports().get, end)
    with pytest.raises(OSError, match="no"):
        await local.stop()
    with pytest.raises(AssertionError, match="connected"):
        await local.connect(cast(Any, None), 8080)
