"""Who answered, as a real Envoy's log says it: with two holders, failures, gRPC and plain TCP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from devloop.agent import envoy
from devloop.agent.gateway import Gateway
from devloop.agent.plan import Local, PortPlan, ServicePlan, socket_path
from devloop.agent.protocols import Protocol
from devloop.agent.records import NOBODY, ORIGINAL, Request, answerer, read
from devloop.agent.spec import ALL, Fail, Header, Match, Route, Spec
from tests.integration.remote.envoy_here import program

pytestmark = pytest.mark.slow
HERE = "127.0.0.1"


def holder(user: str, *, up: bool = True, fail: Fail = "open", route: Route | None = None) -> Local:
    mine = route or Route((Header("x-user", Match("exact", user)),))
    return Local(Spec(user, user, "h", "intercept", "0", "api", {80: 1}, (mine,), fail), up)


@dataclass
class Rig:
    """An Envoy with one port, and its log."""

    port: int
    requests: asyncio.Queue[Request] = field(default_factory=asyncio.Queue)
    who: list[str] = field(default_factory=list)

    async def next(self) -> Request:
        async with asyncio.timeout(10):
            return await self.requests.get()

    async def ask(self, *headers: str) -> bytes:
        reader, writer = await asyncio.open_connection(HERE, self.port)
        lines = "".join(f"{each}\r\n" for each in headers)
        writer.write(f"GET /a?secret=1 HTTP/1.1\r\nHost: api\r\nConnection: close\r\n{lines}\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answers(status: str) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        writer.close()

    return serve


async def cuts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Half an answer."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    await writer.drain()
    writer.close()


async def streams(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An answer that goes on."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nmore\r\n")
    await reader.read()
    writer.close()


@asynccontextmanager
async def rig(
    folder: Path, *locals_: Local, original: Serve | int, protocol: Protocol = "http", **served: Serve
) -> AsyncIterator[Rig]:
    """`original` serves, or is a port; `served` are the holders' services."""
    with socket.socket() as probe:
        probe.bind((HERE, 0))
        port = probe.getsockname()[1]
    found = Rig(port)

    def lines(several: list[str]) -> None:
        for each in several:
            if (request := read(each)) is not None:
                found.who.append(answerer(each))
                found.requests.put_nowait(request)

    async with AsyncExitStack() as stack:
        if not isinstance(original, int):
            server = await stack.enter_async_context(await asyncio.start_server(original, HERE, 0))
            original = server.sockets[0].getsockname()[1]
        for user, serve in served.items():
            path = socket_path(str(folder), user, 80)
            await stack.enter_async_context(await asyncio.start_unix_server(serve, path))
        plan = ServicePlan("api", (PortPlan(80, port, protocol, ((HERE, original),)),), locals_)
        gateway = Gateway(folder, program(), lines)
        stack.push_async_callback(_closed, gateway)
        await gateway.apply(envoy.files([plan], str(folder), address=HERE))
        yield found


async def _closed(gateway: Gateway) -> None:
    process: Any = gateway._transport
    await gateway.close()
    await process._wait()


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e")  # short: sockets lie in it


async def test_each_holders_requests_are_theirs_and_the_rest_the_originals(folder: Path) -> None:
    two = holder("ada"), holder("ben")
    async with rig(folder, *two, original=answers("503 No"), ada=answers("200 OK"), ben=answers("404 No")) as it:
        found = []
        for headers in (("x-user: ada",), ("x-user: ben",), ()):
            await it.ask(*headers)
            found.append(await it.next())
    assert [(each.answered, each.by, each.attachment, each.status) for each in found] == [
        ("local", "ada", "ada", 200),
        ("local", "ben", "ben", 404),
        ("original", "", "", 503),
    ]
    assert it.who == ["/ada", "/ben", ORIGINAL]
    assert {(each.service, each.port, each.path, each.protocol, each.grpc) for each in found} == {
        ("api", 80, "/a", "HTTP/1.1", None)
    }


async def test_what_nobody_answered_is_nobodys(folder: Path) -> None:
    with socket.socket() as closed:
        closed.bind((HERE, 0))  # and does not listen
        away = holder("cyd", up=False, fail="closed")
        async with rig(folder, away, original=closed.getsockname()[1]) as it:
            await it.ask()
            refused = await it.next()
            await it.ask("x-user: cyd")
            absent = await it.next()
    assert (refused.answered, refused.status, "UF" in refused.flags) == ("nobody", 503, True)
    assert (absent.answered, absent.status, absent.attachment) == ("nobody", 503, "cyd")
    assert it.who == [NOBODY, NOBODY]


async def test_an_answer_that_was_cut_is_none_and_one_that_its_client_left_is_one(folder: Path) -> None:
    async with rig(folder, holder("ada"), original=cuts, ada=streams) as it:
        await it.ask()
        cut = await it.next()
        reader, writer = await asyncio.open_connection(HERE, it.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: api\r\nx-user: ada\r\n\r\n")
        await reader.readuntil(b"more")
        writer.transport.abort()
        left = await it.next()
    assert (cut.answered, cut.status) == ("nobody", 200)
    assert (left.answered, left.by, left.status) == ("local", "ada", 200)


async def test_one_that_the_local_service_did_not_take_is_answered_late_by_the_original(folder: Path) -> None:
    async with rig(folder, holder("ada"), original=answers("200 OK")) as it:  # nobody at ada's socket
        await it.ask("x-user: ada")
        found = await it.next()
    assert (found.answered, found.failed_over, found.by, found.attachment) == ("original", True, "", "ada")


async def test_a_plain_connection(folder: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(1))
        writer.close()

    async def connect(it: Rig) -> Request:
        reader, writer = await asyncio.open_connection(HERE, it.port)
        writer.write(b"x")
        with contextlib.suppress(ConnectionResetError):  # where there is nobody, what was sent stays unread
            await reader.read()
        writer.close()
        return await it.next()

    async with rig(folder, holder("ada", route=ALL), original=echo, protocol="tcp", ada=echo) as it:
        here = await connect(it)
    async with rig(folder, original=echo, protocol="tcp") as it:
        there = await connect(it)
    with socket.socket() as closed:
        closed.bind((HERE, 0))
        async with rig(folder, original=closed.getsockname()[1], protocol="tcp") as it:
            nowhere = await connect(it)
    found = [(each.method, each.answered, each.by, each.status) for each in (here, there, nowhere)]
    assert found == [("TCP", "local", "ada", 0), ("TCP", "original", "", 0), ("TCP", "nobody", "", 0)]


async def test_a_grpc_call_has_its_own_status(folder: Path) -> None:
    grpc = pytest.importorskip("grpc", reason="pip install grpcio")

    async def served(stack: AsyncExitStack, address: str, code: Any) -> int:
        async def call(request: bytes, context: Any) -> bytes:
            if code is not grpc.StatusCode.OK:
                await context.abort(code, "no")
            return request

        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(call)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Prices", {"Quote": handler}),))
        port = server.add_insecure_port(address)
        await server.start()
        stack.push_async_callback(server.stop, None)
        return int(port)

    async with AsyncExitStack() as stack:
        port = await served(stack, f"{HERE}:0", grpc.StatusCode.OK)
        await served(stack, f"unix:{socket_path(str(folder), 'ada', 80)}", grpc.StatusCode.NOT_FOUND)
        it = await stack.enter_async_context(
            rig(folder, holder("ada"), holder("cyd", up=False, fail="closed"), original=port, protocol="http2")
        )
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"{HERE}:{it.port}"))
        quote = channel.unary_unary("/shop.Prices/Quote")
        found = []
        for metadata in ((), (("x-user", "ada"),), (("x-user", "cyd"),)):
            with suppress(grpc.aio.AioRpcError):
                await quote(b"x", metadata=metadata, timeout=10)
            found.append(await it.next())
    assert [(each.answered, each.by, each.status, each.grpc) for each in found] == [
        ("original", "", 200, 0),
        ("local", "ada", 200, 5),
        ("nobody", "", 200, 14),
    ]
