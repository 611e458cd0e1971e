"""A plain connection on which neither side has spoken is the original's when the developer is lost; no other is."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devloop.agent import server
from devloop.agent.forward import Connection
from devloop.agent.loops import new_event_loop
from devloop.agent.paths import listen_path
from devloop.agent.uplink import Uplink
from devloop.attach.session import Session
from devloop.remote.ssh import connect
from devloop.remote.sshcarrier import SshCarrier
from tests.waiting import until

from .agent_here import an_agent
from .test_handed_over import HERE, SPEC, Here, P

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
LOOPS = pytest.mark.parametrize("loop", [new_event_loop, asyncio.new_event_loop], ids=["in use", "asyncio"])
ORIGINAL = b"220 original\n"


class Local(Here):
    """A local service; `waits` while set is not: a connection to it takes as long."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.waits = asyncio.Event()
        self.asked = 0

    async def connect(self, factory: Callable[[], P], port: int) -> tuple[asyncio.Transport, P]:
        """See `LocalEnd`."""
        self.asked += 1
        await self.waits.wait()
        return await asyncio.get_running_loop().create_connection(factory, HERE, self.port)


@dataclass
class Between:
    """What stands between Envoy and two services, the local one and the original."""

    path: str
    uplink: Uplink
    carrier: SshCarrier
    local: Local
    here: list[asyncio.StreamWriter]
    """What the local service has accepted."""
    heard: bytearray
    """What it was told."""


@asynccontextmanager
async def between(folder: Path, patch: pytest.MonkeyPatch, greeting: bytes = b"") -> AsyncIterator[Between]:
    """The local service says `greeting`, and no more."""
    there: list[Connection] = []
    here: list[asyncio.StreamWriter] = []
    heard = bytearray()

    def note(connection: Any, destinations: Any) -> Connection:
        there.append(Connection(connection, destinations))
        return there[-1]

    async def local(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here.append(writer)
        writer.write(greeting)
        while data := await reader.read(1 << 16):
            heard.extend(data)
        writer.close()

    async def original(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ORIGINAL)
        while line := await reader.readline():
            writer.write(b"250 " + line)
        writer.close()

    patch.setattr(server, "Connection", note)
    async with (
        an_agent(folder, envoy="none") as (port, options),
        await asyncio.start_server(local, HERE, 0) as one,
        await asyncio.start_server(original, HERE, 0) as other,
    ):
        carrier = SshCarrier(await connect(HERE, where="here", port=port, **options), "agent", "here")
        session = Session(carrier, lambda *_: None)
        end = Local(one.sockets[0].getsockname()[1])
        await session._listen(listen_path(SPEC.id, 25), SPEC, end, 25, lambda: None)
        path = folder / "up.sock"
        at = other.sockets[0].getsockname()[1]
        uplink = Uplink(there[-1], path, listen_path(SPEC.id, 25), lambda: [((HERE, at),)])
        await uplink.listen()
        try:
            yield Between(str(path), uplink, carrier, end, here, heard)
        finally:
            await uplink.close()
            uplink.cut()
            await session.close()
            await carrier.close()
            for each in here:
                each.transport.abort()


def played(loop: Callable[[], asyncio.AbstractEventLoop], play: Any) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(play())


@LOOPS
@pytest.mark.parametrize("how", ["the engine is killed", "it does not answer", "the process is killed"])
def test_one_on_which_nobody_has_said_anything_is_the_originals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Callable[[], asyncio.AbstractEventLoop], how: str
) -> None:
    async def play() -> None:
        async with between(tmp_path, monkeypatch) as it:
            it.local.waits.set()
            reader, writer = await asyncio.open_unix_connection(it.path)
            await until(lambda: it.here)
            if how == "the engine is killed":
                it.carrier.abort("killed")
            elif how == "it does not answer":
                it.uplink.cut()
            else:  # the kernel resets what its backlog had, and what it had not read
                sock = it.here[0].get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                it.here[0].transport.abort()
            async with asyncio.timeout(10):
                assert await reader.readline() == ORIGINAL
                writer.write(b"one\n")
                assert await reader.readline() == b"250 one\n"
                # From now on it is the original's, whatever becomes of the developer.
                it.uplink.cut()
                writer.write(b"two\n")
                assert await reader.readline() == b"250 two\n"
                assert it.uplink.open
                writer.write_eof()
                assert await reader.read() == b""
            writer.close()
            await until(lambda: not it.uplink.open)
            assert not it.heard

    played(loop, play)


@LOOPS
@pytest.mark.parametrize("how", ["the engine is killed", "it does not answer"])
def test_one_that_waits_for_the_local_service_is_the_originals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Callable[[], asyncio.AbstractEventLoop], how: str
) -> None:
    async def play() -> None:
        async with between(tmp_path, monkeypatch) as it:
            reader, writer = await asyncio.open_unix_connection(it.path)
            writer.write(b"early\n")
            await until(lambda: it.local.asked)
            if how == "the engine is killed":
                it.carrier.abort("killed")
            it.uplink.cut()
            async with asyncio.timeout(10):
                assert await reader.readline() == ORIGINAL
                assert await reader.readline() == b"250 early\n"
            writer.close()
            await until(lambda: not it.uplink.open)

    played(loop, play)


@LOOPS
@pytest.mark.parametrize("said", ["by the client", "by the service"])
def test_one_on_which_something_was_said_is_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Callable[[], asyncio.AbstractEventLoop], said: str
) -> None:
    async def play() -> None:
        greeting = b"" if said == "by the client" else b"220 local\n"
        async with between(tmp_path, monkeypatch, greeting) as it:
            it.local.waits.set()
            reader, writer = await asyncio.open_unix_connection(it.path)
            if greeting:
                assert await reader.readline() == greeting
            else:
                writer.write(b"DELETE everything\n")
                await until(lambda: it.heard)
            it.uplink.cut()
            async with asyncio.timeout(10):
                try:
                    rest = await reader.read()
                except ConnectionResetError:
                    rest = b""
            assert rest == b""
            writer.close()

    played(loop, play)
