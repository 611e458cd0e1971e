"""Connections that clients hold follow a service that is toggled: HTTP/1.1 pools, gRPC channels, and plain TCP not.

What listens is real, as are the clients. The route is decided as an engine's is, by who has the service now.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import grpc.aio
import pytest

from devloop.dial import connect
from devloop.engine.moving import Moving
from devloop.net.publish import loopback_listeners
from devloop.net.router import ToLink, ToService
from devloop.protocol import EarlierConnections
from devloop.relay import Relay, Relays, Target

from .conftest import DEADLINE, Project
from .sandbox.conftest import namespaces as namespaces
from .test_network_ways import Ways, ways

__all__ = ["ways"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


class There:
    """A link that leads to a port of this machine."""

    async def connect(self, factory: Any, host: str, port: int) -> Any:
        return await asyncio.get_running_loop().create_connection(factory, host, port)


class Here:
    """The ports of a local service."""

    generation = 0

    async def open(self, port: int) -> socket.socket:
        return await connect("127.0.0.1", port)

    def may_repeat(self, port: int, relay: Relay) -> bool:
        return False

    def served(self) -> None:
        """Nobody wants to know."""


class Toggled:
    """A service "api" at a port of this machine, there at first."""

    def __init__(self, here: int, there: int) -> None:
        self.here, self.there = here, there
        self.local = False
        self.relays = Relays(self._route, lambda relay, error: self.errors.append(error))
        self.errors: list[Exception] = []
        self.told = asyncio.Event()
        self.moving = Moving(lambda: [("localhost", self.relays)], self._stale, self.told.set)
        self.port = 0
        self.free = asyncio.Event()
        """Routes are told while it is set."""
        self.free.set()
        self.clients: list[Kept] = []

    async def _route(self, relay: Relay) -> Target:
        local = self.local
        await self.free.wait()
        if local:
            return ToService(Here(), self.here, "api")
        return ToLink(cast(Any, There()), "127.0.0.1", self.there, "api")

    def _stale(self, target: Target) -> bool:
        return isinstance(target, ToService) is not self.local

    async def client(self, port: int | None = None) -> Kept:
        """One connection, to it wherever it is or to a port."""
        self.clients.append(Kept(*await asyncio.open_connection("127.0.0.1", port or self.port)))
        return self.clients[-1]

    async def close(self) -> None:
        self.moving.close()
        for each in self.clients:
            each.writer.close()
        await self.relays.close()
        for each in self.clients:
            with contextlib.suppress(OSError):
                await each.writer.wait_closed()

    def toggle(self) -> str:
        """Who is to answer from now on."""
        self.local = not self.local
        self.moving.toggled()
        return "here" if self.local else "there"

    async def until(self, number: int) -> None:
        """So many connections lead to where it was."""
        async with asyncio.timeout(DEADLINE):
            while sum(each.count for each in self.moving.earlier("api")) != number:
                await self.told.wait()
                self.told.clear()


@pytest.fixture
async def toggled(request: pytest.FixtureRequest) -> AsyncIterator[Toggled]:
    """With the kind of server that the test names."""
    async with contextlib.AsyncExitStack() as stack:
        ports = [await stack.enter_async_context(SERVERS[request.param](who)) for who in ("here", "there")]
        made = Toggled(*ports)
        sockets = loopback_listeners(0)
        made.port = sockets[0].getsockname()[1]
        stack.push_async_callback(made.close)
        await made.relays.listen(*sockets)
        yield made


Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def _serving(handle: Handle) -> AsyncIterator[int]:
    writers: list[asyncio.StreamWriter] = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await handle(reader, writer)
        writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    for writer in writers:
        writer.close()
    for writer in writers:
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _http(who: str) -> contextlib.AbstractAsyncContextManager[int]:
    """Keeps connections; `/slow` is answered when `/go` is asked."""
    go = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            path, length = line.split()[1], 0
            while (field := await reader.readline()).strip():
                if field.lower().startswith(b"content-length:"):
                    length = int(field.split(b":")[1])
            body = await reader.readexactly(length)
            if path == b"/go":
                go.set()
            if path == b"/slow":
                await go.wait()
            answer = who.encode() + b" " + body
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))

    return _serving(handle)


def _echo(who: str) -> contextlib.AbstractAsyncContextManager[int]:
    """Lines, with its name before them."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(who.encode() + b" " + line)

    return _serving(handle)


def _greets(who: str) -> contextlib.AbstractAsyncContextManager[int]:
    """Speaks first."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 %b ready\r\n" % who.encode())
        await reader.read()

    return _serving(handle)


@contextlib.asynccontextmanager
async def _grpc(who: str) -> AsyncIterator[int]:
    """`/a/Say` answers with its name, `/a/Chat` each message with its name."""

    async def say(request: bytes, context: Any) -> bytes:
        return who.encode() + b" " + request

    async def chat(requests: Any, context: Any) -> AsyncIterator[bytes]:
        async for each in requests:
            yield who.encode() + b" " + each

    server = grpc.aio.server()
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(say),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield port
    await server.stop(0)


SERVERS = {"http": _http, "echo": _echo, "greets": _greets, "grpc": _grpc}


class Kept:
    """One connection that is kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, path: str = "/", body: bytes = b"", method: str = "POST") -> None:
        self.writer.write(f"{method} {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    async def answer(self) -> str:
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        return (await self.reader.readexactly(length)).decode()

    async def ask(self, path: str = "/", body: bytes = b"") -> str:
        self.send(path, body)
        return await self.answer()

    async def line(self, text: bytes = b"hello\n") -> bytes:
        self.writer.write(text)
        return await self.reader.readline()


@pytest.mark.parametrize("toggled", ["http"], indirect=True)
async def test_a_pool_follows_at_its_next_request_and_none_fails(toggled: Toggled) -> None:
    """POSTs, which nobody may repeat, on eight connections that are never made anew."""
    pool = [await toggled.client() for _ in range(8)]
    over = asyncio.Event()
    wanted = "there"
    wrong: list[str] = []
    answers = 0

    async def load(kept: Kept) -> None:
        nonlocal answers
        while not over.is_set():
            asked = wanted
            found = await kept.ask(body=b"x" * 1000)
            answers += 1
            if asked == wanted and found.split()[0] != wanted:
                wrong.append(found)

    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
        for kept in pool:
            group.create_task(load(kept))
        for _ in range(6):
            enough = answers + 100
            while answers < enough:  # noqa: ASYNC110
                await asyncio.sleep(0)
            wanted = toggled.toggle()
        over.set()
    assert wrong == []
    assert toggled.errors == []
    assert len(toggled.relays) == len(pool)
    assert toggled.moving.earlier("api") == ()


@pytest.mark.parametrize("toggled", ["http"], indirect=True)
async def test_a_request_under_way_is_answered_where_it_was_asked(toggled: Toggled) -> None:
    kept, other = await toggled.client(), await toggled.client()
    assert await other.ask() == "there "
    assert await kept.ask() == "there "
    kept.send("/slow")
    await _until(lambda: any(map(given, toggled.relays)))
    toggled.toggle()
    assert toggled.moving.earlier("api") == (EarlierConnections("localhost", 1, "remote"),)
    draining = asyncio.create_task(toggled.moving.drained("api", DEADLINE))
    assert await other.ask() == "here "
    assert not draining.done()
    straight = await toggled.client(toggled.there)
    await straight.ask("/go")
    assert await kept.answer() == "there "
    await draining
    assert await kept.ask() == "here "
    await toggled.until(0)


@pytest.mark.parametrize("toggled", ["http"], indirect=True)
async def test_requests_that_did_not_wait_are_all_answered_first(toggled: Toggled) -> None:
    kept = await toggled.client()
    kept.send("/slow")
    kept.send("/second", b"2")
    straight = await toggled.client(toggled.there)
    await _until(lambda: any(map(given, toggled.relays)))
    toggled.toggle()
    await straight.ask("/go")
    assert [await kept.answer(), await kept.answer()] == ["there ", "there 2"]
    assert await kept.ask() == "here "


@pytest.mark.parametrize("toggled", ["http"], indirect=True)
async def test_a_connection_on_its_way_goes_where_the_service_is_now(toggled: Toggled) -> None:
    toggled.free.clear()
    kept = await toggled.client()
    kept.send()
    await _until(lambda: len(toggled.relays) == 1)
    toggled.toggle()
    toggled.free.set()
    assert await kept.answer() == "here "


@pytest.mark.parametrize("toggled", ["grpc"], indirect=True)
async def test_channels_make_another_connection_and_no_call_fails(toggled: Toggled) -> None:
    over = asyncio.Event()
    counts = {"here": 0, "there": 0}

    async def load(channel: grpc.aio.Channel) -> None:
        say = channel.unary_unary("/a/Say")
        while not over.is_set():
            counts[(await say(b"x", timeout=DEADLINE)).decode().split()[0]] += 1

    # Channels to one address share a connection, unless told otherwise.
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(f"127.0.0.1:{toggled.port}", options=options) for _ in range(4)]
    try:
        async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
            chats = [each.stream_stream("/a/Chat")() for each in channels[:2]]
            for chat in chats:
                await chat.write(b"1")
                assert await chat.read() == b"there 1"
            for channel in channels * 3:
                group.create_task(load(channel))
            for _ in range(4):
                who = toggled.toggle()
                before = dict(counts)
                while counts[who] < before[who] + 100:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            for chat in chats:  # the streams that were under way are where they were
                await chat.write(b"2")
                assert await chat.read() == b"there 2"
            over.set()
        # All toggles are over, and it is there again: nothing leads elsewhere once what was under way has ended.
        await toggled.until(0)
        assert toggled.toggle() == "here"
        assert toggled.moving.earlier("api")
        for chat in chats:
            await chat.done_writing()
            assert await chat.read() is grpc.aio.EOF
        await toggled.until(0)  # a call that comes before GOAWAY is read still goes where its connection leads
        for channel in channels:
            assert (await channel.unary_unary("/a/Say")(b"x")).startswith(b"here")
    finally:
        for channel in channels:
            await channel.close()
    assert toggled.errors == []


@pytest.mark.parametrize("toggled", ["echo"], indirect=True)
async def test_plain_tcp_stays_and_is_counted_until_it_ends(toggled: Toggled) -> None:
    kept, silent = await toggled.client(), await toggled.client()
    assert await kept.line() == b"there hello\n"
    toggled.toggle()
    assert toggled.moving.earlier("api") == (EarlierConnections("localhost", 1, "remote"),)
    assert await kept.line() == b"there hello\n"
    assert await silent.line() == b"here hello\n"  # nobody had said anything: it could be led on
    toggled.toggle()
    assert toggled.moving.earlier("api") == (EarlierConnections("localhost", 1, "local"),)
    assert await kept.line() == b"there hello\n"  # it never was elsewhere
    toggled.toggle()
    assert toggled.moving.earlier("api") == (EarlierConnections("localhost", 1, "remote"),)
    kept.writer.close()
    await toggled.until(0)


@pytest.mark.parametrize("toggled", ["greets"], indirect=True)
async def test_what_has_greeted_stays_until_somebody_ends_it(toggled: Toggled) -> None:
    kept = await toggled.client()
    assert await kept.reader.readline() == b"220 there ready\r\n"
    toggled.toggle()
    assert toggled.moving.end("api", force=False) == 1
    with pytest.raises(ConnectionResetError):
        await kept.reader.read()
    await toggled.until(0)
    kept = await toggled.client()
    assert await kept.reader.readline() == b"220 here ready\r\n"


def given(relay: Relay) -> bool:
    """Whether a request is under way, and somebody has it."""
    return relay.busy and relay.target.transport is not None


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


# Keeps connections, and one to API_URL; takes as long as LINGER to answer.
KEEPS = """
import http.client, http.server, json, os, time, urllib.parse

kept = {}

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/ask":
            if not kept:
                kept["api"] = http.client.HTTPConnection(urllib.parse.urlsplit(os.environ["API_URL"]).netloc)
                kept["api"].connect()
                kept["port"] = kept["api"].sock.getsockname()[1]
            kept["api"].request("POST", "/", b"hello")
            answer = json.load(kept["api"].getresponse())
            assert kept["api"].sock.getsockname()[1] == kept["port"], "made anew"
        else:
            time.sleep(float(os.environ.get("LINGER", 0)))
            answer = {"who": os.environ["WHO"]}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    def log_message(self, *words): pass
http.server.ThreadingHTTPServer((os.environ.get("HOST", "127.0.0.1"), int(os.environ["PORT"])), Handler).serve_forever()
"""


def _post(kept: http.client.HTTPConnection, path: str = "/") -> str:
    kept.request("POST", path, b"hello")
    return str(json.load(kept.getresponse())["who"])


async def test_services_and_programs_follow_a_toggle_with_the_connections_that_they_have(ways: Ways) -> None:
    """A service by its namespace, a program by localhost; 20 ms for an answer, and no POST fails in eight toggles."""
    project = ways.project
    ways.configure("namespace", linger=0.02)
    project.write("image/server.py", textwrap.dedent(KEEPS))
    async with project.up():
        await ways.until_up()
        over = asyncio.Event()
        answers: list[tuple[float, str]] = []
        """When each was asked, and who has answered."""

        async def load(port: int, path: str) -> None:
            kept = http.client.HTTPConnection("127.0.0.1", port)
            kept.auto_open = False
            kept.connect()
            sock = kept.sock
            with contextlib.closing(kept):
                try:
                    while not over.is_set():
                        asked = time.monotonic()
                        answers.append((asked, await asyncio.to_thread(_post, kept, path)))
                finally:
                    # A thread that still reads has the response's lock, which closing it waits for.
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)

        async with asyncio.timeout(DEADLINE * 2), asyncio.TaskGroup() as group:
            group.create_task(load(ways.web, "/ask"))
            for _ in range(3):
                group.create_task(load(ways.api, "/"))
            for mode, who in (("local", "here"), ("remote", "there")) * 4:
                await project.client.call("toggle", service="api", mode=mode)
                toggled = time.monotonic()  # what was under way then may be answered by either, and late
                await _until(lambda at=toggled: sum(asked > at for asked, _ in answers) >= 8)
                assert {each for asked, each in answers if asked > toggled} == {who}
            over.set()


async def test_what_stays_is_in_the_status(ways: Ways) -> None:
    project = ways.project
    ways.configure("namespace")
    async with project.up():
        await ways.until_up()
        _, writer = await asyncio.open_connection("127.0.0.1", ways.api)
        try:
            writer.write(b"GET / HTTP/1.1\r\nUpgrade: x\r\n")  # a request that does not end
            await _until(lambda: any(map(given, (each for _, each in project_relays(project)))))
            await ways.toggle("local")
            found = EarlierConnections("localhost", 1, "remote")
            await _until(lambda: project.services["api"].earlier == (found,))
        finally:
            writer.close()
        await _until(lambda: project.services["api"].earlier == ())


def project_relays(project: Project) -> list[tuple[str, Relay]]:
    assert project.engine.remote is not None
    return [(client, each) for client, relays in project.engine.remote.side.here._relays() for each in relays]
