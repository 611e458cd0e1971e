"""What passes the agent's Envoy and the local end arrives as it would if neither was there."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from .envoy_here import HERE, Local, a_rig, ended, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]
BIG = b"x" * 200_000
"""Of one header; Envoy takes 60 to 80 KiB of an answer's if it is not told."""
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.mark.parametrize("protocol", ["tcp", ""])
async def test_a_service_that_has_said_its_last_word_hears_the_rest(
    monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    heard: asyncio.Queue[bytes] = asyncio.Queue()

    async def half_closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        heard.put_nowait(await reader.read())

    async with serving(half_closes) as local, a_rig(monkeypatch, local, protocol) as rig:
        await rig.attach(Local(local))
        reader, writer = await asyncio.open_connection(HERE, rig.proxy.port)
        async with asyncio.timeout(10):
            assert await reader.read() == b"bye"
            for _ in range(30):
                writer.write(b"y" * 100_000)
                await writer.drain()
            writer.write_eof()
            assert len(await heard.get()) == 3_000_000
        await ended(writer)


def answering(answers: dict[bytes, bytes], asked: list[bytes]) -> Handler:
    """A server that answers by the path, once the head of a request is there and, if it has chunks, the last one."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                rest = b""
                if b"chunked" in head.lower():
                    while not (b"\r\n0\r\n" in rest and rest.endswith(b"\r\n\r\n")):
                        rest += await reader.readline()
                asked.append(head + rest)
                writer.write(answers[head.split()[1]])

    return serve


async def said(port: int, request: bytes, last: bytes) -> bytes:
    """What is answered, up to this."""
    reader, writer = await asyncio.open_connection(HERE, port, limit=1 << 20)
    writer.write(request)
    async with asyncio.timeout(10):
        answer = await reader.readuntil(last)
    await ended(writer)
    return answer


@pytest.mark.parametrize("by", ["local", "original"])
async def test_trailers_large_heads_and_expectations_pass(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    trailed = b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n"
    asked: list[bytes] = []
    answers = {
        b"/trailed": b"HTTP/1.1 200 OK\r\n" + trailed,
        b"/big": b"HTTP/1.1 200 OK\r\nX-Big: " + BIG + b"\r\nContent-Length: 2\r\n\r\nok",
        b"/refused": b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno",
    }
    async with serving(answering(answers, asked)) as at, a_rig(monkeypatch, at, "http") as rig:
        await rig.attach(Local(at))
        assert rig.spec is not None
        if by == "original":
            await rig.session.tell(rig.spec, False)
        port = rig.proxy.port
        answer = await said(port, b"POST /trailed HTTP/1.1\r\nHost: api\r\n" + trailed, b"0\r\nx-sum: 1\r\n\r\n")
        assert b"\r\n2\r\nok\r\n" in answer
        assert asked.pop().endswith(b"\r\n0\r\nx-sum: 1\r\n\r\n")
        assert BIG in await said(port, b"GET /big HTTP/1.1\r\nHost: api\r\n\r\n", b"\r\n\r\nok")
        head = b"POST /refused HTTP/1.1\r\nHost: api\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        assert (await said(port, head, b"no")).startswith(b"HTTP/1.1 417 ")
        assert b"Expect: 100-continue\r\n" in asked.pop()


@asynccontextmanager
async def late(name: bytes) -> AsyncIterator[int]:
    """A gRPC server that never answers `/x/Never`, and `/x/Stream` again and again."""

    async def never(request: bytes, context: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        while True:
            yield name
            await asyncio.sleep(0.02)

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers = {
        "Never": grpc.unary_unary_rpc_method_handler(never),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x", handlers),))
    port = server.add_insecure_port(f"{HERE}:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def test_calls_that_end_by_their_deadline_cut_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    async with late(b"local") as local, a_rig(monkeypatch, local, "grpc") as rig:
        await rig.attach(Local(local))
        channel = grpc.aio.insecure_channel(f"{HERE}:{rig.proxy.port}", options=[("grpc.use_local_subchannel_pool", 1)])
        stream = channel.unary_stream("/x/Stream")(b"")
        assert await stream.read() == b"local"
        statuses: Counter[str] = Counter()

        async def ask() -> None:
            try:
                await channel.unary_unary("/x/Never")(b"", timeout=0.2)
            except grpc.aio.AioRpcError as problem:
                statuses[f"{problem.code().name}"] += 1

        for _ in range(12):
            await asyncio.gather(*(ask() for _ in range(50)))
        assert statuses == {"DEADLINE_EXCEEDED": 600}
        for _ in range(3):
            assert await stream.read() == b"local"
        stream.cancel()
        await channel.close()


FORWARDED = (
    b"",
    b"X-Forwarded-Proto: https\r\n",
    b"X-Forwarded-Proto: HTTPS,http\r\nX-Forwarded-For: 192.0.2.7\r\nForwarded: for=192.0.2.7;proto=https\r\n",
    b"X-Forwarded-Client-Cert: By=spiffe://mesh/web;URI=spiffe://mesh/ann\r\nX-Real-Ip: 192.0.2.7\r\n",
)
"""What proxies before have said of the client."""


@pytest.mark.parametrize("by", ["local", "original"])
async def test_what_proxies_have_said_is_kept_and_nothing_is_added(monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    asked: list[bytes] = []
    answers = {b"/": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"}
    async with serving(answering(answers, asked)) as at, a_rig(monkeypatch, at, "http") as rig:
        await rig.attach(Local(at))
        assert rig.spec is not None
        if by == "original":
            await rig.session.tell(rig.spec, False)
        for lines in FORWARDED:
            await said(rig.proxy.port, b"GET / HTTP/1.1\r\nHost: api\r\n" + lines + b"\r\n", b"ok")
            got = asked.pop().removeprefix(b"GET / HTTP/1.1\r\nHost: api\r\n").removesuffix(b"\r\n")
            assert sorted(got.splitlines()) == sorted(lines.splitlines())


HANDSHAKE = (
    b"Connection: Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\nhello"


async def test_a_websocket_that_is_refused_has_its_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    whole = b"Content-Length: 5\r\n\r\nno!!!"
    answers = {b"/%d" % status: b"HTTP/1.1 %d No\r\n" % status + whole for status in (200, 302, 307, 403, 426)}
    answers[b"/parts"] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nno!!!\r\n0\r\n\r\n"
    async with serving(answering(answers | {b"/yes": SWITCHED}, asked)) as at, a_rig(monkeypatch, at, "http") as rig:
        await rig.attach(Local(at))
        for path in answers:
            request = b"GET " + path + b" HTTP/1.1\r\nHost: api\r\n" + HANDSHAKE + b"\r\n"
            assert b"no!!!" in await said(rig.proxy.port, request, b"no!!!")
            head = asked.pop()
            assert all(line in head for line in HANDSHAKE.splitlines())
            assert b"devloop" not in head
        request = b"GET /yes HTTP/1.1\r\nHost: api\r\n" + HANDSHAKE + b"\r\n"
        assert b"Upgrade: WebSocket\r\n" in await said(rig.proxy.port, request, b"hello")
