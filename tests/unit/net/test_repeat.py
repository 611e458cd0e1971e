"""Which requests may be sent twice."""

from __future__ import annotations

import pytest

from devloop.net.repeat import repeatable

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab"
PUT = b"PUT /x HTTP/1.1\r\ncontent-length:  30\r\n\r\n"
CHUNKED = b"PUT /x HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"G",
        b"GET",
        b"GET /a/very/long",
        b"DELETE /a HTTP/1.1\r",
        b"GET / HTTP/1.1\r\nHost:",
        GET,
        b"HEAD / HTTP/1.0\r\n\r\n",
        GET + GET,
        b"\r\n" + GET + b"OPT",
        PUT + POST[:30],  # a body that looks like a request
        PUT + b"GET",
        PUT + b"x" * 30 + GET,
        CHUNKED + b"5\r\nPOST ",
        CHUNKED + b"0\r\n\r\n" + GET,
        CHUNKED + b"1\r\na\r\n0\r\n\r\n" + GET,
        b"GET /chat HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ],
)
def test_may_be_sent_again(sent: bytes) -> None:
    assert repeatable(sent)


@pytest.mark.parametrize(
    "sent",
    [
        POST,
        b"PO",
        b"POST / HTTP/1.1\r\n",
        b"PATCH / HTTP/1.1\r\n\r\n",
        GET + POST,  # pipelined
        GET + b"POST",
        PUT + b"x" * 30 + POST,
        CHUNKED + b"1\r\na\r\n0\r\n\r\n" + POST,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET key\r\n",  # Redis
        b"get / HTTP/1.1\r\n\r\n",  # methods are case-sensitive
        b"\x16\x03\x01",  # TLS
        b"GET a\n",
    ],
)
def test_may_not(sent: bytes) -> None:
    assert not repeatable(sent)
