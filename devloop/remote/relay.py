"""Between an accepted socket and a connection through a link: bytes, half-closes, pressure and resets.

Two protocols that write into each other's transport: no task, no queue and no stream object for each connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import cast

from .link import Link

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, with a reset


class End(asyncio.Protocol):
    """One end of a relay. What it hears goes to the other one, which may come later."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: End | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._early: list[bytes] = []
        self._finished = False
        self._lost = False
        self._problem: Exception | None = None

    def join(self, other: End) -> None:
        """Let both flow into each other."""
        self.other, other.other = other, self
        self._catch_up()
        other._catch_up()

    def _catch_up(self) -> None:
        """Hand on what came before there was anybody."""
        early, self._early = self._early, []
        for data in early:
            self.data_received(data)
        if self._finished:
            self.eof_received()
        if self._lost:
            self.connection_lost(self._problem)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """On to the other side."""
        if self.other is None:
            self._early.append(data)
        elif self.other.transport is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        """A half-close, handed on; when both have finished, both end."""
        self._finished = True
        other = self.other
        if other is None or other.transport is None:
            return True
        if other._finished:
            other.transport.close()
            return False
        if other.transport.can_write_eof() and not other.transport.is_closing():
            with contextlib.suppress(OSError):
                other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        """This side takes no more: the other one is not read from."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """It does again."""
        other = self.other
        if other is not None and other.transport is not None and not other.transport.is_closing():
            other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side ends the same way: in order, or with a reset."""
        self._lost, self._problem = True, exc
        other = self.other
        if other is None:
            return
        if other.transport is not None and not other._lost:
            if exc is None:
                other.transport.close()
            else:
                other.reset()
        if not self.done.done():
            self.done.set_result(None)

    def reset(self) -> None:
        """End with a reset, if this side is a socket."""
        assert self.transport is not None
        connected = self.transport.get_extra_info("socket")
        if connected is not None and connected.fileno() >= 0:
            with contextlib.suppress(OSError):
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()


async def relay(link: Link, accepted: socket.socket, host: str, port: int) -> tuple[End, End]:
    """Connect an accepted, non-blocking socket to `host` and `port` through the link; (near, far) ends.

    Returns when both sides flow; `near.done` is set when the client's side has ended. Raises OpenError: the socket is
    the caller's still, to be answered as the refusal says. `near.transport.abort()` cuts it.
    """
    loop = asyncio.get_running_loop()
    _, far = await link.connect(End, host, port)
    try:
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _, near = await loop.connect_accepted_socket(End, accepted)
    except BaseException:
        assert far.transport is not None
        far.transport.abort()
        raise
    near.join(far)
    return near, far
