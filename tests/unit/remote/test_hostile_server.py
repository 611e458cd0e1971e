"""An API server, a kubelet or a proxy that sends what no honest one does: nothing grows with what it announces."""

from __future__ import annotations

import asyncio
import json
import struct
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from devloop.errors import RemoteError
from devloop.remote import bounded
from devloop.remote.kubernetes.api import Api, ApiError, ApiUnreachableError
from devloop.remote.kubernetes.podport import SAID_BYTES
from devloop.remote.kubernetes.spdy import CONTROL_BYTES, DICTIONARY, Connection
from devloop.remote.kubernetes.websocket import PING, WebSocket
from devloop.remote.workload import references as kinds
from devloop.remote.workload.kube import KubeCluster

from .test_websocket import FakeConnection, FakeResponse, Heard, forwarded, frame

MIB = 1 << 20


def spdy() -> tuple[Connection, Any]:
    made: Any = FakeConnection()
    socket = WebSocket(FakeResponse(made.transport), made, masked=False)
    return Connection(socket, "web-1", lambda *_: None), made.transport


def control(kind: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack(">HHI", 0x8003, kind, flags << 24 | len(body)) + body


async def test_a_ping_of_a_tebibyte_is_not_waited_for() -> None:
    _, _, _, connection = forwarded()
    connection.transport.receive(b"\x89\x7f" + struct.pack(">Q", 1 << 40) + b"x" * 1000)
    assert connection.transport.aborted


@pytest.mark.parametrize("head", [b"\x09\x03abc", b"\x89\x7e\x00\x80" + b"x" * 128, b"\x83\x01x", b"\x8b\x01x"])
async def test_frames_that_can_not_be_end_it(head: bytes) -> None:
    _, _, _, connection = forwarded()
    connection.transport.receive(head)
    assert connection.transport.aborted


async def test_a_server_that_reads_nothing_is_not_answered_without_end() -> None:
    socket, _, _, connection = forwarded()
    socket.pause_writing()
    connection.transport.receive(frame(b"x" * 100, PING) * 1000)
    assert connection.transport.sent == b""
    socket.resume_writing()
    connection.transport.receive(frame(b"x", PING))
    assert connection.transport.sent


async def test_what_is_said_of_a_failure_is_kept_in_part() -> None:
    _, transport, _, connection = forwarded()
    connection.transport.receive(frame(b"\1\0\0"))
    for _ in range(100):
        connection.transport.receive(frame(b"\1" + b"x" * 50_000))
    assert len(transport._said) == SAID_BYTES


@pytest.mark.slow
async def test_a_bomb_of_headers_ends_the_connection_and_takes_no_memory() -> None:
    """A frame of 800 KiB that inflates to 800 MiB; and one that says it has 16 MiB."""
    pack = zlib.compressobj(9, zdict=DICTIONARY)
    bomb = pack.compress(bytes(50 * MIB)) + pack.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < CONTROL_BYTES
    for said in (control(2, bytes(4) + bomb), control(8, bytes(4) + bomb), struct.pack(">HHI", 0x8003, 2, 0xFFFFFF)):
        _, transport = spdy()
        tracemalloc.start()
        transport.receive(frame(said))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert transport.aborted
        assert peak < 4 * MIB
    _, transport = spdy()
    transport.receive(frame(control(2, b"\0\0\0\1 no headers")))
    assert transport.aborted


async def test_an_error_stream_without_end_is_kept_in_part() -> None:
    connection, transport = spdy()
    opening = asyncio.ensure_future(connection.open(Heard, 80))
    await asyncio.sleep(0)
    stream = connection._errors[1]
    for _ in range(300):
        transport.receive(frame(struct.pack(">II", 1, 32_000) + b"x" * 32_000))
    assert len(stream.problem) <= SAID_BYTES
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)


# --- Answers ------------------------------------------------------------------------------------------------------


class Served:
    """An API server that answers everything with these bytes, and who asks it."""

    def __init__(self, url: str, session: ClientSession, monkeypatch: pytest.MonkeyPatch) -> None:
        self.api = object.__new__(Api)
        self.api.where = "here"

        async def send(method: str, path: str, **_: Any) -> Any:
            return await session.request(method, url)

        async def request(method: str, path: str, **_: Any) -> Any:
            return await session.request(method, url)

        monkeypatch.setattr(self.api, "_send", send)
        self.cluster = object.__new__(KubeCluster)
        self.cluster.namespace = "shop"
        self.cluster._configuration = cast(Any, type("Configuration", (), {"host": "here"}))
        monkeypatch.setattr(self.cluster, "_request", request)


@asynccontextmanager
async def served(monkeypatch: pytest.MonkeyPatch, *pieces: bytes, status: int = 200) -> AsyncIterator[Served]:
    async def answer(request: web.Request) -> web.StreamResponse:
        made = web.StreamResponse(status=status)
        await made.prepare(request)
        for each in pieces:
            await made.write(each)
        return made

    app = web.Application()
    app.router.add_get("/", answer)
    async with TestServer(app) as server, ClientSession() as session:
        yield Served(str(server.make_url("/")), session, monkeypatch)


def event(size: int) -> bytes:
    return json.dumps({"type": "MODIFIED", "object": {"data": {"a": "x" * size}}}).encode() + b"\n"


@pytest.mark.slow
async def test_objects_of_several_mib_are_read_by_both_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """aiohttp's lines end at 128 KiB, with an error that is none of its client's."""
    sizes = [10, 200 << 10, 3 << 20, 6 << 20, 10]
    async with served(monkeypatch, *map(event, sizes), b"\n") as there:
        found = [len(each["data"]["a"]) async for _, each in there.api.watch("/services")]
        assert found == sizes
        found = [len(each.object["data"]["a"]) async for each in there.cluster.watch(kinds.CONFIG_MAP, "one", "1")]
        assert found == sizes


@pytest.mark.parametrize("said", [b'{"type": "MODIFIED", "object": "' + b"x" * 300_000, b"[" * 50_000 + b"\n", b"7\n"])
async def test_a_watch_without_end_is_ended_in_words(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(bounded.lines, "__defaults__", (100_000,))
    async with served(monkeypatch, said) as there:
        with pytest.raises(ApiUnreachableError):
            _ = [each async for each in there.api.watch("/services")]
        with pytest.raises(RemoteError):
            _ = [each async for each in there.cluster.watch(kinds.CONFIG_MAP, "one", "1")]


@pytest.mark.parametrize("said", [b'{"a": "' + b"x" * 300_000 + b'"}', b"[" * 50_000, b"[]", b"no JSON"])
async def test_an_answer_without_end_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    monkeypatch.setattr(bounded.read, "__defaults__", (100_000,))
    monkeypatch.setattr(bounded, "ANSWER_BYTES", 100_000)
    async with served(monkeypatch, said) as there:
        if said != b"[]":
            with pytest.raises(ApiUnreachableError):
                await there.api.get("/services")
        with pytest.raises(RemoteError):
            await there.cluster.listing(kinds.CONFIG_MAP)


async def test_a_list_whose_pages_have_no_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "ANSWER_BYTES", 100_000)
    page = {"items": [{"a": "x" * 10_000}], "metadata": {"continue": "more"}}
    async with served(monkeypatch, json.dumps(page).encode()) as there:
        with pytest.raises(RemoteError, match="no end"):
            await there.cluster.listing(kinds.CONFIG_MAP)


async def test_an_error_comes_whole_in_pieces_and_is_read_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(monkeypatch, b'{"mess', b'age": "not ', b'you"}', status=403) as there:
        with pytest.raises(ApiError, match=r"not you$"):
            await there.api.get("/services")
    async with served(monkeypatch, *[b"x" * 60_000] * 10, status=500) as there:
        with pytest.raises(ApiError) as problem:
            await there.api.get("/services")
        assert len(str(problem.value)) < 3000
