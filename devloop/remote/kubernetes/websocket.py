"""A websocket (RFC 6455) as a transport: what an SSH connection or SPDY runs over.

aiohttp makes the handshake: credentials, proxy, TLS. From then on its own reader and writer would cost a queue, a
wakeup and two copies for each message; here the bytes of a message go to the receiver as they come, and what is
written within one turn of the event loop becomes one message, so one TLS record and one system call.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, Protocol

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
# A message of ours is flushed when it has this many bytes. API servers and the proxies before them
# read into 32 KiB buffers; much larger frames only delay what is urgent.
MESSAGE_BYTES = 64 * 1024
HIGH_WATER = 512 * 1024
"""More than this in the socket's write buffer pauses writing, in bytes."""


class Receiver(Protocol):
    """What hears a websocket."""

    def received(self, data: memoryview, *, first: bool) -> None:
        """Bytes of a data message; `first`: they begin one. Without a copy: they are part of what was read."""

    def read(self) -> None:
        """All that was read from the network in this turn has been `received`."""

    def lost(self, reason: str) -> None:
        """It has ended, either way; called once."""

    def pause_writing(self) -> None:
        """The socket takes no more for now."""

    def resume_writing(self) -> None:
        """It does again."""


class WebSocket:
    """The client's end. Not to be written to before `start`."""

    def __init__(self, response: Any, connection: Any, *, masked: bool) -> None:
        self._response = response
        self._connection = connection
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
        # The parser: a header that is not complete yet, and the frame that is being read.
        self._head = b""
        self._left = 0
        self._opcode = BINARY
        self._begins = False
        self._control = b""

    def start(self, receiver: Receiver, prefix: bytes = b"") -> None:
        """Deliver to `receiver` from now on; `prefix` comes before each message that is written."""
        self._receiver, self._prefix = receiver, prefix
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        protocol = self._connection.protocol
        # aiohttp's protocol hands every byte to a parser and tells its own writer of the flow; both are ours now.
        protocol.pause_writing = receiver.pause_writing
        protocol.resume_writing = receiver.resume_writing
        protocol.read_timeout = None
        protocol.set_parser(self, self)

    # --- Reading: called by aiohttp's protocol -----------------------------------------------------------------

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Bytes from the network. Returns (stop, rest), as aiohttp's protocol expects it."""
        try:
            self._parse(data)
        except ValueError as problem:
            self.abort(f"websocket: {problem}")
            return True, b""
        return False, b""

    def feed_eof(self) -> None:
        """The connection has ended."""
        self._end("the connection to the API server was lost")

    def set_exception(self, problem: BaseException, cause: BaseException | None = None) -> None:
        """The connection has ended with an error."""
        self._end(f"the connection to the API server was lost: {problem}")

    def exception(self) -> None:
        """Part of the interface that aiohttp's payloads have."""

    def _parse(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        position, end = 0, len(data)
        view = memoryview(data)
        while position < end and not self._lost:
            if not self._left:
                size = self._header(data, position)
                if size == 0:
                    self._head = data[position:]
                    break
                position += size
                if self._left == 0:
                    self._frame_end()
                continue
            taken = min(self._left, end - position)
            part = view[position : position + taken]
            position += taken
            self._left -= taken
            if self._opcode >= CLOSE:
                self._control += part
            elif self._receiver is not None:
                first, self._begins = self._begins, False
                self._receiver.received(part, first=first)
            if not self._left:
                self._frame_end()
        if self._receiver is not None:
            self._receiver.read()

    def _header(self, data: bytes, at: int) -> int:
        """Read a frame's header (RFC 6455, 5.2); its size, or 0 if it is not complete."""
        have = len(data) - at
        if have < 2:
            return 0
        opcode, length = data[at] & 0x0F, data[at + 1]
        if length & 0x80 or data[at] & 0x70:
            raise ValueError("the server sent a masked frame or an extension's")
        size = 2
        if length >= 126:
            size = 4 if length == 126 else 10
            if have < size:
                return 0
            length = int.from_bytes(data[at + 2 : at + size], "big")
        if opcode >= CLOSE:
            self._control = b""
        elif opcode != CONTINUATION:
            self._begins = True
        self._opcode, self._left = opcode, length
        return size

    def _frame_end(self) -> None:
        if self._opcode == PING:
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
