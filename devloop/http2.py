"""An HTTP/2 connection that passes through, and how its client is asked to make another one (RFC 9113, 6.8). Pure.

A server that shuts down in good order says GOAWAY twice: first with the highest number that there is, so that the
client begins nothing more here and fails nothing; then, when a PING has come back and so the client has read the first
one, with the last stream that was begun. The same is said here in the server's place, between two of its frames. All
streams that have begun go on to the end, where they are.
"""

from __future__ import annotations

import struct

Bytes = bytes | memoryview
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADER = 9
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _PING, _GOAWAY, _CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 9
_END_STREAM = _ACK = 0x1
_END_HEADERS = 0x4
_MOST = 0x7FFFFFFF
_MARK = b"devlmove"
"""What the PING carries: eight bytes, by which its answer is known."""


def _frame(kind: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, 0)) + bytes(4) + payload


def goaway(last: int) -> bytes:
    """GOAWAY with NO_ERROR."""
    return _frame(_GOAWAY, struct.pack(">II", last, 0))


LEAVE = goaway(_MOST) + _frame(_PING, _MARK)


class _Frames:
    """One direction's frames."""

    def __init__(self, skip: int = 0) -> None:
        self.header = b""
        self.left = skip
        """Bytes of this frame, or of the preface, that are still to come."""
        self.hides = False
        """This header is not passed on before it is known what it is of."""
        self.held = b""
        """The answer to a PING, as far as it has come."""
        self.block = False
        """In a field block, which no other frame may come into (RFC 9113, 6.10)."""

    @property
    def between(self) -> bool:
        """Another frame may be put in here."""
        return not self.left and not self.header and not self.block


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
        self._asks = _Frames(len(PREFACE))
        self._answers = _Frames()
        self._greeted = False
        self._last = 0
        self._open: dict[int, int] = {}
        """Stream → which sides have ended it: 1 the client, 2 the server."""

    @property
    def idle(self) -> bool:
        """No stream is open."""
        return not self.raw and not self._open

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
        asks = self._asks
        said, asks.held = asks.held or (asks.header if asks.hides else b""), b""
        asks.hides = False
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

    def _follow(self, frames: _Frames, data: bytes, *, client: bool) -> bytes:
        out: list[bytes] = []
        at = 0
        while at < len(data):
            if frames.left:
                taken = min(frames.left, len(data) - at)
                if frames.held:
                    frames.held += data[at : at + taken]
                else:
                    out.append(data[at : at + taken] if taken < len(data) else data)
                frames.left -= taken
                at += taken
                if frames.held and not frames.left:
                    out.append(self._answer_to_ping(frames))
            else:
                if not frames.header:
                    frames.hides = client and self._told and not self._heard
                part = data[at : at + _HEADER - len(frames.header)]
                frames.header += part
                at += len(part)
                if not frames.hides:
                    out.append(part)
                if len(frames.header) < _HEADER:
                    break
                header, frames.header = frames.header, b""
                self._begins(frames, header, client=client)
                if self.raw:
                    out.append(data[at:])
                    break
                if frames.hides and not frames.held:
                    out.append(header)
            if not client and self.leaving and not self._told:
                out.append(self._leave_now())
        return b"".join(out) if len(out) != 1 else out[0]

    def _begins(self, frames: _Frames, header: bytes, *, client: bool) -> None:
        """A frame's header has come."""
        frames.left = int.from_bytes(header[:3], "big")
        kind, flags = header[3], header[4]
        stream = int.from_bytes(header[5:], "big") & _MOST
        if not client and not self._greeted:
            self._greeted = True
            if kind != _SETTINGS:
                self.raw = True
                return
        if kind in (_HEADERS, _PUSH_PROMISE, _CONTINUATION):
            frames.block = not flags & _END_HEADERS
        if kind == _HEADERS and client and stream > self._last:
            self._last = stream
            self._open[stream] = 0
        if kind == _RST_STREAM:
            self._open.pop(stream, None)
        elif kind in (_DATA, _HEADERS) and flags & _END_STREAM and stream in self._open:
            self._open[stream] |= 1 if client else 2
            if self._open[stream] == 3:
                del self._open[stream]
        elif kind == _PING and frames.hides and flags & _ACK and frames.left == len(_MARK):
            frames.held = header

    def _answer_to_ping(self, frames: _Frames) -> bytes:
        """Whole, and kept from the server if it is the answer to ours."""
        held, frames.held = frames.held, b""
        if held[_HEADER:] != _MARK:
            return held
        self._heard = True
        return b""


def begins(data: bytes) -> bool:
    """Whether a client of HTTP/2 begins with these bytes."""
    return data.startswith(PREFACE[:12])


def greets(data: bytes) -> bool:
    """Whether a server of HTTP/2 begins with these bytes: with SETTINGS, for which many don't wait for the client."""
    length = int.from_bytes(data[:3], "big")
    return data[3:_HEADER] == bytes((_SETTINGS, 0, 0, 0, 0, 0)) and length % 6 == 0 and length < 1 << 14
