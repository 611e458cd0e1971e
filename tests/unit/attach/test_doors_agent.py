"""The agent's part: what each door is told, and in which order with Envoy."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from devloop.agent.doors import DoorLostError, tag_of
from devloop.agent.member import Member, Target
from devloop.agent.plan import ServicePlan
from devloop.agent.pods import PodWay
from devloop.agent.spec import Spec
from devloop.agent.uplink import Uplink
from devloop.agent.view import RefusedError


class FakeDoor:
    """A door that does what it is told, and notes it."""

    def __init__(self, uid: str, address: str) -> None:
        self.uid, self.tag, self.address = uid, tag_of(uid), address
        self.places: dict[int, int] = {}
        self.caught: dict[int, int] = {}
        self.datagram_places: frozenset[int] = frozenset()
        self.caught_datagrams: frozenset[int] = frozenset()
        self.problem = ""
        self.no_datagrams = ""
        self.cut_off: dict[int, str] = {}
        self.told: list[str] = []

    async def open(self, ports: Collection[int], datagrams: Collection[int] = ()) -> None:
        if self.problem:
            raise DoorLostError(self.problem)
        self.places = {port: 40000 + port for port in ports}
        self.datagram_places = frozenset(datagrams)

    async def catch(self, ports: Mapping[int, int], datagrams: Collection[int] = ()) -> None:
        if self.caught != ports or self.caught_datagrams != datagrams:
            udp = f" and {sorted(datagrams)}" if self.caught_datagrams or datagrams else ""
            self.told.append(f"catch {dict(ports)}{udp}")
            self.caught, self.caught_datagrams = dict(ports), frozenset(datagrams)

    async def reach(self, back: Any, *, again: bool = False) -> None:
        pass

    def endpoint(self, port: int) -> tuple[str, int] | None:
        return (self.address, self.places[port]) if port in self.places.keys() - self.cut_off.keys() else None

    def catches(self, ports: Any, datagrams: Any) -> bool:
        return self.caught.keys() >= set(ports) and self.datagram_places >= set(datagrams)

    def end(self) -> None:
        self.told.append("end")


def member(user: str, service: str = "web", ports: Mapping[int, int] | None = None) -> Member:
    spec = Spec(user, user, "h", "intercept", user, service, {80: 1}, way="pods")
    found = Member(spec, None, None, 0.0, 0.0)  # type: ignore[arg-type]
    found.targets = {"u0": Target("u0", "web-0", ("10.0.0.1",), ports or {80: 8080})}
    return found


def way(*members: Member) -> tuple[PodWay, list[Member], FakeDoor]:
    held = list(members)
    made = PodWay(Path("/f"), lambda: held, lambda: None)
    door = FakeDoor("u0", "10.0.0.1")
    made._doors.known["u0"] = door  # type: ignore[assignment]
    return made, held, door


async def applied(made: PodWay, *draining: str) -> list[ServicePlan]:
    """As the agent does it, without Envoy."""
    await made.prepare()
    plans = made.plans(lambda service, port: ("http", None))
    await made.catch(draining)
    return plans


async def test_a_door_catches_once_there_is_a_listener_for_its_pod() -> None:
    made, _, door = way(member("ada"))
    assert not made.complete(made._members()[0])
    (plan,) = await applied(made)
    assert plan.pod == tag_of("u0") and plan.name == "web"
    (port,) = plan.ports
    assert port.endpoints == (("10.0.0.1", 48080),)
    assert door.caught == {8080: port.listener}
    assert made.complete(made._members()[0])
    # A second look changes nothing.
    assert await applied(made) == [plan] and door.told == [f"catch {{8080: {port.listener}}}"]


async def test_developers_share_a_door_and_it_ends_when_the_last_has_left_and_nothing_is_on_its_way() -> None:
    made, held, door = way(member("ada"), member("ben"))
    (plan,) = await applied(made)
    assert [each.spec.user for each in plan.locals] == ["ada", "ben"]
    held.pop()
    (plan,) = await applied(made)
    assert [each.spec.user for each in plan.locals] == ["ada"] and len(door.told) == 1
    held.pop()
    # It lets go before Envoy is told anything.
    await made.prepare()
    assert door.told[1:] == ["catch {}"]
    assert await applied(made, door.tag) == [] and "end" not in door.told and made.busy
    await applied(made)
    assert door.told[-1] == "end" and not made.busy


async def test_a_door_that_can_not_work_is_in_no_plan_and_its_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devloop.agent.pods.own_address", lambda: "fd00::9")
    ada = member("ada")
    made, _, door = way(ada)
    door.problem = "nftables: no"
    assert await applied(made) == []
    assert made.standing(ada)["pods"] == {"u0": "nftables: no"}
    door.problem = ""
    await applied(made)
    assert made.standing(ada) == {"agent": "[fd00::9]:19999", "token": made._doors.token, "pods": {"u0": "caught"}}


async def test_a_pods_listener_is_for_the_addresses_that_its_door_may_come_from() -> None:
    ada = member("ada")
    ada.targets = {"u0": Target("u0", "web-0", ("10.0.0.1", "fd00::1"), {80: 8080})}
    made, _, _ = way(ada)
    assert [each.clients for each in await applied(made)] == [("10.0.0.1", "fd00::1")]


@pytest.mark.parametrize("address", ["web-0", "10.0.0.300", ""])
def test_a_pod_whose_address_is_none_is_refused_before_it_is_in_anybodys_way(address: str) -> None:
    with pytest.raises(RefusedError, match="this is no pod"):
        Target.read({"uid": "u0", "name": "web-0", "addresses": [address], "ports": {"80": 8080}})


async def test_two_names_of_one_port_of_a_pod_are_refused() -> None:
    made, held, _ = way(member("ada"))
    made._doors.listen = lambda: done()  # type: ignore[method-assign]
    other = member("ben", "other", {81: 8080})
    targets = [
        {"uid": each.uid, "name": each.name, "addresses": list(each.addresses), "ports": {"81": 8080}}
        for each in other.targets.values()
    ]
    other.targets = {}
    held.append(other)
    with pytest.raises(RefusedError, match="port 8080 of pod web-0 is intercepted by ada@h as the Service web's"):
        await made.ask(other, targets)
    targets[0]["ports"] = {"81": 9090}
    assert await made.ask(other, targets) and not await made.ask(other, targets)


async def done() -> None:
    """Listening."""


async def test_only_pods_that_are_asked_for_may_knock_from_their_addresses() -> None:
    made, _, door = way(member("ada"))
    assert made._expected("u0") == {"10.0.0.1"} and made._expected("u1") == set()
    assert await made.leave()
    assert door.told[-1] == "end" and not made._expected("u0")


def statsd(user: str, fail: Any = "open") -> Member:
    spec = Spec(user, user, "h", "intercept", user, "web", fail=fail, way="pods", datagrams={8125: 1})
    found = Member(spec, object(), None, 0.0, 0.0)  # type: ignore[arg-type]
    found.targets = {"u0": Target("u0", "web-0", ("10.0.0.1",), {}, {8125: 9125})}
    return found


async def test_datagrams_are_caught_while_somebody_takes_them_and_go_by_no_envoy() -> None:
    ada = statsd("ada")
    made, held, door = way(ada)
    assert await applied(made) == [] and door.caught_datagrams == {9125} and made.complete(ada)
    taker = made._taker("u0", 9125)
    assert taker is not None and (taker.connection, taker.id, taker.port) == (ada.connection, "ada", 8125)
    for change in ({"up": False}, {"silent": True}, {"deaf_datagrams": frozenset({8125})}):
        for name, value in change.items():
            before = getattr(ada, name)
            setattr(ada, name, value)
            await applied(made)
            assert door.caught_datagrams == set() and made._taker("u0", 9125) is None and made.complete(ada)
            setattr(ada, name, before)
            await applied(made)
            assert door.caught_datagrams == {9125}
    held.clear()
    await applied(made)
    assert door.caught_datagrams == set() and door.told[-1] == "end"


async def test_datagrams_that_fail_closed_are_the_developers_whoever_is_there() -> None:
    ada = statsd("ada", "closed")
    made, _, door = way(ada)
    ada.up = False
    await applied(made)
    assert door.caught_datagrams == {9125}


async def test_a_udp_port_of_a_pod_is_one_services_and_tcp_of_that_number_is_not_it() -> None:
    made, held, _ = way(statsd("ada"))
    made._doors.listen = lambda: done()  # type: ignore[method-assign]
    spec = Spec("ben", "ben", "h", "intercept", "ben", "other", {81: 1}, way="pods", datagrams={53: 1})
    other = Member(spec, None, None, 0.0, 0.0)  # type: ignore[arg-type]
    held.append(other)
    target = {"uid": "u0", "name": "web-0", "addresses": ["10.0.0.1"], "ports": {"81": 9125}}
    assert await made.ask(other, [target])
    with pytest.raises(RefusedError, match="port 9125/udp of pod web-0 is intercepted by ada@h"):
        await made.ask(other, [{**target, "udp": {"53": 9125}}])


async def test_a_socket_that_can_not_be_made_is_its_own_attachments_trouble(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made, _, _ = way(member("ada"), member("ben"))
    made._folder = tmp_path

    async def listen(uplink: Uplink) -> None:
        if "ada-" in uplink.path.name:
            raise OSError(24, "Too many open files")

    monkeypatch.setattr(Uplink, "listen", listen)
    await made.link(await applied(made))
    assert [len(each.uplinks) for each in made._members()] == [0, 1]


async def test_a_port_without_any_way_to_it_is_not_caught_and_its_reason_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("devloop.agent.pods.own_address", lambda: "10.0.0.9")
    ada = member("ada", ports={80: 8080, 81: 8081})
    made, _, door = way(ada)
    door.cut_off = {8081: "the agent can't listen"}
    await applied(made)
    assert door.caught.keys() == {8080}
    assert made.standing(ada)["pods"] == {"u0": "the agent can't listen"}
