"""What a service of devloop.toml asks for, and its traffic while its workload comes back."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import Any, cast

import pytest

from devloop.config.model import Attach, AttachKind, Matching, RouteRule
from devloop.engine.asked import asked
from devloop.engine.attaching import wants
from devloop.engine.local_end import GRACE_SECONDS, Local
from devloop.errors import UsageError
from devloop.net.listeners import Listener
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


DNS = replace(
    SERVICE,
    ports=(ServicePort("dns-tcp", 53, 5353),),
    udp=(ServicePort("dns", 53, 5353), ServicePort("stats", 8125, 9125)),
)
ALL = Attach(AttachKind.INTERCEPT, routes=(RouteRule(),), way="pods")


@pytest.mark.parametrize(
    ("attach", "ports"),
    [
        (INTERCEPT, {53: 8080}),
        (ALL, {53: 8080, "53/udp": 5353, "8125/udp": 9125}),
        (replace(ALL, way=""), {53: 8080}),
        (replace(ALL, routes=()), {53: 8080}),
        (replace(ALL, ports={"dns": None}), {"53/udp": 5353}),
        (replace(ALL, ports={"53": None}), {53: 8080}),
        (replace(ALL, ports={"53/udp": 1, "8125": None}), {"53/udp": 1, "8125/udp": 9125}),
        (replace(INTERCEPT, ports={"stats": 7}), {"8125/udp": 7}),
    ],
)
def test_ports_of_udp_are_taken_with_all_of_it_in_the_pods_or_when_named(attach: Attach, ports: Any) -> None:
    (wanted,) = wants(service("worker"), standing(DNS), attach, "ada")
    assert dict(wanted.ports) == ports


def test_a_service_of_udp_alone_is_asked_for_so_that_it_is_refused_with_the_reason() -> None:
    (wanted,) = wants(service("worker"), standing(replace(DNS, ports=())), INTERCEPT, "ada")
    assert dict(wanted.ports) == {"53/udp": 5353, "8125/udp": 9125}


def test_why_there_is_nothing_to_take() -> None:
    spec = service("worker")
    alias = ClusterService("worker", "shop", (), (), {}, "db.example.com")
    for services, attach, words in (
        ((), INTERCEPT, "no Service of the remote leads to worker"),
        ((alias,), INTERCEPT, "the Service worker is an ExternalName: it is another name of db.example.com"),
        ((replace(SERVICE, ports=()),), INTERCEPT, "leads to one of worker's: worker has none"),
        ((SERVICE,), replace(INTERCEPT, ports={"grpc": None}), r"`ports` names grpc; worker has http \(80\)"),
        ((DNS,), replace(INTERCEPT, ports={"x": None}), r"dns-tcp \(53\) and dns \(53/udp\) and stats \(8125/udp\)"),
    ):
        with pytest.raises(UsageError, match=words):
            wants(spec, standing(*services), attach, "ada")


def test_what_is_no_route_is_a_mistake_and_no_fault() -> None:
    spec = service("worker")
    for rule in (RouteRule({"bad name": Matching("exact", "x")}), RouteRule(path=Matching("regex", "("))):
        with pytest.raises(UsageError):
            wants(spec, WORKER, replace(INTERCEPT, routes=(rule,)), "ada")


def test_what_a_client_asks_for_goes_before_what_the_file_says() -> None:
    file = replace(INTERCEPT, routes=(MINE,), ports={"http": None})
    assert asked({}).of(file) == file
    assert asked({}).of(Attach()) == INTERCEPT
    assert asked({"routes": "personal"}).of(file).routes == ()
    assert asked({"routes": "all"}).of(file).routes == (RouteRule(),)
    said = {"headers": {"X-User": {"prefix": "a"}}, "path": {"exact": "/v2"}, "method": "get", "share": 10}
    found = asked({"routes": [said], "ports": {"grpc": 5000}, "way": "pods", "kind": "wiretap"}).of(file)
    rule = RouteRule({"x-user": Matching("prefix", "a")}, Matching("exact", "/v2"), "GET", 10.0)
    assert found == Attach(AttachKind.WIRETAP, {"grpc": 5000}, (rule,), way="pods")


@pytest.mark.parametrize(
    "params",
    [
        {"kind": "steal"},
        {"way": "mesh"},
        {"routes": "mine"},
        {"routes": []},
        {"routes": ["x"]},
        {"routes": [{"share": 0.001, "headers": {"a": {"like": "b"}}}]},
        {"routes": [{"share": 200}]},
        {"ports": [80]},
        {"ports": {"http": "x"}},
    ],
)
def test_what_can_t_be_asked_for_is_a_mistake(params: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        asked(params)


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


# Whether anything listens where requests are led to.

HOLD = 10.0


class Looked:
    """A local service at port 8080, looked at now and then."""

    def __init__(self) -> None:
        self.news = 0
        self.end = Local(Ports().get, self._end)
        self.end.expect([8080])
        self.end.set_running(True)
        self.end.set_ready(0.0)
        self.end.subscribe(self._heard)

    async def _end(self) -> None:
        pass

    def _heard(self) -> None:
        self.news += 1

    def at(self, now: float, *listening: int | str, own: bool = True) -> str:
        found = [Listener(*_at(each)) for each in listening]
        self.end.look(found, now, HOLD, own=own)
        return self.end.deaf.get(8080, "")


def test_udp_is_listened_for_by_itself() -> None:
    it = Looked()
    it.end.expect((), [8125])

    def at(now: float, *listening: int | str) -> str:
        found = [Listener(*_at(each)) for each in listening]
        reached = frozenset(each.port for each in found if each.address == "0.0.0.0")
        it.end.look([Listener(8080, "0.0.0.0")], now, HOLD, datagrams=(found, reached))
        return it.end.deaf_datagrams.get(8125, "")

    assert at(0, 8126) == "nothing listens on UDP port 8125; it listens on 8126", "nothing of it waits"
    assert at(2, "127.0.0.1:8125") == "nothing listens on UDP port 8125; it listens on 8125 of 127.0.0.1 alone"
    assert it.news == 2 and not it.end.deaf
    assert at(3, 8125) == "" and it.news == 3
    # A reload has its time; the process after a crash is not waited for.
    assert at(4) == "" and at(5, 8125) == ""
    it.end.set_running(False)
    assert at(6) == "nothing listens on UDP port 8125"
    it.end.set_running(True)
    assert at(7) == "nothing listens on UDP port 8125"
    assert at(8, 8125) == ""
    it.end.look(None, 60, HOLD)
    assert not it.end.deaf_datagrams, "nobody can tell"


def _at(where: int | str) -> tuple[int, str]:
    if isinstance(where, int):
        return where, "0.0.0.0"
    address, _, port = where.rpartition(":")
    return int(port), address


def test_a_ready_service_that_listens_elsewhere_is_deaf_after_a_moment_and_says_where_it_listens() -> None:
    it = Looked()
    assert it.at(GRACE_SECONDS / 2, 9090) == ""
    assert it.at(GRACE_SECONDS, 9090) == "nothing listens on port 8080; it listens on 9090"
    assert it.at(5, 9090, "10.1.2.3:8080") == "nothing listens on port 8080; it listens on 8080 of 10.1.2.3 alone, 9090"
    assert it.at(5, 9090, own=False) == "nothing listens on port 8080", (
        "what else this machine has is nobody's business"
    )
    assert it.news == 3
    assert it.at(6, 8080, 9090) == "", "and by itself it is heard again"
    assert it.news == 4


def test_one_that_has_run_for_long_is_deaf_at_once() -> None:
    assert Looked().at(60) == "nothing listens on port 8080"


def test_a_reload_has_its_time() -> None:
    it = Looked()
    assert it.at(5, 8080) == ""
    it.end.set_ready(None)
    assert it.at(6) == ""
    it.end.set_ready(7.0)  # no probe: ready when it has started
    assert it.at(6 + HOLD - 1) == "", "requests wait"
    assert it.at(6 + HOLD) == "nothing listens on port 8080"
    assert it.at(17, 8080) == ""


def test_a_reloader_within_the_process_has_its_time_too() -> None:
    it = Looked()
    it.at(60, 8080)
    assert it.at(61) == ""


def test_a_process_that_opens_another_port_instead_is_not_waited_for() -> None:
    it = Looked()
    it.at(5, 8080, 6060)
    it.end.set_ready(None)
    it.at(6)
    it.end.set_ready(6.5)
    assert it.at(7, 6060) == "", "the other one was there before"
    assert it.at(7, 6060, 9090) == "nothing listens on port 8080; it listens on 6060, 9090"


def test_one_that_never_gets_ready_holds_requests_up_once() -> None:
    it = Looked()
    it.at(5, 8080)
    it.end.set_ready(None)
    it.at(6, 8080)
    assert it.at(6 + HOLD, 8080) == "it listens on port 8080, but is not ready"
    assert it.at(6 + HOLD, 9090) == "it is not ready, and nothing listens on port 8080; it listens on 9090"


def test_after_a_crash_the_next_process_is_looked_at_anew() -> None:
    it = Looked()
    it.at(5, 8080)
    it.at(6)
    it.end.set_running(False)
    assert it.at(60) == ""
    it.end.set_running(True)
    assert it.at(61) == ""


async def test_connections_that_wait_are_refused_when_it_turns_out_that_nothing_listens() -> None:
    class Waiting(Ports):
        async def open(self, port: int) -> Any:
            await asyncio.Event().wait()

    it = Looked()
    it.end._ports = Waiting().get
    asked = asyncio.ensure_future(it.end.connect(cast(Any, None), 8080))
    await asyncio.sleep(0)
    it.at(GRACE_SECONDS)
    async with asyncio.timeout(5):
        with pytest.raises(ConnectionRefusedError, match="nothing listens on port 8080"):
            await asked
        with pytest.raises(ConnectionRefusedError, match="nothing listens on port 8080"):
            await it.end.connect(cast(Any, None), 8080)


def test_while_it_hands_over_to_its_workload_requests_wait() -> None:
    it = Looked()
    it.at(5, 8080)
    it.end.hand_over()
    assert it.at(60) == ""


async def test_a_connection_to_a_process_that_is_about_to_end_is_closed_and_waits_for_the_pods() -> None:
    made, other = socket.socketpair()

    class Ports:
        async def open(self, port: int) -> socket.socket:
            local.hand_over()
            return made

    async def ports() -> Any:
        return Ports()

    async def end() -> None:
        pass

    local = Local(ports, end)
    waiting = asyncio.create_task(local.connect(asyncio.Protocol, 8080))
    await asyncio.sleep(0)
    with other:
        other.settimeout(5)
        assert other.recv(1) == b""
    local.hand_over().set()
    with pytest.raises(ConnectionRefusedError):
        await waiting
