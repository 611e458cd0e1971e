"""From an accepted socket through a link and back, as a transparent proxy does it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from devloop.agent.forward import NEAR_WINDOW_BYTES, WINDOW_BYTES
from devloop.net.publish import loopback_listeners
from devloop.net.router import ToLink
from devloop.relay import Relay, Relays, Target
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
    relayed: list[Relays] = []
    ports = {}
    for service in (*range(target.SERVICES), target.REFUSED):
        sockets = loopback_listeners(0)

        async def route(relay: Relay, service: int = service) -> Target:
            return ToLink(link, "target", 100 + service)

        relayed.append(Relays(route, lambda relay, error: None))
        ports[service] = sockets[0].getsockname()[1]
        await relayed[-1].listen(*sockets)
    yield ports
    for each in relayed:
        await each.close()
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
    with pytest.raises(ConnectionResetError):
        await reader.read()
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


class Sips(asyncio.Protocol):
    """Pauses after each piece, as a relay does whose client is slow, and counts the pieces."""

    def __init__(self) -> None:
        self.pieces = 0
        self.enough = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.pieces += 1
        self.transport.pause_reading()
        if self.pieces == 40:
            self.enough.set()
        else:
            asyncio.get_running_loop().call_later(0.005, self.transport.resume_reading)


@pytest.mark.parametrize(("trip", "expected"), [(0.0, NEAR_WINDOW_BYTES), (0.05, WINDOW_BYTES), (1e9, WINDOW_BYTES)])
async def test_a_window_is_as_large_as_the_way_is_long_at_both_ends(
    target_ports: tuple[int, ...], trip: float, expected: int
) -> None:
    """What is too much for it waits on the way, and everybody's next byte behind it."""
    link = SandboxLink(SandboxCluster((SandboxService("target", {80: Forward(target_ports[target.ECHO])}),)))
    link.start()
    await link.ready(10)
    carrier: Any = link._carrier
    carrier.trip, carrier._snug = trip, True
    transport, _ = await link.connect(Sips, "target", 80)
    channel = transport.channel  # type: ignore[attr-defined]
    assert channel.get_recv_window() == expected, "ours"
    assert channel._send_window == expected, "theirs"
    transport.abort()
    await link.close()


async def test_a_slow_client_has_one_window_and_no_more(target_ports: tuple[int, ...]) -> None:
    link = SandboxLink(SandboxCluster((SandboxService("target", {80: Forward(target_ports[target.SOURCE])}),)))
    link.start()
    transport, sips = await link.connect(Sips, "target", 80)
    transport.write(b"%d\n" % (256 * 16))
    async with asyncio.timeout(60):
        await sips.enough.wait()
        await link.lookup("target.default.svc.cluster.local")  # what was on its way before the answer has come
    channel = transport.channel  # type: ignore[attr-defined]
    assert sum(len(data) for data, _ in channel._recv_buf) <= WINDOW_BYTES
    transport.abort()
    await link.close()
