"""A Service that is led back since the agent is kept from the original: who is connected at the agent then."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from devloop.agent.objects import owners
from devloop.agent.paths import services
from devloop.agent.spec import Header, Match, Route

from ...cluster.attach_grpc import PREFACE, SETTINGS, frame
from .envoy_here import HERE, NAME, Local, Rig, a_rig, serving
from .test_leaving import http

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
MINE = Route((Header("x-user", Match("exact", "ada")),))
ASKED = b"GET / HTTP/1.1\r\nhost: api\r\n\r\n"
GOAWAY = 7


@contextmanager
def silent() -> Iterator[int]:
    """A port at which the kernel drops what would connect, as a policy does: its queue is full."""
    with socket.socket() as full:
        full.bind((HERE, 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(2)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        yield full.getsockname()[1]
        for each in waiting:
            each.close()


async def answered(rig: Rig) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection by the Service that has been answered by the original, and rests."""
    reader, writer = await asyncio.open_connection(HERE, rig.proxy.port)
    writer.write(ASKED)
    assert (await reader.readuntil(b"original")).startswith(b"HTTP/1.1 200")
    return reader, writer


async def goaway(reader: asyncio.StreamReader) -> bytes:
    """The next GOAWAY's payload."""
    while True:
        head = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
        if head[3] == GOAWAY:
            return payload


async def test_connections_at_rest_are_ended_in_order_when_nothing_leads_on_from_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with (
        serving(http("original")) as at,
        serving(http("local")) as local,
        a_rig(monkeypatch, at, "http") as rig,
    ):
        await rig.attach(Local(local), MINE)
        assert rig.spec is not None
        resting, writer = await answered(rig)
        http2, other = await asyncio.open_connection(HERE, rig.proxy.port)
        other.write(PREFACE + frame(SETTINGS, 0, 0, b""))
        with silent() as nobody:
            rig.pods(nobody)
            rig.api.put(f"{services('space')}/{NAME}", owners(rig.service))
            await rig.session.barred(rig.spec)
            async with asyncio.timeout(5):  # a request on it would wait, and get a 503
                assert await resting.read() == b"", "an end, and no byte of anything before"
                assert await goaway(http2)
            _, again = await answered(rig)
        for each in (writer, other, again):
            each.close()


async def test_who_has_not_led_the_service_back_ends_nobodys_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devloop.agent.view.SEEN_SECONDS", 0.1)
    async with (
        serving(http("original")) as at,
        serving(http("local")) as local,
        a_rig(monkeypatch, at, "http") as rig,
    ):
        await rig.attach(Local(local), MINE)
        assert rig.spec is not None and rig.agent is not None
        await rig.session.barred(rig.spec)
        assert (rig.agent.folder / "pressure").read_text() == "0\n"
