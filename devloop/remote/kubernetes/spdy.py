"""SPDY/3.1, as far as `kubectl port-forward` uses it: many connections to one pod over one websocket.

The API server carries SPDY's bytes in a websocket's messages (subprotocol `SPDY/3.1+portforward.k8s.io`, KEP-4006;
on by default since Kubernetes 1.31). Against the simpler `v4.channel.k8s.io` this has a half-close, and needs no TLS
handshake for each connection. A connection is a pair of streams, one for data and one on which the kubelet explains
a failure (cri-streaming `portforward/httpstream.go`).

SPDY's own flow control is not used by the other side (moby/spdystream), so one stream that is not read from stops
the whole websocket, as in kubectl. `stalled` says so: the next connection then takes another websocket.
"""

from __future__ import annotations

import asyncio
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

from .api import Api
from .websocket import WebSocket

P = TypeVar("P", bound=asyncio.Protocol)
Ended = Callable[["Connection", str], None]
PROTOCOL = "SPDY/3.1+portforward.k8s.io"
SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
FIN = 1
CANCEL = 5
PAUSED_BYTES = 1024 * 1024
"""What is kept for a stream whose protocol does not read, before the whole websocket waits for it."""
CONTROL_BYTES = 64 * 1024
"""The longest control frame that is read, and the most that its headers may be once they are inflated. The kubelet's
have some tens of bytes; SPDY lets a frame announce 16 MiB, and deflate makes a thousand bytes of one."""
SAID_BYTES = 4096
"""So much of what the kubelet says on an error stream is kept."""
# moby/spdystream reads whole frames into memory; it is what kubectl's copies have.
DATA_BYTES = 32 * 1024

# The dictionary that headers are compressed with (SPDY/3, 2.6.10.1): words with their lengths, then plain text.
_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age "
    "allow authorization cache-control connection content-base content-encoding content-language content-length "
    "content-location content-md5 content-range content-type date etag expect expires from host if-match "
    "if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    "proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    "user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie "
    "keep-alive origin"
)
_TAIL = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = (
    b"".join(struct.pack(">I", len(word)) + word.replace("_", " ").encode() for word in _WORDS.split(" "))
    + _TAIL.encode()
)


class StreamResetError(ConnectionResetError):
    """The kubelet ended a connection; the text is what it said."""


class Stream(asyncio.Transport):
    """One connection to a port of the pod."""

    def __init__(self, connection: Connection, number: int, protocol: asyncio.Protocol, port: int) -> None:
        super().__init__({"peername": (connection.pod, port)})
        self.number = number  # the data stream's; the error stream is the one before it
        self.replied: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.problem = b""
        self._connection = connection
        self._protocol = protocol
        self._paused = False
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._heard_end = False
        self._said_end = False
        self._eof_told = False
        self._closing = False
        self._lost = False

    # From the connection

    def begin(self) -> None:
        """It is open."""
        self._protocol.connection_made(self)

    def received(self, data: bytes) -> None:
        """Bytes from the pod."""
        if self._closing and self._said_end:
            return
        if self._paused:
            self._kept.append(data)
            self._kept_bytes += len(data)
            if self._kept_bytes > PAUSED_BYTES:
                self._connection.stall(self)
        else:
            self._protocol.data_received(data)

    def finished(self) -> None:
        """The pod sends no more."""
        self._heard_end = True
        self._tell_end()

    def _tell_end(self) -> None:
        if not self._heard_end or self._eof_told or self._paused or self._lost:
            return
        self._eof_told = True
        if self.problem or self._said_end:
            # Both directions are done, or the kubelet has said why it did not work.
            self._connection.settle(self)
        elif not self._protocol.eof_received():
            self.close()

    def end(self, problem: Exception | None) -> None:
        """It is over: the protocol is told, once."""
        self._closing = True
        if self._lost:
            return
        self._lost = True
        if not self.replied.done():
            self.replied.set_exception(problem or StreamResetError("closed"))
        else:
            self._protocol.connection_lost(problem)

    def pressure(self, full: bool) -> None:
        """The websocket takes no more, or does again."""
        if self._lost or not self.replied.done():
            return
        self._protocol.pause_writing() if full else self._protocol.resume_writing()

    # From the protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        if not self._closing and not self._said_end and data:
            self._connection.data(self, data)

    def writelines(self, list_of_data: Any) -> None:
        """Send several, of which the last may be large, as one."""
        *before, last = list_of_data
        if not self._closing and not self._said_end:
            self._connection.data(self, last, before=b"".join(before))

    def can_write_eof(self) -> bool:
        """FIN on the last frame. Where the runtime would end the connection for it, the server does not hear it."""
        return True

    def write_eof(self) -> None:
        """Send no more."""
        if not self._said_end and not self._lost:
            self._said_end = True
            if self._connection.half_close:
                self._connection.data(self, b"", FIN)
            if self._eof_told:
                self._connection.settle(self)

    def pause_reading(self) -> None:
        """Keep what comes."""
        self._paused = True

    def resume_reading(self) -> None:
        """Go on, with what was kept first."""
        self._paused = False
        while self._kept and not self._paused:
            data = self._kept.pop(0)
            self._kept_bytes -= len(data)
            self._protocol.data_received(data)
        if not self._kept:
            self._connection.unstall(self)
            self._tell_end()

    def is_reading(self) -> bool:
        """Not paused."""
        return not self._paused and not self._closing

    def is_closing(self) -> bool:
        """It has ended, or is about to."""
        return self._closing

    def close(self) -> None:
        """Send what was written, then end."""
        if not self._closing:
            self._closing = True
            if not self._said_end:
                self._said_end = True
                self._connection.data(self, b"", FIN)
            if self._heard_end:
                self._connection.settle(self)
            else:
                # Nobody hears what still comes: it is not sent for nothing.
                self._connection.reset(self)

    def abort(self) -> None:
        """End now."""
        if not self._lost:
            self._closing = True
            self._connection.reset(self)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who hears it."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Somebody else hears it from now on."""
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def get_write_buffer_size(self) -> int:
        """What is written goes to the websocket at once."""
        return 0


async def connect_pod(
    api: Api, pod: str, namespace: str = "", *, half_close: bool = False, ended: Ended = lambda *_: None
) -> Connection:
    """A websocket to a pod; see `Connection`. Raises ApiError and ApiUnreachableError."""
    path = f"/api/v1/namespaces/{namespace or api.namespace}/pods/{pod}/portforward"
    socket, _ = await api.websocket(path, [], [PROTOCOL])
    return Connection(socket, pod, ended, half_close=half_close)


class Connection:
    """A websocket to one pod, and its streams. `ended` tells its owner that it is no longer good."""

    def __init__(
        self,
        socket: WebSocket,
        pod: str,
        ended: Ended,
        *,
        half_close: bool = True,
    ) -> None:
        self.pod = pod
        self.half_close = half_close
        """False: to finish one direction would end the whole connection, so it is not said."""
        self.used = time.monotonic()
        """When a connection last ended here, in monotonic seconds."""
        self.lost_because = ""
        self._socket = socket
        self._ended = ended
        self._deflate = zlib.compressobj(zdict=DICTIONARY)
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._streams: dict[int, Stream] = {}
        self._errors: dict[int, Stream] = {}
        self._next = 1
        self._request = 0
        self.heard = self.used
        """When something came, in monotonic seconds."""
        # What is read: a header or a whole control frame, and then how much of which stream's data.
        self._frame = bytearray()
        self._need = 8
        self._number = self._flags = self._left = 0
        self._data: list[memoryview] = []
        self._stalled: set[Stream] = set()
        self._pings: dict[int, asyncio.Future[None]] = {}
        self._ping = 1
        self._leaving = False
        socket.start(self)

    @property
    def usable(self) -> bool:
        """A new connection may take it: it is there, and no stream holds it up."""
        return not self._leaving and not self.lost_because and not self._stalled

    @property
    def stalled(self) -> bool:
        """A stream is not read from, so nothing is."""
        return bool(self._stalled)

    @property
    def load(self) -> int:
        """How many connections use it."""
        return len(self._streams)

    async def open(self, factory: Callable[[], P], port: int) -> tuple[Stream, P]:
        """Connect to a port on the pod's loopback. Raises StreamResetError.

        The kubelet takes the streams before it has tried the port: if nothing listens, the connection is
        made and ends at once, with StreamResetError.
        """
        protocol = factory()
        error, number = self._next, self._next + 2
        self._next += 4
        stream = self._streams[number] = self._errors[error] = Stream(self, number, protocol, port)
        self._request += 1
        headers = {"port": str(port), "requestid": str(self._request)}
        # Nothing is said on the error stream by us: it is finished from the start.
        self._syn(error, FIN, {"streamtype": "error", **headers})
        self._syn(number, 0, {"streamtype": "data", **headers})
        try:
            # The other side drops data that comes before it has answered.
            await stream.replied
        except asyncio.CancelledError:
            self.reset(stream)
            raise
        return stream, protocol

    async def check(self) -> None:
        """Come back when the kubelet has answered a ping. Raises StreamResetError."""
        number, self._ping = self._ping, self._ping + 2  # a client's are odd
        self._pings[number] = asyncio.get_running_loop().create_future()
        self._control(PING, 0, struct.pack(">I", number))
        try:
            await self._pings[number]
        finally:
            self._pings.pop(number, None)

    def close(self) -> None:
        """End it in order."""
        if not self.lost_because:
            self._control(GOAWAY, 0, struct.pack(">II", 0, 0))
            self._socket.close()

    def abort(self, reason: str) -> None:
        """End it now."""
        self._socket.abort(reason)

    # For the streams

    def data(self, stream: Stream, data: bytes | bytearray | memoryview, flags: int = 0, before: bytes = b"") -> None:
        """Send a stream's bytes, in frames that do not hold up the others for long; `before`: a few more, first."""
        # It goes out at the end of the turn, and the caller may use its buffer again at once.
        view = memoryview(data if isinstance(data, bytes) else bytes(data))
        while True:
            part, view = view[: DATA_BYTES - len(before)], view[DATA_BYTES - len(before) :]
            word = len(before) + len(part) | (0 if view else flags << 24)
            self._socket.write(struct.pack(">II", stream.number, word) + before)
            self._socket.write(part)
            before = b""
            if not view:
                return

    def reset(self, stream: Stream) -> None:
        """End a stream with no more ado."""
        if stream.number in self._streams:
            self._control(RST_STREAM, 0, struct.pack(">II", stream.number, CANCEL))
            self._forget(stream, None)

    def settle(self, stream: Stream) -> None:
        """Both sides have said all."""
        problem = StreamResetError(stream.problem.decode(errors="replace")) if stream.problem else None
        self._forget(stream, problem)

    def stall(self, stream: Stream) -> None:
        """This one does not read: nobody does now."""
        if not self._stalled:
            self._socket.pause_reading()
        self._stalled.add(stream)

    def unstall(self, stream: Stream) -> None:
        """It reads again."""
        if stream in self._stalled:
            self._stalled.discard(stream)
            if not self._stalled:
                self._socket.resume_reading()

    def _forget(self, stream: Stream, problem: Exception | None) -> None:
        self._streams.pop(stream.number, None)
        self.used = time.monotonic()
        self._errors.pop(stream.number - 2, None)
        self.unstall(stream)
        asyncio.get_running_loop().call_soon(stream.end, problem)

    # Frames

    def _control(self, kind: int, flags: int, body: bytes) -> None:
        self._socket.write(struct.pack(">HHI", 0x8003, kind, flags << 24 | len(body)) + body)

    def _syn(self, number: int, flags: int, headers: dict[str, str]) -> None:
        block = struct.pack(">I", len(headers))
        for name, value in headers.items():
            block += struct.pack(">I", len(name)) + name.encode()
            block += struct.pack(">I", len(value)) + value.encode()
        packed = self._deflate.compress(block) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        self._control(SYN_STREAM, flags, struct.pack(">IIH", number, 0, 0) + packed)

    def received(self, data: memoryview, first: bool, /) -> None:
        """Bytes from the websocket: a stream of frames, whatever its messages are.

        A frame is 32 KiB; what was read at once of one stream's is handed on together.
        """
        at, end = 0, len(data)
        while at < end:
            if self._left:
                part = data[at : at + self._left]
                at += len(part)
                self._left -= len(part)
                self._data.append(part)
                if self._flags & FIN and not self._left:
                    self._hand_on(FIN)
                continue
            part = data[at : at + self._need - len(self._frame)]
            at += len(part)
            self._frame += part
            if len(self._frame) < self._need:
                return
            word, length = struct.unpack_from(">II", self._frame)
            flags, length = length >> 24, length & 0xFFFFFF
            if word & 0x8000_0000 and length > CONTROL_BYTES:
                raise ValueError(f"the server sent a control frame of {length} bytes")
            if word & 0x8000_0000 and self._need < 8 + length:
                self._need = 8 + length
                continue
            body = bytes(self._frame[8:])
            self._frame.clear()
            self._need = 8
            if word & 0x8000_0000:
                self._hand_on()
                self._heard_control(word & 0xFFFF, flags, body)
            else:
                if word != self._number:
                    self._hand_on()
                self._number, self._flags, self._left = word, flags, length
                if not length:
                    self._hand_on(flags & FIN)

    def read(self) -> None:
        """All that was read at once has been given."""
        self.heard = time.monotonic()
        self._hand_on()

    def _hand_on(self, fin: int = 0) -> None:
        data = b"".join(self._data)
        self._data.clear()
        if stream := self._streams.get(self._number):
            if data:
                stream.received(data)
            if fin:
                stream.finished()
        elif (stream := self._errors.get(self._number)) and data:
            stream.problem += data[: SAID_BYTES - len(stream.problem)]

    def _heard_control(self, kind: int, flags: int, body: bytes) -> None:
        number = int.from_bytes(body[:4], "big") & 0x7FFF_FFFF
        if kind == SYN_REPLY:
            self._pass_over(body[4:])
            stream = self._streams.get(number)
            if stream is not None and not stream.replied.done():
                stream.replied.set_result(None)
                stream.begin()
            if flags & FIN and stream is not None:
                stream.finished()
        elif kind == HEADERS:
            self._pass_over(body[4:])
        elif kind == RST_STREAM:
            if stream := self._streams.get(number):
                said = stream.problem.decode(errors="replace")
                self._forget(stream, StreamResetError(said or "the kubelet reset the connection"))
        elif kind == PING:
            if number & 1:
                waiting = self._pings.get(number)
                if waiting is not None and not waiting.done():
                    waiting.set_result(None)
            elif not self._socket.full:
                self._control(PING, 0, body[:4])
        elif kind == GOAWAY:
            self._leaving = True

    def _pass_over(self, packed: bytes) -> None:
        """Headers: nothing of interest, but the dictionary goes on with them. ValueError."""
        try:
            self._inflate.decompress(packed, CONTROL_BYTES)
        except zlib.error as problem:
            raise ValueError(f"the server sent headers that are none: {problem}") from None
        if self._inflate.unconsumed_tail:
            raise ValueError(f"the server sent headers of more than {CONTROL_BYTES} bytes")

    def lost(self, reason: str) -> None:
        """The websocket has ended, and every stream with it."""
        self.lost_because = reason
        for stream in list(self._streams.values()):
            stream.end(StreamResetError(reason))
        for waiting in self._pings.values():
            if not waiting.done():
                waiting.set_exception(StreamResetError(reason))
        self._streams.clear()
        self._errors.clear()
        self._ended(self, reason)

    def pause_writing(self) -> None:
        """The socket is full."""
        for stream in list(self._streams.values()):
            stream.pressure(True)

    def resume_writing(self) -> None:
        """It takes more."""
        for stream in list(self._streams.values()):
            stream.pressure(False)
