"""Publishing and holding, on the host's own sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from devloop.net.publish import Gate, Publisher
from devloop.net.router import RefusedError
from tests.unit.net.fakes import FakeInside


class Bench:
    def __init__(self) -> None:
        self.inside = FakeInside()
        self.lines: list[str] = []
        self.publisher = Publisher("api", self.inside, self.lines.append, hold=5)
        self.servers: list[asyncio.Server] = []

    async def serve(self, port: int, answer: bytes | None) -> None:
        """Listen as the service on its port. None: take the request and hang up."""

        async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1000)
            if answer is not None:
                writer.write(answer)
            writer.close()

        server = await asyncio.start_server(client, "127.0.0.1", 0)
        self.inside.open[port] = server.sockets[0].getsockname()
        self.servers.append(server)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.publisher.close()
    for server in bench.servers:
        server.close()
        await server.wait_closed()


async def ask(port: int, request: bytes = b"GET / HTTP/1.1\r\n\r\n") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_held_connections_do_not_try(bench: Bench) -> None:
    await bench.serve(80, b"answer")
    bench.publisher.set_gate(Gate.HELD)
    waiting = [asyncio.create_task(bench.publisher.open(80)) for _ in range(5)]
    await asyncio.sleep(0.05)
    assert bench.inside.tries == 0
    bench.publisher.set_gate(Gate.OPEN)
    for sock in await asyncio.gather(*waiting):
        sock.close()


async def test_closing_refuses_what_waits(bench: Bench) -> None:
    waiting = [asyncio.create_task(bench.publisher.open(80)) for _ in range(5)]
    await asyncio.sleep(0.02)
    bench.publisher.set_gate(Gate.CLOSED)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, RefusedError) for result in results)


async def test_one_looks_for_all_that_wait(bench: Bench) -> None:
    waiting = [asyncio.create_task(bench.publisher.open(80)) for _ in range(50)]
    await asyncio.sleep(0.05)
    assert bench.inside.tries == 50  # one each, and none in between
    await bench.serve(80, b"")
    for sock in await asyncio.gather(*waiting):
        sock.close()
    assert bench.inside.tries == 100


async def test_a_request_that_may_be_repeated_goes_to_the_new_process(bench: Bench) -> None:
    await bench.serve(80, None)
    port = (await bench.publisher.publish(80)).host_port
    bench.publisher.set_gate(Gate.OPEN)
    asking = asyncio.create_task(ask(port))
    await asyncio.sleep(0)
    await bench.serve(80, b"new")
    assert await asking in (b"new", b"")  # b"": it was through before the new one was there
    # Long after the reload, an end without an answer is the service's own.
    bench.publisher._opened_at -= 10
    await bench.serve(80, None)
    assert await ask(port) == b""


async def test_a_post_is_repeated_only_if_nobody_accepted_it(bench: Bench) -> None:
    await bench.serve(80, None)
    port = (await bench.publisher.publish(80)).host_port
    bench.publisher.set_gate(Gate.OPEN)
    assert await ask(port, b"POST / HTTP/1.1\r\n\r\n") == b""


async def test_publishing_twice_is_one(bench: Bench) -> None:
    first = await bench.publisher.publish(8080)
    assert await bench.publisher.publish(8080) == first
    assert bench.publisher.published == (first,)
