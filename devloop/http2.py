"""An HTTP/2 connection that passes through, and how its client is asked to make another one (RFC 9113, 6.8). Pure.

A server that shuts down in good order says GOAWAY twice: first with the highest number that there is, so that the
client begins nothing more here and fails nothing; then, when a PING has come back and so the client has read the first
one, with the last stream that was begun. The same is said here in the server's place, between two of its frames. All
streams that have begun go on to the end, where they are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

Bytes = bytes | memoryview
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES = 9
"""Of a frame's header. So many also tell whether a server of HTTP/2 speaks: see `greets`."""
DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 9
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
OPEN_STREAMS = 1 << 16
"""More on one connection are not followed: servers take some hundreds at a time."""
NO_ERROR, INTERNAL_ERROR = 0, 2
_MOST = 0x7FFFFFFF
_MARK = b"devlmove"
"""What the PING carries: eight bytes, by which its answer is known."""


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """A frame, without flags by default."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def goaway(last: int) -> bytes:
    """GOAWAY with NO_ERROR."""
    return frame(GOAWAY, struct.pack(">II", last, NO_ERROR))


def reset(stream: int, error: int) -> bytes:
    """RST_STREAM."""
    return frame(RST_STREAM, struct.pack(">I", error), stream=stream)


_OUR_PING = frame(PING, _MARK)
LEAVE = goaway(_MOST) + _OUR_PING


class Frame(NamedTuple):
    """A frame's header (RFC 9113, 4.1)."""

    kind: int
    flags: int
    stream: int
    length: int
    header: bytes
    """As it came: nine bytes."""


class Frames:
    """One direction's frames, as far as their headers tell. `skip`: so many bytes come before the first one."""

    def __init__(self, skip: int = 0) -> None:
        self._left = skip
        self._block = False
        self.header = b""
        """A frame's, as far as it has come."""
        self.heading = False
        """The last piece is of a header."""
        self.at = 0
        """Up to where `parts` has read."""

    @property
    def between(self) -> bool:
        """All frames are whole, and another one may come: none may within a field block (RFC 9113, 6.10)."""
        return not self._left and not self.header and not self._block

    def parts(self, data: bytes) -> Iterator[Frame | bytes]:
        """All of these bytes, in pieces; and each frame, right after the piece that makes its header whole."""
        self.at = 0
        while self.at < len(data):
            at = self.at
            self.heading = not self._left
            size = HEADER_BYTES - len(self.header) if self.heading else self._left
            piece = data[at : at + size] if at or size < len(data) else data
            self.at += len(piece)
            if not self.heading:
                self._left -= len(piece)
                yield piece
                continue
            self.header += piece
            yield piece
            if len(self.header) == HEADER_BYTES:
                yield self._begun()

    def _begun(self) -> Frame:
        header, self.header = self.header, b""
        length, stream = int.from_bytes(header[:3], "big"), int.from_bytes(header[5:], "big") & _MOST
        found = Frame(header[3], header[4], stream, length, header)
        self._left = length
        if found.kind in (HEADERS, PUSH_PROMISE, CONTINUATION):
            self._block = not found.flags & END_HEADERS
        return found


class Conversation:
    """Both directions of one connection."""

    def __init__(self) -> None:
        self.raw = False
        """One of both does not speak HTTP/2: bytes both ways, for good."""
        self.leaving = False
        """The client has been told, or will be between the next two frames."""
        self._told = False
        self._heard = False
        self._preface = PREFACE
        """What the client has yet to say of it."""
        self._asks = Frames(len(PREFACE))
        self._answers = Frames()
        self._hides = False
        """The header that the client has begun is not passed on before it is known what it is of."""
        self._held = b""
        """The answer to a PING, as far as it has come from the client."""
        self._greeted = False
        self._last = 0
        self._open: dict[int, int] = {}
        """Stream → which sides have ended it: 1 the client, 2 the server."""

    @property
    def idle(self) -> bool:
        """No stream is open."""
        return not self.raw and not self._open

    @property
    def may_say(self) -> bool:
        """Whether frames may be said to the client now: not within one of the server's, and no stream waits."""
        return self.idle and self._answers.between

    @property
    def over(self) -> bool:
        """The client knows that it is to begin nothing here, and all that it had begun has ended."""
        return self._heard and not self._open and self._asks.between and self._answers.between

    def farewell(self) -> bytes:
        """The last words, before the connection is closed."""
        return goaway(self._last) if self._answers.between else b""

    def leave(self) -> bytes:
        """Ask the client to make another connection: what is to be sent to it now; more may come by `answered`."""
        if self.raw or self.leaving:
            return b""
        self.leaving = True
        return self._leave_now()

    def asked(self, data: Bytes) -> Bytes:
        """Bytes from the client. Returns those that the server gets."""
        if self._preface and not self.raw:
            size = min(len(self._preface), len(data))
            self.raw = data[:size] != self._preface[:size]
            self._preface = self._preface[size:]
        return data if self.raw else self._follow(self._asks, bytes(data), client=True)

    def rest(self) -> bytes:
        """The client sends no more: what of it was not passed on."""
        said = self._held or (self._asks.header if self._hides else b"")
        self._held, self._hides = b"", False
        return said

    def answered(self, data: Bytes) -> Bytes:
        """Bytes from the server. Returns those that the client gets."""
        if self.raw:
            return data
        found = self._follow(self._answers, bytes(data), client=False)
        return found + self._leave_now() if self.leaving and not self._told else found

    def _leave_now(self) -> bytes:
        # The first of a server's frames is its SETTINGS.
        if self.raw or self._told or not self._greeted or not self._answers.between:
            return b""
        self._told = True
        return LEAVE

    def _follow(self, frames: Frames, data: bytes, *, client: bool) -> bytes:
        out: list[bytes] = []
        for part in frames.parts(data):
            if isinstance(part, Frame):
                self._begins(part, client=client)
                if self.raw:
                    out.append(data[frames.at :])
                    break
                if client and self._hides:
                    self._hides = False
                    if part.kind == PING and part.flags & ACK and part.length == len(_MARK):
                        self._held = part.header
                    else:
                        out.append(part.header)
            elif client and frames.heading:
                if len(frames.header) == len(part):
                    self._hides = self._told and not self._heard
                if not self._hides:
                    out.append(part)
            elif client and self._held:
                self._held += part
                if len(self._held) == len(_OUR_PING):
                    out.append(self._answer_to_ping())
            else:
                out.append(part)
            if not client and self.leaving and not self._told:
                out.append(self._leave_now())
        return b"".join(out) if len(out) != 1 else out[0]

    def _begins(self, begun: Frame, *, client: bool) -> None:
        """A frame's header has come."""
        kind, stream = begun.kind, begun.stream
        if not client and not self._greeted:
            self._greeted = True
            if kind != SETTINGS:
                self.raw = True
                return
        if kind == HEADERS and client and stream > self._last:
            self._last = stream
            self._open[stream] = 0
            if len(self._open) > OPEN_STREAMS:
                self._open.clear()
                self.raw = True
                return
        if kind == RST_STREAM:
            self._open.pop(stream, None)
        elif kind in (DATA, HEADERS) and begun.flags & END_STREAM and stream in self._open:
            self._open[stream] |= 1 if client else 2
            if self._open[stream] == 3:
                del self._open[stream]

    def _answer_to_ping(self) -> bytes:
        """Whole, and kept from the server if it is the answer to ours."""
        held, self._held = self._held, b""
        if held[HEADER_BYTES:] != _MARK:
            return held
        self._heard = True
        return b""


def begins(data: bytes) -> bool:
    """Whether a client of HTTP/2 begins with these bytes."""
    return data.startswith(PREFACE[:12])


def greets(data: bytes) -> bool:
    """Whether a server of HTTP/2 begins with these bytes: with SETTINGS, for which many don't wait for the client."""
    length = int.from_bytes(data[:3], "big")
    return data[3:HEADER_BYTES] == bytes((SETTINGS, 0, 0, 0, 0, 0)) and length % 6 == 0 and length < 1 << 14
