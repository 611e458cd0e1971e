"""UDP through an agent: the engine's end of the session of `devloop/agent/datagrams.py`.

Importing this imports asyncssh.
"""

from __future__ import annotations

import logging
from typing import Any, cast

import asyncssh

from devloop.agent.datagrams import (
    COMMAND,
    DATA,
    END,
    MAX_BYTES,
    OPEN,
    REFUSED,
    Record,
    destination,
)
from devloop.datagrams import DatagramClient

from .link import CarrierLostError, NoDatagramsError
from .recordsession import ClientRecordSession

log = logging.getLogger(__name__)

WINDOW_BYTES = 512 * 1024
"""So much may be on its way here; what is more, the agent drops. It waits before everybody else's next byte."""


class Flow:
    """What one client says to one destination. See `devloop.datagrams.DatagramFlow`."""

    def __init__(self, session: DatagramSession, number: int, client: DatagramClient) -> None:
        self._session = session
        self.number = number
        self.client = client

    def send(self, data: bytes) -> bool:
        """Send one; False: it was dropped."""
        return self._session.send(self, data)

    def close(self) -> None:
        """End it; `client` is not told."""
        self._session.end(self)


class DatagramSession(ClientRecordSession):
    """One session, for all flows by one SSH connection. Good until it is `over`."""

    def __init__(self) -> None:
        super().__init__()
        self._flows: dict[int, Flow] = {}
        self._next = 0

    @classmethod
    async def begin(cls, connection: asyncssh.SSHClientConnection, where: str) -> DatagramSession:
        """Ask the agent for it. Raises NoDatagramsError if it knows of none, CarrierLostError."""
        try:
            _, session = await connection.create_session(
                lambda: cast(Any, cls()), COMMAND, encoding=None, window=WINDOW_BYTES
            )
        except asyncssh.ChannelOpenError as problem:
            if connection.is_closed():
                raise CarrierLostError(problem.reason) from problem
            hint = "`devloop agent uninstall` when nobody else uses it, and the next `up` makes it anew. "
            hint += "An administrator's: `devloop agent manifest`, applied again."
            what = "this agent carries no UDP, as it is older than this devloop"
            raise NoDatagramsError(what, where=where, hint=hint) from problem
        except (asyncssh.Error, OSError) as problem:
            raise CarrierLostError(str(problem)) from problem
        return cast(DatagramSession, session)

    def flow(self, client: DatagramClient, address: str, port: int) -> Flow:
        """Begin one."""
        self._next = self._next % 0xFFFFFFFF + 1
        while self._next in self._flows:
            self._next = self._next % 0xFFFFFFFF + 1
        made = self._flows[self._next] = Flow(self, self._next, client)
        self._write(Record(OPEN, made.number, destination(address, port)))
        return made

    def send(self, flow: Flow, data: bytes) -> bool:
        """Send a datagram of a flow's; False: it was dropped, as the link takes no more now."""
        if self._stuck or self.over or len(data) > MAX_BYTES or self._flows.get(flow.number) is not flow:
            return False
        self._write(Record(DATA, flow.number, data))
        return True

    def end(self, flow: Flow) -> None:
        """Forget a flow, and have the agent do so."""
        if self._flows.get(flow.number) is flow:
            del self._flows[flow.number]
            self._write(Record(END, flow.number))

    def _do(self, record: Record) -> None:
        flow = self._flows.get(record.flow)
        if flow is None:
            return  # it has ended here meanwhile
        if record.kind == DATA:
            flow.client.received(record.body)
        elif record.kind == REFUSED:
            flow.client.refused()
        elif record.kind == END:
            del self._flows[record.flow]
            flow.client.ended(record.body.decode(errors="replace"))

    def _end_all(self) -> None:
        flows, self._flows = self._flows, {}
        for each in flows.values():
            each.client.ended("")
