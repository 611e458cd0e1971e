"""Who is connected when somebody leaves, or reloads: with the agent's Envoy, and clients that keep connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
import pytest

from devloop.agent.objects import is_swapped, shadow_name
from devloop.agent.paths import services, slices
from devloop.agent.spec import Header, Match, Route
from devloop.attach.seam import AttachError
from tests.waiting import until, until_so

from ...cluster.attach_grpc import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    SETTINGS,
    frame,
    literal,
    message,
)
from .envoy_here import HERE, NAME, Local, Rig, a_rig, ended, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]
CONNECTIONS = 6
P = TypeVar("P", bound=asyncio.Protocol)


def http(name: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """A server of HTTP/1.1 that answers with its name, and echoes once a connection is upgraded."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"upgrade: websocket" in head.lower():
                    writer.write(
                        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
                    )
                    while data := await reader.read(1 << 16):
                        writer.write(name.encode() + b":" + data)
                    break
                writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(name)}\r\n\r\n{name}".encode())

    return serve


class Pool:
    """Keep-alive connections that ask one request after the other, and count the answers. A connection is made anew
    when the server has said that it closes, or has closed between two requests; anything else is a failure."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: Counter[str] = Counter()
        self.made = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def _ask(self) -> None:
        while True:
            reader, writer = await asyncio.open_connection(HERE, self.port)
            self.made += 1
            try:
                while not reader.at_eof():
                    writer.write(b"GET / HTTP/1.1\r\nhost: api\r\n\r\n")
                    try:
                        async with asyncio.timeout(5):
                            head = await reader.readuntil(b"\r\n\r\n")
                            size = int(head.lower().partition(b"content-length:")[2].split()[0])
                            body = await reader.readexactly(size)
                    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as problem:
                        self.answers[f"failed: {type(problem).__name__}"] += 1
                        break
                    ok = head.startswith(b"HTTP/1.1 200")
                    self.answers[body.decode() if ok else f"failed: {head[:12]!r} {body!r}"] += 1
                    if b"connection: close" in head.lower():
                        break
                    await asyncio.sleep(0.01)
            finally:
                await ended(writer)

    @classmethod
    @asynccontextmanager
    async def asking(cls, port: int) -> AsyncIterator[Pool]:
        """While the context lasts."""
        pool = cls(port)
        pool._tasks = [asyncio.create_task(pool._ask()) for _ in range(CONNECTIONS)]
        try:
            yield pool
        finally:
            for each in pool._tasks:
                each.cancel()
            await asyncio.gather(*pool._tasks, return_exceptions=True)

    async def hears(self, name: str) -> None:
        """Until all connections are answered by this one alone."""
        self.answers.clear()
        await until(lambda: self.answers[name] > 5 * CONNECTIONS, 20)

    @property
    def failed(self) -> dict[str, int]:
        return {key: count for key, count in self.answers.items() if key.startswith("failed")}


async def listeners(rig: Rig) -> dict[int, int]:
    """Of Envoy's: how many connections each has."""
    assert rig.agent is not None
    return await rig.agent._gateway.connections()


@pytest.mark.parametrize("told", [True, False], ids=["leave", "kill"])
async def test_keep_alive_connections_go_on_until_they_have_moved(monkeypatch: pytest.MonkeyPatch, told: bool) -> None:
    async with (
        serving(http("original")) as at,
        serving(http("local")) as local,
        a_rig(monkeypatch, at, "http") as rig,
        Pool.asking(rig.proxy.port) as pool,
    ):
        for _ in range(2):
            await rig.attach(Local(local))
            await until(lambda: is_swapped(rig.service))
            pool.made = 0
            async with Pool.asking(rig.proxy.port) as fresh:  # clients that come while it is attached
                await fresh.hears("local")
                if not told:
                    await rig.carrier.close()  # the engine is gone: the agent leads to the original at once
                    await fresh.hears("original")
                await rig.leave(told=told)
                made = fresh.made
                await until(lambda made=made: fresh.made >= made + CONNECTIONS, 20)
                # All of them have moved; nobody is cut, and the listener goes when nobody is left.
                await until_gone(rig)
                await fresh.hears("original")
                assert not fresh.failed and not pool.failed
            if not told:
                break


async def until_gone(rig: Rig) -> None:
    """The agent has nothing to do any more."""
    assert rig.agent is not None
    agent = rig.agent
    await until(lambda: not agent._leaving, 30)

    async def none() -> bool:
        return not any((await listeners(rig)).values())

    await until_so(none)


async def test_a_websocket_and_a_plain_connection_outlive_who_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        serving(http("original")) as at,
        serving(http("local")) as local,
        a_rig(monkeypatch, at, "http", settle=0.2) as rig,
    ):
        assert rig.agent is not None
        await rig.attach(Local(local))
        mine = await upgraded(rig.proxy.port)
        await says(*mine, "local")
        # A connection of somebody else's, which the original answers.
        await rig.session.tell(rig.spec, False)  # type: ignore[arg-type]
        others = await upgraded(rig.proxy.port)
        await says(*others, "original")
        await rig.leave()
        async with Pool.asking(rig.proxy.port) as pool:
            await pool.hears("original")
            assert not pool.failed
        await asyncio.sleep(2)  # ten times as long as it takes to end those that nobody uses
        await says(*others, "original")
        await says(*mine, "local")  # until its own service ends
        assert rig.agent.busy
        for _, writer in (mine, others):
            await ended(writer)
        await until_gone(rig)
        assert not rig.agent._left or not any(each.open for each in rig.agent._left)


async def upgraded(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A WebSocket, as far as a proxy sees it."""
    reader, writer = await asyncio.open_connection(HERE, port)
    writer.write(
        b"GET /ws HTTP/1.1\r\nhost: api\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101"), head
    return reader, writer


async def says(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
    """It still answers, and it is this one."""
    writer.write(b"hello")
    async with asyncio.timeout(5):
        assert await reader.readexactly(len(name) + 6) == f"{name}:hello".encode()


async def test_what_is_under_way_goes_on_when_its_service_was_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        serving(http("original")) as at,
        serving(http("local")) as local,
        a_rig(monkeypatch, at, "http") as rig,
    ):
        end = Local(local)
        await rig.attach(end)
        mine = await upgraded(rig.proxy.port)
        await says(*mine, "local")
        assert rig.spec is not None
        for _ in range(2):
            await rig.session.attach(rig.spec, end, lambda: None)  # as an engine does, whatever was changed
            await says(*mine, "local")
            async with Pool.asking(rig.proxy.port) as pool:
                await pool.hears("local")
                assert not pool.failed
        await ended(mine[1])


async def test_who_attaches_again_meanwhile_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        serving(http("original")) as at,
        serving(http("local")) as local,
        a_rig(monkeypatch, at, "http") as rig,
        Pool.asking(rig.proxy.port) as pool,
    ):
        await rig.attach(Local(local))
        socket = await upgraded(rig.proxy.port)
        before = await listeners(rig)
        for _ in range(3):
            await rig.leave()
            await rig.attach(Local(local))
        assert (await listeners(rig)).keys() == before.keys()
        await says(*socket, "local")
        async with Pool.asking(rig.proxy.port) as fresh:
            await fresh.hears("local")
            assert not fresh.failed and not pool.failed
        await ended(socket[1])


# --- gRPC ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def greeter(name: str, port: int = 0) -> AsyncIterator[tuple[int, grpc.aio.Server]]:
    """A gRPC server that answers `/x/Say` with its name, and `/x/Stream` with it again and again."""

    async def say(request: bytes, context: Any) -> bytes:
        return name.encode()

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        while True:
            yield name.encode()
            await asyncio.sleep(0.02)

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers = {"Say": grpc.unary_unary_rpc_method_handler(say), "Stream": grpc.unary_stream_rpc_method_handler(stream)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x", handlers),))
    bound = server.add_insecure_port(f"{HERE}:{port}")
    await server.start()
    try:
        yield bound, server
    finally:
        await server.stop(None)


class Calls:
    """One channel after the other's calls, as a client that keeps its channel."""

    def __init__(self, port: int) -> None:
        # A connection of its own for each channel: gRPC shares them else.
        self.channel = grpc.aio.insecure_channel(f"{HERE}:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
        self.say = self.channel.unary_unary("/x/Say")
        self.answers: Counter[str] = Counter()
        self._task = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        while True:
            try:
                self.answers[(await self.say(b"", timeout=5)).decode()] += 1
            except grpc.aio.AioRpcError as problem:
                self.answers[f"failed: {problem.code().name} {problem.details()}"] += 1
            await asyncio.sleep(0.005)

    async def hears(self, name: str) -> None:
        """Until this one answers."""
        before = self.answers[name]
        await until(lambda: self.answers[name] > before + 10, 20)

    @property
    def failed(self) -> dict[str, int]:
        return {key: count for key, count in self.answers.items() if key.startswith("failed")}

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.channel.close()


async def test_grpc_moves_to_the_original_without_a_failed_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async with greeter("original") as (at, _), greeter("local") as (local, _), a_rig(monkeypatch, at, "grpc") as rig:
        await rig.attach(Local(local))
        calls = [Calls(rig.proxy.port) for _ in range(CONNECTIONS)]
        streaming = grpc.aio.insecure_channel(f"{HERE}:{rig.proxy.port}")
        stream = streaming.unary_stream("/x/Stream")(b"")
        for each in calls:
            await each.hears("local")
        assert await stream.read() == b"local"
        await rig.leave()
        for each in calls:
            await each.hears("original")
        await asyncio.sleep(6)  # Envoy's second GOAWAY, after which it closes
        for _ in range(20):
            assert await stream.read() == b"local"  # under way when its developer left
        stream.cancel()
        await streaming.close()
        del stream  # it keeps its connection
        await until_gone(rig)
        for each in calls:
            assert not each.failed
            await each.close()


class Process(asyncio.Protocol):
    """One connection to a gRPC service that answers each call in the same turn: whatever it has read is answered.

    So a call that fails was not this service's to fail, however it ends.
    """

    def __init__(self, name: str, there: set[Process]) -> None:
        self.name = name
        self.begun: set[int] = set()
        """Calls of which it has read something, and not all."""
        self._there = there
        self._buffer = b""
        self._greeted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._there.add(self)
        self.transport.write(frame(SETTINGS, 0, 0))  # as grpc-go does, before it has read anything

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._greeted and len(self._buffer) >= len(PREFACE):
            self._greeted, self._buffer = True, self._buffer[len(PREFACE) :]
        while self._greeted and len(self._buffer) >= 9:
            size = int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < 9 + size:
                return
            kind, flags = self._buffer[3:5]
            stream, payload = int.from_bytes(self._buffer[5:9], "big"), self._buffer[9 : 9 + size]
            self._buffer = self._buffer[9 + size :]
            if kind == SETTINGS and not flags & ACK:
                self.transport.write(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                self.transport.write(frame(PING, ACK, 0, payload))
            elif kind == HEADERS and not flags & END_STREAM:
                self.begun.add(stream)
            elif kind in (DATA, HEADERS) and flags & END_STREAM:
                self.begun.discard(stream)
                self.transport.write(
                    frame(HEADERS, END_HEADERS, stream, b"\x88" + literal("content-type", "application/grpc"))
                    + frame(DATA, 0, stream, message(self.name))
                    + frame(HEADERS, END_HEADERS | END_STREAM, stream, literal("grpc-status", "0"))
                )

    def connection_lost(self, exc: Exception | None) -> None:
        self._there.discard(self)


@asynccontextmanager
async def process(name: str) -> AsyncIterator[int]:
    """A service that ends as a killed process does: with no word to anybody."""
    there: set[Process] = set()
    server = await asyncio.get_running_loop().create_server(lambda: Process(name, there), HERE, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        await until(lambda: not any(each.begun for each in there))
        server.close()
        for each in list(there):
            each.transport.abort()
        await until(lambda: not there)


async def test_grpc_and_a_local_service_that_reloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls go on all the time, and the service is killed again and again: none of them fails."""
    async with process("original") as at, a_rig(monkeypatch, at, "grpc") as rig:
        local = Local(0)
        calls: list[Calls] = []
        for attempt in range(12):
            async with process(f"local {attempt}") as port:
                local.port = port
                local.up.set()
                if not attempt:
                    await rig.attach(local)
                    calls = [Calls(rig.proxy.port) for _ in range(CONNECTIONS)]
                for each in calls:
                    await each.hears(f"local {attempt}")
                local.up.clear()
        assert [each.failed for each in calls] == [{}] * CONNECTIONS
        for each in calls:
            await each.close()


class Closing(Local):
    """A local service that is being stopped: connections wait, and are refused in the end."""

    def __init__(self) -> None:
        super().__init__(0)
        self.waiting = 0
        self.up.clear()

    async def connect(self, factory: Callable[[], P], port: int) -> tuple[asyncio.Transport, P]:
        """See `LocalEnd`."""
        self.waiting += 1
        await self.up.wait()
        raise ConnectionRefusedError("its workload runs again")


@pytest.mark.parametrize("kind", ["intercept", "replace"])
@pytest.mark.parametrize("protocol", ["http", "tcp", ""])
async def test_who_waits_for_a_local_service_that_leaves_is_answered_by_the_original(
    monkeypatch: pytest.MonkeyPatch, kind: str, protocol: str
) -> None:
    async with serving(http("original")) as at, a_rig(monkeypatch, at, protocol) as rig:
        local = Closing()
        await rig.attach(local, kind=kind)
        async with Pool.asking(rig.proxy.port) as pool:
            await until(lambda: local.waiting >= CONNECTIONS)
            leaving = asyncio.create_task(rig.leave())
            await until(lambda: not is_swapped(rig.service))
            assert not pool.answers
            local.up.set()
            await leaving
            await pool.hears("original")
            assert not pool.failed
        assert rig.agent is not None
        # And nothing of it stays.
        await until(lambda: not any("local-" in each for each in rig.agent._gateway._files), 20)


async def test_a_port_that_is_renamed_keeps_its_pods(monkeypatch: pytest.MonkeyPatch) -> None:
    """Service, shadow and the shadow's endpoints follow one after the other."""
    async with serving(http("original")) as at, serving(http("local")) as here, a_rig(monkeypatch, at, "http") as rig:
        await rig.attach(Local(here), Route((Header("x-user", Match("exact", "ada")),)))
        await until(lambda: is_swapped(rig.service))
        async with Pool.asking(rig.proxy.port) as pool:
            await pool.hears("original")
            for name in ("http-x", "http"):
                for path in (f"{services('space')}/{NAME}", f"{services('space')}/{shadow_name(NAME)}"):
                    found = rig.api.call("GET", path)
                    found["spec"]["ports"][0]["name"] = name
                    rig.api.put(path, found)
                    await pool.hears("original")
                path = f"{slices('space')}/{shadow_name(NAME)}-1"
                found = rig.api.call("GET", path)
                found["ports"] = []
                rig.api.put(path, found)
                await pool.hears("original")
                found["ports"] = [{"name": name, "port": at}]
                rig.api.put(path, found)
                await pool.hears("original")
            assert not pool.failed
            # That there are none is believed.
            found["endpoints"] = []
            rig.api.put(path, found)
            await until(lambda: bool(pool.failed))


async def test_a_message_that_is_none_leaves_the_next_one_to_be_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(http("original")) as at, a_rig(monkeypatch, at, "http") as rig:
        with pytest.raises(AttachError, match="ValueError"):
            await rig.session.ask(do="local", id="x", up=True, deaf=["y"])
        assert "error" not in await rig.session.ask(do="local", id="x", up=True)
