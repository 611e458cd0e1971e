"""An HTTP/2 connection of Envoy's, as far as the end of the local service makes it necessary to know. Pure.

A local process that ends closes its connections, and most say no GOAWAY before. Envoy may send a request at the same
moment, and could not tell whether anybody has seen it. So GOAWAY is said in the process' place, with the last stream
that it was given (RFC 9113, 6.8): what came after that was given to nobody, and Envoy may ask again, whatever the
method. Only frames' headers are read (RFC 9113, 4.1), and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator

from devloop.http2 import PREFACE, goaway

GREETING_BYTES = _HEADER_BYTES = 9
"""So many tell whether a server of HTTP/2 speaks."""
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _CONTINUATION = 0, 1, 3, 4, 9
_END_STREAM, _END_HEADERS = 1, 4
_RESET = (4).to_bytes(3, "big") + bytes((_RST_STREAM, 0))
_INTERNAL_ERROR = (2).to_bytes(4, "big")
_NO_SETTINGS = bytes((0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0))


def greets(data: bytes) -> bool:
    """A server of HTTP/2 has said this first: SETTINGS, on the connection itself."""
    return len(data) >= GREETING_BYTES and data[3] == _SETTINGS and not any(data[4:GREETING_BYTES])


class Streams:
    """The streams of one connection."""

    def __init__(self) -> None:
        self.last = 0
        """The newest that the process was given."""
        self._before = 0  # the newest before the last piece of what it was given
        self.open: set[int] = set()
        """Those that are not answered to the end."""
        self._asked = _Frames(len(PREFACE))
        self._answered = _Frames(0)
        self._greeted = False
        self._open_head = False  # of an answer, which CONTINUATION completes

    def asked(self, data: bytes) -> None:
        """Bytes that the process is given."""
        self._before = self.last
        for kind, _, stream in self._asked.take(data):
            if kind == _HEADERS and stream > self.last:  # else it is trailers
                self.last = stream
                self.open.add(stream)
            elif kind == _RST_STREAM:
                self.open.discard(stream)

    def answered(self, data: bytes) -> None:
        """Bytes of the process."""
        self._greeted = True
        for kind, flags, stream in self._answered.take(data):
            if kind in (_HEADERS, _CONTINUATION):
                self._open_head = not flags & _END_HEADERS
            if kind == _RST_STREAM or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
                self.open.discard(stream)

    def goaway(self, *, unread: bool = False) -> bytes | None:
        """What is said when the process has gone: which calls nobody has seen, and that the others are lost. None if it
        went within a frame.

        `unread`: it has not read the last piece of what it was given; see `http1.Exchange.pieces`.
        """
        if not self._answered.whole or self._open_head:
            return None
        last = self._before if unread else self.last
        said = goaway(last)
        lost = sorted(stream for stream in self.open if stream <= last)
        said += b"".join(_RESET + stream.to_bytes(4, "big") + _INTERNAL_ERROR for stream in lost)
        return said if self._greeted else _NO_SETTINGS + said


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
