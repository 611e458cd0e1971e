"""A connection of Envoy's over the life of several local processes, with transports in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from devloop.agent.turns import LOST
from devloop.attach.http1 import KEPT_BYTES
from devloop.attach.relay import REPEATS, Far, Near

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nab"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


class Wire:
    """A transport that notes what is done with it."""

    def __init__(self) -> None:
        self.sent = b""
        self.done: list[str] = []
        self.paused = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def is_closing(self) -> bool:
        return bool({"close", "abort"} & set(self.done))

    def can_write_eof(self) -> bool:
        return True

    def get_extra_info(self, name: str) -> Any:
        return None

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.done.append(name)


class Rig:
    def __init__(self) -> None:
        self.processes: list[tuple[Wire, Near]] = []
        self.up = asyncio.Event()
        self.up.set()
        self.refused = False
        self.served = 0
        self.envoy = Wire()
        self.far = Far(self.connect, self.answered)

    def answered(self) -> None:
        self.served += 1

    async def connect(self, factory: Callable[[], Near]) -> tuple[asyncio.Transport, Near]:
        await self.up.wait()
        if self.refused:
            raise ConnectionRefusedError
        near, wire = factory(), Wire()
        near.connection_made(cast(asyncio.Transport, wire))
        self.processes.append((wire, near))
        return cast(asyncio.Transport, wire), near

    @classmethod
    async def open(cls, first: bytes = GET) -> Rig:
        rig = cls()
        await rig.far.join()
        rig.far.connection_made(cast(asyncio.Transport, rig.envoy))
        rig.far.data_received(first)
        return rig

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    @property
    def wire(self) -> Wire:
        return self.processes[-1][0]

    def ends(self, problem: Exception | None = None) -> None:
        """The newest process closes its connection, or is reset."""
        near = self.processes[-1][1]
        if problem is None and near.eof_received():
            return
        near.connection_lost(problem)


async def test_a_connection_between_two_requests_outlives_the_process() -> None:
    rig = await Rig.open()
    rig.far.answered(rig.processes[-1][1], OK)
    rig.ends()
    assert rig.envoy.done == []
    rig.up.clear()
    rig.far.data_received(POST)
    await rig.settle()
    assert len(rig.processes) == 1
    rig.up.set()
    await rig.settle()
    assert rig.wire.sent == POST
    rig.far.answered(rig.processes[-1][1], OK)
    assert rig.envoy.sent == OK + OK
    assert rig.served == 2


async def test_an_unanswered_request_goes_to_the_next_process_if_it_may_be_repeated() -> None:
    rig = await Rig.open(GET)
    rig.ends()
    await rig.settle()
    assert [wire.sent for wire, _ in rig.processes] == [GET, GET]
    assert rig.envoy.done == []


async def test_one_that_may_not_be_is_answered_and_given_to_nobody() -> None:
    rig = await Rig.open(POST)
    rig.ends()
    await rig.settle()
    assert len(rig.processes) == 1
    assert (rig.envoy.sent, rig.envoy.done) == (LOST, ["close"])


async def test_one_that_was_never_read_is_given_to_the_next_process() -> None:
    rig = await Rig.open(POST)
    rig.ends(ConnectionResetError())
    await rig.settle()
    assert [wire.sent for wire, _ in rig.processes] == [POST, POST]
    # In two pieces, the first of which may have been read.
    other = await Rig.open(POST[:-1])
    other.far.data_received(POST[-1:])
    other.ends(ConnectionResetError())
    await other.settle()
    assert other.envoy.sent == LOST


async def test_a_request_that_kills_every_process_ends() -> None:
    rig = await Rig.open(GET)
    for _ in range(REPEATS + 1):
        rig.ends()
        await rig.settle()
    assert len(rig.processes) == REPEATS + 1
    # Without an answer: Envoy asks the original.
    assert (rig.envoy.sent, rig.envoy.done) == (b"", ["abort"])


async def test_when_no_process_comes_envoy_asks_the_original() -> None:
    rig = await Rig.open(GET)
    rig.far.answered(rig.processes[-1][1], OK)
    rig.ends()
    rig.refused = True
    rig.far.data_received(POST)
    await rig.settle()
    assert (rig.envoy.sent, rig.envoy.done) == (OK, ["abort"])


async def test_half_an_answer_is_cut_and_a_closing_one_is_closed() -> None:
    rig = await Rig.open(GET)
    rig.far.answered(rig.processes[-1][1], OK[:-1])
    rig.ends()
    assert rig.envoy.done[-1] == "abort"
    other = await Rig.open(GET)
    other.far.answered(other.processes[-1][1], b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
    other.ends()
    assert other.envoy.done == ["write_eof"]
    other.processes[-1][1].connection_lost(None)
    assert other.envoy.done == ["write_eof", "close"]


async def test_what_is_no_http1_ends_with_its_process() -> None:
    rig = await Rig.open(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    rig.ends(ConnectionResetError())
    assert rig.envoy.done == ["abort"]


async def test_an_upload_that_waits_is_not_read() -> None:
    rig = await Rig.open(GET)
    rig.far.answered(rig.processes[-1][1], OK)
    rig.ends()
    rig.up.clear()
    rig.far.data_received(POST)
    rig.far.data_received(b"x" * KEPT_BYTES)
    assert rig.envoy.paused
    rig.up.set()
    await rig.settle()
    assert not rig.envoy.paused and rig.wire.sent == POST + b"x" * KEPT_BYTES


async def test_a_cut_from_the_agents_side_reaches_the_process() -> None:
    rig = await Rig.open(GET)
    rig.far.connection_lost(ConnectionResetError())
    assert rig.wire.done == ["abort"]
    rig.ends()
    assert rig.envoy.sent == b""
