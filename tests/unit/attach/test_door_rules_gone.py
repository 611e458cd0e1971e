"""A door whose rules are gone: nothing goes round in circles, and it does not say that it is there."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from devloop.agent import door
from devloop.agent.door import Door, DoorError
from tests.waiting import until

HERE = "127.0.0.1"


async def said_by(number: int) -> bytes:
    reader, writer = await asyncio.open_connection(HERE, number)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return answer


async def answering(who: bytes) -> asyncio.Server:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(who)
        writer.close()

    return await asyncio.start_server(answer, HERE, 0)


async def test_what_comes_to_its_own_port_goes_to_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what the agent's Envoy has for the original: handed to the agent, it would come again."""
    ordinary = (socket.SOL_SOCKET, socket.SO_REUSEADDR)  # a transparent socket is for root
    monkeypatch.setattr(door, "TRANSPARENT", {socket.AF_INET: ordinary, socket.AF_INET6: ordinary})
    original, envoy = await answering(b"original"), await answering(b"envoy")
    async with original, envoy:
        port = original.sockets[0].getsockname()[1]
        made = Door((HERE, 1), "t", "u", "devloop_x", [])
        place = await made._place(port)
        made._caught = {port: envoy.sockets[0].getsockname()[1]}
        assert await said_by(place.number) == b"original"
        for each in place.servers:
            each.close()
        await until(lambda: not made._open)


class Kernel:
    """Takes rules, and the sets of a table that is there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there = True
        self.works = True
        self.beats = 0
        self.door = Door((HERE, 1), "t", "u", "devloop_x", [])
        self.door._places = {8080: door.Place(8080, 30000)}
        monkeypatch.setattr(self.door, "_tell_kernel", self.tell)
        monkeypatch.setattr(self.door, "_say", self.said)
        monkeypatch.setattr(door, "BEAT_SECONDS", 0.001)

    async def tell(self, text: str) -> None:
        if not self.works:
            raise DoorError("nft has not answered")
        self.there = self.there or "add table" in text
        if not self.there:
            raise DoorError("No such file or directory")

    def said(self, writer: Any, **message: Any) -> None:
        assert json.dumps(message) == '{"beat": true}'
        assert self.there and self.works
        self.beats += 1


async def test_rules_that_somebody_has_flushed_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    task = asyncio.create_task(kernel.door._live(None))  # type: ignore[arg-type]
    await until(lambda: kernel.beats)
    kernel.there = False
    before = kernel.beats
    await until(lambda: kernel.beats > before)
    assert kernel.there and not kernel.door._ended.is_set()
    task.cancel()


async def test_a_door_that_can_tell_the_kernel_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    kernel.works = False
    task = asyncio.create_task(kernel.door._live(None))  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        await kernel.door._ended.wait()
    assert not kernel.beats
    task.cancel()
