"""The engine's end of the datagrams that doors have caught (`devloop/agent/inbound.py`): from its session with the
agent to local services, and back.

The door says when a flow has been idle for too long. Here one ends when its way to the local service does, and the one
that was idle for the longest when there are too many.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import OrderedDict, deque
from collections.abc import Callable

from devloop.agent.datagrams import DATA, END, MAX_FLOWS, OPEN, Record, RecordError
from devloop.agent.tasks import background
from devloop.datagrams import DatagramFlow
from devloop.errors import DevloopError
from devloop.remote.recordsession import ClientRecordSession

from .seam import LocalEnd

log = logging.getLogger(__name__)

WAITING = 64
"""Datagrams of one flow that wait for the way to the local service."""
WINDOW_BYTES = 512 * 1024
"""So much may be on its way here; what is more, the agent drops."""


class Flow:
    """What one client of the cluster says to a port. It is the client of the way to the local service."""

    def __init__(self, inbound: Inbound, number: int, served: Callable[[], None]) -> None:
        self.number = number
        self.way: DatagramFlow | None = None
        self.waiting: deque[bytes] = deque(maxlen=WAITING)
        self.opening: asyncio.Task[None] | None = None
        self._inbound = inbound
        self._served = served

    def received(self, data: bytes) -> None:
        """The local service answers."""
        self._served()
        self._inbound.answer(self, data)

    def refused(self) -> None:
        """Nobody listens now; more may be sent."""

    def ended(self, why: str) -> None:
        """The way is gone."""
        self._inbound.end(self)

    def send(self, data: bytes) -> None:
        """A datagram of the client's."""
        if self.way is None:
            self.waiting.append(data)
        else:
            self.way.send(data)


class Inbound(ClientRecordSession):
    """One session for all attachments by one SSH connection. Good until it is `over`."""

    WHAT = "attached datagrams"

    def __init__(self) -> None:
        super().__init__()
        self._locals: dict[tuple[str, int], tuple[LocalEnd, int, Callable[[], None]]] = {}
        self._flows: OrderedDict[int, tuple[Flow, str]] = OrderedDict()
        """With their attachments; the one that was used last is at the end."""

    def __len__(self) -> int:
        """Flows that there are."""
        return len(self._flows)

    def serve(self, attachment: str, port: int, local: LocalEnd, inner: int, served: Callable[[], None]) -> None:
        """What comes for this port of an attachment's Service goes to `inner` of the local service; `served` is called
        when it answers."""
        self._locals[attachment, port] = (local, inner, served)

    def forget(self, attachment: str) -> None:
        """Take nothing more for it."""
        for key in [key for key in self._locals if key[0] == attachment]:
            del self._locals[key]
        for flow, owner in tuple(self._flows.values()):
            if owner == attachment:
                self.end(flow)

    def answer(self, flow: Flow, data: bytes) -> None:
        """A datagram back to the client; dropped, if the link takes no more now."""
        if flow.number in self._flows:
            self._flows.move_to_end(flow.number)
            if not self._stuck:
                self._write(Record(DATA, flow.number, data))

    def end(self, flow: Flow) -> None:
        """A flow is over; the agent is told."""
        if self._flows.pop(flow.number, None) is not None:
            self._close(flow)
            self._write(Record(END, flow.number))

    def _close(self, flow: Flow) -> None:
        if flow.opening is not None and flow.opening is not asyncio.current_task():
            flow.opening.cancel()
        flow.waiting.clear()
        if flow.way is not None:
            flow.way.close()
            flow.way = None

    def _do(self, record: Record) -> None:
        flow = self._flows.get(record.flow, (None, ""))[0]
        if record.kind == OPEN and flow is None:
            self._open(record)
        elif flow is None:
            return  # it has ended here meanwhile
        elif record.kind == DATA:
            self._flows.move_to_end(record.flow)
            flow.send(record.body)
        elif record.kind == END:
            del self._flows[record.flow]
            self._close(flow)

    def _open(self, record: Record) -> None:
        try:
            said = json.loads(record.body)
            attachment, port, (address, number) = str(said["id"]), int(said["port"]), said["client"]
            client = (str(address), int(number))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as problem:
            raise RecordError(f"a flow that can't be read: {record.body[:60]!r}") from problem
        found = self._locals.get((attachment, port))
        if found is None:
            self._write(Record(END, record.flow))
            return
        if len(self._flows) >= MAX_FLOWS:
            self.end(next(iter(self._flows.values()))[0])
        local, inner, served = found
        flow = Flow(self, record.flow, served)
        self._flows[record.flow] = (flow, attachment)
        flow.opening = background(self._join(flow, local, inner, client), name="datagrams from the cluster")

    async def _join(self, flow: Flow, local: LocalEnd, port: int, client: tuple[str, int]) -> None:
        try:
            way = await local.datagrams(flow, port, client)
        except (OSError, DevloopError) as problem:
            log.info("datagrams of %s: %s", client, problem)
            self.end(flow)
            return
        flow.way = way
        while flow.waiting:
            way.send(flow.waiting.popleft())

    def _end_all(self) -> None:
        flows, self._flows = self._flows, OrderedDict()
        for flow, _ in flows.values():
            self._close(flow)
