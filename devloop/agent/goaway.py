"""Where a server's answers on a connection from before may be told to be the last ones there. Pure.

HTTP/2: a GOAWAY with the highest stream (RFC 9113, 6.8) between two frames. All calls that were begun go on, and the
client makes the next one on another connection. HTTP/1.1: `connection: close` in an answer's head (RFC 9112, 9.6).

A connection is looked at from somewhere in its midst. So where frames begin is found out first: what is taken for a
frame's head has to be possible, and so have the two after it. What lies in a body is not taken for that by chance.
"""

from __future__ import annotations

import re
from typing import Protocol

GOAWAY = bytes.fromhex("000008 07 00 00000000 7fffffff 00000000")
"""Last stream 2^31-1, NO_ERROR."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000 04 00 00000000")
"""What a client says first, with an empty SETTINGS."""
_HEAD = 9
_CHAINED = 3
"""So many heads, one after the other, are no chance."""
_MOST = 1 << 20
"""A frame's longest: no server is known to send longer ones."""
_HEADERS, _PUSH, _GOAWAY, _CONTINUATION = 1, 5, 7, 9
_END_HEADERS = 0x4
_FLAGS = {0: 0x9, 1: 0x2D, 3: 0, 4: 1, 6: 1, 7: 0, 8: 0, 9: 0x4}
"""The frames that a server sends, and the flags that each may have."""
_LENGTHS = {3: 4, 6: 8, 8: 4}
_OF_STREAMS, _OF_CONNECTION = (0, 1, 3, 9), (4, 6, 7)
_STATUS = re.compile(rb"HTTP/1\.1 [2-5][0-9]{2} [^\r\n]{0,200}\r\n")


class Last(Protocol):
    """What a server says, on its way to the client."""

    said: bool
    """The client knows that it is to connect anew."""

    def asked(self) -> None:
        """The client has said something."""

    def passed(self, data: bytes) -> bytes:
        """What goes on in place of this."""

    def rest(self) -> bytes:
        """What may be said now, as the server has said nothing for a while, and what it had said was whole."""

    @property
    def idle(self) -> bool:
        """No request is under way, as far as that can be told: it may be closed when it has been quiet for long."""


def possible(head: bytes) -> bool:
    """Whether these 9 bytes can be a frame's head, from a server."""
    length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
    stream = int.from_bytes(head[5:9], "big")
    if kind not in _FLAGS or flags & ~_FLAGS[kind] or length > _MOST or stream >> 31:
        return False
    if length != _LENGTHS.get(kind, length) or (kind == 4 and (length % 6 or (flags and length))):
        return False
    if kind in _OF_STREAMS:
        return stream % 2 == 1
    return stream == 0 if kind in _OF_CONNECTION else stream == 0 or stream % 2 == 1


class Http2Last:
    """A connection of HTTP/2.

    `unsure`: so many bytes at first may have arrived already, and nothing is put in front of one of them.
    """

    def __init__(self, unsure: int = 0) -> None:
        self.said = False
        self._unsure = unsure
        self._heads = 0
        """Possible ones in a row."""
        self._head = b""
        """Of the frame whose head has not come whole."""
        self._left = 0
        """Of the frame that is passing."""
        self._block = False
        """A block of headers is not over: nothing may come between its frames."""
        self._lost = False
        """A head was not possible: the next bytes after a pause are taken for one."""

    def asked(self) -> None:
        """It changes nothing."""

    def passed(self, data: bytes) -> bytes:
        """What goes on in place of this."""
        if self.said:
            return data
        if self._lost:
            self._lost, self._heads, self._head, self._left, self._block = False, 0, b"", 0, False
        at = 0
        while at < len(data) and not self.said:
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
            else:
                step = min(_HEAD - len(self._head), len(data) - at)
                self._head += data[at : at + step]
                at += step
                if len(self._head) == _HEAD and not self._begins():
                    self._lost = True
                    break
            if self._between() and self._heads >= _CHAINED and at >= self._unsure:
                self.said = True
                data = data[:at] + GOAWAY + data[at:]
        self._unsure = max(0, self._unsure - len(data))
        return data

    def _begins(self) -> bool:
        head, self._head = self._head, b""
        kind = head[3]
        if not possible(head) or (self._heads and self._block != (kind == _CONTINUATION)):
            return False
        self._heads += 1
        self._left = int.from_bytes(head[:3], "big")
        if kind in (_HEADERS, _CONTINUATION):
            self._block = not head[4] & _END_HEADERS
        if kind == _GOAWAY:
            self.said = True  # the server does it itself
        return True

    def _between(self) -> bool:
        return not (self._left or self._head or self._block or self._lost)

    def rest(self) -> bytes:
        """A GOAWAY, if nothing speaks against its being between two frames."""
        if self.said or not self._between() or self._unsure:
            return b""
        self.said = True
        return GOAWAY

    @property
    def idle(self) -> bool:
        """Never: its client closes it."""
        return False


class Http1Last:
    """A connection of HTTP/1.1. What comes first after the client has said something is an answer's head.

    `asked`: whether the client's bytes were the last, or that is not known. `unsure`: as `Http2Last`'s.
    """

    def __init__(self, unsure: int = 0, *, asked: bool = True) -> None:
        self.said = False
        self._unsure = unsure
        self._asked = asked

    def asked(self) -> None:
        """The client has said something."""
        self._asked = True

    def passed(self, data: bytes) -> bytes:
        """What goes on in place of this."""
        asked, self._asked = self._asked, False
        sure, self._unsure = not self._unsure, max(0, self._unsure - len(data))
        found = _STATUS.match(data) if asked and sure and not self.said else None
        if found is None:
            return data
        self.said = True
        return data[: found.end()] + b"connection: close\r\n" + data[found.end() :]

    def rest(self) -> bytes:
        """Nothing: it is said with an answer."""
        return b""

    @property
    def idle(self) -> bool:
        """The last bytes were an answer's."""
        return not self._asked
