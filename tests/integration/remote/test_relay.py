"""From an accepted socket through a link and back, as a transparent proxy does it."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator

import pytest

from devloop.remote.link import OpenError
from devloop.remote.relay import relay
from devloop.remote.sandbox import Forward, SandboxCluster, SandboxLink, SandboxService

from . import target
from .contract import ended

pytestmark = pytest.mark.slow


@pytest.fixture
async def port(target_ports: tuple[int, ...]) -> AsyncIterator[dict[int, int]]:
    """A port of this machine's for each of target.py's services, through a sandbox."""
    behind = {100 + index: Forward(each) for index, each in enumerate(target_ports)}
    link = SandboxLink(SandboxCluster((SandboxService("target", behind),)))
    link.start()
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[None]] = []
    listeners: list[socket.socket] = []

    async def accept(listener: socket.socket, service: int) -> None:
        while True:
            accepted, _ = await loop.sock_accept(listener)
            try:
                await relay(link, accepted, "target", 100 + service)
            except OpenError:
                accepted.close()

    ports = {}
    for service in (*range(target.SERVICES), target.REFUSED):
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        listener.setblocking(False)
        listeners.append(listener)
        tasks.append(asyncio.create_task(accept(listener, service)))
        ports[service] = listener.getsockname()[1]
    yield ports
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for listener in listeners:
        listener.close()
    await link.close()


async def test_bytes_half_closes_and_ends_pass(port: dict[int, int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port[target.SINK])
    digest = hashlib.sha256()
    writer.write(b"end\n")
    for number in range(200):
        digest.update(target.block(number))
        writer.write(target.block(number))
        await writer.drain()
    writer.write_eof()
    assert (await reader.read()).decode() == f"{200 << 16} {digest.hexdigest()}"
    await ended(writer)
    reader, writer = await asyncio.open_connection("127.0.0.1", port[target.CLOSER])
    assert await reader.read() == b"bye"
    await ended(writer)


async def test_a_refused_connection_ends(port: dict[int, int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port[target.REFUSED])
    assert await reader.read() == b""
    await ended(writer)


async def test_a_client_that_goes_away_is_gone_on_the_other_side(port: dict[int, int]) -> None:
    async def count() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port[target.COUNTER])
        number = int(await reader.readline())
        await ended(writer)
        return number

    reader, writer = await asyncio.open_connection("127.0.0.1", port[target.COUNTER])
    assert await reader.readline() == b"1\n"
    writer.transport.abort()
    async with asyncio.timeout(10):
        while await count() > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
