"""Whose turn it is on an HTTP/1.1 connection that Envoy has made: a request, its answer, the next request. Pure.

Envoy sends no request before the last one is answered, so what it sends after an answer is a request, and the first
line is at the start of what comes. When the way to the local service is lost, this tells whether Envoy may give the
request to somebody else.
"""

from __future__ import annotations

import re

_REQUEST = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) [^\r\n ]+ HTTP/1\.[01]\r?\n")
_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"))
_INTERIM = re.compile(rb"HTTP/1\.1 1(?!01)\d\d[ \r\n]")
"""An interim answer (RFC 9110, 15.2). 101 is no such: it is the last word in HTTP."""
_HEAD_END = re.compile(rb"\n\r?\n")
_BEGIN = b"HTTP/1."
HEAD_BYTES = 64 * 1024
"""A longer head is none that Envoy takes (60 KiB)."""
LOST = (
    b"HTTP/1.1 502 Bad Gateway\r\ncontent-type: text/plain\r\nconnection: close\r\nx-devloop: lost\r\n"
    b"content-length: 70\r\n\r\nThe local service was lost before it answered; this can't be repeated\n"
)
"""What is answered to a request that was given to the local service, and that nobody else may be given."""
REFUSED_H2 = bytes.fromhex("000000040000000000") + bytes.fromhex("000008070000000000" + "0000000000000000")
"""What is said on HTTP/2 when nobody has been given anything: SETTINGS, and GOAWAY with no last stream (RFC 9113, 6.8).
Every request is refused by that, and a refused one may be given to somebody else, whatever its method."""
assert len(LOST.partition(b"\r\n\r\n")[2]) == 70


def is_h2(data: bytes) -> bool:
    """A connection of HTTP/2 begins with this (RFC 9113, 3.4)."""
    return data.startswith(b"PRI * HTTP/2")


def begins(data: bytes) -> re.Match[bytes] | None:
    """The first line of a request, if `data` begins with one."""
    return _REQUEST.match(data)


class Turns:
    """One connection's. It tells nothing of HTTP/2 and plain TCP: there `waiting` stays false."""

    def __init__(self) -> None:
        self.waiting = False
        """A request was handed on, and the head of its answer is not whole. Until then Envoy would give it to somebody
        else if the connection was lost, whatever had come of the head."""
        self.repeatable = True
        """That request may be given to somebody else (RFC 9110, 9.2.2)."""
        self._kept = b""

    @property
    def begun(self) -> bool:
        """Part of an answer's head has come, and no more."""
        return bool(self._kept)

    def rest(self) -> bytes:
        """That part, for who is to have it as it is."""
        kept, self._kept, self.waiting = self._kept, b"", False
        return kept

    def asked(self, data: bytes) -> None:
        """Bytes from Envoy."""
        if not self.waiting and (found := begins(data)):
            self.waiting, self._kept = True, b""
            self.repeatable = found[1] in _IDEMPOTENT

    def answered(self, data: bytes) -> bytes:
        """Bytes from the local service; those that may go on now. Part of a head is kept: what is said in its place, if
        the way is lost, must not come behind it. Words before the answer (100 Continue) end no waiting.
        """
        if not self.waiting:
            return data
        data, self._kept, at = self._kept + data, b"", 0
        while at < len(data):
            head = _HEAD_END.search(data, at)
            if data[at : at + len(_BEGIN)] != _BEGIN[: len(data) - at]:
                break  # it is no HTTP/1, and nobody waits for a head
            if head is None:
                if len(data) - at > HEAD_BYTES:
                    break
                self._kept = data[at:]
                return data[:at]
            if not _INTERIM.match(data, at):
                break
            at = head.end()
        else:
            return data  # interim answers alone
        self.waiting = False
        return data
