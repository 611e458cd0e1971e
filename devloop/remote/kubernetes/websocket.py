"""A websocket (RFC 6455) as a transport: what an SSH connection or SPDY runs over.

aiohttp makes the handshake: credentials, proxy, TLS. From then on its own reader and writer would cost a queue, a
wakeup and two copies for each message. Here the transport reads into one buffer that is used again and again (TLS
would else make 256 KiB anew for each record of 16), the bytes of a message go to the receiver from there as they come,
and what is written within one turn of the event loop becomes one message, so one TLS record and one system call.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, Protocol

from devloop.agent.unsent import bound_unsent, unacknowledged

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
# A message of ours is flushed when it has this many bytes. API servers and the proxies before them
# read into 32 KiB buffers; much larger frames only delay what is urgent.
MESSAGE_BYTES = 64 * 1024
READ_BYTES = 256 * 1024
"""So much is read in one turn of the event loop."""
CONTROL_BYTES = 125
"""The longest control frame (RFC 6455, 5.5). A server that announces a longer one is not believed."""
HIGH_WATER = 128 * 1024
"""More than this in the socket's write buffer pauses writing, in bytes."""


class Receiver(Protocol):
    """What hears a websocket."""

    def received(self, data: memoryview, first: bool, /) -> None:
        """Bytes of a data message; `first`: they begin one. They are good until `read` is called: there is no copy."""

    def read(self) -> None:
        """What was read at once has all been given. Called at least once after `received`, in the same turn."""

    def lost(self, reason: str) -> None:
        """It has ended, either way; called once."""

    def pause_writing(self) -> None:
        """The socket takes no more for now."""

    def resume_writing(self) -> None:
        """It does again."""


class WebSocket(asyncio.BufferedProtocol):
    """The client's end. Not to be written to before `start`."""

    def __init__(self, response: Any, connection: Any, *, masked: bool) -> None:
        self._response = response
        # Both are forgotten by the connection when it is closed.
        self._http: Any = connection.protocol
        self._transport: asyncio.Transport = connection.transport
        # RFC 6455, 5.3 wants a mask against intermediaries that mistake the payload for HTTP. Within TLS none
        # can see it, so the mask there is zero: the payload stays as it is, with nothing to compute and to copy.
        self._masked = masked
        self._loop = asyncio.get_running_loop()
        self._receiver: Receiver | None = None
        self._out: list[bytes | bytearray | memoryview] = []
        self._out_bytes = 0
        self._flushing = False
        self._prefix = b""
        self._closed = False
        self._lost = False
        self.full = False
        """The socket takes no more for now."""
        # The parser: what is read into, and how much of a header that is not complete yet stands at its beginning.
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._head = 0
        # The frame that is being read.
        self._left = 0
        self._opcode = BINARY
        self._begins = False
        self._control = b""

    def start(self, receiver: Receiver, prefix: bytes = b"") -> None:
        """Deliver to `receiver` from now on; `prefix` comes before each message that is written."""
        self._receiver, self._prefix = receiver, prefix
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        bound_unsent(self._transport.get_extra_info("socket"))
        # What came together with the answer to the handshake is still in aiohttp's protocol.
        http = self._http
        http.read_timeout = None
        http.set_parser(self, self)
        if self._transport.is_closing():
            self._end("the connection to the API server was lost")
        if self._lost:
            return
        # A transport looks at what kind of protocol it has when it begins to read.
        self._transport.pause_reading()
        self._transport.set_protocol(self)
        self._transport.resume_reading()

    # --- Reading: what aiohttp's protocol still has -------------------------------------------------------------

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Bytes from the network. Returns (stop, rest), as aiohttp's protocol expects it."""
        for at in range(0, len(data), READ_BYTES // 2):
            part = data[at : at + READ_BYTES // 2]
            self.get_buffer(len(part))[: len(part)] = part
            self.buffer_updated(len(part))
        return self._lost, b""

    def feed_eof(self) -> None:
        """The connection has ended; `connection_lost` says so too."""

    def set_exception(self, problem: BaseException, cause: BaseException | None = None) -> None:
        """The same, with an error."""

    def exception(self) -> None:
        """Part of the interface that aiohttp's payloads have."""

    # --- Reading: called by the transport -----------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """What to read into."""
        return self._buffer[self._head :]

    def buffer_updated(self, nbytes: int) -> None:
        """So much was read."""
        try:
            self._parse(self._head + nbytes)
            if self._receiver is not None:
                self._receiver.read()
        except ValueError as problem:
            self.abort(f"websocket: {problem}")

    def eof_received(self) -> bool:
        """The connection is ending; `connection_lost` comes."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._end(f"the connection to the API server was lost{f': {exc}' if exc else ''}")
        self._http.connection_lost(exc)

    def pause_writing(self) -> None:
        """The socket takes no more for now."""
        self.full = True
        if self._receiver is not None:
            self._receiver.pause_writing()

    def resume_writing(self) -> None:
        """It does again."""
        self.full = False
        if self._receiver is not None:
            self._receiver.resume_writing()

    def _parse(self, end: int) -> None:
        # A frame is 32 KiB and has an empty one behind it, so this runs sixty times for each MB.
        assert self._receiver is not None
        received, view = self._receiver.received, self._buffer
        position = self._head = 0
        while position < end and not self._lost:
            if not self._left:
                size = self._header(view, position, end)
                if size == 0:
                    self._receiver.read()  # what it has been given may stand where this goes now
                    self._head = end - position
                    view[: self._head] = bytes(view[position:end])
                    return
                position += size
            else:
                part = view[position : min(position + self._left, end)]
                position += len(part)
                self._left -= len(part)
                if self._opcode < CLOSE:
                    first, self._begins = self._begins, False
                    received(part, first)
                    continue
                self._control += part
            if self._opcode >= CLOSE and not self._left:
                self._frame_end()

    def _header(self, view: memoryview, at: int, end: int) -> int:
        """Read a frame's header (RFC 6455, 5.2); its size, or 0 if it is not complete."""
        if end - at < 2:
            return 0
        opcode, length = view[at], view[at + 1]
        if length & 0x80 or opcode & 0x70:
            raise ValueError("the server sent a masked frame or an extension's")
        whole, opcode = opcode & 0x80, opcode & 0x0F
        if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            raise ValueError(f"the server sent a frame of kind {opcode}")
        size = 2
        if length >= 126:
            size = 4 if length == 126 else 10
            if end - at < size:
                return 0
            length = int.from_bytes(view[at + 2 : at + size], "big")
        if opcode >= CLOSE:
            if length > CONTROL_BYTES or not whole:
                raise ValueError("the server sent a control frame that can't be")
            self._control = b""
        elif opcode != CONTINUATION:
            self._begins = True
        self._opcode, self._left = opcode, length
        return size

    def _frame_end(self) -> None:
        if self._opcode == PING:
            if not self.full:  # a server that reads no answers has no use for more of them
                self._frame(PONG, self._control)
        elif self._opcode == CLOSE:
            text = self._control[2:].decode(errors="replace")
            self._end(f"the API server ended the connection{': ' + text if text else ''}")

    # --- Writing -----------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, together with what else is written in this turn of the event loop."""
        if self._closed:
            return
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes >= MESSAGE_BYTES:
            self._flush()
        elif not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush_later)

    def _flush_later(self) -> None:
        self._flushing = False
        self._flush()

    def _flush(self) -> None:
        if self._out and not self._closed:
            self._frame(BINARY, self._prefix, *self._out)
        self._out.clear()
        self._out_bytes = 0

    def _frame(self, opcode: int, *parts: bytes | bytearray | memoryview) -> None:
        size = sum(map(len, parts))
        if size < 126:
            head = bytes((0x80 | opcode, 0x80 | size))
        elif size < 1 << 16:
            head = bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big")
        else:
            head = bytes((0x80 | opcode, 0xFF)) + size.to_bytes(8, "big")
        if self._masked:
            mask = os.urandom(4)
            payload = b"".join(parts)
            key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
            masked = (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")
            self._transport.write(head + mask + masked)
        else:
            self._transport.write(b"".join((head, b"\0\0\0\0", *parts)))

    def pause_reading(self) -> None:
        """Take nothing from the network until `resume_reading`."""
        if not self._lost:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Go on."""
        if not self._lost:
            self._transport.resume_reading()

    @property
    def waiting(self) -> int:
        """Bytes that were written and that the API server's kernel, or a proxy's before it, has not taken."""
        return self._out_bytes + unacknowledged(self._transport)

    @property
    def closing(self) -> bool:
        """Nothing that is written now arrives."""
        return self._closed

    def info(self, name: str, default: object = None) -> Any:
        """The socket's extra information (`socket`, `peername`, …)."""
        return self._transport.get_extra_info(name, default)

    def close(self) -> None:
        """Send what was written, and end it in order."""
        if not self._closed:
            self._flush()
            self._frame(CLOSE, (1000).to_bytes(2, "big"))
            self._end("closed")

    def abort(self, reason: str = "closed") -> None:
        """End it now; what was not sent is dropped."""
        if not self._closed:
            self._closed = True
            self._transport.abort()
            self._end(reason)

    def _end(self, reason: str) -> None:
        self._closed = True
        self._out.clear()
        if self._lost:
            return
        self._lost = True
        self._response.close()  # the transport with it
        if self._receiver is not None:
            # Not from within the write or the read that has found it.
            self._loop.call_soon(self._receiver.lost, reason)
