"""Lanes: the links' contract with one for each connection, and what happens at their edges. The agent runs here."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from devloop.agent import lanes as agent_lanes
from devloop.agent import server
from devloop.agent.lane import BULK_BYTES, KEY_BYTES, NUMBER_BYTES, Meter
from devloop.remote import lanes, sshcarrier
from devloop.remote.life import LiveLink
from devloop.remote.ssh import connect
from devloop.remote.sshcarrier import SshCarrier
from tests.ports import free_port

from . import target
from .contract import LinkContract, Rig, all_of_it, echoes, ended

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


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


@asynccontextmanager
async def an_agent(folder: Path) -> AsyncIterator[tuple[int, dict[str, Any]]]:
    """A server with one developer's key: its port, and how asyncssh connects to it."""
    host, ada = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    (folder / "host_key").write_bytes(host.export_private_key("openssh"))
    (folder / "ada.pub").write_bytes(ada.export_public_key("openssh"))
    options: dict[str, Any] = {
        "username": "ada",
        "client_keys": [ada],
        "known_hosts": ([host.convert_to_public()], [], []),
        "config": None,
        "agent_path": None,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "cluster_api", lambda: None)
        async with server.serve(folder, 0) as port:
            yield port, options


@pytest.fixture
async def link(way: Way, tmp_path: Path) -> AsyncIterator[LiveLink]:
    async with an_agent(tmp_path) as (port, options):

        async def dial(tell: Callable[[str], None]) -> SshCarrier:
            connection = await connect("127.0.0.1", where="here", port=port, **options)
            return SshCarrier(connection, "agent", "here", lane=way.dial)

        made = LiveLink("agent", "here", dial)
        made.start()
        await made.ready(10)
        yield made
        await made.close()


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


@pytest.mark.usefixtures("at_once")
class TestALaneForEach(LinkContract):
    """The contract while everybody moves to a lane in the midst of it."""


class TestLanesForWhoMovesMuch(LinkContract):
    """The contract with lanes as they are."""


async def until(true: Callable[[], bool]) -> None:
    """Wait for what has no event."""
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


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


@pytest.mark.usefixtures("at_once")
async def test_a_half_close_by_lane_comes_after_what_was_sent(rig: Rig) -> None:
    reader, writer = await on_lanes(rig)
    text = random.Random(1).randbytes(5_000_000)
    writer.write(text)
    writer.write_eof()
    assert await reader.read() == text
    await ended(writer)


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


@pytest.mark.usefixtures("at_once")
async def test_what_was_sent_before_a_close_arrives(link: LiveLink) -> None:
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.set_result((await reader.read()).lstrip(b"\0"))
        writer.close()

    async with a_server(serve) as port:
        _, writer = await open_by_lane(link, port)
        text = b"x" + random.Random(2).randbytes(8_000_000)
        writer.write(text)
        writer.close()
        async with asyncio.timeout(10):
            assert await heard == text
            await ended(writer)


@pytest.mark.usefixtures("at_once")
async def test_a_client_that_closes_and_has_not_read_all_is_gone(link: LiveLink) -> None:
    """Both directions are full when it does."""
    over, gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            while not over.is_set():
                writer.write(bytes(1 << 16))
                async with asyncio.timeout(0.2):
                    await writer.drain()
        await over.wait()
        with contextlib.suppress(OSError):
            while await reader.read(1 << 16):
                pass
        writer.transport.abort()
        gone.set()

    async with a_server(serve) as port:
        _, writer = await open_by_lane(link, port)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    writer.write(bytes(1 << 16))
                    await writer.drain()
        writer.close()
        writer.transport.abort()
        async with asyncio.timeout(10):
            await ended(writer)
            over.set()
            await gone.wait()


@pytest.mark.usefixtures("at_once")
async def test_a_server_that_resets_is_a_reset_after_what_it_sent(link: LiveLink) -> None:
    text = random.Random(3).randbytes(3_000_000)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not (await reader.read(1 << 16)).endswith(b"now"):
            writer.write(b"-")
        writer.write(b"+" + text)
        await writer.drain()
        await until(lambda: not writer.transport.get_write_buffer_size())
        sock = writer.get_extra_info("socket")
        await asyncio.sleep(0.2)  # a reset takes along what the agent has not read from its socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with a_server(serve) as port:
        reader, writer = await open_by_lane(link, port)
        writer.write(b"now")
        heard = bytearray()
        # asyncio's reader knows an end alone; a reset is that the transport heard no EOF before its end.
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                heard += data
        assert bytes(heard).lstrip(b"-") == b"+" + text
        await ended(writer)


@pytest.mark.usefixtures("at_once")
async def test_a_lane_that_is_lost_resets_its_connection_and_no_other(rig: Rig, way: Way) -> None:
    other = await on_lanes(rig)
    reader, writer = await on_lanes(rig)
    way.lanes[-1].transport.abort()
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    assert channel_of(writer).is_closing()
    other[1].write(b"still")
    assert await other[0].readexactly(5) == b"still"
    assert await echoes(rig, b"and new ones")
    await ended(writer)
    await ended(other[1])


async def test_a_lane_that_is_lost_before_it_was_used_is_no_loss(rig: Rig, way: Way) -> None:
    reader, writer = await rig.open(target.ECHO)
    channel = channel_of(writer)
    channel._carrier.lanes.offer(channel)
    await until(lambda: channel.lane is not None)
    assert not channel.by_lane
    way.lanes[0].transport.abort()
    await until(lambda: channel.lane is None)
    text = random.Random(4).randbytes(4 * BULK_BYTES)
    async with asyncio.timeout(10):
        writer.write(text)
        writer.write_eof()
        assert await reader.read() == text
    await ended(writer)


async def all_through(rig: Rig, blocks: int = 16 * 16) -> None:
    """Many bytes, all of them."""
    reader, writer = await rig.open(target.SOURCE)
    writer.write(b"%d\n" % blocks)
    expected = hashlib.sha256(b"".join(map(target.block, range(blocks))))
    assert await all_of_it(reader) == (blocks << 16, expected.hexdigest())
    await ended(writer)


async def test_who_moves_much_gets_a_lane_and_who_does_not_has_none(rig: Rig, way: Way) -> None:
    for number in range(50):
        assert await echoes(rig, b"%d" % number)
    assert not way.lanes
    await all_through(rig, 64 * 16)
    assert len(way.lanes) == 1
    async with asyncio.timeout(10):
        await way.lanes[0].ended


def test_a_burst_is_counted_from_its_beginning() -> None:
    burst = lanes.Burst()
    assert [burst.goes_on(now) for now in (10.0, 10.4, 10.8, 11.4, 11.5)] == pytest.approx([0, 0.4, 0.8, 0, 0.1])


async def test_over_a_long_way_more_has_to_move_before(rig: Rig, way: Way) -> None:
    carrier: Any = rig.link._carrier
    carrier.trip = 10.0
    connect = carrier.connect

    async def slowly(*args: Any) -> Any:
        found = await connect(*args)
        carrier.trip = 10.0
        return found

    carrier.connect = slowly
    await all_through(rig)
    assert not way.lanes


async def test_a_wire_is_used_again_and_not_kept_for_ever(rig: Rig, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        await all_through(rig)
    assert (len(way.lanes), len(way.wires)) == (3, 1)
    monkeypatch.setattr(lanes, "SPARE_SECONDS", 0.05)
    await all_through(rig)
    await until(lambda: not way.wires[0].usable)
    monkeypatch.undo()
    await all_through(rig)
    assert len(way.wires) == 2
    monkeypatch.setattr(lanes, "DEAD_SECONDS", 0.1)
    # One on which something may still be on its way is of use when that is through.
    carrier: Any = rig.link._carrier
    await given_up(rig, way)
    await until(lambda: not carrier.lanes._tasks)
    assert way.wires[-1].usable
    way.answers = False
    await given_up(rig, way)
    await until(lambda: not carrier.lanes._tasks)
    assert not way.wires[-1].usable


async def given_up(rig: Rig, way: Way) -> None:
    """A download that is broken off."""
    before = len(way.lanes)
    reader, writer = await rig.open(target.SOURCE)
    writer.write(b"100000\n")
    async with asyncio.timeout(10):
        while len(way.lanes) == before or way.lanes[-1]._offset is None:
            assert await reader.read(1 << 16)
    writer.close()
    await ended(writer)


async def test_where_there_are_no_lanes_all_goes_by_the_channel(
    rig: Rig, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent of before does not know the command."""
    monkeypatch.setattr(server, "LANES", "another command")
    await all_through(rig)
    await all_through(rig)
    assert not way.lanes


async def test_a_lane_that_can_t_be_made_is_not_tried_again(rig: Rig, way: Way) -> None:
    tried = 0

    def refuse() -> None:
        nonlocal tried
        tried += 1
        raise ConnectionRefusedError

    way.before = refuse
    await all_through(rig)
    await all_through(rig)
    assert tried == 1


async def test_somebody_else_who_answers_gets_nothing(rig: Rig, way: Way) -> None:
    """Whoever stands in the agent's place does not have its key."""
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(1000))
        while data := await reader.read(1 << 16):
            heard.extend(data)
        writer.close()

    async with a_server(serve) as port:
        way.elsewhere = port
        await all_through(rig)
        await all_through(rig)
        assert len(way.lanes) == 1
        assert isinstance(way.lanes[0].answered.exception(), ConnectionError)
        await until(lambda: len(heard) == KEY_BYTES + NUMBER_BYTES)


@pytest.mark.parametrize("said", [b"", bytes(36), b"x" * 100])
async def test_a_stranger_is_sent_away(link: LiveLink, way: Way, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """No key, a wrong one, or too much."""
    monkeypatch.setattr(agent_lanes, "GREETING_SECONDS", 0.1)
    carrier: Any = link._carrier
    ran = await carrier.connection.run(agent_lanes.COMMAND, check=True)
    port = int(str(ran.stdout).split('"port": ')[1].split(",")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(said)
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    await ended(writer)


async def test_who_stands_still_when_the_lane_comes_is_not_given_what_comes_by_it(rig: Rig, way: Way) -> None:
    """Nobody would tell it a second time to wait."""
    reader, writer = await rig.open(target.ECHO)
    writer.write(b"first")
    assert await reader.readexactly(5) == b"first"
    channel = channel_of(writer)
    channel.pause_reading()
    channel._carrier.lanes.offer(channel)
    await until(lambda: channel.lane is not None)
    assert channel.lane.held
    channel.resume_reading()
    assert not channel.lane.held
    await ended(writer)


@pytest.mark.usefixtures("at_once")
async def test_a_dead_lane_ends(rig: Rig, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes by it any more, though the SSH connection lives."""
    monkeypatch.setattr(lanes, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(lanes, "DEAD_SECONDS", 0.05)
    reader, writer = await on_lanes(rig)
    # One that answers, or that nobody reads from, is let be.
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    way.answers = False
    await asyncio.sleep(0.3)
    assert not way.lanes[0].ended.done()
    way.answers = True
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(0.3)
    assert not way.lanes[0].ended.done()
    way.answers = False
    async with asyncio.timeout(5):
        await way.lanes[0].ended
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    await ended(writer)


@pytest.mark.parametrize("limit", [0, 50_000])
async def test_pieces_of_any_size_in_both_directions_at_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Twelve connections, of which eight can have lanes: who sends and who reads pause now and then."""
    monkeypatch.setattr(Meter, "limit", limit)
    monkeypatch.setattr(sshcarrier, "PATIENCE_TRIPS", 0)

    async def one(seed: int) -> None:
        chance = random.Random(seed)
        text = chance.randbytes(2_000_000)
        reader, writer = await rig.open(target.ECHO)

        async def send() -> None:
            at = 0
            while at < len(text):
                size = chance.choice((1, 100, 5000, 40_000, 300_000))
                writer.write(text[at : at + size])
                at += size
                await writer.drain()
                if chance.random() < 0.1:
                    await asyncio.sleep(0.005)
            writer.write_eof()

        sending = asyncio.create_task(send())
        heard = bytearray()
        while data := await reader.read(chance.choice((1000, 100_000))):
            heard += data
            if chance.random() < 0.05:
                await asyncio.sleep(0.01)
        await sending
        assert heard == text
        await ended(writer)

    await asyncio.gather(*(one(seed) for seed in range(12)))


@pytest.mark.usefixtures("at_once")
async def test_a_client_that_stands_still_holds_nothing_but_itself(rig: Rig) -> None:
    """Its lane is not read from; the server can send no more than fits on the way."""
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(OSError):
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()
                sent += 1 << 16

    async with a_server(serve) as port:
        reader, writer = await open_by_lane(rig.link, port)
        for _ in range(20):
            assert await reader.read(1 << 16)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        before = -1
        async with asyncio.timeout(20):
            while sent > before:
                before = sent
                await asyncio.sleep(0.3)
                assert await echoes(rig, b"others")
        assert sent < 100 << 20
        writer.transport.abort()
