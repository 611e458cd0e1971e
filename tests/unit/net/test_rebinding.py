"""Requests of web pages from elsewhere are told from those of this machine, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Iterator

import h2.connection
import h2.events
import pytest
from hpack import Encoder

from devloop import http2
from devloop.net.rebinding import Guard, Names, Refusal

NAMES = Names(("shop.test", "*.example.com", "198.51.100.7"), lambda name: name in ("api", "api.shop.svc"))
LOCAL = (
    "localhost", "LOCALHOST:8080", "localhost.", "app.localhost:80", "127.0.0.1", "127.8.9.10:1", "[::1]:8080", "[::1]",
    "api:8080", "api.shop.svc", "shop.test", "a.b.example.com", "10.0.0.8:80", "[2001:db8::1]:80",
)  # fmt: skip
ELSEWHERE = (
    "evil.test", "evil.test:8080", "localhost.evil.test", "127.0.0.1.evil.test", "evil-localhost", "evilexample.com",
    "example.com", "xshop.test", "api.evil", "api@evil.test", "2130706433.evil",
)  # fmt: skip


def request(host: str, *fields: str, first: str = "GET / HTTP/1.1", body: bytes = b"") -> bytes:
    return "\r\n".join([first, f"Host: {host}", *fields, "", ""]).encode() + body


def told(*data: bytes, names: Names = NAMES) -> Refusal | None:
    guard = Guard(names)
    return next((found for each in data if (found := guard.take(each)) is not None), None)


def pieces(data: bytes) -> Iterator[bytes]:
    for at in range(len(data)):
        yield data[at : at + 1]


@pytest.mark.parametrize("host", LOCAL)
def test_a_name_of_this_machine_passes(host: str) -> None:
    assert told(request(host)) is None
    assert told(*pieces(request(host))) is None
    assert told(h2_request(host)) is None


@pytest.mark.parametrize("host", ELSEWHERE)
def test_any_other_name_is_refused(host: str) -> None:
    for data in (request(host), request(host, first="patch-it /x HTTP/1.1")):  # a page may make up its method
        for way in (told(data), told(*pieces(data))):
            assert way is not None and host in way.what and way.answer.startswith(b"HTTP/1.1 421 ")
    assert told(h2_request(host)) is not None
    assert told(*pieces(h2_request(host))) is not None


def test_the_refusal_says_what_to_do() -> None:
    found = told(request("evil.test:80"))
    assert found is not None and 'allowed_hosts = ["evil.test"]' in found.what
    assert b'allowed_hosts = ["evil.test"]' in found.answer and b"Connection: close" in found.answer
    hostile = told(request('x"]\\; rm'))
    assert hostile is not None and "allowed_hosts" not in hostile.what
    assert told(request("evil.test"), names=Names(("*",))) is None


@pytest.mark.parametrize(
    "before",
    [
        request("localhost"),
        request("localhost", "Content-Length: 5", first="POST / HTTP/1.1", body=b"Host:"),
        request(
            "localhost", "Transfer-Encoding: chunked", first="POST / HTTP/1.1", body=b"3\r\nabc\r\n0\r\nx: y\r\n\r\n"
        ),
        b"GET / HTTP/1.1\nHost: localhost\n\n",
    ],
    ids=["plain", "length", "chunks", "bare line ends"],
)
def test_each_request_of_a_connection_is_looked_at(before: bytes) -> None:
    for between in (b"", b"\r\n"):
        pipelined = before + between + request("localhost") + request("evil.test")
        assert told(pipelined) is not None and told(*pieces(pipelined)) is not None
        assert told(before, before + between, request("evil.test")) is not None
        assert told(before + between + request("localhost")) is None


def test_a_request_in_a_body_is_none() -> None:
    inner = request("evil.test")
    assert told(request("localhost", f"Content-Length: {len(inner)}", first="PUT / HTTP/1.1", body=inner)) is None


@pytest.mark.parametrize(
    "data",
    [
        request("localhost", "Host: evil.test"),
        request("localhost", first="GET http://evil.test/ HTTP/1.1"),
        request("evil.test", first="GET / HTTP/1.0"),
        b"GET / HTTP/1.1\nHost: evil.test\n\n",
        b"\r\n\r\n" + request("evil.test"),
    ],
    ids=["two hosts", "absolute form", "HTTP/1.0", "bare line ends", "blank lines before"],
)
def test_other_ways_to_say_it(data: bytes) -> None:
    assert told(data) is not None and told(*pieces(data)) is not None


def test_a_head_without_end_is_refused_and_not_kept() -> None:
    guard, found, sent = Guard(NAMES), None, 0
    for data in (b"GET /", *[b"x" * 65536] * 8):
        sent += len(data)
        if (found := guard.take(data)) is not None:
            break
    assert found is not None and b" 431 " in found.answer and sent < 400_000


@pytest.mark.parametrize(
    "first",
    [
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",  # PostgreSQL's SSLRequest
        b"*1\r\n$4\r\nPING\r\n",
        b"PING\r\n",
        b"SET key value\r\n",
        b"get evil.test\r\n",
        b'CONNECT {"verbose":false}\r\nPING\r\n',  # NATS
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"AMQP\x00\x00\x09\x01",
        b"EHLO evil.test\r\n",
    ],
)
def test_other_protocols_are_left_alone(first: bytes) -> None:
    later = request("evil.test")  # whatever it holds
    assert told(first, later) is None
    assert told(*pieces(first), later) is None


def test_what_follows_an_upgrade_is_left_alone() -> None:
    upgrade = request("localhost", "Upgrade: websocket", "Connection: Upgrade")
    assert told(upgrade, b"\x81\x85abcd" + bytes(5), request("evil.test")) is None


def test_http2_after_an_upgrade_is_looked_at() -> None:
    upgrade = request("localhost", "Upgrade: h2c", "Connection: Upgrade")
    assert told(upgrade, h2_request("evil.test")) is not None


@pytest.mark.parametrize(
    ("fields", "first", "passes"),
    [
        (("Origin: http://localhost:3000",), "POST / HTTP/1.1", True),
        (("Origin: http://127.0.0.1:3000",), "POST / HTTP/1.1", True),
        (("Origin: http://[::1]:3000",), "POST / HTTP/1.1", True),
        (("Origin: https://app.example.com",), "POST / HTTP/1.1", True),
        (("Origin: http://198.51.100.7",), "POST / HTTP/1.1", True),
        (("Origin: chrome-extension://abc",), "POST / HTTP/1.1", True),
        (("Sec-Fetch-Site: cross-site",), "GET /callback?code=1 HTTP/1.1", True),  # an OAuth redirect
        (("Sec-Fetch-Site: same-site",), "POST / HTTP/1.1", True),
        (("Origin: https://evil.test",), "POST / HTTP/1.1", False),
        (("Origin: https://evil.test", "Upgrade: websocket"), "GET /ws HTTP/1.1", False),
        (("Origin: http://203.0.113.5",), "POST / HTTP/1.1", False),
        (("Origin: null",), "POST / HTTP/1.1", False),
        (("origin:null",), "GET / HTTP/1.1", False),
        (("Sec-Fetch-Site: cross-site",), "POST / HTTP/1.1", False),
    ],
)
def test_pages_from_elsewhere(fields: tuple[str, ...], first: str, passes: bool) -> None:
    found = told(request("localhost:8080", *fields, first=first))
    assert (found is None) is passes
    assert found is None or found.answer.startswith(b"HTTP/1.1 403 ")


def h2_request(host: str, encoder: Encoder | None = None, stream: int = 1, *more: tuple[str, str]) -> bytes:
    fields = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", host), *more]
    block = (encoder or Encoder()).encode(fields)
    start = http2.PREFACE + http2.frame(http2.SETTINGS) if stream == 1 else b""
    body = http2.frame(http2.DATA, b"x" * 20, flags=http2.END_STREAM, stream=stream)
    first = http2.frame(http2.HEADERS, block[:5], stream=stream)
    return start + first + http2.frame(http2.CONTINUATION, block[5:], flags=http2.END_HEADERS, stream=stream) + body


def test_each_stream_of_http2_is_looked_at() -> None:
    encoder = Encoder()
    good = h2_request("localhost", encoder) + h2_request("localhost", encoder, 3)
    assert told(good) is None
    assert told(good, h2_request("evil.test", encoder, 5)) is not None
    page = h2_request("localhost", None, 1, ("origin", "https://evil.test"))
    assert told(page) is not None and told(*pieces(page)) is not None


def test_http2_with_padding_and_priority_is_read() -> None:
    client = h2.connection.H2Connection()
    client.initiate_connection()
    fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "evil.test")]
    client.send_headers(1, fields, end_stream=True, priority_weight=3, priority_depends_on=0, priority_exclusive=False)
    assert told(client.data_to_send()) is not None


def test_a_client_of_http2_can_read_the_refusal() -> None:
    client = h2.connection.H2Connection()
    client.initiate_connection()
    fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "evil.test")]
    client.send_headers(1, fields, end_stream=True)
    found = told(client.data_to_send())
    assert found is not None
    events = client.receive_data(found.answer)
    answered = [each for each in events if isinstance(each, h2.events.ResponseReceived)]
    assert dict(answered[0].headers or ())[b":status"] == b"421"


def test_fields_of_http2_that_are_none_are_refused() -> None:
    start = http2.PREFACE + http2.frame(http2.SETTINGS)
    bad = http2.frame(http2.HEADERS, b"\xff\xff\xff\xff\xff\xff\xff", flags=http2.END_HEADERS, stream=1)
    assert told(start + bad) is not None
    large = http2.frame(http2.HEADERS, bytes(16384), stream=1)
    more = http2.frame(http2.CONTINUATION, bytes(16384), stream=1)
    assert told(start + large + more * 20) is not None
