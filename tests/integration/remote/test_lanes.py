"""Lanes: the links' contract with one for each connection, and what becomes of bytes and ends at their edges."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct

import pytest

from devloop.agent.lane import Meter
from devloop.remote import sshcarrier
from devloop.remote.life import LiveLink
from tests.waiting import until

from . import target
from .contract import LinkContract, Rig, echoes, ended
from .laning import Way, a_server, channel_of, on_lanes, open_by_lane
from .laning import at_once as at_once
from .laning import link as link
from .laning import rig as rig
from .laning import way as way

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.mark.usefixtures("at_once")
class TestALaneForEach(LinkContract):
    """The contract while everybody moves to a lane in the midst of it."""


class TestLanesForWhoMovesMuch(LinkContract):
    """The contract with lanes as they are."""


@pytest.mark.usefixtures("at_once")
async def test_a_half_close_by_lane_comes_after_what_was_sent(rig: Rig) -> None:
    reader, writer = await on_lanes(rig)
    text = random.Random(1).randbytes(5_000_000)
    writer.write(text)
    writer.write_eof()
    assert await reader.read() == text
    await ended(writer)


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
