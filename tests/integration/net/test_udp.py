"""UDP out of real namespaces: by a real agent, from the host, to another service; and what is refused."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from devloop.agent import server
from devloop.net.datagrams import IDLE_SECONDS, MAX_FLOWS, Udp
from devloop.net.dns import DnsServer, Resolver
from devloop.net.onhost import HostInner
from devloop.net.publish import WAITING, Gate, Publisher
from devloop.net.router import Destination, Dial, RefusedError, ToLink, ToService
from devloop.remote.life import LiveLink
from devloop.remote.ssh import connect
from devloop.remote.sshcarrier import SshCarrier
from tests.integration.net.conftest import SYSTEM_PYTHON, Cluster, Pod, until
from tests.integration.remote.agent_here import an_agent, live
from tests.unit.net.fakes import FakeUpstream, Zone

pytestmark = pytest.mark.slow

ASK = """
import json, socket, sys
address, port, sizes = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
s.connect((address, port))
got = []
try:
    for size in sizes:
        s.send(b"x" * size)
        got.append(len(s.recv(70000)))
    print(json.dumps(got))
except OSError as error:
    print(type(error).__name__)
"""
BURST = """
import json, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
s.bind(("0.0.0.0", 5060))
first, second = ("10.96.0.1", 5060), ("10.96.0.2", 53053)
for data, to in ((b"a", first), (b"bb", second), (b"", first), (b"dddd", second)):
    s.sendto(data, to)
print(json.dumps(sorted([data.decode(), *source] for data, source in (s.recvfrom(100) for _ in range(4)))))
"""
SERVE = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 8125))
print("bound", flush=True)
while True:
    data, client = s.recvfrom(70000)
    s.sendto(data, client)
"""


WHO = """
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(("::", 8125))
while True:
    data, client = s.recvfrom(70000)
    s.sendto(data + (sys.argv[1] + " " + client[0].replace("::ffff:", "") + " " + str(client[1])).encode(), client)
"""


class Caller:
    """Who sends datagrams in."""

    def __init__(self) -> None:
        self.got: asyncio.Queue[str] = asyncio.Queue()
        self.over = 0

    def received(self, data: bytes) -> None:
        self.got.put_nowait(data.decode())

    def refused(self) -> None: ...

    def ended(self, why: str) -> None:
        self.over += 1

    async def next(self) -> str:
        async with asyncio.timeout(20):
            return await self.got.get()


class Echo(asyncio.DatagramProtocol):
    """Answers from `prefix` on, and knows who has asked."""

    def __init__(self, sock: socket.socket, prefix: bytes = b"") -> None:
        self.sock = sock
        self.prefix = prefix
        self.clients: list[Any] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, client: Any) -> None:
        self.clients.append(client)
        self.sock.sendto(self.prefix + data, client)  # asyncio's own transport sends no empty one


@asynccontextmanager
async def echo(host: str = "127.0.0.1", prefix: bytes = b"") -> AsyncIterator[Echo]:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    sock.setblocking(False)
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: Echo(sock, prefix), sock=sock
    )
    try:
        yield protocol
    finally:
        transport.close()


class Table:
    """A `DatagramRouter`: (address, port) → target."""

    def __init__(self) -> None:
        self.targets: dict[tuple[str, int], Any] = {}

    async def datagrams(self, service: str, destination: Destination) -> Any:
        found = self.targets.get((destination.address, destination.port))
        if found is None:
            raise RefusedError("nothing is there")
        return found

    def stale(self, target: Any) -> bool:
        return False


@asynccontextmanager
async def udp_of(pod: Pod, table: Table, **options: Any) -> AsyncIterator[Udp]:
    made = Udp(pod.name, pod.inside, table, pod.lines.append, **options)
    pod.publisher.datagrams = made
    made.start()
    try:
        yield made
    finally:
        made.close()


@asynccontextmanager
async def an_agents_link(folder: Path) -> AsyncIterator[LiveLink]:
    async with an_agent(folder) as (port, options):

        async def dial(tell: Any) -> SshCarrier:
            return SshCarrier(await connect("127.0.0.1", where="here", port=port, **options), "agent", "here")

        async with live(dial) as link:
            yield link


async def ask(pod: Pod, address: str, port: int, *sizes: int) -> Any:
    out = await pod.python(ASK, address, str(port), json.dumps(sizes))
    return json.loads(out) if out.startswith("[") else out


async def test_sizes_are_kept_by_the_agent_and_a_connected_socket_takes_the_answer(pod: Pod, tmp_path: Path) -> None:
    table, sizes = Table(), (0, 1, 1472, 8192, 65507)
    async with an_agents_link(tmp_path) as link, echo() as four, udp_of(pod, table):
        table.targets["10.96.0.1", 8125] = ToLink(link, "127.0.0.1", four.port)
        assert await ask(pod, "10.96.0.1", 8125, *sizes) == list(sizes)
        assert pod.lines == []


async def test_ipv6(cluster: Cluster, tmp_path: Path) -> None:
    pod, table, sizes = await cluster.pod(), Table(), (0, 1, 1472, 8192, 65488)
    assert pod.inside.ipv6
    async with an_agents_link(tmp_path) as link, echo("::1") as six, udp_of(pod, table):
        table.targets["2001:db8::1", 8125] = ToLink(link, "::1", six.port)
        assert await ask(pod, "2001:db8::1", 8125, *sizes) == list(sizes)


async def test_one_socket_two_destinations_from_a_port_that_is_theirs_too(cluster: Cluster, tmp_path: Path) -> None:
    pod, table = await cluster.pod(), Table()
    async with (
        an_agents_link(tmp_path) as link, echo(prefix=b"1") as one, echo(prefix=b"2") as two, udp_of(pod, table) as udp,
    ):  # fmt: skip
        table.targets["10.96.0.1", 5060] = ToLink(link, "127.0.0.1", one.port)
        table.targets["10.96.0.2", 53053] = ToLink(link, "127.0.0.1", two.port)
        assert json.loads(await pod.python(BURST)) == [
            ["1", "10.96.0.1", 5060], ["1a", "10.96.0.1", 5060],
            ["2bb", "10.96.0.2", 53053], ["2dddd", "10.96.0.2", 53053],
        ]  # fmt: skip
        assert len(udp) == 2
        assert len(set(one.clients)) == len(set(two.clients)) == 1, "one socket of the agent's for each flow"


async def test_an_idle_flow_ends_at_both_ends(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[Any] = []

    class Kept(server.Datagrams):  # type: ignore[name-defined]
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            sessions.append(self)

    monkeypatch.setattr(server, "Datagrams", Kept)
    pod, table, now = await cluster.pod(), Table(), [0.0]
    async with an_agents_link(tmp_path) as link, echo() as four, udp_of(pod, table, clock=lambda: now[0]) as udp:
        table.targets["10.96.0.1", 8125] = ToLink(link, "127.0.0.1", four.port)
        assert await ask(pod, "10.96.0.1", 8125, 5) == [5]
        assert (len(udp), len(sessions[0])) == (1, 1)
        now[0] += IDLE_SECONDS - 1
        udp.expire()
        assert len(udp) == 1
        now[0] += 1
        udp.expire()
        assert len(udp) == 0
        await until(lambda: len(sessions[0]) == 0)
        assert await ask(pod, "10.96.0.1", 8125, 5) == [5]
        assert len(sessions) == 1


async def test_a_port_that_nobody_has_is_refused_as_in_a_pod(cluster: Cluster, tmp_path: Path) -> None:
    pod, table = await cluster.pod(), Table()
    async with an_agents_link(tmp_path) as link, echo() as gone, udp_of(pod, table):
        table.targets["10.96.0.1", 8125] = ToLink(link, "127.0.0.1", gone.port)
        gone.transport.abort()
        await until(lambda: gone.sock.fileno() < 0)
        assert await ask(pod, "10.96.0.1", 8125, 5) == "ConnectionRefusedError"
        assert pod.lines == []


@pytest.mark.parametrize("address", ["10.96.0.9", "2001:db8::9"])
async def test_what_has_no_way_is_refused_at_once_and_told_once(pod: Pod, address: str) -> None:
    async with udp_of(pod, Table()):
        for _ in range(2):
            assert await ask(pod, address, 123, 1) == "ConnectionRefusedError"
        assert pod.lines == [f"UDP to {Destination(address, 123)} is refused: nothing is there"]


async def test_an_agent_of_before_is_told(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "DATAGRAMS", "another word")
    pod, table = await cluster.pod(), Table()
    async with an_agents_link(tmp_path) as link, udp_of(pod, table):
        table.targets["10.96.0.1", 8125] = ToLink(link, "127.0.0.1", 9)
        assert await ask(pod, "10.96.0.1", 8125, 5) == "ConnectionRefusedError"
        what = "this agent carries no UDP, as it is older than this devloop"
        assert pod.lines == [f"UDP to 10.96.0.1:8125 is refused: {what}"]


async def test_a_session_that_breaks_is_made_anew(cluster: Cluster, tmp_path: Path) -> None:
    pod, table = await cluster.pod(), Table()
    async with an_agents_link(tmp_path) as link, echo() as four, udp_of(pod, table) as udp:
        table.targets["10.96.0.1", 8125] = ToLink(link, "127.0.0.1", four.port)
        assert await ask(pod, "10.96.0.1", 8125, 5) == [5]
        carrier: Any = link._carrier
        session = carrier._datagrams.result()
        session._channel.write(b"\xff" * 20)  # no record
        await until(lambda: session.over)
        assert len(udp) == 0
        assert await ask(pod, "10.96.0.1", 8125, 5) == [5]
        assert link._carrier is carrier, "the connection is well"


@pytest.mark.parametrize("address", ["10.96.0.53", "2001:db8::53"])
async def test_a_dns_server_of_the_clusters_is_asked_itself(cluster: Cluster, address: str) -> None:
    pod, table = await cluster.pod(), Table()

    def elsewhere(client: Destination, asked: str, data: bytes) -> bool:
        if asked == address:
            udp.sent(client, Destination(asked, 53), data)
        return asked == address

    host = "::1" if ":" in address else "127.0.0.1"
    async with echo(host) as four, udp_of(pod, table) as udp:
        dns = DnsServer(pod.inside.dns_udp, pod.inside.dns_tcp, Resolver(Zone(), FakeUpstream()), elsewhere)
        await dns.start()
        table.targets[address, 53] = Dial(host, four.port)
        assert await ask(pod, address, 53, 20) == [20]
        assert await ask(pod, "10.96.0.10", 53, 20) == [12], "devloop's own: it can't be read (FORMERR)"
        await dns.close()


async def test_out_from_the_host(cluster: Cluster) -> None:
    pod, table = await cluster.pod(), Table()
    async with echo() as four, udp_of(pod, table):
        table.targets["203.0.113.1", 443] = Dial("127.0.0.1", four.port)
        assert await ask(pod, "203.0.113.1", 443, 0, 1200, 65507) == [0, 1200, 65507]


async def test_to_another_local_service(cluster: Cluster) -> None:
    web, stats, table = await cluster.pod("web"), await cluster.pod("stats"), Table()
    async with udp_of(web, table) as udp, udp_of(stats, table) as other:
        table.targets["10.96.0.1", 8125] = ToService(stats.publisher, 8125)
        await stats.start(SYSTEM_PYTHON, "-I", "-c", SERVE)

        async def answers() -> Any:
            return await ask(web, "10.96.0.1", 8125, 0, 1, 8192, 65507)

        # What nobody listens on says nothing, so it is asked until it does.
        async with asyncio.timeout(30):
            while await answers() != [0, 1, 8192, 65507]:
                pass
        assert len(other) == 0 and 1 <= len(udp) <= MAX_FLOWS
        assert web.lines == stats.lines == []


FAR = Destination("10.244.0.7", 40123)


async def test_who_calls_from_the_cluster_is_seen_as_itself_and_answered_there(cluster: Cluster) -> None:
    pod, table, caller = await cluster.pod(), Table(), Caller()
    six, dns, second = Destination("fd00::7", 40123), Destination("10.244.0.7", 53), Caller()
    async with udp_of(pod, table):
        await pod.start(SYSTEM_PYTHON, "-I", "-c", WHO, "one")
        ways = [pod.publisher.incoming(8125, caller, each) for each in (FAR, six)]
        for way, seen in zip(ways, (FAR, six), strict=True):
            assert way.send(b"")  # waits until it listens
            assert await caller.next() == f"one {seen.address} {seen.port}"
        # Somebody else's answers would be taken for these, or what comes to that port is devloop's own: not as itself.
        for source in (FAR, dns, Destination(pod.inside.addresses[0], 1), Destination("127.0.0.1", 1)):
            assert pod.publisher.incoming(8125, second, source).send(b"")
            assert (await second.next()).startswith("one 198.18.255.254 ")
        ways[0].close()
        assert pod.publisher.incoming(8125, second, FAR).send(b"again ")
        assert await second.next() == f"again one {FAR.address} {FAR.port}"


async def test_while_a_service_reloads_its_datagrams_wait_and_the_newest_stay(cluster: Cluster) -> None:
    pod, table, caller = await cluster.pod(), Table(), Caller()
    async with udp_of(pod, table):
        first = await pod.start(SYSTEM_PYTHON, "-I", "-c", WHO, "one")
        way = pod.publisher.incoming(8125, caller, FAR)
        assert way.send(b"")
        assert (await caller.next()).startswith("one")
        pod.publisher.set_gate(Gate.HELD)
        first.signal()
        await first.code
        assert all(way.send(bytes([each])) for each in range(WAITING)) and not way.send(b"!")
        pod.publisher.set_gate(Gate.OPEN)  # the next one runs, and does not listen yet
        await pod.start(SYSTEM_PYTHON, "-I", "-c", WHO, "two")
        found = [await caller.next() for _ in range(WAITING)]
        assert found[0].startswith("\x01two") and found[-1].startswith("!two") and caller.got.empty()
        pod.publisher.set_gate(Gate.CLOSED)
        assert not way.send(b"") and caller.got.empty()


async def test_a_service_on_the_hosts_network_takes_them_on_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    inner, callers = HostInner(), [Caller(), Caller()]
    publisher = Publisher("api", inner, lambda _: None)
    monkeypatch.setattr("devloop.net.publish.HOST_FLOWS", 1)
    async with echo() as there:
        one = publisher.incoming(there.port, callers[0], FAR)
        assert one.send(b"hello") and await callers[0].next() == "hello"
        assert there.clients[0][0] == "127.0.0.1", "whom it sees is the engine"
        assert publisher.listening_datagrams() is not None
        assert publisher.incoming(there.port, callers[1], FAR).send(b"two") and await callers[1].next() == "two"
        assert callers[0].over == 1 and not one.send(b"late"), "a socket each, so there are not many"
    await publisher.close()
    inner.close()
    assert callers[1].over == 1
