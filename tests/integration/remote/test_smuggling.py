"""A request's body that is requests itself, and a local service that answers before it has read it (401, 413)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest

from .envoy_here import HERE, Local, a_rig, ended, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
EVIL = b"GET /smuggled HTTP/1.1\r\nHost: api\r\n\r\n"
COUNT = 2000
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def refusing(seen: list[bytes], connections: list[int], *, closes: bool) -> Handler:
    """A server that answers as soon as it has a head, and reads no body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                seen.append(head.split(b"\r\n")[0])
                writer.write(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno")
                await writer.drain()
                if closes or b"POST" in head:
                    return

    return serve


@pytest.mark.parametrize("framing", ["length", "chunked", "expect", "1.0"])
async def test_the_rest_of_a_body_never_becomes_requests(monkeypatch: pytest.MonkeyPatch, framing: str) -> None:
    seen: list[bytes] = []
    body = EVIL * COUNT
    head = b"POST /upload HTTP/1.1\r\nHost: api\r\n"
    if framing == "chunked":
        # Each chunk's data begins where a process would look for a request.
        body = b"".join(b"%x\r\n%s\r\n" % (len(EVIL), EVIL) for _ in range(COUNT)) + b"0\r\nx-trailer: 1\r\n\r\n"
        head += b"Transfer-Encoding: chunked\r\n\r\n"
    else:
        head += b"Content-Length: %d\r\n" % len(body)
        head += b"Expect: 100-continue\r\n\r\n" if framing == "expect" else b"\r\n"
        if framing == "1.0":
            head = head.replace(b"HTTP/1.1", b"HTTP/1.0")
    connections: list[int] = []
    async with (
        serving(refusing(seen, connections, closes=True)) as local,
        a_rig(monkeypatch, local, "http") as rig,
    ):
        await rig.attach(Local(local))
        for _ in range(5):
            reader, writer = await asyncio.open_connection(HERE, rig.proxy.port)
            writer.write(head)
            with contextlib.suppress(ConnectionError):
                for at in range(0, len(body), len(EVIL) * 10):
                    writer.write(body[at : at + len(EVIL) * 10])
                    await writer.drain()
                assert (await reader.readline()).split()[1] == b"401"
            await ended(writer)
        # Another client's request, by the connections that there are now.
        reader, writer = await asyncio.open_connection(HERE, rig.proxy.port)
        writer.write(b"GET /mine HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 401 ") and answer.count(b"HTTP/1.1") == 1
        await ended(writer)
    assert {each.split()[1] for each in seen} == {b"/upload", b"/mine"}
