"""Requests that a web page has sent to a port of localhost, by a name or an origin that is not this machine's. Pure.

A page can have its own name lead to 127.0.0.1 (DNS rebinding): its requests are of the same origin then, so it reads
the answers, and only their `Host` tells. And every page may send to http://localhost itself, without reading the
answer; `Origin` tells that, also of WebSockets, which no same-origin policy holds back.

Whether a connection speaks HTTP is told by the first bytes of its client, not by a port's name: a wrong name would open
a hole, and a page speaks HTTP to whatever listens. Nothing is held back for that, so no other protocol waits or loses a
byte: a server can't act on part of a head, and the bytes that make one whole are looked at before they are passed on.
Each request of a connection is looked at. A browser keeps connections by name, so the first one would do for it; a
proxy on this machine that browsers speak to has requests for several names share one.

TLS is left alone. The certificate guards it: a page that was loaded from its own name gets no connection to a server
that has no certificate for that name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from devloop import http1, http2

if TYPE_CHECKING:
    from hpack import Decoder

_BEGINS = re.compile(
    rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?: [^\r\n ]*(?: (?:HTTP/1\.[0-9]\r?|HTTP/1\.|HTTP/1|HTTP/|HTTP|HTT|HT|H)?)?)?\Z"
)
"""What may become a request's first line, whatever its method: a page may make up its own."""
_FIRST = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ ([^\r\n ]*) HTTP/1\.[0-9]\r?\n")
_END = re.compile(rb"\r?\n\r?\n")
_AUTHORITY = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?# @]*@)?([^/?# ]*)")
_SAFE = (b"GET", b"HEAD", b"OPTIONS", b"TRACE")
_TABLE_BYTES = 1 << 20
"""Of HPACK's table, as its size may be set by whom the client speaks to."""
_SHOWN = 80
"""Characters of a name in a message."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request goes no further."""

    what: str
    answer: bytes
    """What its client is told, where no other answer is under way."""


class Names:
    """The names that this machine, and what is behind its ports, may be called by."""

    def __init__(self, allowed: Collection[str] = (), own: Callable[[str], bool] = lambda name: False) -> None:
        """`allowed` are the project's: names, `*.NAME` for any below NAME, `*` for all. `own` knows what devloop itself
        calls the services."""
        self._allowed = frozenset(each.lower() for each in allowed if not each.startswith("*"))
        self._below = tuple(each[1:].lower() for each in allowed if each.startswith("*."))
        self._all = "*" in allowed
        self._own = own

    def is_host(self, host: str) -> bool:
        """Whether a request may be for it (`Host`, with or without a port).

        An address is always one: nobody makes it lead elsewhere, so no page that came from there gets here.
        """
        name = bare(host)
        return _address(name) is not None or self._knows(name)

    def is_origin(self, origin: str) -> bool:
        """Whether a page of this origin may send requests: one of this machine, or an extension of the browser's."""
        scheme, separator, rest = origin.partition("://")
        if not separator:
            return self._all or origin.lower() in self._allowed  # "null": a file, a sandboxed frame
        if scheme.lower() not in ("http", "https"):
            return True
        name = bare(rest)
        address = _address(name)
        return self._knows(name) if address is None else address.is_loopback or name in self._allowed or self._all

    def _knows(self, name: str) -> bool:
        local = name in ("", "localhost") or name.endswith(".localhost")
        return self._all or local or name in self._allowed or name.endswith(self._below) or self._own(name)


def bare(host: str) -> str:
    """The name or address of `Host`: no port, no brackets, no last dot, in lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    if host.count(":") > 1:
        return host
    name, colon, port = host.rpartition(":")
    return (name if colon and (port.isdigit() or not port) else host).removesuffix(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


class Guard:
    """Follows what the client of one connection says."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._take: Callable[[bytes], Refusal | None] = self._begin
        self._head = b""
        self._body: http1.Body | None = None
        self._preface = b""
        self._frames = http2.Frames()
        self._decoder: Decoder | None = None
        self._frame: http2.Frame | None = None
        """Of HTTP/2: the one whose payload comes, if it has fields."""
        self._payload: list[bytes] = []
        self._missing = 0
        self._block = b""
        self._host = b""
        """The last one that was one of this machine's."""
        self._same = b""
        """The last block of fields, if it has passed and passes again."""
        self._stream = 1

    def take(self, data: bytes) -> Refusal | None:
        """Bytes that the client has sent. What is returned is why they, and all that follows, are not passed on."""
        return self._take(data)

    def _raw(self, data: bytes) -> None:
        """It is not HTTP, or no more: an upgrade, a tunnel."""
        return

    def _begin(self, data: bytes) -> Refusal | None:
        """Until it is known what is spoken."""
        self._preface += data
        said = self._preface
        if len(said) < len(http2.PREFACE) and http2.PREFACE.startswith(said):
            return None
        self._preface = b""
        if said.startswith(http2.PREFACE):
            self._take = self._http2
            return self._http2(said[len(http2.PREFACE) :])
        self._take = self._http1
        return self._http1(said)

    # HTTP/1.1

    def _http1(self, data: bytes) -> Refusal | None:
        at = 0
        while at < len(data):
            if self._body is not None:
                at = self._body.take(data, at)
                if self._body.done:
                    self._body = None
                continue
            if not self._head and (at := _blank(data, at)) == len(data):
                return None
            before = len(self._head)
            whole = self._head + data[at:] if before else data
            begins = 0 if before else at
            first = whole.find(b"\n", begins)
            if not (_FIRST.match(whole, begins) if first >= 0 else _BEGINS.match(whole, begins)):
                return self._no_request(whole[begins:])
            end = _END.search(whole, max(begins, before - 3))
            if end is None:
                self._head = whole[begins:]
                if len(self._head) > http1.HEAD_BYTES:
                    return _told("a request's head of more than 256 KiB", b"431 Request Header Fields Too Large")
                return None
            head, self._head = whole[begins : end.start()], b""
            at = at + end.end() - before if before else end.end()
            low = head.lower()
            refusal = self._check1(head, low)
            if refusal is not None:
                return refusal
            if low.startswith(b"connect ") or b"\ntransfer-encoding:" in low or b"\ncontent-length:" in low:
                if head.count(b"\n") != head.count(b"\r\n"):
                    head = head.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
                try:
                    self._body = http1.request_body(head + b"\r\n")
                except http1.LostError:
                    self._take = self._raw
                    return None
                if self._body.done:
                    self._body = None
        return None

    def _no_request(self, said: bytes) -> Refusal | None:
        self._take, self._head = self._raw, b""
        if said.startswith(http2.PREFACE):  # after an upgrade to it
            self._take = self._http2
            return self._http2(said[len(http2.PREFACE) :])
        return None

    def _check1(self, head: bytes, low: bytes) -> Refusal | None:
        hosts = _values(low, b"\nhost")
        target = head[head.find(b" ") + 1 :]
        if not target.startswith(b"/") and (named := _AUTHORITY.match(target)):
            hosts.append(named[1])
        return self._check(
            head[: head.find(b" ")], hosts, _values(low, b"\norigin"), _values(low, b"\nsec-fetch-site"), _answer1
        )

    # HTTP/2

    def _http2(self, data: bytes) -> Refusal | None:
        for part in self._frames.parts(data):
            if isinstance(part, http2.Frame):
                wanted = part.kind in (http2.HEADERS, http2.CONTINUATION)
                self._frame, self._payload, self._missing = (part, [], part.length) if wanted else (None, [], 0)
                if wanted and part.length + len(self._block) > http1.HEAD_BYTES:
                    return _told("a request's head of more than 256 KiB", b"431", self._answer2)
            elif self._frame is not None and not self._frames.heading:
                self._payload.append(part)
                self._missing -= len(part)
            else:
                continue
            if self._frame is not None and not self._missing:
                refusal = self._fields(self._frame, b"".join(self._payload))
                self._frame, self._payload = None, []
                if refusal is not None:
                    return refusal
        return None

    def _fields(self, frame: http2.Frame, payload: bytes) -> Refusal | None:
        """A frame with (a part of) a request's fields is whole (RFC 9113, 6.2)."""
        self._stream = frame.stream
        if frame.kind == http2.HEADERS:
            padding = payload[0] if frame.flags & 0x8 and payload else 0
            start = (1 if frame.flags & 0x8 else 0) + (5 if frame.flags & 0x20 else 0)
            payload = payload[start : len(payload) - padding]
        self._block += payload
        if not frame.flags & http2.END_HEADERS:
            return None
        block, self._block = self._block, b""
        if block == self._same:
            return None
        refusal = self._check2(block)
        # Fields of the table alone (RFC 7541, 6.1), which change nothing in it: the same bytes mean the same again.
        self._same = block if refusal is None and min(block, default=0) & 0x80 else b""
        return refusal

    def _check2(self, block: bytes) -> Refusal | None:
        from hpack import Decoder, HPACKError  # late: few clients speak HTTP/2 without TLS

        if self._decoder is None:
            self._decoder = Decoder(max_header_list_size=http1.HEAD_BYTES)
            self._decoder.max_allowed_table_size = _TABLE_BYTES
        fields: dict[bytes, list[bytes]] = {}
        try:
            for name, value in self._decoder.decode(block, raw=True):
                fields.setdefault(bytes(name).lower(), []).append(bytes(value))
        except HPACKError:
            return _told("a request whose fields can't be read", b"400", self._answer2)
        method = fields.get(b":method", [b""])[0]
        hosts = [*fields.get(b":authority", ()), *fields.get(b"host", ())]
        return self._check(method, hosts, fields.get(b"origin", []), fields.get(b"sec-fetch-site", []), self._answer2)

    def _answer2(self, status: bytes, text: str) -> bytes:
        """Fields as literals that no table keeps (RFC 7541, 6.2.2): names 8 and 31 are static."""
        body = text.encode("utf-8", "replace")
        kind = b"text/plain; charset=utf-8"
        fields = b"\x08\x03" + status[:3] + b"\x0f\x10" + bytes((len(kind),)) + kind
        headers = http2.frame(http2.HEADERS, fields, flags=http2.END_HEADERS, stream=self._stream)
        data = http2.frame(http2.DATA, body, flags=http2.END_STREAM, stream=self._stream)
        return http2.frame(http2.SETTINGS) + headers + data + http2.goaway(self._stream)

    # Both

    def _check(
        self,
        method: bytes,
        hosts: list[bytes],
        origins: list[bytes],
        sites: list[bytes],
        answer: Callable[[bytes, str], bytes],
    ) -> Refusal | None:
        for host in hosts:
            if host == self._host:
                continue
            if not self._names.is_host(host.decode("latin-1")):
                return _told(
                    f"a request for {_shown(host)}, which is no name of this machine",
                    b"421 Misdirected Request",
                    answer,
                    bare(host.decode("latin-1")),
                )
            self._host = host
        for origin in origins:
            if not self._names.is_origin(origin.decode("latin-1")):
                name = bare(origin.decode("latin-1").partition("://")[2] or origin.decode("latin-1"))
                return _told(
                    f"a request of a web page of {_shown(origin)}, which is not on this machine",
                    b"403 Forbidden",
                    answer,
                    name,
                )
        if not origins and method not in _SAFE and any(site.lower() == b"cross-site" for site in sites):
            return _told("a request of a web page that is not on this machine", b"403 Forbidden", answer)
        return None


def _values(low: bytes, name: bytes) -> list[bytes]:
    """Those of a field in a head in lower case; `name` has the end of the line before it."""
    found: list[bytes] = []
    at = low.find(name)
    while at >= 0:
        start = at + len(name)
        end = low.find(b"\n", start)
        before, colon, value = low[start : None if end < 0 else end].partition(b":")
        if colon and not before.strip():  # servers have taken `Host :` for `Host:`
            found.append(value.strip())
        at = low.find(name, start)
    return found


def _blank(data: bytes, at: int) -> int:
    """Where the first byte is that is no line's end (RFC 9112, 2.2: some come between requests)."""
    while at < len(data) and data[at] in b"\r\n":
        at += 1
    return at


def _shown(name: bytes) -> str:
    text = name.decode("latin-1")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _told(what: str, status: bytes, answer: Callable[[bytes, str], bytes] | None = None, name: str = "") -> Refusal:
    hint = ""
    if name and len(name) <= _SHOWN and name.isprintable() and '"' not in name and "\\" not in name:
        hint = f'if it is yours: allowed_hosts = ["{name}"] in [remote] of devloop.toml'
    body = f"devloop: {what}\n{hint}\n" if hint else f"devloop: {what}\n"
    return Refusal(f"{what}; {hint}" if hint else what, (answer or _answer1)(status, body))


def _answer1(status: bytes, text: str) -> bytes:
    body = text.encode("utf-8", "replace")
    head = b"HTTP/1.1 " + status + b"\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n"
    return head + b"Connection: close\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
