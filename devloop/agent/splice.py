"""Two TCP connections as one. What one side sends, the other gets; a half-close and a reset are handed on."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from typing import cast

from .tasks import background

Dial = Callable[["Onward"], Awaitable[None]]
"""Connects the other side (`loop.create_connection(lambda: onward, …)`); OSError or TimeoutError if nobody takes it."""


class Side(asyncio.Protocol):
    """One of the two. It is not read from until there is another."""

    other: Side | None = None
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.early: list[bytes] = []
        self.finished = False
        self.lost = False
        self.problem: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected, and quiet for now. A first try at dialling may have been given up just when it was made."""
        self.transport = cast(asyncio.Transport, transport)
        self.early, self.finished, self.lost = [], False, False
        if connected := transport.get_extra_info("socket"):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.transport.pause_reading()
        # uvloop begins to read when connection_made is through, whatever that has said.
        asyncio.get_running_loop().call_soon(self._quiet)

    def _quiet(self) -> None:
        if self.other is None and not self.transport.is_closing():
            self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        """On to the other side."""
        if self.other is None:
            self.early.append(data)
        elif not self.other.transport.is_closing():
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        """A half-close; the connection is over when both sides have said so."""
        self.finished = True
        if self.other is None:
            return True
        if self.other.finished:
            return False  # closes this side, and `connection_lost` the other one
        if not self.other.transport.is_closing():
            self.other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        """This side takes no more: the other one isn't read from."""
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """It takes more."""
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended: so does the other one, in the same way."""
        self.lost, self.problem = True, exc
        if self.other is not None and not self.other.lost:
            self.other.close(exc)

    def close(self, problem: Exception | None) -> None:
        """End, as the other one has."""
        if problem is None:
            self.transport.close()
        else:
            self.transport.abort()


class Onward(Side):
    """The side that was dialled."""


class Inward(Side):
    """The side that came. `dial` is asked for the other one; `ended` is told when it is over."""

    def __init__(self, dial: Dial, ended: Callable[[Inward], None]) -> None:
        super().__init__()
        self._dial = dial
        self._ended = ended
        self._task: asyncio.Task[None] | None = None
        self._asked = 0.0
        self._answered = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Look for the other side."""
        super().connection_made(transport)
        self._task = background(self._join(), name="splice")

    async def _join(self) -> None:
        onward = _Counted(self)
        try:
            await self._dial(onward)
        except (OSError, TimeoutError):
            self.transport.abort()
            return
        self.other, onward.other = onward, self
        for one, two in ((self, onward), (onward, self)):
            # What one has said before it went is still the other's.
            for data in one.early:
                if not two.transport.is_closing():
                    two.transport.write(data)
            one.early.clear()
            if one.finished and not two.transport.is_closing():
                two.transport.write_eof()
        if self.finished and onward.finished:
            self.close(None)
            onward.close(None)
        for one, two in ((self, onward), (onward, self)):
            if one.lost and not two.lost:
                two.close(one.problem)
            elif not one.lost and not one.transport.is_closing():
                one.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """The client has said something."""
        self._asked = time.monotonic()
        super().data_received(data)

    def answered(self) -> None:
        """The other side has."""
        self._answered = time.monotonic()

    def busy(self, seconds: float) -> bool:
        """The client waits for an answer, or something has moved within that time."""
        last = max(self._asked, self._answered)
        return self._asked > self._answered or time.monotonic() - last < seconds

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or its other side has."""
        super().connection_lost(exc)
        self._ended(self)


class _Counted(Onward):
    def __init__(self, inward: Inward) -> None:
        super().__init__()
        self._inward = inward

    def data_received(self, data: bytes) -> None:
        self._inward.answered()
        super().data_received(data)
