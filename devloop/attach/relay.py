"""Between a channel from the agent and the local service: bytes both ways, across reloads.

HTTP/1.1 is followed (`http1.py`), so that a connection that Envoy keeps outlives the process that has answered on it:
the next request opens a new one, which waits while the service reloads. A request that the old process has left
unanswered is given to the new one where that is safe:

- its method may be repeated (RFC 9110, 9.2.2);
- or the kernel says that the old process has not read it: a process that ends with unread bytes resets the
  connection instead of closing it, and what reaches a closed socket is answered with a reset.

Otherwise it is answered with 502, and never given to anybody else. What was not given to any process ends without an
answer, and Envoy asks the original pods.

HTTP/2 can't be handed from process to process: its connection ends with the process, in a way that tells Envoy which
requests nobody has seen (`http2.py`).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, cast

from devloop.agent.tasks import background
from devloop.agent.turns import LOST, begins, is_h2
from devloop.errors import DevloopError
from devloop.http2 import HEADER_BYTES, greets

from .http1 import KEPT_BYTES, Exchange, Where
from .http2 import Streams

Connect = Callable[[Callable[[], "Near"]], Awaitable[tuple[asyncio.Transport, "Near"]]]
"""Connects to the local service, waiting while it reloads."""
REPEATS = 2
"""How often one request is given to another process: a request that kills its process must not kill the next ones."""
LAST_SECONDS = 1.0
"""How long Envoy may take to close a connection of HTTP/2 that is over."""
FIRST_SECONDS = 0.25
"""Envoy connects when it has a request, which is on its way then. If the process ends meanwhile, and has said nothing
that needs an answer, the request is waited for so long: the next process may have it."""


_ESTABLISHED = 1
"""tcpi_state, the first byte of TCP_INFO (tcp(7))."""


class Near(asyncio.Protocol):
    """The local service's side: one connection to one process of it.

    A process may speak first, and end, before anybody can be told. It is not read from before `begin`, and what it has
    said until then is kept, in order.
    """

    def __init__(self, far: Far) -> None:
        self.far = far
        self.transport: asyncio.Transport | None = None
        self.finished = False
        self.given = False
        """It was sent something."""
        self._begun = False
        self._early: list[bytes] = []
        self._lost = False
        self._problem: Exception | None = None

    @property
    def usable(self) -> bool:
        """What is written may arrive."""
        return self.transport is not None and not self._lost and not self.transport.is_closing()

    @property
    def there(self) -> bool:
        """The kernel has not heard of the process' end either; this process may be about to."""
        return self.usable and not _closed_by_peer(cast(asyncio.Transport, self.transport))

    @property
    def silent_loss(self) -> bool:
        """It was lost before anybody has looked, and has said nothing."""
        return self._lost and not self._early and not self._begun

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected, and quiet for now."""
        self.transport = cast(asyncio.Transport, transport)
        self._quiet()
        # uvloop begins to read when connection_made is through, whatever that has said.
        asyncio.get_running_loop().call_soon(self._quiet)

    def _quiet(self) -> None:
        if not self._begun and self.usable:
            cast(asyncio.Transport, self.transport).pause_reading()

    def begin(self) -> None:
        """The channel is open, and this is its process: hand on what was kept, and whatever comes."""
        self._begun = True
        early, self._early = self._early, []
        for data in early:
            self.far.answered(self, data)
        stays = self.far.near_finished(self) if self.finished else True
        if self._lost:
            self.far.near_lost(self, self._problem)
        elif self.transport is not None and not self.transport.is_closing():
            if not stays:
                self.transport.close()
            elif not self.far.full:
                self.transport.resume_reading()

    def give(self, data: bytes) -> None:
        """A request, or more of it."""
        if self.usable:
            self.given = True
            cast(asyncio.Transport, self.transport).write(data)

    def drop(self) -> None:
        """Nobody has a use for it."""
        if self.transport is not None:
            self.transport.abort()

    def give_end(self) -> None:
        """Envoy sends no more."""
        if self.usable and cast(asyncio.Transport, self.transport).can_write_eof():
            cast(asyncio.Transport, self.transport).write_eof()

    def data_received(self, data: bytes) -> None:
        """Its answer."""
        if self._begun:
            self.far.answered(self, data)
        else:
            self._early.append(data)

    def eof_received(self) -> bool:
        """It sends no more."""
        self.finished = True
        return self.far.near_finished(self) if self._begun else True

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
        self._lost, self._problem = True, exc
        if self._begun:
            self.far.near_lost(self, exc)


class Far(asyncio.Protocol):
    """The channel's side: one connection of Envoy's. `served` is called at the first byte of each answer."""

    def __init__(self, connect: Connect, served: Callable[[], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self.near: Near | None = None
        self.full = False
        """The channel takes no more for now."""
        self._connect = connect
        self._served = served
        self._exchange: Exchange | None = None
        self._streams: Streams | None = None
        self._started = False
        self._said = b""
        """How the process has begun, before it was asked anything; as much as tells HTTP/2."""
        self._unasked = Streams()
        self._finished = False
        self._lost = False
        self._over = False
        """All is said; nobody is given what still comes."""
        self._waiting: list[bytes] = []
        """What came from Envoy while there was no process to give it to."""
        self._joining: asyncio.Task[None] | None = None
        self._repeats = 0

    @property
    def busy(self) -> bool:
        """A request is under way."""
        if self._lost:
            return False
        if self._streams is not None:
            return self.near is not None and bool(self._streams.open)
        return self._exchange is not None and self._exchange.where in (Where.WAITING, Where.ANSWERING)

    async def join(self) -> None:
        """Connect to the local service, before the channel is open. OSError, RemoteError.

        `connection_made` has to follow in the same turn of the event loop; if it does not, there is no channel.
        """
        _, self.near = await self._connect(lambda: Near(self))
        asyncio.get_running_loop().call_soon(self._unclaimed)

    def _unclaimed(self) -> None:
        """Leave no connection behind if the way to the agent was lost meanwhile."""
        if self.transport is None and self.near is not None:
            self._lost = True
            self.near.drop()

    # --- From Envoy ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The channel is open."""
        self.transport = cast(asyncio.Transport, transport)
        if self.near is not None:
            self.near.begin()

    def data_received(self, data: bytes) -> None:
        """A request, or more of it."""
        if self._over:
            return
        first = not self._started
        if first:
            self._started = True
            if begins(data):
                self._exchange = Exchange()
            elif is_h2(data):
                self._streams = self._unasked
        anew = first and not self._said  # no process has seen anything of what this belongs to
        if self._exchange is not None:
            if self._exchange.where is Where.IDLE:
                self._repeats = 0
                anew = True
            self._exchange.asked(data)
            anew = anew and self._exchange.where is not Where.RAW
        near = self.near
        if first and near is not None and near.finished and near.usable and (greets(self._said) or not self._said):
            near.drop()  # it has ended before it was asked anything
            near = self.near = None
        if near is not None and self._joining is None and self._takes(near, anew=anew):
            if self._streams is not None:
                self._streams.asked(data)
            near.give(data)
        elif self._joining is not None or anew:
            self.near = None  # it is given nothing of this, and its end is nobody's any more
            self._waiting.append(data)
            if sum(map(len, self._waiting)) > KEPT_BYTES and self.transport is not None:
                self.transport.pause_reading()  # an upload waits where it is
            self._again()
        elif near is None:
            self._give_up(unread=False)
        # Else it is more of what a process was given that ends now. It may have answered before that, and `near_lost`
        # follows, which knows whether anybody else may have the request.

    def _takes(self, near: Near, *, anew: bool) -> bool:
        """This process may be given what has come."""
        if near.there:
            return True
        # One that has half-closed may still read, where nothing is known of what it speaks.
        known = self._streams is not None or (self._exchange is not None and self._exchange.where is not Where.RAW)
        return near.usable and not known and not anew

    def eof_received(self) -> bool:
        """Envoy sends no more."""
        self._finished = True
        near = self.near
        if near is None or near.transport is None or self._joining is not None:
            return self._joining is not None
        near.give_end()
        return not near.finished

    def pause_writing(self) -> None:
        """The channel is full."""
        self.full = True
        if self.near is not None and self.near.usable:
            cast(asyncio.Transport, self.near.transport).pause_reading()

    def resume_writing(self) -> None:
        """There is room."""
        self.full = False
        if self.near is not None and self.near.usable:
            cast(asyncio.Transport, self.near.transport).resume_reading()

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
        if self._streams is not None:
            self._streams.answered(data)
        elif not self._started and (len(self._said) < HEADER_BYTES or greets(self._said)):
            self._said = (self._said + data[:HEADER_BYTES])[:HEADER_BYTES]
            self._unasked.answered(data)
        self.transport.write(data)
        if exchange is not None and exchange.where is Where.SPENT:
            self._spend(near)

    def _spend(self, near: Near) -> None:
        """The answer is said, and is the last one. Not closed at once: what Envoy still sends would meet that, and the
        answer could be lost by it."""
        assert self.transport is not None
        self._over, self.near = True, None
        if near.transport is not None:
            near.transport.close()
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        self.transport.resume_reading()
        asyncio.get_running_loop().call_later(LAST_SECONDS, self.transport.close)

    def near_finished(self, near: Near) -> bool:
        """It sends no more; whether the connection to it stays open for what Envoy still sends."""
        if near is not self.near or self.transport is None:
            return False
        exchange = self._exchange
        if exchange is not None and exchange.where is not Where.RAW and not exchange.closes:
            return False  # near_lost follows, and sees what is to be done
        if self._streams is not None:
            return False
        if self._may_wait():
            asyncio.get_running_loop().call_later(FIRST_SECONDS, self._silent_end, near)
            return True
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        return not self._finished

    def near_lost(self, near: Near, problem: Exception | None) -> None:
        """The process has closed the connection, or has ended."""
        if near is not self.near or self._lost or self.transport is None:
            return
        self.near = None
        exchange = self._exchange
        if self._may_wait():
            asyncio.get_running_loop().call_later(FIRST_SECONDS, self._silent_loss, problem)
        elif self._streams is not None:
            self._give_up(unread=problem is not None or was_reset(near))
        elif exchange is None or exchange.where is Where.RAW:
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
            self._unanswered(exchange, unread=not near.given or problem is not None or was_reset(near))

    def _may_wait(self) -> bool:
        """Nothing was asked, and what was said is no more than how a server of HTTP/2 begins."""
        return not self._started and (not self._said or greets(self._said))

    def _silent_end(self, near: Near) -> None:
        """No request came after all: a process that half-closes at once means it."""
        if near is self.near and not self._started and self.transport is not None and not self.transport.is_closing():
            self.transport.write_eof()
            if self._finished:
                self.transport.close()

    def _silent_loss(self, problem: Exception | None) -> None:
        """No request came after all."""
        if not self._started and not self._lost and self.transport is not None:
            if problem is None:
                self.transport.close()
            else:
                self._abort()

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
            for _ in range(REPEATS + 1):
                _, near = await self._connect(lambda: Near(self))
                if not near.silent_loss:
                    break
        except (OSError, DevloopError, TimeoutError):
            self._joining = None
            self._give_up(unread=True)  # no process has it: Envoy asks the original
            return
        self._joining = None
        self.near = near
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if self._streams is not None:
                self._streams.asked(each)
            near.give(each)
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()
        if self._finished:
            near.give_end()
        near.begin()

    def _give_up(self, *, unread: bool) -> None:
        """There is no process for this. On HTTP/2 Envoy is told which requests nobody has seen."""
        if self.transport is None or self.transport.is_closing():
            return
        said = self._streams.goaway(unread=unread) if self._streams is not None else None
        if said is None:
            self._abort()
            return
        # Envoy closes when it has read this. What it sends until then would meet a closed connection, and fail by that.
        self._over = True
        self.transport.write(said)
        asyncio.get_running_loop().call_later(LAST_SECONDS, self.transport.close)

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


def _closed_by_peer(transport: asyncio.Transport) -> bool:
    connected: Any = transport.get_extra_info("socket")
    if connected is None or not hasattr(socket, "TCP_INFO"):
        return False
    try:
        return bool(connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED)
    except OSError:
        return False


def was_reset(near: Near) -> bool:
    """The kernel has seen a reset after the end: what was sent last reached a socket that was closed already."""
    connected: Any = near.transport.get_extra_info("socket") if near.transport is not None else None
    if connected is None or connected.fileno() < 0:
        return False
    try:
        return bool(connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    except OSError:
        return False
