"""Datagrams from a door through the agent to an engine, and back: what begins, what ends, and what is dropped."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from devloop.agent import caught, datagrams, inbound
from devloop.agent.caught import IDLE_SECONDS, Caught
from devloop.agent.datagrams import DATA, END, OPEN, Record, RecordError, Records, written
from devloop.agent.inbound import FromDoor, Taker, ToEngine
from devloop.attach import inbound as engine_side
from devloop.attach.inbound import Inbound
from tests.waiting import until


class Pipe:
    """A channel, or a stream to a door; what is written the other end has at once."""

    def __init__(self) -> None:
        self.to: Any = None
        self.sent: list[bytes] = []
        self.waiting = 0
        self.closed = False

    @property
    def transport(self) -> Pipe:
        return self

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def is_closing(self) -> bool:
        return self.closed

    def write(self, data: bytes) -> None:
        self.sent.append(data)
        if self.to is not None:
            self.to(data)

    def exit(self, code: int) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True

    def said(self) -> list[Record]:
        return list(Records().read(b"".join(self.sent)))


class Way:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def send(self, data: bytes) -> bool:
        self.sent.append(data)
        return True

    def close(self) -> None:
        self.closed = True


class Local:
    def __init__(self) -> None:
        self.asked: list[tuple[int, tuple[str, int]]] = []
        self.clients: list[Any] = []
        self.ways: list[Way] = []
        self.there = asyncio.Event()
        self.there.set()
        self.problem: OSError | None = None

    async def datagrams(self, client: Any, port: int, source: tuple[str, int]) -> Way:
        self.asked.append((port, source))
        await self.there.wait()
        if self.problem is not None:
            raise self.problem
        self.clients.append(client)
        self.ways.append(Way())
        return self.ways[-1]


class Rig:
    """A door, the agent and an engine."""

    def __init__(self) -> None:
        self.taker: Taker | None = Taker("ssh", "ada", 8125)  # type: ignore[arg-type]
        self.agent = inbound.Inbound(lambda uid, port: self.taker if port == 9125 else None)
        self.door, self.down, self.up = Pipe(), Pipe(), Pipe()
        self.from_door = FromDoor(self.agent, "u0", self.door)  # type: ignore[arg-type]
        self.session: ToEngine = self.agent.session("ssh", self.down)  # type: ignore[arg-type]
        self.engine, self.local, self.served = Inbound(), Local(), 0
        self.engine.connection_made(self.up)
        self.down.to, self.up.to = self.engine.data_received, self.session.received
        self.engine.serve("ada", 8125, self.local, 5, self.count)  # type: ignore[arg-type]

    def count(self) -> None:
        self.served += 1

    def say(self, *records: Record) -> None:
        self.from_door.received(b"".join(map(written, records)))

    def open(self, number: int, port: int = 9125) -> None:
        said = {"port": port, "client": ["10.0.0.7", 40000 + number]}
        self.say(Record(OPEN, number, json.dumps(said).encode()), Record(DATA, number, b"%d" % number))


@pytest.fixture
async def rig() -> Rig:
    return Rig()


async def test_there_and_back_with_who_asks(rig: Rig) -> None:
    rig.open(7)
    await until(lambda: len(rig.local.ways) == 1 and rig.local.ways[0].sent == [b"7"])
    assert rig.local.asked == [(5, ("10.0.0.7", 40007))]
    rig.say(Record(DATA, 7, b""))
    rig.local.clients[0].received(b"answer")
    assert rig.local.ways[0].sent == [b"7", b""] and rig.door.said() == [Record(DATA, 7, b"answer")] and rig.served == 1
    rig.say(Record(END, 7))
    assert rig.local.ways[0].closed and not len(rig.session) and not len(rig.engine)
    rig.say(Record(DATA, 7, b"late"))
    rig.local.clients[0].received(b"late")
    assert len(rig.door.sent) == 1


async def test_what_nobody_takes_is_over_and_the_next_one_begins_anew(rig: Rig) -> None:
    rig.open(1, port=53)
    rig.taker = None
    rig.open(2)
    assert rig.door.said() == [Record(END, 1), Record(END, 2)] and not rig.local.asked
    rig.taker = Taker("another", "ada", 8125)  # type: ignore[arg-type]
    rig.open(3)
    rig.taker = Taker("ssh", "ben", 8125)  # type: ignore[arg-type]
    rig.open(4)
    assert [each.flow for each in rig.door.said()] == [1, 2, 3, 4] and not rig.from_door.flows and not len(rig.session)


async def test_each_end_may_end_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_side, "MAX_FLOWS", 2)
    for number in (1, 2, 3):  # one too many: the oldest
        rig.open(number)
    assert rig.door.said() == [Record(END, 1)] and len(rig.engine) == len(rig.session) == 2
    await until(lambda: len(rig.local.ways) == 2)
    rig.local.clients[0].ended("")
    assert rig.door.said()[1:] == [Record(END, 2)] and len(rig.session) == 1
    rig.agent.end_all("ben")
    assert len(rig.session) == 1
    rig.agent.end_all("ada")
    assert rig.door.said()[2:] == [Record(END, 3)] and not len(rig.engine) and rig.local.ways[1].closed
    rig.open(4)
    rig.engine.forget("ada")
    assert rig.door.said()[3:] == [Record(END, 4)]
    rig.engine.serve("ada", 8125, rig.local, 5, rig.count)  # type: ignore[arg-type]
    rig.open(5)
    rig.from_door.ended()
    assert not len(rig.engine)


async def test_the_end_of_a_session_ends_its_flows_and_the_next_one_has_others(rig: Rig) -> None:
    rig.open(1)
    rig.session.ended()
    assert rig.door.said() == [Record(END, 1)] and rig.agent.engine("ssh") is None  # type: ignore[arg-type]
    rig.open(2)
    assert rig.door.said()[1:] == [Record(END, 2)]
    rig.engine.connection_lost(None)
    assert rig.engine.over and not len(rig.engine)


async def test_what_waits_for_the_local_service_is_bounded_and_one_that_is_not_there_ends_it(rig: Rig) -> None:
    rig.local.there.clear()
    rig.open(1)
    rig.say(*(Record(DATA, 1, b"x%d" % each) for each in range(engine_side.WAITING)))
    rig.local.there.set()
    await until(lambda: bool(rig.local.ways))
    assert rig.local.ways[0].sent[0] == b"x0" and len(rig.local.ways[0].sent) == engine_side.WAITING
    rig.local.problem = OSError("no")
    rig.open(2)
    await until(lambda: Record(END, 2) in rig.door.said())


async def test_who_reads_slowly_loses_datagrams_and_nothing_is_kept(rig: Rig) -> None:
    rig.open(1)
    await until(lambda: len(rig.local.ways) == 1)
    rig.session.stuck(True)
    rig.say(Record(DATA, 1, b"lost"))
    rig.session.stuck(False)
    rig.engine.pause_writing()
    rig.local.clients[0].received(b"lost")
    rig.engine.resume_writing()
    rig.door.waiting = inbound.ROOM_BYTES
    rig.local.clients[0].received(b"lost")
    assert rig.local.ways[0].sent == [b"1"] and rig.door.sent == []


async def test_a_flow_that_can_not_be_said_to_the_engine_is_none(rig: Rig) -> None:
    rig.session.stuck(True)
    for number in range(1, 5000):  # each from a port of its own
        rig.open(number)
    assert (len(rig.session), rig.down.sent) == (0, [])
    assert [each.kind for each in rig.door.said()] == [END] * 4999
    rig.session.stuck(False)
    rig.open(5000)
    await until(lambda: len(rig.local.ways) == 1)


async def test_who_reads_nothing_is_cut(rig: Rig) -> None:
    rig.door.waiting = 2 * inbound.ROOM_BYTES + 1
    rig.open(1, port=1)  # nobody takes it, which the door is told
    assert rig.door.closed
    rig.session.stuck(True)
    rig.down.waiting = datagrams.UNREAD_BYTES
    rig.session.tell(Record(END, 1), whatever=True)
    assert not rig.session.over
    rig.down.waiting += 1
    rig.session.tell(Record(END, 1), whatever=True)
    assert rig.session.over and rig.down.closed


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"port": "x", "client": ["", 1]}', b'{"port": 1, "client": [1]}']
)
async def test_what_can_not_be_read_ends_the_connection_alone(rig: Rig, body: bytes) -> None:
    with pytest.raises(RecordError):
        rig.say(Record(OPEN, 1, body))
    rig.engine.data_received(written(Record(OPEN, 1, body)))
    assert rig.up.closed and rig.engine.over
    rig.session.received(b"\xff" * 20)
    assert rig.down.closed and rig.agent.engine("ssh") is None  # type: ignore[arg-type]


class Transport:
    """The door's connection to the agent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.aborted = False

    def set_write_buffer_limits(self, high: int) -> None: ...

    def is_closing(self) -> bool:
        return self.aborted

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def abort(self) -> None:
        self.aborted = True

    def kinds(self) -> list[tuple[int, int]]:
        return [(each.kind, each.flow) for each in Records().read(b"".join(self.sent))]


async def test_a_door_ends_what_is_idle_and_the_oldest_of_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caught, "MAX_FLOWS", 2)
    now, lost = [0.0], []
    door, agent = Caught(lambda: lost.append(1), lambda: now[0]), Transport()

    def came(client: int, data: bytes = b"x") -> None:
        door.came(None, (9125, b"\n\0\0\1", ("10.0.0.7", client)), data)  # type: ignore[arg-type]

    came(1)
    assert not door.connected and len(door) == 0
    door.connection_made(agent)  # type: ignore[arg-type]
    for client in (1, 2, 1, 3):
        came(client)
    assert agent.kinds() == [(OPEN, 1), (DATA, 1), (OPEN, 2), (DATA, 2), (DATA, 1), (END, 2), (OPEN, 3), (DATA, 3)]
    now[0] = IDLE_SECONDS - 1
    door.expire()
    came(3)
    now[0] = IDLE_SECONDS
    door.expire()
    assert agent.kinds()[8:] == [(DATA, 3), (END, 1)] and len(door) == 1
    door.pause_writing()
    came(3)
    door.resume_writing()
    assert len(agent.kinds()) == 10
    door.data_received(written(Record(END, 3)) + written(Record(DATA, 9)))
    assert len(door) == 0
    door.data_received(b"\xff" * 20)
    assert agent.aborted
    door.connection_lost(None)
    assert lost and not door.connected
