"""The remote's resolver, asked through the link: DNS over TCP (RFC 7766), many questions on one connection.

A DNS server closes an idle connection after some seconds (CoreDNS: 10 s). While names are being asked for, a new
one is opened right away, so that a question costs one round trip and not two.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from .link import CarrierLostError, NameLookupError, OpenError

P = TypeVar("P", bound=asyncio.Protocol)
PORT = 53
QUERY_SECONDS = 5.0
KEEP_SECONDS = 60.0
"""A closed connection is replaced at once if it was asked something within this time."""


class Connect(Protocol):
    """How a connection to the resolver is made."""

    def __call__(
        self, factory: Callable[[], _Pipe], host: str, port: int
    ) -> Awaitable[tuple[asyncio.Transport, _Pipe]]:
        """As `Link.connect`."""


class _Pipe(asyncio.Protocol):
    """One connection: each message is preceded by its length (RFC 1035, 4.2.2), answers come in any order."""

    def __init__(self, gone: Callable[[_Pipe], None]) -> None:
        self.transport: asyncio.Transport | None = None
        self.waiting: dict[int, asyncio.Future[bytes]] = {}
        self._gone = gone
        self._next = 0
        self._heard = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self, message: bytes) -> tuple[int, asyncio.Future[bytes]]:
        """Send a question under an id of our own: two clients may have chosen the same."""
        assert self.transport is not None
        while self._next in self.waiting:
            self._next = (self._next + 1) & 0xFFFF
        number, self._next = self._next, (self._next + 1) & 0xFFFF
        answer = self.waiting[number] = asyncio.get_running_loop().create_future()
        self.transport.write(len(message).to_bytes(2, "big") + number.to_bytes(2, "big") + message[2:])
        return number, answer

    def data_received(self, data: bytes) -> None:
        self._heard += data
        while len(self._heard) >= 2:
            end = 2 + int.from_bytes(self._heard[:2], "big")
            if len(self._heard) < end:
                return
            message, self._heard = self._heard[2:end], self._heard[end:]
            answer = self.waiting.pop(int.from_bytes(message[:2], "big"), None)
            if answer is not None and not answer.done():
                answer.set_result(message)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        waiting, self.waiting = self.waiting, {}
        for answer in waiting.values():
            if not answer.done():
                answer.set_exception(CarrierLostError("the resolver closed the connection"))
        self._gone(self)


class DnsOverTcp:
    """A resolver at one address, through `connect`. `close` it."""

    def __init__(self, connect: Connect, address: str, where: str) -> None:
        self._connect = connect
        self.address = address
        self._where = where
        self._pipe: _Pipe | None = None
        self._opening: asyncio.Task[_Pipe] | None = None
        self._asked = 0.0
        self._closed = False

    async def query(self, message: bytes) -> bytes:
        """Ask; the answer carries the question's own id. Raises NameLookupError."""
        if len(message) < 12 or len(message) > 0xFFFF:
            raise NameLookupError("this is no DNS message", where=self._where)
        self._asked = time.monotonic()
        try:
            async with asyncio.timeout(QUERY_SECONDS):
                # The server may close just when the question is under way: once more, on a new connection.
                for attempt in (1, 2):
                    pipe = await self._ready()
                    number, answer = pipe.ask(message)
                    try:
                        return message[:2] + (await answer)[2:]
                    except CarrierLostError:
                        if attempt == 2:
                            raise
                    finally:
                        pipe.waiting.pop(number, None)
                raise AssertionError
        except TimeoutError:
            what = f"the resolver {self.address} did not answer within {QUERY_SECONDS:g} s"
            raise NameLookupError(what, where=self._where) from None
        except (CarrierLostError, OpenError) as problem:
            what = f"the resolver {self.address} can't be asked: {problem}"
            raise NameLookupError(what, where=self._where) from problem

    async def _ready(self) -> _Pipe:
        if self._pipe is not None and self._pipe.transport is not None:
            return self._pipe
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open(), name="dns connection")
        # Shielded: a client that has gone away must not end what others wait for.
        return await asyncio.shield(self._opening)

    async def _open(self) -> _Pipe:
        _, self._pipe = await self._connect(lambda: _Pipe(self._gone), self.address, PORT)
        return self._pipe

    def _gone(self, pipe: _Pipe) -> None:
        if self._pipe is pipe:
            self._pipe = None
        if self._closed or time.monotonic() - self._asked > KEEP_SECONDS:
            return
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open(), name="dns connection")
            # Nobody may be waiting for it: then a failure is the next question's to find.
            self._opening.add_done_callback(lambda done: done.cancelled() or done.exception())

    def close(self) -> None:
        """End the connection; what waits is told."""
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
        if self._pipe is not None and self._pipe.transport is not None:
            self._pipe.transport.abort()
