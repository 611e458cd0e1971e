"""Where the messages of an HTTP/1.1 connection begin and end (RFC 9112, 6 and 7). Pure.

What relays a connection can lead it elsewhere between two requests, when nothing is under way, and only then.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable

Bytes = bytes | memoryview
PIPELINED = 1 << 16
"""A connection with more requests that wait for an answer is not followed."""
HEAD_BYTES = 256 * 1024
"""A longer head is not followed."""
REQUEST = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) [^\r\n ]+ HTTP/1\.[01]\r?\n")
"""A request's first line."""
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.I)
CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked[ \t]*\r\n", re.I)
CODED = re.compile(rb"\r\ntransfer-encoding:", re.I)
CLOSE = re.compile(rb"\r\nconnection:[^\r\n]*\bclose\b", re.I)
KEEP = re.compile(rb"\r\nconnection:[^\r\n]*\bkeep-alive\b", re.I)
_BEGINS = re.compile(rb"[A-Z][A-Z-]{2,19} \S|[A-Z][A-Z-]{0,19} ?\Z")
"""A request's first bytes, with the methods that there are (the registry of RFC 9110, 18.2), however few have come."""


_DIGITS = 18
"""A longer number is not read: nobody sends so much, and Python refuses to read very long ones."""
_ENDLESS = 1 << 62
"""Nobody can tell where this ends."""


class Body:
    """So many bytes; None: until the end of the connection."""

    def __init__(self, left: int | None) -> None:
        self._left = left

    @property
    def endless(self) -> bool:
        """It ends with the connection, which can't be known before."""
        return self._left is None

    @property
    def done(self) -> bool:
        """All of it has passed."""
        return self._left == 0

    def take(self, data: Bytes, at: int = 0) -> int:
        """Bytes that passed, from `at` on. Returns where what does not belong to it begins."""
        if self._left is None:
            return len(data)
        taken = min(self._left, len(data) - at)
        self._left -= taken
        return at + taken


class Chunks(Body):
    """Chunks, and trailers after the last one (RFC 9112, 7.1)."""

    def __init__(self) -> None:
        super().__init__(None)
        self._line = b""
        self._data = 0  # of this chunk, with the line's end after it
        self._trailers = False
        self._over = False

    @property
    def endless(self) -> bool:
        """See `Body`."""
        return False

    @property
    def done(self) -> bool:
        """See `Body`."""
        return self._over

    def take(self, data: Bytes, at: int = 0) -> int:
        """See `Body`."""
        found = bytes(data)  # a copy only of a memoryview
        while at < len(found) and not self._over:
            if self._data:
                taken = min(self._data, len(found) - at)
                self._data -= taken
                at += taken
                continue
            end = found.find(b"\n", at)
            if end < 0:
                self._line += found[at:]
                if len(self._line) > HEAD_BYTES:
                    self._line, self._data = b"", _ENDLESS
                return len(found)
            line, self._line = (self._line + found[at:end]).rstrip(b"\r"), b""
            at = end + 1
            if self._trailers:
                self._over = not line
                continue
            try:
                size = int(line.split(b";")[0], 16)
            except ValueError:
                size = -1
            if size < 0:
                self._data = _ENDLESS
            elif size:
                self._data = size + 2
            else:
                self._trailers = True
        return at


def answer_body(head: bytes, status: int, *, head_alone: bool) -> Body:
    """What follows the head of a final answer (RFC 9112, 6.3). `head_alone`: HEAD was asked."""
    if head_alone or status in (204, 304):
        return Body(0)
    if CHUNKED.search(head):
        return Chunks()
    return Body(_length(head))


def _length(head: bytes) -> int | None:
    """What a head says of its body's length; None: nothing."""
    found = LENGTH.search(head)
    if found is None:
        return None
    return int(found[1]) if len(found[1]) <= _DIGITS else _ENDLESS


def closes(head: bytes) -> bool:
    """Whether who sent this head ends the connection after its message."""
    return bool(CLOSE.search(head)) or (_is_old(head) and not KEEP.search(head))


def _is_old(head: bytes) -> bool:
    first = head[: head.find(b"\r\n")]
    return first.startswith(b"HTTP/1.0") or first.endswith(b"HTTP/1.0")


class LostError(Exception):
    """What comes is not understood."""


def request_body(head: bytes) -> Body:
    """What follows the head of a request (RFC 9112, 6.3). `LostError` where that can't be told."""
    found = REQUEST.match(head)
    if found is None or found[1] == b"CONNECT" or (CODED.search(head) and not CHUNKED.search(head)):
        raise LostError
    if CHUNKED.search(head):
        return Chunks()
    return Body(_length(head) or 0)


class _Messages:
    """One direction's messages, one after the other."""

    def __init__(self, headed: Callable[[bytes], Body | None], ended: Callable[[], None]) -> None:
        """`headed` is told each head, up to the end of its last field, and gives its body; None: another head follows
        for the same message. `ended` is told of each message's end. Both may raise `LostError`."""
        self._headed = headed
        self._ended = ended
        self._head = b""
        self._body: Body | None = None

    @property
    def between(self) -> bool:
        """No message has begun that has not ended."""
        return self._body is None and not self._head

    def take(self, data: Bytes) -> None:
        """Bytes that passed."""
        at = 0
        while at < len(data):
            if self._body is None:
                at = self._heading(bytes(data[at:] if at else data), at)
            else:
                at = self._body.take(data, at)
            if self._body is not None and self._body.done:
                self._body = None
                self._ended()

    def _heading(self, rest: bytes, at: int) -> int:
        """Look for the end of a head in what begins at `at`. Returns where the next bytes are."""
        if not self._head:
            blank = len(rest) - len(rest.lstrip(b"\r\n"))  # passed over (RFC 9112, 2.2)
            rest, at = rest[blank:], at + blank
        before = len(self._head)
        self._head += rest
        end = self._head.find(b"\r\n\r\n", max(0, before - 3))
        if end < 0:
            if len(self._head) > HEAD_BYTES:
                raise LostError
            if b"\n" in self._head and not (REQUEST.match(self._head) or STATUS.match(self._head)):
                raise LostError
            return at + len(rest)
        head, self._head = self._head[: end + 2], b""
        self._body = self._headed(head)
        return at + end + 4 - before


class Requests:
    """The requests of one connection, one after the other."""

    def __init__(self) -> None:
        self._messages = _Messages(request_body, lambda: None)
        self._lost = False

    @property
    def whole(self) -> bool:
        """All that has begun has ended. What can't be followed never has."""
        return not self._lost and self._messages.between

    def take(self, data: Bytes) -> None:
        """Bytes from the client."""
        if not self._lost:
            try:
                self._messages.take(data)
            except LostError:
                self._lost = True


class Conversation:
    """The requests and answers of one connection. They may overlap (pipelining)."""

    def __init__(self) -> None:
        self.raw = False
        """Upgraded, or something that isn't understood: bytes both ways, for good."""
        self.closes = False
        """One of both has said that the connection ends after what is under way."""
        self._asked: deque[bytes] = deque()
        """The methods of the requests that have no whole answer yet."""
        self._requests = _Messages(self._request, lambda: None)
        self._answers = _Messages(self._answer, self._answer_over)

    @property
    def may_say(self) -> bool:
        """Whether an answer may be said to the client in the server's place: no other one is waited for."""
        return not self.raw and not self._asked and self._answers.between

    @property
    def idle(self) -> bool:
        """Nothing is under way: no request has begun that has not been answered."""
        return not self.raw and not self._asked and self._requests.between and self._answers.between

    def asked(self, data: Bytes) -> Bytes:
        """Bytes from the client; returned as they are."""
        if not self.raw:
            self._follow(self._requests, data)
        return data

    def answered(self, data: Bytes) -> Bytes:
        """Bytes from the server; returned as they are."""
        if not self.raw:
            self._follow(self._answers, data)
        return data

    def _follow(self, messages: _Messages, data: Bytes) -> None:
        try:
            messages.take(data)
        except LostError:
            self.raw = True

    def _request(self, head: bytes) -> Body:
        body = request_body(head)
        if len(self._asked) >= PIPELINED:
            self._asked.clear()
            raise LostError
        self._asked.append(head[: head.index(b" ")])
        self.closes = self.closes or closes(head)
        return body

    def _answer(self, head: bytes) -> Body | None:
        found = STATUS.match(head)
        if found is None or not self._asked:
            raise LostError
        status = int(found[1])
        if status == 101:
            raise LostError
        if status < 200:
            return None
        body = answer_body(head, status, head_alone=self._asked[0] == b"HEAD")
        self.closes = self.closes or closes(head) or body.endless
        return body

    def _answer_over(self) -> None:
        self._asked.popleft()


def may_begin(data: bytes) -> bool:
    """Whether a connection of HTTP/1.1 may begin with these bytes."""
    return _BEGINS.match(data) is not None
