"""Datagrams that doors have caught, on their way through the agent: from a door to a developer's engine, and back.

Both sides say the records of `datagrams.py`, by a TCP connection of the door's (`doors.py`) and an SSH session of the
engine's with the command `COMMAND`. A *flow* is what one client says to one port of one pod. It begins at the door,
which alone says when it has been idle for too long; its numbers are the door's own on one side, and the agent's on the
other.

    OPEN, from the door    {"port": 9125, "client": ["10.244.0.7", 40123]}: the pod's port, and who asks
    OPEN, to the engine    {"id": "echo-1f", "port": 8125, "client": […]}: the attachment, and the Service's port
    DATA, END              as there; END goes both ways

Nothing is kept here: what the other side does not take at once is dropped.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from .datagrams import DATA, END, MAX_FLOWS, OPEN, Record, RecordError, Records, RecordSession, written
from .forward import Connection

log = logging.getLogger("agent")

COMMAND = "attached datagrams 1"
"""The SSH session. Its number is the version of what OPEN says."""
ROOM_BYTES = 1 << 20
"""So much may wait for a door that reads slowly: then it gets no more datagrams. One for which twice that waits reads
nothing, and is cut."""
_READ_BYTES = 1 << 18


class Taker(NamedTuple):
    """Who takes what comes to one port of one pod."""

    connection: Connection
    id: str
    """The attachment's."""
    port: int
    """The Service's."""


def client_of(body: bytes) -> tuple[int, str, int]:
    """What a door's OPEN says: the pod's port, the client's address and port. Raises RecordError."""
    try:
        said = json.loads(body)
        address, port = said["client"]
        return int(said["port"]), str(address), int(port)
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise RecordError(f"a flow that can't be read: {body[:60]!r}") from problem


@dataclass(eq=False, slots=True)
class Flow:
    """One, with both of its ends."""

    door: FromDoor
    number: int
    """The door's."""
    engine: ToEngine
    engine_number: int
    id: str


class FromDoor:
    """The connection of one pod's door."""

    def __init__(self, inbound: Inbound, uid: str, writer: asyncio.StreamWriter) -> None:
        self.flows: dict[int, Flow] = {}
        self._inbound = inbound
        self._uid = uid
        self._writer = writer
        self._records = Records()

    def received(self, data: bytes) -> None:
        """What the door says. Raises RecordError."""
        for record in self._records.read(data):
            flow = self.flows.get(record.flow)
            if record.kind == OPEN and flow is None:
                self._open(record)
            elif flow is None:
                continue  # it has ended here meanwhile, which the door has been told
            elif record.kind == DATA:
                flow.engine.tell(Record(DATA, flow.engine_number, record.body))
            elif record.kind == END:
                self.forget(flow)
                flow.engine.end(flow)

    def _open(self, record: Record) -> None:
        port, *client = client_of(record.body)
        taker = self._inbound.taker(self._uid, port)
        engine = self._inbound.engine(taker.connection) if taker is not None else None
        if taker is None or engine is None or engine.full or len(self.flows) >= MAX_FLOWS:
            self._write(Record(END, record.flow))
            return
        flow = engine.open(self, record.flow, taker.id)
        self.flows[record.flow] = flow
        said = {"id": taker.id, "port": taker.port, "client": client}
        engine.tell(Record(OPEN, flow.engine_number, json.dumps(said).encode()), whatever=True)

    def forget(self, flow: Flow) -> None:
        """It is over."""
        self.flows.pop(flow.number, None)

    def end(self, flow: Flow) -> None:
        """It is over, and the door is told."""
        self.forget(flow)
        self._write(Record(END, flow.number))

    def answer(self, flow: Flow, data: bytes) -> None:
        """A datagram back to the client."""
        if self._writer.transport.get_write_buffer_size() < ROOM_BYTES:
            self._write(Record(DATA, flow.number, data))

    def _write(self, record: Record) -> None:
        if self._writer.is_closing():
            return
        self._writer.write(written(record))
        if self._writer.transport.get_write_buffer_size() > 2 * ROOM_BYTES:
            log.warning("a door that reads nothing is cut")
            self._writer.transport.abort()

    def ended(self) -> None:
        """The door has gone."""
        flows, self.flows = self.flows, {}
        for each in flows.values():
            each.engine.end(each)


class ToEngine(RecordSession):
    """One engine's session. `channel`: asyncssh's; `over` is called when it has ended."""

    WHAT = "attached datagrams"

    def __init__(self, channel: Any, over: Callable[[ToEngine], None]) -> None:
        super().__init__(channel)
        self._over_now = over
        self._flows: dict[int, Flow] = {}
        self._next = 0

    def __len__(self) -> int:
        """Flows that there are."""
        return len(self._flows)

    @property
    def full(self) -> bool:
        """The engine takes no more now: a flow would not reach it."""
        return self._stuck

    def open(self, door: FromDoor, number: int, attachment: str) -> Flow:
        """A flow of a door's."""
        self._next = self._next % 0xFFFFFFFF + 1
        while self._next in self._flows:
            self._next = self._next % 0xFFFFFFFF + 1
        made = self._flows[self._next] = Flow(door, number, self, self._next, attachment)
        return made

    def tell(self, record: Record, *, whatever: bool = False) -> None:
        """Say something, if there is room, or `whatever`."""
        if whatever or not self._stuck:
            self._write(record)

    def end(self, flow: Flow) -> None:
        """The door has ended it."""
        if self._flows.pop(flow.engine_number, None) is not None:
            self.tell(Record(END, flow.engine_number), whatever=True)

    def end_all(self, attachment: str) -> None:
        """All flows of one attachment are over; both ends are told."""
        for each in [each for each in self._flows.values() if each.id == attachment]:
            each.door.end(each)
            self.end(each)

    def _do(self, record: Record) -> None:
        flow = self._flows.get(record.flow)
        if flow is None:
            return
        if record.kind == DATA:
            flow.door.answer(flow, record.body)
        elif record.kind == END:
            del self._flows[record.flow]
            flow.door.end(flow)

    def _end_all(self) -> None:
        self._over_now(self)
        flows, self._flows = self._flows, {}
        for each in flows.values():
            each.door.end(each)


class Inbound:
    """All of them. `taker` says who takes what comes to a port of a pod now."""

    def __init__(self, taker: Callable[[str, int], Taker | None]) -> None:
        self.taker = taker
        self._engines: dict[Connection, ToEngine] = {}

    def engine(self, connection: Connection) -> ToEngine | None:
        """The session by one SSH connection."""
        return self._engines.get(connection)

    def session(self, connection: Connection, channel: Any) -> ToEngine:
        """One has begun; the one before by the same connection is over."""
        before = self._engines.get(connection)
        if before is not None:
            before.ended()
        made = self._engines[connection] = ToEngine(channel, lambda ended: self._forget(connection, ended))
        return made

    def _forget(self, connection: Connection, ended: ToEngine) -> None:
        if self._engines.get(connection) is ended:
            del self._engines[connection]

    def end_all(self, attachment: str) -> None:
        """Nobody has this attachment any more."""
        for each in list(self._engines.values()):
            each.end_all(attachment)

    async def carry(self, uid: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until a door's connection ends."""
        door = FromDoor(self, uid, writer)
        try:
            while data := await reader.read(_READ_BYTES):
                door.received(data)
        except (OSError, RecordError) as problem:
            log.info("datagrams of a door's: %s", problem)
        finally:
            door.ended()
