"""An HTTP/2 connection of Envoy's, as far as the end of the local service makes it necessary to know. Pure.

A local process that ends closes its connections, and most say no GOAWAY before. Envoy may send a request at the same
moment, and could not tell whether anybody has seen it. So GOAWAY is said in the process' place, with the last stream
that it was given (RFC 9113, 6.8): what came after that was given to nobody, and Envoy may ask again, whatever the
method. Only frames' headers are read, and nothing is changed.
"""

from __future__ import annotations

from devloop.http2 import (
    DATA,
    END_STREAM,
    HEADERS,
    INTERNAL_ERROR,
    OPEN_STREAMS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Frame,
    Frames,
    frame,
    goaway,
    reset,
)


class Streams:
    """The streams of one connection."""

    def __init__(self) -> None:
        self.last = 0
        """The newest that the process was given."""
        self._before = 0  # the newest before the last piece of what it was given
        self.open: set[int] = set()
        """Those that are not answered to the end."""
        self._asked = Frames(len(PREFACE))
        self._answered = Frames()
        self._greeted = False

    def asked(self, data: bytes) -> None:
        """Bytes that the process is given."""
        self._before = self.last
        for each in self._asked.parts(data):
            if not isinstance(each, Frame):
                continue
            if each.kind == HEADERS and each.stream > self.last:  # else it is trailers
                self.last = each.stream
                if len(self.open) < OPEN_STREAMS:  # servers take some hundreds at a time
                    self.open.add(each.stream)
            elif each.kind == RST_STREAM:
                self.open.discard(each.stream)

    def answered(self, data: bytes) -> None:
        """Bytes of the process."""
        self._greeted = True
        for each in self._answered.parts(data):
            if not isinstance(each, Frame):
                continue
            if each.kind == RST_STREAM or (each.kind in (DATA, HEADERS) and each.flags & END_STREAM):
                self.open.discard(each.stream)

    def goaway(self, *, unread: bool = False) -> bytes | None:
        """What is said when the process has gone: which calls nobody has seen, and that the others are lost. None if it
        went within a frame.

        `unread`: it has not read the last piece of what it was given; see `http1.Exchange.pieces`.
        """
        if not self._answered.between:
            return None
        last = self._before if unread else self.last
        lost = sorted(stream for stream in self.open if stream <= last)
        said = goaway(last) + b"".join(reset(stream, INTERNAL_ERROR) for stream in lost)
        return said if self._greeted else frame(SETTINGS) + said
