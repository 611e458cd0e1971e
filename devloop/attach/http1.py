"""An HTTP/1.1 connection of Envoy's, as far as a reload of the local service makes it necessary to know. Pure.

Envoy keeps connections open between requests, and a local service that is reloaded closes them. Whether that matters
depends on what is under way: nothing (the next request goes to the new process), a request without an answer (it may
have to be repeated), or half an answer (which is lost, as it would be anywhere). So the framing of both is followed:
RFC 9112, 6 and 7. Envoy sends the next request when the last one is answered. But a service may answer before it has
the whole request (401, 413), and then the rest of that comes, which is a stranger's to choose: it must never be taken
for the next request. After such an answer the connection is of no use to anybody else.
"""

from __future__ import annotations

from enum import Enum

from devloop.agent.turns import Turns, begins
from devloop.http1 import HEAD_BYTES, STATUS, Body, Requests, answer_body, closes

KEPT_BYTES = 64 * 1024


class Where(Enum):
    """How far an answer is."""

    IDLE = "idle"
    """Nothing is asked."""
    WAITING = "waiting"
    """A request was handed on; nothing of its answer has come."""
    ANSWERING = "answering"
    """Something of the answer has come."""
    SPENT = "spent"
    """An answer has ended before its request has, or more has come than one: nothing of this is the next request's."""
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
        self._requests = Requests()
        self._head = False  # the request asked for a head alone
        self._buffer = b""
        self._body: Body | None = None

    @property
    def repeatable(self) -> bool:
        """The request under way may be given to another process, whatever this one has done with it."""
        return self._turns.repeatable

    def asked(self, data: bytes) -> None:
        """Bytes from Envoy."""
        if self.where in (Where.RAW, Where.SPENT):
            return
        self._requests.take(data)
        if self.where is Where.IDLE:
            if not begins(data):
                self.where = Where.RAW
                return
            self._turns = Turns()
            self._turns.asked(data)
            self.where, self.closes, self.kept, self._head = Where.WAITING, False, data, data.startswith(b"HEAD ")
            self._buffer, self._body, self.pieces = b"", None, 1
        elif self.where is Where.WAITING and self.kept is not None:
            self.pieces += 1
            self.kept = self.kept + data if len(self.kept) + len(data) <= KEPT_BYTES else None

    def answered(self, data: bytes) -> None:
        """Bytes from the local service."""
        if self.where in (Where.RAW, Where.SPENT):
            return
        if self.where is Where.IDLE:
            self.where = Where.SPENT  # it speaks unasked
            return
        self.where = Where.ANSWERING
        while data and self.where is Where.ANSWERING:
            data = self._heading(data) if self._body is None else data[self._body.take(data) :]
            if self._body is not None and self._body.done:
                self.where = Where.IDLE if self._requests.whole and not data else Where.SPENT

    def _heading(self, data: bytes) -> bytes:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_BYTES:
                self.where = Where.RAW
            return b""
        head, rest = self._buffer[: end + 2], self._buffer[end + 4 :]
        self._buffer = b""
        found = STATUS.match(head)
        if found is None:
            self.where = Where.RAW
            return b""
        status = int(found[1])
        if status == 101:
            self.where = Where.RAW
        elif status >= 200:
            self._body = self._framing(head, status)
        return rest

    def _framing(self, head: bytes, status: int) -> Body:
        body = answer_body(head, status, head_alone=self._head)
        self.closes = closes(head) or body.endless
        return body
