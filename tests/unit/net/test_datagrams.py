"""Flows of UDP: how long they last, how many there are, and what waits, with a clock and a router of the test's own."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from devloop.errors import DevloopError, RemoteError
from devloop.net import datagrams
from devloop.net.datagrams import IDLE_SECONDS, QUIET_SECONDS, RETRY_SECONDS, WAITING, Udp
from devloop.net.router import Destination, ToLink
from devloop.net.rules import PROXY_PORT
from tests.waiting import until

MINE, OTHER = Destination("198.18.0.1", 40000), Destination("198.18.0.1", 40001)
STATSD = Destination("10.96.0.1", 8125)


class Raw:
    """A raw socket that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, Any]] = []
        self.full = False

    def sendto(self, packet: bytes, address: Any) -> None:
        if self.full:
            raise BlockingIOError
        self.sent.append((packet, address))


class Sockets:
    def __init__(self) -> None:
        self.datagrams: Any = None
        self.four = Raw()
        self.raw: Any = {socket.AF_INET: self.four}
        self.addresses = ("198.18.0.1",)


class Way:
    def __init__(self, client: Any) -> None:
        self.client = client
        self.sent: list[bytes] = []
        self.takes = True
        self.closed = False

    def send(self, data: bytes) -> bool:
        if self.takes:
            self.sent.append(data)
        return self.takes

    def close(self) -> None:
        self.closed = True


class Cluster:
    """The router and the link in one."""

    def __init__(self) -> None:
        self.ways: list[Way] = []
        self.open = asyncio.Event()
        self.open.set()
        self.problem: DevloopError | None = None
        self.moved = False
        self.asked = 0

    async def datagrams(self, who: Any, *to: Any) -> Any:
        if isinstance(who, str):
            self.asked += 1
            return ToLink(self, *(to[0].address, to[0].port))  # type: ignore[arg-type]
        await self.open.wait()
        if self.problem is not None:
            raise self.problem
        self.ways.append(Way(who))
        return self.ways[-1]

    def stale(self, target: Any) -> bool:
        return self.moved


class Rig:
    def __init__(self) -> None:
        self.now = 1000.0
        self.lines: list[str] = []
        self.sockets = Sockets()
        self.cluster = Cluster()
        router: Any = self.cluster
        self.udp = Udp("web", self.sockets, router, self.lines.append, clock=lambda: self.now)

    def say(self, data: bytes, client: Destination = MINE, to: Destination = STATSD) -> None:
        self.udp.sent(client, to, data)

    async def way(self, number: int = 0) -> Way:
        await until(lambda: len(self.cluster.ways) > number)
        await asyncio.sleep(0)
        return self.cluster.ways[number]


@pytest.fixture
async def rig() -> Rig:
    return Rig()


async def test_a_flow_is_one_socket_and_one_destination(rig: Rig) -> None:
    rig.say(b"one")
    way = await rig.way()
    rig.say(b"two")
    rig.say(b"", OTHER)
    rig.say(b"dns", MINE, Destination("10.96.0.2", 5353))
    await rig.way(2)
    assert way.sent == [b"one", b"two"]
    assert [each.sent for each in rig.cluster.ways[1:]] == [[b""], [b"dns"]]
    way.client.received(b"answer")
    ((packet, to),) = rig.sockets.four.sent
    assert to == ("198.18.0.1", 0)
    assert packet[12:20] == socket.inet_aton("10.96.0.1") + socket.inet_aton("198.18.0.1")
    assert packet[20:24] == (8125).to_bytes(2, "big") + (40000).to_bytes(2, "big")
    assert packet[28:] == b"answer"


async def test_one_that_is_idle_ends_and_one_that_is_used_either_way_does_not(rig: Rig) -> None:
    rig.say(b"x")
    rig.say(b"x", OTHER)
    first, second = await rig.way(0), await rig.way(1)
    rig.now += IDLE_SECONDS - 1
    second.client.received(b"y")
    rig.now += 2
    rig.udp.expire()
    assert (first.closed, second.closed, len(rig.udp)) == (True, False, 1)
    first.client.received(b"too late")
    assert len(rig.sockets.four.sent) == 1
    rig.now += IDLE_SECONDS - 2
    rig.say(b"x", OTHER)
    rig.now += IDLE_SECONDS - 1
    rig.udp.expire()
    assert not second.closed and second.sent == [b"x", b"x"]
    rig.say(b"again")
    assert (await rig.way(2)).sent == [b"again"]


async def test_at_one_too_many_the_one_that_was_idle_for_the_longest_ends(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datagrams, "MAX_FLOWS", 2)
    rig.say(b"x")
    rig.say(b"x", OTHER)
    first, second = await rig.way(0), await rig.way(1)
    rig.say(b"x")
    rig.say(b"x", Destination("198.18.0.1", 40002))
    assert (first.closed, second.closed, len(rig.udp)) == (False, True, 2)


async def test_what_waits_for_the_link_is_bounded_and_the_newest_stays(rig: Rig) -> None:
    rig.cluster.open.clear()
    for number in range(WAITING + 10):
        rig.say(b"%d" % number)
    large = Destination("10.96.0.2", 514)
    for number in range(40):
        rig.say(bytes([number]) * 60_000, OTHER, large)
    rig.cluster.open.set()
    small, big = await rig.way(0), await rig.way(1)
    assert small.sent == [b"%d" % number for number in range(10, WAITING + 10)]
    assert [each[0] for each in big.sent] == list(range(23, 40)), "a MiB"
    assert len(rig.lines) == 1 and "UDP datagrams were dropped, 1 so far" in rig.lines[0]
    big.takes = False
    rig.now += QUIET_SECONDS
    rig.say(b"x", OTHER, large)
    rig.say(b"x", OTHER, large)
    assert len(rig.lines) == 2 and "dropped, 34 so far" in rig.lines[1]
    assert rig.udp._waiting_bytes == 0


async def test_what_can_not_be_done_is_told_once_and_each_socket_learns_it(rig: Rig) -> None:
    rig.cluster.problem = RemoteError("the link carries TCP alone")
    rig.say(b"x")
    await until(lambda: rig.sockets.four.sent)
    rig.say(b"x")
    rig.say(b"x", OTHER)
    await until(lambda: len(rig.sockets.four.sent) == 3)
    assert rig.lines == ["UDP to 10.96.0.1:8125 is refused: the link carries TCP alone"]
    assert all(packet[9] == socket.IPPROTO_ICMP for packet, _ in rig.sockets.four.sent)
    assert rig.cluster.asked == 2, "not for each datagram"
    rig.now += RETRY_SECONDS
    rig.cluster.problem = None
    rig.say(b"now")
    assert (await rig.way()).sent == [b"now"]


async def test_a_way_that_ends_is_made_anew_by_the_next_datagram(rig: Rig) -> None:
    rig.say(b"one")
    (await rig.way()).client.ended("")
    rig.say(b"two")
    assert (await rig.way(1)).sent == [b"two"]
    (await rig.way(1)).client.ended("No route to host")
    assert rig.lines == ["UDP to 10.96.0.1:8125 is refused: No route to host"]
    assert len(rig.sockets.four.sent) == 1


async def test_a_toggle_moves_the_flow(rig: Rig) -> None:
    rig.say(b"one")
    first = await rig.way()
    rig.cluster.moved = True
    rig.say(b"two")
    second = await rig.way(1)
    assert first.closed and second.sent == [b"two"]


async def test_nobody_who_listens_is_told_to_the_socket(rig: Rig) -> None:
    rig.say(b"one")
    way = await rig.way()
    way.client.refused()
    assert rig.sockets.four.sent[0][0][20:22] == b"\x03\x03"
    rig.say(b"two")
    assert way.sent == [b"one", b"two"] and rig.lines == []


async def test_what_does_not_fit_or_finds_no_room_is_dropped(rig: Rig) -> None:
    rig.say(b"x")
    way = await rig.way()
    way.client.received(bytes(65_508))
    rig.sockets.four.full = True
    way.client.received(b"x")
    assert rig.sockets.four.sent == [] and rig.udp._dropped == 2


async def test_devloops_own_port_is_nobodys(rig: Rig) -> None:
    rig.say(b"x", MINE, Destination("10.96.0.1", PROXY_PORT))
    assert len(rig.udp) == 0


async def test_a_local_service_sees_each_flow_come_from_an_address_of_its_own_and_answers_there(rig: Rig) -> None:
    class Client:
        def __init__(self) -> None:
            self.got: list[bytes] = []

        def received(self, data: bytes) -> None:
            self.got.append(data)

        def refused(self) -> None: ...

        def ended(self, why: str) -> None: ...

    client = Client()
    ways = [rig.udp.peer(8125, client) for _ in range(2)]
    assert all(way.send(b"hello") for way in ways)
    sources = set()
    for packet, _ in rig.sockets.four.sent:
        assert packet[16:20] == socket.inet_aton("198.18.0.1") and packet[22:24] == (8125).to_bytes(2, "big")
        sources.add((socket.inet_ntoa(packet[12:16]), int.from_bytes(packet[20:22], "big")))
    assert len(sources) == 2
    address, port = sources.pop()
    rig.say(b"answer", Destination("198.18.0.1", 8125), Destination(address, port))
    rig.say(b"of another socket", MINE, Destination(address, port))
    rig.say(b"at nobody", Destination("198.18.0.1", 8125), Destination(address, 9))
    assert client.got == [b"answer"] and len(rig.udp) == 0
    for way in ways:
        way.close()
    rig.say(b"late", Destination("198.18.0.1", 8125), Destination(address, port))
    assert client.got == [b"answer"]
