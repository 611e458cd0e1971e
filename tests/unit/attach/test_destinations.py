"""Where the agent connects to nobody, whoever asks and however the address is written."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from devloop.agent import __main__ as process
from devloop.agent import forward
from devloop.agent.attachments import Attachments
from devloop.agent.datagrams import END, OPEN, Datagrams, Record, Records, destination, written
from devloop.agent.destinations import DENIED, EVERYWHERE, DeniedError, Destinations
from devloop.agent.member import Member, Target
from devloop.agent.pods import PodWay
from devloop.agent.view import RefusedError, View

NODE_LOCAL_DNS = "search shop.svc.cluster.local\nnameserver 169.254.20.10\noptions ndots:5\n"
SOMEBODY = Destinations.of("", NODE_LOCAL_DNS)


@pytest.mark.parametrize("network", [each for each, _ in DENIED])
def test_each_network_is_denied_from_its_first_address_to_its_last(network: str) -> None:
    whole = ipaddress.ip_network(network)
    for number in (int(whole[0]), int(whole[0]) + whole.num_addresses // 2, int(whole[-1])):
        address = str(type(whole[0])(number))
        assert SOMEBODY.denial(address, 80), address
        with pytest.raises(DeniedError, match="DEVLOOP_AGENT_ALLOW can allow it"):
            SOMEBODY.check(address, 80)


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "192.0.0.192", "168.63.129.16"),
        *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fe80::a9fe:a9fe", "fe80::1%eth0"),
        "::ffff:169.254.169.254",  # IPv4-mapped
        "::169.254.169.254",  # IPv4-compatible
        "64:ff9b::a9fe:a9fe",  # NAT64, the well-known prefix
        *("64:ff9b::7f00:1", "64:ff9b::6464:64c8"),
        "64:ff9b:1:fffe::a9fe:a9fe",  # NAT64, prefixes of its own: /96, /48, /56, /64
        *("64:ff9b:1:a9fe:a9:fe00::", "64:ff9b:1:a9:fe:a9fe::", "64:ff9b:1:1:a9:fea9:fe00:0"),
        "2001:db8:64::a9fe:a9fe",  # NAT64, the network's own prefix
        *("2001:db8:64::6464:64c8", "2001:db8:64::a83f:8110"),
        "2002:a9fe:a9fe::1",  # 6to4
        "2001:0:a9fe:a9fe::1",  # Teredo
        *("127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"),
        *("", "localhost", "2852039166", "0xa9fea9fe", "169.254.43518", "169.254.169.254."),  # no addresses
    ],
)
def test_no_way_of_writing_it_gets_past(address: str) -> None:
    assert SOMEBODY.denial(address, 80)


@pytest.mark.parametrize(
    "address",
    [
        *("10.96.0.10", "10.244.3.4", "192.168.1.1", "100.64.0.1", "100.100.100.201", "192.0.0.191", "8.8.8.8"),
        *("fd00:10:244::7", "2001:db8::1", "64:ff9b::808:808", "64:ff9b:1:fffe::808:808", "64:ff9b:1:808:8:800::"),
        *("::ffff:10.0.0.1", "fd00:ec3::254", "2002:808:808::1"),
    ],
)
def test_a_cluster_and_the_internet_are_not_denied(address: str) -> None:
    assert SOMEBODY.denial(address, 80) == ""


def test_the_agents_own_resolver_is_reached_at_its_port_and_no_other() -> None:
    assert SOMEBODY.denial("169.254.20.10", 53) == SOMEBODY.denial("::ffff:169.254.20.10", 53) == ""
    assert SOMEBODY.denial("169.254.20.10", 80) and SOMEBODY.denial("169.254.169.254", 53)
    assert Destinations.of("", "nameserver fe80::1%eth0\nnameserver\nnameserver x\n").denial("fe80::1", 53) == ""
    assert Destinations.of("").denial("169.254.20.10", 53)


def test_an_administrator_allows_what_is_needed_and_no_more() -> None:
    some = Destinations.of("169.254.169.254, fd00:ec2::/32")
    allowed = ("169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fd00:ec2::254")
    assert [some.denial(each, 80) for each in allowed] == [""] * 4
    assert some.denial("169.254.170.2", 80) and some.denial("fd20:ce::254", 80)
    assert EVERYWHERE.denial("127.0.0.1", 80) == EVERYWHERE.denial("64:ff9b::a9fe:a9fe", 80) == ""
    with pytest.raises(ValueError, match="host bits"):
        Destinations.of("169.254.1.1/16")
    with pytest.raises(ValueError, match="metadata"):
        Destinations.of("metadata")


def test_its_own_address_is_denied_but_for_what_stands_for_services() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        try:
            made.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but its loopback's")
        own = made.getsockname()[0]
    assert SOMEBODY.denial(own, 2223) == SOMEBODY.denial(own, 19999) == SOMEBODY.denial(own, 30000) == "the agent's own"
    assert SOMEBODY.denial(own, 20000) == SOMEBODY.denial(own, 29999) == ""


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1", "2130706433", "0x7f.1", "0", "::1", "::"])
async def test_a_connection_is_checked_by_the_address_that_its_name_leads_to(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(OSError, match=r"not connected to|not known|No address|not supported"):
            await forward.dial(host, port, SOMEBODY)
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.accept()


async def test_a_name_is_denied_if_one_of_its_addresses_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(*asked: object, **more: object) -> list[object]:
        return [(0, 0, 0, "", (each, 80)) for each in ("10.0.0.1", "169.254.169.254")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", answer)
    with pytest.raises(DeniedError, match=r"169\.254\.169\.254"):
        await forward.dial("rebinding.example.com", 80, SOMEBODY)


async def test_datagrams_are_checked_too() -> None:
    said = bytearray()

    class Channel:
        def write(self, data: bytes) -> None:
            said.extend(data)

    session = Datagrams(Channel(), SOMEBODY)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        for number, address in enumerate(("127.0.0.1", "::ffff:169.254.169.254", "224.0.0.1", "fd00:ec2::123")):
            session.received(written(Record(OPEN, number, destination(address, server.getsockname()[1]))))
    answers = list(Records().read(bytes(said)))
    assert [(each.kind, each.flow) for each in answers] == [(END, number) for number in range(4)]
    assert all(b"is not connected to" in each.body for each in answers) and not len(session)
    session.ended()


@pytest.mark.parametrize("address", ["169.254.169.254", "fd00:ec2::254", "127.0.0.1", "::ffff:127.0.0.1"])
async def test_a_pod_that_an_engine_names_is_at_no_such_address(address: str, tmp_path: Path) -> None:
    """Envoy connects to a pod's other address at a port that its door has named."""
    ways = PodWay(tmp_path, lambda: (), lambda: None, SOMEBODY)
    target = {"uid": "u", "name": "mine", "addresses": ["10.0.0.1", address], "ports": {"80": 8080}}
    assert Target.read(target).addresses
    member: Member = object()  # type: ignore[assignment]
    with pytest.raises(RefusedError, match=r"pod mine: .* is not connected to"):
        await ways.ask(member, [target])


@pytest.mark.parametrize("address", ["169.254.169.254", "127.0.0.1", "localhost", "metadata.google.internal"])
async def test_what_an_engine_has_the_agent_look_at_is_at_no_such_address(address: str, tmp_path: Path) -> None:
    """`hello` connects to where a developer says that the original is reached; it takes addresses alone."""
    made = Attachments(None, tmp_path, "", SOMEBODY)
    with pytest.raises(RefusedError, match="is not connected to"):
        await made.look("web", {443: (("10.0.0.1", 443), (address, 443))}, "example.com")


def test_endpoints_at_such_addresses_are_left_out() -> None:
    class Watched:
        forbidden = False

        def __init__(self, *objects: dict[str, object]) -> None:
            self.objects = dict(enumerate(objects))

    def slice_of(family: str, *addresses: str) -> dict[str, object]:
        ends = [{"addresses": [each], "targetRef": {"uid": f"u{at}"}} for at, each in enumerate(addresses)]
        labels = {"kubernetes.io/service-name": "web-devloop"}
        return {
            "metadata": {"labels": labels},
            "addressType": family,
            "ports": [{"name": "http", "port": 80}],
            "endpoints": ends,
        }

    view = View(None, lambda: None, SOMEBODY)
    service = {"metadata": {"name": "web"}, "spec": {"ports": [{"name": "http", "port": 80}], "ipFamilies": ["IPv4"]}}
    ones = slice_of("IPv4", "10.0.0.1", "168.63.129.16", "10.0.0.3")
    others = slice_of("IPv6", "fd00:ec2::254", "fd00:77::2", "fd00:77::3")
    view._services, view._slices = Watched(), Watched(ones, others)  # type: ignore[assignment]
    view._services.objects = {"web": service}
    assert view.pods("web", 80) == [("10.0.0.1", 80), ("10.0.0.3", 80)]
    assert view.also("web") == {"168.63.129.16": "fd00:77::2", "10.0.0.3": "fd00:77::3"}


async def test_the_agents_process_denies_all_of_that_unless_its_manifest_allows_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[Destinations] = []

    @asynccontextmanager
    async def serve(*arguments: object, destinations: Destinations, **more: object) -> AsyncIterator[int]:
        made.append(destinations)
        yield 0

    async def published(*arguments: object) -> None:
        """Nobody is there to read a host key."""

    monkeypatch.setattr(process, "serve", serve)
    monkeypatch.setattr(process, "_published", published)
    monkeypatch.setenv("DEVLOOP_AGENT_READY", str(tmp_path / "ready"))
    for allowed in ("", "169.254.170.2"):
        monkeypatch.setenv("DEVLOOP_AGENT_ALLOW", allowed)
        await process.run()
    first, second = made
    assert first.denial("169.254.169.254", 80) and first.denial("127.0.0.1", 80) and first.denial("169.254.170.2", 80)
    assert second.denial("169.254.169.254", 80) and second.denial("169.254.170.2", 80) == ""
