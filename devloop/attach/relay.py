"""Between a channel from the agent and the local service: bytes both ways, across reloads.

HTTP/1.1 is followed (`http1.py`), so that a connection that Envoy keeps outlives the process that has answered on it:
the next request opens a new one, which waits while the service reloads. A request that the old process has left
unanswered is given to the new one where that is safe:

- its method may be repeated (RFC 9110, 9.2.2);
- or the kernel says that the old process has not read it: a process that ends with unread bytes resets the
  connection instead of closing it, and what reaches a closed socket is answered with a reset.

Otherwise it is answered with 502, and never given to anybody else. What was not given to any process ends without an
answer, and Envoy asks the original pods.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, cast

from devloop.agent.tasks import background
from devloop.agent.turns import LOST, begins
from devloop.errors import DevloopError

from .http1 import KEPT_BYTES, Exchange, Where

Connect = Callable[[Callable[[], "Near"]], Awaitable[tuple[asyncio.Transport, "Near"]]]
"""Connects to the local service, waiting while it reloads."""
REPEATS = 2
"""How often one request is given to another process: a request that kills its process must not kill the next ones."""


class Near(asyncio.Protocol):
    """The local service's side: one connection to one process of it."""

    def __init__(self, far: Far) -> None:
        self.far = far
        self.transport: asyncio.Transport | None = None
        self.finished = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Its answer."""
        self.far.answered(self, data)

    def eof_received(self) -> bool:
        """It sends no more."""
        self.finished = True
        return self.far.near_finished(self)

    def pause_writing(self) -> None:
        """It reads slowly."""
        if self.far.transport is not None and self.far.near is self:
            self.far.transport.pause_reading()

    def resume_writing(self) -> None:
        """It reads again."""
        if self.far.transport is not None and self.far.near is self:
            self.far.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        self.far.near_lost(self, exc)


class Far(asyncio.Protocol):
    """The channel's side: one connection of Envoy's. `served` is called at the first byte of each answer."""

    def __init__(self, connect: Connect, served: Callable[[], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self.near: Near | None = None
        self._connect = connect
        self._served = served
        self._exchange: Exchange | None = None
        self._started = False
        self._finished = False
        self._lost = False
        self._waiting: list[bytes] = []
        """What came from Envoy while there was no process to give it to."""
        self._joining: asyncio.Task[None] | None = None
        self._repeats = 0

    @property
    def busy(self) -> bool:
        """A request is under way."""
        return (
            not self._lost and self._exchange is not None and self._exchange.where in (Where.WAITING, Where.ANSWERING)
        )

    async def join(self) -> None:
        """Connect to the local service, before the channel is open. OSError, RemoteError."""
        _, self.near = await self._connect(lambda: Near(self))

    # --- From Envoy ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The channel is open."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """A request, or more of it."""
        if not self._started:
            self._started = True
            if begins(data):
                self._exchange = Exchange()
        if self._exchange is not None:
            if self._exchange.where is Where.IDLE:
                self._repeats = 0
            self._exchange.asked(data)
        near = self.near
        if near is not None and near.transport is not None and not near.transport.is_closing():
            near.transport.write(data)
        elif self._exchange is None or self._exchange.where is Where.RAW:
            self._abort()
        else:
            self._waiting.append(data)
            if sum(map(len, self._waiting)) > KEPT_BYTES and self.transport is not None:
                self.transport.pause_reading()  # an upload waits where it is
            self._again()

    def eof_received(self) -> bool:
        """Envoy sends no more."""
        self._finished = True
        near = self.near
        if near is None or near.transport is None:
            return self._joining is not None
        if near.transport.can_write_eof() and not near.transport.is_closing():
            near.transport.write_eof()
        return not near.finished

    def pause_writing(self) -> None:
        """The channel is full."""
        if self.near is not None and self.near.transport is not None:
            self.near.transport.pause_reading()

    def resume_writing(self) -> None:
        """There is room."""
        near = self.near
        if near is not None and near.transport is not None and not near.transport.is_closing():
            near.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Envoy has closed it, or the way to the agent is lost."""
        self._lost = True
        if self._joining is not None:
            self._joining.cancel()
        if self.near is not None and self.near.transport is not None:
            if exc is None:
                self.near.transport.close()
            else:
                self.near.transport.abort()

    # --- From the local service --------------------------------------------------------------------------------------

    def answered(self, near: Near, data: bytes) -> None:
        """Bytes of its answer."""
        if near is not self.near or self.transport is None:
            return
        exchange = self._exchange
        if exchange is None:
            self._served()
        else:
            if exchange.where is Where.WAITING:
                self._served()
            exchange.answered(data)
        self.transport.write(data)

    def near_finished(self, near: Near) -> bool:
        """It sends no more; whether the connection to it stays open for what Envoy still sends."""
        if near is not self.near or self.transport is None:
            return False
        exchange = self._exchange
        if exchange is not None and exchange.where is not Where.RAW and not exchange.closes:
            return False  # near_lost follows, and sees what is to be done
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        return not self._finished

    def near_lost(self, near: Near, problem: Exception | None) -> None:
        """The process has closed the connection, or has ended."""
        if near is not self.near or self._lost or self.transport is None:
            return
        self.near = None
        exchange = self._exchange
        if exchange is None or exchange.where is Where.RAW:
            if problem is None:
                self.transport.close()
            else:
                self._abort()
        elif exchange.where is Where.IDLE:
            if exchange.closes:
                self.transport.close()
        elif exchange.where is Where.ANSWERING:
            if exchange.closes and problem is None:
                self.transport.close()
            else:
                self._abort()
        else:
            self._unanswered(exchange, unread=problem is not None or was_reset(near))

    def _unanswered(self, exchange: Exchange, *, unread: bool) -> None:
        """A process has left a request without an answer."""
        assert self.transport is not None
        if not (exchange.repeatable or (unread and exchange.pieces == 1)):
            self.transport.write(LOST)
            self.transport.close()
        elif exchange.kept is None or self._repeats >= REPEATS:
            self._abort()
        else:
            self._repeats += 1
            self._waiting = [exchange.kept]
            self._again()

    # --- Another process --------------------------------------------------------------------------------------------

    def _again(self) -> None:
        if self._joining is None:
            self._joining = background(self._rejoin(), name="next process")

    async def _rejoin(self) -> None:
        try:
            transport, self.near = await self._connect(lambda: Near(self))
        except (OSError, DevloopError, TimeoutError):
            self._joining = None
            self._abort()  # no process has it: Envoy asks the original
            return
        self._joining = None
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            transport.write(each)
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()
        if self._finished and transport.can_write_eof():
            transport.write_eof()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


def was_reset(near: Near) -> bool:
    """The kernel has seen a reset after the end: what was sent last reached a socket that was closed already."""
    connected: Any = near.transport.get_extra_info("socket") if near.transport is not None else None
    if connected is None or connected.fileno() < 0:
        return False
    try:
        return bool(connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    except OSError:
        return False
