"""Lanes: who gets one and when, what it runs over, and what becomes of it. The agent runs here."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest

from devloop.agent import lanes as agent_lanes
from devloop.agent import server
from devloop.agent.lane import BULK_BYTES, KEY_BYTES, NUMBER_BYTES
from devloop.remote import lanes
from devloop.remote.life import LiveLink
from tests.waiting import until

from . import target
from .contract import Rig, echoes, ended
from .laning import Way, a_server, all_through, channel_of, on_lanes
from .laning import at_once as at_once
from .laning import link as link
from .laning import rig as rig
from .laning import way as way

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


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


@pytest.mark.usefixtures("at_once")
async def test_a_wire_is_used_again_and_not_kept_for_ever(rig: Rig, way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        await all_through(rig)
        await given_back(rig)
    assert (len(way.lanes), len(way.wires)) == (3, 1)
    with monkeypatch.context() as soon:
        soon.setattr(lanes, "SPARE_SECONDS", 0.05)
        await all_through(rig)
        await until(lambda: not way.wires[0].usable)
    await all_through(rig)
    assert len(way.wires) == 2
    monkeypatch.setattr(lanes, "DEAD_SECONDS", 0.1)
    # One on which something may still be on its way is of use when that is through.
    await given_up(rig, way)
    await given_back(rig)
    assert way.wires[-1].usable
    way.answers = False
    await given_up(rig, way)
    await given_back(rig)
    assert not way.wires[-1].usable


async def given_back(rig: Rig) -> None:
    """What lanes ran over is spare again, or is gone."""
    carrier: Any = rig.link._carrier
    await until(lambda: not carrier.lanes._tasks)


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


@pytest.mark.usefixtures("at_once")
async def test_a_lane_that_can_t_be_made_is_not_tried_again(rig: Rig, way: Way) -> None:
    tried = 0

    def refuse() -> None:
        nonlocal tried
        tried += 1
        raise ConnectionRefusedError

    way.before = refuse
    await all_through(rig)
    await given_back(rig)
    await all_through(rig)
    assert tried == 1


@pytest.mark.usefixtures("at_once")
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
        await given_back(rig)
        await all_through(rig)
        assert len(way.lanes) == 1
        assert isinstance(way.lanes[0].answered.exception(), ConnectionError)
        await until(lambda: len(heard) == KEY_BYTES + NUMBER_BYTES)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers have little time at an agent that is made after this."""
    monkeypatch.setattr(agent_lanes, "GREETING_SECONDS", 0.1)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("said", [b"", bytes(36), b"x" * 100])
async def test_a_stranger_is_sent_away(link: LiveLink, way: Way, said: bytes) -> None:
    """No key, a wrong one, or too much."""
    carrier: Any = link._carrier
    ran = await carrier.connection.run(agent_lanes.COMMAND, check=True)
    port = int(str(ran.stdout).split('"port": ')[1].split(",")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(said)
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
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
