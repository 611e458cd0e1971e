"""Which requests a proxy may send a second time (RFC 9110, 9.2.2), by what the client has sent so far."""

from __future__ import annotations

import re

_METHODS = (b"GET ", b"HEAD ", b"OPTIONS ", b"TRACE ", b"PUT ", b"DELETE ")
_LINE = re.compile(rb"(?:GET|HEAD|OPTIONS|TRACE|PUT|DELETE) [^\r\n]+ HTTP/1\.[01]")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n", re.I)
"""Python refuses to read very long numbers."""
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked[ \t]*\r\n", re.I)
_LAST_CHUNK = b"\r\n0\r\n\r\n"


def repeatable(sent: bytes) -> bool:
    """Whether all that was sent may be sent again: nothing, or HTTP/1 requests with idempotent methods alone.

    The last one may be incomplete, even in its first line: nobody has acted on that. A request with another method
    behind one that may be repeated (pipelining) is found.
    """
    start = 0
    while start < len(sent):
        line_end = sent.find(b"\r\n", start)
        if line_end == start:  # an empty line before a request is passed over (RFC 9112, 2.2)
            start += 2
            continue
        if line_end < 0:
            rest = sent[start:]
            return b"\n" not in rest and any(rest[: len(each)] == each[: len(rest)] for each in _METHODS)
        if _LINE.fullmatch(sent, start, line_end) is None:
            return False
        head_end = sent.find(b"\r\n\r\n", line_end)
        if head_end < 0:
            return True
        head = sent[line_end : head_end + 2]
        start = head_end + 4
        if _CHUNKED.search(head):
            # The last chunk follows the head, or the data of another.
            last = sent.find(_LAST_CHUNK, head_end + 2)
            start = len(sent) if last < 0 else last + len(_LAST_CHUNK)
        elif length := _LENGTH.search(head):
            start += int(length[1])
    return True
