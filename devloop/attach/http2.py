"""An HTTP/2 connection of Envoy's, as far as the end of the local service makes it necessary to know. Pure.

A local process that ends closes its connections, and most say no GOAWAY before. Envoy may send a request at the same
moment, and could not tell whether anybody has seen it. So GOAWAY is said in the process' place, with the last stream
that it was given (RFC 9113, 6.8): what came after that was given to nobody, and Envoy may ask again, whatever the
method. Only frames' headers are read (RFC 9113, 4.1), and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator

PREFACE_BYTES = 24
"""What a client says first (RFC 9113, 3.4)."""
GREETING_BYTES = _HEADER_BYTES = 9
"""So many tell whether a server of HTTP/2 speaks."""
_HEADERS, _SETTINGS, _GOAWAY, _CONTINUATION = 1, 4, 7, 9
_END_HEADERS = 4
_NO_SETTINGS = bytes((0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0))


def greets(data: bytes) -> bool:
    """A server of HTTP/2 has said this first: SETTINGS, on the connection itself."""
    return len(data) >= GREETING_BYTES and data[3] == _SETTINGS and not any(data[4:GREETING_BYTES])


class Streams:
    """The streams of one connection."""

    def __init__(self) -> None:
        self.last = 0
        """The newest that the process was given."""
        self.pieces = 0
        """In how many pieces it was given what came; see `http1.Exchange`."""
        self._asked = _Frames(PREFACE_BYTES)
        self._answered = _Frames(0)
        self._greeted = False
        self._open_head = False  # of an answer, which CONTINUATION completes

    @property
    def greeted(self) -> bool:
        """The process has said something."""
        return self._greeted

    def asked(self, data: bytes) -> None:
        """Bytes that the process is given."""
        self.pieces += 1
        for kind, _, stream in self._asked.take(data):
            if kind == _HEADERS:
                self.last = max(self.last, stream)

    def answered(self, data: bytes) -> None:
        """Bytes of the process."""
        self._greeted = True
        for kind, flags, _ in self._answered.take(data):
            if kind in (_HEADERS, _CONTINUATION):
                self._open_head = not flags & _END_HEADERS

    def goaway(self, *, unread: bool = False) -> bytes | None:
        """What is said when the process has gone; `unread`: it has read nothing. None if it went within a frame."""
        if not self._answered.whole or self._open_head:
            return None
        last = 0 if unread else self.last
        frame = (8).to_bytes(3, "big") + bytes((_GOAWAY, 0)) + bytes(4) + last.to_bytes(4, "big") + bytes(4)
        return frame if self._greeted else _NO_SETTINGS + frame


class _Frames:
    """One direction's."""

    def __init__(self, skipped: int) -> None:
        self._left = skipped  # of what is passed over
        self._head = b""

    @property
    def whole(self) -> bool:
        """What has come ends where a frame does."""
        return not self._left and not self._head

    def take(self, data: bytes) -> Iterator[tuple[int, int, int]]:
        """Type, flags and stream of each frame that begins in this."""
        at, size = 0, len(data)
        while at < size:
            if self._left:
                step = min(self._left, size - at)
                self._left -= step
                at += step
                continue
            part = bytes(data[at : at + _HEADER_BYTES - len(self._head)])
            at += len(part)
            self._head += part
            if len(self._head) < _HEADER_BYTES:
                return
            head, self._head = self._head, b""
            self._left = int.from_bytes(head[:3], "big")
            yield head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF
