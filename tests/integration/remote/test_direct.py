"""Direct connections: the links' contract by one, who is let in, and what becomes of it all when either end is lost.

The agent runs here, so that its pod's address is the loopback's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from devloop.agent import direct as agent_direct
from devloop.agent import server
from devloop.remote import direct
from devloop.remote.direct import Direct
from devloop.remote.kubernetes import agent as kubernetes_agent
from devloop.remote.kubernetes.agent import AgentCarrier
from devloop.remote.life import LiveLink
from devloop.remote.link import LinkState, Phase
from devloop.remote.ssh import connect
from devloop.remote.sshcarrier import SshCarrier
from tests.ports import free_port
from tests.waiting import until, until_so

from . import target
from .agent_here import an_agent
from .contract import LinkContract, Rig, echoes, ended

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

HERE = "127.0.0.1"


@dataclass
class Way:
    """How this end looks for the agent, and what it has made."""

    addresses: list[tuple[str, int]] = field(default_factory=lambda: [(HERE, 0)])
    removed: int = 0
    """So often the last client has taken the agent away."""
    pods: list[Any] = field(default_factory=list)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    """A direct connection has got as far as its login,"""
    logins: asyncio.Event = field(default_factory=asyncio.Event)
    """and may go on with it."""

    def __post_init__(self) -> None:
        self.logins.set()

    async def remove(self, pod: Any) -> bool:
        """An installation's."""
        self.removed += 1
        return True


@pytest.fixture
def way() -> Way:
    return Way()


@asynccontextmanager
async def linked(port: int, options: dict[str, Any], way: Way) -> AsyncIterator[LiveLink]:
    async def dial(tell: Callable[[str], None]) -> AgentCarrier:
        base = SshCarrier(await connect(HERE, where="here", port=port, **options), "agent", "here")

        async def login(sock: socket.socket) -> Any:
            way.answered.set()
            await way.logins.wait()
            return await connect(HERE, where="here", sock=sock, **options)

        beside = Direct(base, way.addresses, login, link.refresh)
        installation: Any = way
        pod: Any = None
        return AgentCarrier(base, beside, installation, pod)

    link = LiveLink("agent", "here", dial)  # `dial` refreshes it
    link.start()
    try:
        await link.ready(10)
        yield link
    finally:
        await link.close()


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    async with an_agent(tmp_path, direct=0) as found:
        yield found


@pytest.fixture
async def link(agent: tuple[int, dict[str, Any]], way: Way) -> AsyncIterator[LiveLink]:
    async with linked(*agent, way) as made:
        yield made


@pytest.fixture
async def rig(link: LiveLink, target_ports: tuple[int, ...]) -> Rig:
    await until(lambda: link.state.direct)

    async def cut() -> None:
        carrier_of(link).abort("cut")

    return Rig(link, HERE, target_ports, free_port(), "nobody.invalid", cut)


def carrier_of(link: LiveLink) -> AgentCarrier:
    found: Any = link._carrier
    assert isinstance(found, AgentCarrier)
    return found


async def tried(link: LiveLink) -> None:
    """It is known whether there is a direct connection."""
    beside = carrier_of(link)._direct
    assert beside is not None
    await beside.tried(10)


def near_of(link: LiveLink) -> SshCarrier:
    near = carrier_of(link)._near
    assert near is not None
    return near


def carried_by(writer: asyncio.StreamWriter) -> SshCarrier:
    transport: Any = writer.transport
    carrier: SshCarrier = transport._carrier
    return carrier


async def ask(ssh: SshCarrier, command: str) -> str:
    return str((await ssh.connection.run(command, check=True)).stdout)


class TestDirect(LinkContract):
    """The contract by a direct connection."""


# --- What it is for -----------------------------------------------------------------------------------------------


async def test_new_connections_go_straight_there_and_the_state_says_so(rig: Rig, link: LiveLink) -> None:
    host, _, port = link.state.direct.rpartition(":")
    assert host == HERE and int(port) > 0
    reader, writer = await rig.open(target.ECHO)
    assert carried_by(writer) is near_of(link) is not carrier_of(link).ssh
    writer.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    await ended(writer)


async def test_what_is_open_stays_where_it_is(agent: Any, way: Way, target_ports: tuple[int, ...]) -> None:
    """A connection that was opened before there was a direct one goes on by the base."""
    way.addresses = [(HERE, free_port())]
    async with linked(*agent, way) as link:
        await tried(link)
        reader, writer = await link.open(HERE, target_ports[target.ECHO])
        way.addresses[:] = [(HERE, 0)]
        link.wake()
        await until(lambda: link.state.direct)
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"
        assert carried_by(writer) is carrier_of(link).ssh
        await ended(writer)


async def test_two_connections_are_one_client_who_takes_the_agent_away(
    link: LiveLink, rig: Rig, agent: Any, way: Way
) -> None:
    for ssh in carrier_of(link).connections:
        assert await ask(ssh, "clients") == "1"
    async with linked(*agent, Way()) as other:
        await until(lambda: other.state.direct)
        assert await ask(near_of(link), "clients") == "2"

    async def alone() -> bool:
        return await ask(near_of(link), "clients") == "1"

    await until_so(alone)
    await link.close()
    assert way.removed == 1


# --- Who is let in ------------------------------------------------------------------------------------------------


async def told(ssh: SshCarrier) -> tuple[int, bytes]:
    """The port and a ticket."""
    answer = json.loads(await ask(ssh, agent_direct.COMMAND))
    return answer["port"], bytes.fromhex(answer["ticket"])


async def knock(port: int, said: bytes) -> bytes:
    """What the agent says to that, if anything."""
    reader, writer = await asyncio.open_connection(HERE, port)
    writer.write(said)
    try:
        async with asyncio.timeout(10):
            return await reader.read(4)
    except ConnectionError:
        return b""
    finally:
        await ended(writer)


async def test_a_ticket_is_good_once(link: LiveLink, rig: Rig) -> None:
    port, ticket = await told(carrier_of(link).ssh)
    assert await knock(port, ticket) == b"SSH-"
    assert await knock(port, ticket) == b""


async def test_a_new_ticket_replaces_the_last_one(link: LiveLink, rig: Rig) -> None:
    port, first = await told(carrier_of(link).ssh)
    _, second = await told(carrier_of(link).ssh)
    assert await knock(port, first) == b""
    assert await knock(port, second) == b"SSH-"


@pytest.mark.parametrize("said", [bytes(agent_direct.TICKET_BYTES), b"SSH-2.0-somebody_with_no_ticket\r\n"])
async def test_who_has_no_ticket_hears_nothing(link: LiveLink, rig: Rig, said: bytes) -> None:
    """Not even that of one who has used theirs: what is kept of it is nothing that could be shown."""
    port, _ = await told(carrier_of(link).ssh)
    assert await knock(port, said) == b""


async def test_a_ticket_without_a_key_gets_nobody_in(link: LiveLink, rig: Rig) -> None:
    port, ticket = await told(carrier_of(link).ssh)
    sock = socket.create_connection((HERE, port))
    sock.sendall(ticket)
    sock.setblocking(False)
    with pytest.raises(asyncssh.PermissionDenied):
        stranger = asyncssh.generate_private_key("ssh-ed25519")
        await asyncssh.connect(HERE, sock=sock, known_hosts=None, client_keys=[stranger], config=None, agent_path=None)
    assert await ask(near_of(link), "clients") == "1"


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[int, bytes]]:
    """An agent with one developer, who has asked for the port and a ticket."""
    async with (
        an_agent(folder, direct=0) as (port, options),
        await connect(HERE, where="here", port=port, **options) as connection,
    ):
        answer = json.loads(str((await connection.run(agent_direct.COMMAND, check=True)).stdout))
        yield answer["port"], bytes.fromhex(answer["ticket"])


async def test_who_says_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(agent_direct, "TICKET_SECONDS", 0.05)
    async with opened(tmp_path) as (port, _):
        assert await knock(port, b"") == b""


@pytest.mark.parametrize("limits", [(2, 2), (2, 50), (50, 2)])
async def test_strangers_lock_nobody_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limits: tuple[int, int]
) -> None:
    """They are let go instead, the oldest first, though each has time left."""
    monkeypatch.setattr(agent_direct, "STRANGERS", limits[0])
    monkeypatch.setattr(agent_direct, "STRANGERS_EACH", limits[1])
    async with opened(tmp_path) as (port, ticket):
        silent = [await asyncio.open_connection(HERE, port) for _ in range(10)]
        assert await knock(port, ticket) == b"SSH-"
        async with asyncio.timeout(2):
            for reader, _ in silent[:8]:
                assert await reader.read() == b""
        for _, writer in silent:
            await ended(writer)


async def test_the_port_is_open_while_somebody_has_asked_for_it(agent: Any, way: Way) -> None:
    port, options = agent
    async with linked(port, options, way) as link:
        await until(lambda: link.state.direct)
        open_port = int(link.state.direct.rpartition(":")[2])
        socket.create_connection((HERE, open_port)).close()
    await until(lambda: refused(open_port))


def refused(port: int) -> bool:
    with contextlib.closing(socket.socket()) as sock:
        return sock.connect_ex((HERE, port)) != 0


async def test_nobody_who_has_not_asked_opens_it(agent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    monkeypatch.setattr(agent_direct, "_listen", opened.append)
    port, options = agent
    async with await connect(HERE, where="here", port=port, **options) as connection:
        assert (await connection.run("clients", check=True)).stdout == "1"
    assert not opened


# --- Where there is none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("addresses", [[], [("nobody.invalid", 0)], "a port where nothing listens"])
async def test_an_agent_that_is_not_reached_is_used_by_the_base(
    agent: Any, way: Way, target_ports: tuple[int, ...], addresses: Any
) -> None:
    way.addresses = [(HERE, free_port())] if isinstance(addresses, str) else addresses
    async with linked(*agent, way) as link:
        await tried(link)
        reader, writer = await link.open(HERE, target_ports[target.CLOSER])
        assert await reader.read() == b"bye"
        assert carried_by(writer) is carrier_of(link).ssh and link.state.direct == ""
        await ended(writer)


@pytest.mark.parametrize("why", ["an agent of before", "an administrator wants none", "its port is taken"])
async def test_an_agent_that_gives_none_is_not_asked_again(
    tmp_path: Path, way: Way, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    taken = socket.create_server(("", free_port()))
    port = {"an agent of before": 0, "an administrator wants none": None}.get(why, taken.getsockname()[1])
    if why == "an agent of before":
        monkeypatch.setattr(server, "DIRECT", "another word")
    async with an_agent(tmp_path, direct=port) as found, linked(*found, way) as link:
        looking = carrier_of(link)._direct
        assert looking is not None
        await asyncio.wait_for(looking._task, 10)
        assert link.state.direct == "" and link.state.phase is Phase.CONNECTED
        assert await ask(carrier_of(link).ssh, "clients") == "1"
    taken.close()


async def test_somebody_else_at_that_address_learns_nothing_but_a_ticket(
    agent: Any, way: Way, target_ports: tuple[int, ...]
) -> None:
    """Its host key is another one: no name and no key is offered to it, and everything goes on by the base."""
    users: list[str] = []
    served = asyncio.Event()

    class Impostor(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            users.append(username)
            return False

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(agent_direct.TICKET_BYTES)
        sock = writer.get_extra_info("socket").dup()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        with contextlib.suppress(asyncssh.Error, OSError):
            key = asyncssh.generate_private_key("ssh-ed25519")
            await asyncssh.run_server(sock, server_factory=Impostor, server_host_keys=[key])
        writer.close()
        served.set()

    listening = await asyncio.start_server(impostor, HERE, 0)
    way.addresses = [(HERE, listening.sockets[0].getsockname()[1])]
    async with linked(*agent, way) as link:
        await asyncio.wait_for(served.wait(), 10)
        await tried(link)
        assert link.state.direct == "" and not users
        reader, writer = await link.open(HERE, target_ports[target.CLOSER])
        assert await reader.read() == b"bye"
        await ended(writer)
    listening.close()


# --- When it is lost ----------------------------------------------------------------------------------------------


async def test_a_lost_direct_connection_is_made_anew_and_the_base_does_meanwhile(
    rig: Rig, link: LiveLink, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[LinkState] = []
    link.subscribe(states.append)
    reader, writer = await rig.open(target.ECHO)
    way.addresses[:] = [(HERE, free_port())]
    near_of(link).abort("cut")
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    await ended(writer)
    await until(lambda: not link.state.direct)
    assert await echoes(rig, b"by the base")
    way.addresses[:] = [(HERE, 0)]
    link.wake()  # as when the network has changed; by itself, it would be some seconds later
    await until(lambda: link.state.direct)
    assert await echoes(rig, b"straight again")
    assert {each.phase for each in states} == {Phase.CONNECTED}


async def test_by_itself_it_is_tried_again(agent: Any, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "AGAIN_SECONDS", (0.01, 0.04))
    way.addresses = [(HERE, free_port())]
    async with linked(*agent, way) as link:
        await tried(link)
        way.addresses[:] = [(HERE, 0)]
        await until(lambda: link.state.direct)


async def test_a_connection_that_is_opened_while_it_dies_is_opened_by_the_base(rig: Rig, link: LiveLink) -> None:
    near = near_of(link)
    near.connection.abort()
    assert carrier_of(link)._near is near, "nobody knows yet"
    reader, writer = await rig.open(target.CLOSER)
    assert await reader.read() == b"bye"
    await ended(writer)


async def test_who_goes_straight_there_does_not_notice_that_the_base_is_lost(rig: Rig, link: LiveLink) -> None:
    """As when the API server restarts. The link is over when the direct connection is, too."""
    states: list[LinkState] = []
    link.subscribe(states.append)
    carrier, near = carrier_of(link), near_of(link)
    reader, writer = await rig.open(target.ECHO)
    carrier.ssh.abort("cut")
    await carrier.ssh.lost()
    writer.write(b"still")
    assert await reader.readexactly(5) == b"still"
    assert await echoes(rig, b"and new ones")
    link.wake()
    assert link.state.phase is Phase.CONNECTED and not states
    assert await ask(near, "clients") == "1"
    near.abort("cut")
    await until(lambda: states and states[-1].phase is Phase.CONNECTED)
    assert states[0].phase is Phase.RECONNECTING
    assert carrier_of(link) is not carrier
    await ended(writer)


async def test_a_base_that_is_lost_has_the_direct_one_looked_at(
    rig: Rig, link: LiveLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod that has gone with its network says nothing; a keepalive would take seconds to find out."""
    monkeypatch.setattr(kubernetes_agent, "CHECK_SECONDS", 0.05)
    carrier = carrier_of(link)
    monkeypatch.setattr(near_of(link), "check", asyncio.Event().wait)
    carrier.ssh.abort("cut")
    await until(lambda: link._carrier not in (None, carrier))


async def test_a_network_that_has_changed_costs_the_direct_connection_alone(
    rig: Rig, link: LiveLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_agent, "CHECK_SECONDS", 0.05)
    carrier, near = carrier_of(link), near_of(link)
    monkeypatch.setattr(near, "check", asyncio.Event().wait)
    link.wake()
    await until(lambda: near.over)
    assert await echoes(rig, b"others")
    assert carrier_of(link) is carrier and link.state.phase is Phase.CONNECTED


async def test_what_stays_waits_a_moment_for_the_better_way(agent: Any, way: Way) -> None:
    async with linked(*agent, way) as link:
        best = await carrier_of(link).best()
        assert best is near_of(link)
        best.abort("cut")
        await until(lambda: not link.state.direct)
        assert await carrier_of(link).best() is carrier_of(link).ssh


async def test_a_far_network_is_waited_for_once_it_has_answered(
    agent: Any, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login takes many round trips, a connection one."""
    monkeypatch.setattr(kubernetes_agent, "BETTER_SECONDS", 0.05)
    way.logins.clear()
    async with linked(*agent, way) as link:
        await asyncio.wait_for(way.answered.wait(), 10)
        best = asyncio.create_task(carrier_of(link).best())
        done, _ = await asyncio.wait([best], timeout=0.2)
        assert not done
        way.logins.set()
        assert await best is near_of(link)


async def test_an_address_that_does_not_answer_is_not_waited_for(
    agent: Any, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the pods' addresses are from most machines: packets to them go to a gateway, and are lost there."""
    monkeypatch.setattr(kubernetes_agent, "BETTER_SECONDS", 0.05)
    monkeypatch.setattr(direct, "reach", lambda addresses: asyncio.Event().wait())
    async with linked(*agent, way) as link:
        assert await asyncio.wait_for(carrier_of(link).best(), 1) is carrier_of(link).ssh


async def test_somebody_else_at_the_first_address_leaves_the_next_one_to_be_tried(
    agent: tuple[int, dict[str, Any]],
) -> None:
    """A gateway that accepts every connection, where the way to the pods is one of the other family."""
    came: list[bytes] = []

    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(stranger, HERE, 0)
    elsewhere = server.sockets[0].getsockname()[1]
    async with server, linked(*agent, Way([(HERE, elsewhere), ("127.0.0.2", 0)])) as link:
        await until(lambda: link.state.direct)
        assert link.state.direct.startswith("127.0.0.2:")
    assert len(came) == 1 and came[0]
