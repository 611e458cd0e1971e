"""An HTTP/1.1 connection of Envoy's, as far as a reload of the local service makes it necessary to know. Pure.

Envoy keeps connections open between requests, and a local service that is reloaded closes them. Whether that matters
depends on what is under way: nothing (the next request goes to the new process), a request without an answer (it may
have to be repeated), or half an answer (which is lost, as it would be anywhere). So the answers' framing is followed:
RFC 9112, 6 and 7. Requests are not: Envoy sends the next one when the last is answered.
"""

from __future__ import annotations

import re
from enum import Enum

from devloop.agent.turns import Turns, begins

KEPT_BYTES = 64 * 1024
HEAD_BYTES = 256 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.I)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked[ \t]*\r\n", re.I)
_CLOSE = re.compile(rb"\r\nconnection:[^\r\n]*\bclose\b", re.I)
_KEEP = re.compile(rb"\r\nconnection:[^\r\n]*\bkeep-alive\b", re.I)


class Where(Enum):
    """How far an answer is."""

    IDLE = "idle"
    """Nothing is asked."""
    WAITING = "waiting"
    """A request was handed on; nothing of its answer has come."""
    ANSWERING = "answering"
    """Something of the answer has come."""
    RAW = "raw"
    """Upgraded, or something that isn't understood: bytes both ways, and an end is an end."""


class Exchange:
    """The requests and answers of one connection."""

    def __init__(self) -> None:
        self.where = Where.IDLE
        self.closes = False
        """The local service has said that it closes after this answer; then Envoy has to hear of the end."""
        self.kept: bytes | None = b""
        """The request that is under way; None if it is too long to be kept."""
        self.pieces = 0
        """In how many pieces it came. One piece that a process has not read is a request that it has not seen."""
        self._turns = Turns()
        self._head = False  # the request asked for a head alone
        self._buffer = b""
        self._body: _Body | None = None

    @property
    def repeatable(self) -> bool:
        """The request under way may be given to another process, whatever this one has done with it."""
        return self._turns.repeatable

    def asked(self, data: bytes) -> None:
        """Bytes from Envoy."""
        if self.where is Where.RAW:
            return
        if self.where is Where.IDLE:
            if not begins(data):
                self.where = Where.RAW
                return
            self._turns.answered()
            self._turns.asked(data)
            self.where, self.closes, self.kept, self._head = Where.WAITING, False, data, data.startswith(b"HEAD ")
            self._buffer, self._body, self.pieces = b"", None, 1
        elif self.where is Where.WAITING and self.kept is not None:
            self.pieces += 1
            self.kept = self.kept + data if len(self.kept) + len(data) <= KEPT_BYTES else None

    def answered(self, data: bytes) -> None:
        """Bytes from the local service."""
        if self.where is Where.RAW:
            return
        if self.where is Where.IDLE:
            self.where = Where.RAW  # it speaks unasked
            return
        self.where = Where.ANSWERING
        while data and self.where is Where.ANSWERING:
            data = self._heading(data) if self._body is None else self._body.take(data)
            if self._body is not None and self._body.done:
                self.where = Where.IDLE
        if data and self.where is Where.IDLE:
            self.where = Where.RAW

    def _heading(self, data: bytes) -> bytes:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_BYTES:
                self.where = Where.RAW
            return b""
        head, rest = self._buffer[: end + 2], self._buffer[end + 4 :]
        self._buffer = b""
        found = _STATUS.match(head)
        if found is None:
            self.where = Where.RAW
            return b""
        status = int(found[1])
        if status == 101:
            self.where = Where.RAW
        elif status >= 200:
            self._body = self._framing(head, status)
        return rest

    def _framing(self, head: bytes, status: int) -> _Body:
        self.closes = bool(_CLOSE.search(head)) or (head.startswith(b"HTTP/1.0") and not _KEEP.search(head))
        if self._head or status in (204, 304):
            return _Body(0)
        if _CHUNKED.search(head):
            return _Chunks()
        if length := _LENGTH.search(head):
            return _Body(int(length[1]))
        self.closes = True
        return _Body(None)


class _Body:
    """So many bytes; None: until the end of the connection."""

    def __init__(self, left: int | None) -> None:
        self._left = left

    @property
    def done(self) -> bool:
        return self._left == 0

    def take(self, data: bytes) -> bytes:
        """What does not belong to it."""
        if self._left is None:
            return b""
        taken = min(self._left, len(data))
        self._left -= taken
        return data[taken:]


class _Chunks(_Body):
    """Chunks, and trailers after the last one (RFC 9112, 7.1)."""

    def __init__(self) -> None:
        super().__init__(None)
        self._line = b""
        self._data = 0  # of this chunk, with the line's end after it
        self._trailers = False
        self._over = False

    @property
    def done(self) -> bool:
        return self._over

    def take(self, data: bytes) -> bytes:
        while data and not self._over:
            if self._data:
                taken = min(self._data, len(data))
                self._data -= taken
                data = data[taken:]
                continue
            line, found, data = data.partition(b"\n")
            self._line += line
            if not found:
                return b""
            whole, self._line = self._line.rstrip(b"\r"), b""
            if self._trailers:
                self._over = not whole
                continue
            try:
                size = int(whole.split(b";")[0], 16)
            except ValueError:
                size = -1
            if size < 0:
                self._data = 1 << 62  # nobody can tell where this ends
            elif size:
                self._data = size + 2
            else:
                self._trailers = True
        return data
