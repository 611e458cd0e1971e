"""A link with lanes whose agent runs here, for the tests of lanes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from devloop.agent.lane import Meter
from devloop.remote import lanes, sshcarrier
from devloop.remote.life import LiveLink
from devloop.remote.ssh import connect
from devloop.remote.sshcarrier import SshCarrier
from tests.ports import free_port

from . import target
from .agent_here import an_agent, live
from .contract import Rig, all_of_it, ended


@dataclass
class Way:
    """How this end reaches the agent's lanes, and what it has seen."""

    wires: list[Wire] = field(default_factory=list)
    lanes: list[lanes.Asking] = field(default_factory=list)
    before: Callable[[], None] = lambda: None
    """Called before a lane is connected."""
    elsewhere: int = 0
    """Another port than the agent's."""
    answers: bool = True
    """Whether the other end does when it is asked."""

    async def dial(self) -> Wire:
        return Wire(self)


class Wire:
    """A connection for each lane."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.usable = True
        self.lane: lanes.Asking | None = None
        way.wires.append(self)

    async def open(self, factory: Callable[[], lanes.Asking], port: int) -> None:
        self.way.before()
        assert self.usable
        loop = asyncio.get_running_loop()
        _, self.lane = await loop.create_connection(factory, "127.0.0.1", self.way.elsewhere or port)
        self.way.lanes.append(self.lane)

    async def check(self) -> None:
        if not self.way.answers:
            await asyncio.Event().wait()

    def close(self) -> None:
        self.usable = False
        if self.lane is not None:
            self.lane.transport.abort()


@pytest.fixture
def way() -> Way:
    return Way()


@pytest.fixture
async def link(way: Way, tmp_path: Path) -> AsyncIterator[LiveLink]:
    async with an_agent(tmp_path) as (port, options):

        async def dial(tell: Callable[[str], None]) -> SshCarrier:
            connection = await connect("127.0.0.1", where="here", port=port, **options)
            return SshCarrier(connection, "agent", "here", lane=way.dial)

        async with live(dial) as made:
            yield made


@pytest.fixture
def rig(link: LiveLink, target_ports: tuple[int, ...]) -> Rig:
    async def cut() -> None:
        carrier: Any = link._carrier
        carrier.abort("cut")

    return Rig(link, "127.0.0.1", target_ports, free_port(), "nobody.invalid", cut)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is sent is much, and at once."""
    monkeypatch.setattr(Meter, "limit", 0)
    monkeypatch.setattr(sshcarrier, "PATIENCE_TRIPS", 0)


def channel_of(writer: asyncio.StreamWriter) -> Any:
    return writer.transport


async def on_lanes(rig: Rig, service: int = target.ECHO) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """An echoed connection that sends and receives by its lane."""
    reader, writer = await rig.open(service)
    async with asyncio.timeout(10):
        while True:
            writer.write(b"ping")
            assert await reader.readexactly(4) == b"ping"
            lane = channel_of(writer).lane
            if channel_of(writer).by_lane and lane._offset is not None:
                return reader, writer


@asynccontextmanager
async def a_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any],
) -> AsyncIterator[int]:
    made = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield made.sockets[0].getsockname()[1]
    made.close()


async def open_by_lane(link: LiveLink, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that sends by its lane; bytes 0 are what it took."""
    reader, writer = await link.open("127.0.0.1", port)
    async with asyncio.timeout(10):
        while not channel_of(writer).by_lane:
            writer.write(b"\0")
            await asyncio.sleep(0)
    return reader, writer


async def all_through(rig: Rig, blocks: int = 16 * 16) -> None:
    """Many bytes, all of them."""
    reader, writer = await rig.open(target.SOURCE)
    writer.write(b"%d\n" % blocks)
    expected = hashlib.sha256(b"".join(map(target.block, range(blocks))))
    assert await all_of_it(reader) == (blocks << 16, expected.hexdigest())
    await ended(writer)
