"""A service that speaks first, wherever two halves of a connection are put together.

From the unix socket that Envoy connects to, through the agent and the engine, to a local service; through a door;
through a relay of the engine's; and by a link. All run here, on the event loop that is in use and on asyncio's. Every
turn between "it is connected" and "somebody is told" is made long, so that what a service says at once is there first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from devloop.agent import server
from devloop.agent.forward import Connection
from devloop.agent.loops import new_event_loop
from devloop.agent.paths import listen_path
from devloop.agent.spec import ALL, Spec
from devloop.agent.splice import Inward, Onward
from devloop.agent.uplink import Uplink
from devloop.attach.seam import AttachError
from devloop.attach.session import Session
from devloop.net.publish import loopback_listeners
from devloop.net.router import ToLink
from devloop.relay import Relay, Relays, Target
from devloop.remote.sandbox import Forward, SandboxCluster, SandboxLink, SandboxService
from devloop.remote.ssh import connect
from devloop.remote.sshcarrier import SshCarrier

from .agent_here import an_agent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
P = TypeVar("P", bound=asyncio.Protocol)
Serves = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
GREETING = b"220 hello, who is there?\r\n"
MUCH = bytes(range(256)) * 4096
COUNT = 60
HERE = "127.0.0.1"
SPEC = Spec(
    id="0123456789abcdef",
    kind="intercept",
    service="mail",
    ports={25: 25},
    routes=(ALL,),
    fail="open",
    hold=5.0,
    user="ada",
    host="here",
    since="2026-01-01T00:00:00Z",
)


async def greets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say something, then answer a line."""
    writer.write(GREETING)
    writer.write(b"heard " + await reader.readline())
    writer.close()


async def greets_and_goes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Say something and close."""
    writer.write(GREETING)
    writer.close()


async def goes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close without a word."""
    writer.close()


async def pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a megabyte before anything is read."""
    writer.write(MUCH)
    await writer.drain()
    writer.write(b"heard " + await reader.readline())
    writer.close()


class Here:
    """A local service at a port of this machine's, which is slow to be told of."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.running = True
        self.deaf: dict[int, str] = {}

    async def connect(self, factory: Callable[[], P], port: int) -> tuple[asyncio.Transport, P]:
        """See `LocalEnd`."""
        return await slowly(factory, self.port)

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """See `LocalEnd`."""
        return lambda: None


@asynccontextmanager
async def handed_over(
    folder: Path, serves: Serves, patch: pytest.MonkeyPatch, *, refused: bool = False
) -> AsyncIterator[str]:
    """The path that Envoy would connect to. `refused`: nobody is here, and the service is the original's pod."""
    there: list[Connection] = []

    def note(connection: Any, destinations: Any) -> Connection:
        there.append(Connection(connection, destinations))
        return there[-1]

    patch.setattr(server, "Connection", note)
    async with an_agent(folder, envoy="none") as (port, options):
        service = await asyncio.start_server(serves, HERE, 0)
        at = service.sockets[0].getsockname()[1]
        carrier = SshCarrier(await connect(HERE, where="here", port=port, **options), "agent", "here")
        session = Session(carrier, lambda *_: None)
        if not refused:
            await session._listen(listen_path(SPEC.id, 25), SPEC, Here(at), 25, lambda: None)
        path = folder / "up.sock"
        uplink = Uplink(there[-1], path, listen_path(SPEC.id, 25), (lambda: [((HERE, at),)]) if refused else None)
        await uplink.listen()
        try:
            yield str(path)
        finally:
            await uplink.close()
            uplink.cut()
            await session.close()
            await carrier.close()
            service.close()


async def slowly(factory: Callable[[], P], port: int) -> tuple[asyncio.Transport, P]:
    """A connection of which nobody is told before it has been told much."""
    made = await asyncio.get_running_loop().create_connection(factory, HERE, port)
    await asyncio.sleep(0.02)
    return made


@asynccontextmanager
async def by_door(at: int) -> AsyncIterator[int]:
    """What a door does with what it has caught; the port to connect to."""

    async def dial(onward: Onward) -> None:
        await slowly(lambda: onward, at)

    server = await asyncio.get_running_loop().create_server(lambda: Inward(dial, lambda _: None), HERE, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@dataclass
class Slow:
    """A target that is connected for a while before anybody knows."""

    port: int

    async def connect(self, side: asyncio.Protocol) -> Any:
        """Part of `Target`."""
        return (await slowly(lambda: side, self.port))[0]


@asynccontextmanager
async def by_relay(at: int) -> AsyncIterator[int]:
    """What the engine does with a connection of a service's, of a client's on localhost, and to a local service."""

    async def route(_: Relay) -> Target:
        return Slow(at)

    relays = Relays(route, lambda *_: None)
    sockets = loopback_listeners(0)
    await relays.listen(*sockets)
    yield sockets[0].getsockname()[1]
    await relays.close()


@asynccontextmanager
async def by_link(at: int) -> AsyncIterator[int]:
    """The same by an SSH connection to what the agent connects with."""
    link = SandboxLink(SandboxCluster((SandboxService("mail", {25: Forward(at)}),)))
    link.start()

    async def route(_: Relay) -> Target:
        return ToLink(link, "mail", 25)

    relays = Relays(route, lambda *_: None)
    sockets = loopback_listeners(0)
    await relays.listen(*sockets)
    yield sockets[0].getsockname()[1]
    await relays.close()
    await link.close()


async def asks(where: str | int) -> bytes:
    """All that one connection is told; it says a line, and reads until the end."""
    if isinstance(where, int):
        reader, writer = await asyncio.open_connection(HERE, where)
    else:
        reader, writer = await asyncio.open_unix_connection(where)
    try:
        async with asyncio.timeout(10):
            first = await reader.read(1)  # says nothing before it was greeted
            if first:
                writer.write(b"ada\n")
            with contextlib.suppress(ConnectionResetError):  # what greets and goes has not read the line
                while part := await reader.read(1 << 16):
                    first += part
            return first
    finally:
        writer.close()


LOOPS = pytest.mark.parametrize("loop", [new_event_loop, asyncio.new_event_loop], ids=["in use", "asyncio"])
SERVICES = pytest.mark.parametrize(
    ("serves", "said"),
    [
        (greets, GREETING + b"heard ada\n"),
        (greets_and_goes, GREETING),
        (goes, b""),
        (pours, MUCH + b"heard ada\n"),
    ],
    ids=["greets", "greets and goes", "goes", "pours"],
)


@LOOPS
@SERVICES
@pytest.mark.parametrize("refused", [False, True], ids=["here", "original"])
def test_what_a_service_says_first_arrives(
    tmp_path: Path,
    serves: Serves,
    said: bytes,
    loop: Callable[[], asyncio.AbstractEventLoop],
    refused: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the developer's side, and by the agent's own where that takes nothing (plain TCP)."""

    async def all_of_them() -> None:
        async with handed_over(tmp_path, serves, monkeypatch, refused=refused) as path:
            await everybody_hears(said, path)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(all_of_them())


@LOOPS
@SERVICES
@pytest.mark.parametrize("way", [by_door, by_relay, by_link], ids=["door", "relay", "link"])
def test_it_arrives_by_every_other_way(
    serves: Serves,
    said: bytes,
    loop: Callable[[], asyncio.AbstractEventLoop],
    way: Callable[[int], AbstractAsyncContextManager[int]],
) -> None:
    async def all_of_them() -> None:
        async with (
            await asyncio.start_server(serves, HERE, 0) as service,
            way(service.sockets[0].getsockname()[1]) as port,
        ):
            await everybody_hears(said, port)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(all_of_them())


async def everybody_hears(said: bytes, where: str | int) -> None:
    """Many connections, one beside the other."""
    count = COUNT if len(said) < 1000 else COUNT // 6
    found = await asyncio.gather(*(asks(where) for _ in range(count)))
    assert [each == said for each in found] == [True] * count, {len(each) for each in found}


@pytest.mark.parametrize(
    ("banner", "words"), [("devloop", "the agent is older than this devloop"), ("devloop_99", "the agent is newer")]
)
async def test_two_versions_that_differ_attach_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, banner: str, words: str
) -> None:
    monkeypatch.setattr(server, "SOFTWARE", banner)
    async with an_agent(tmp_path, envoy="none") as (port, options):
        carrier = SshCarrier(await connect(HERE, where="here", port=port, **options), "agent", "here")
        session = Session(carrier, lambda *_: None)
        with pytest.raises(AttachError) as refused:
            await session.open()
        assert words in refused.value.what
        assert "nothing is attached" in refused.value.what
        assert refused.value.hint
        # What goes by the link needs no such agreement.
        assert (await carrier.connection.run("clients", check=True)).stdout == "1"
        await session.close()
        await carrier.close()
