"""What every link promises, whatever carries it. A suite for each kind subclasses `LinkContract`.

`rig` is given by the subclass' module: a connected link and where the services of `target.py` are behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from devloop.remote.life import LiveLink
from devloop.remote.link import LinkState, OpenError, Phase, Refusal
from tests import needs

from . import target


@dataclass
class Rig:
    """A link, what is behind it, and a way to break it."""

    link: LiveLink
    host: str
    ports: tuple[int, ...]
    """Of target.py's services."""
    refused_port: int
    unknown_host: str
    cut: Callable[[], Awaitable[None]]
    """End what the link runs over; it may come back at once."""
    late_refusal: bool = False
    """A refused port is found only after the connection was made (the kubelet takes it first)."""
    half_close: bool = True
    """Not through containerd's port-forward, which has no way to hand it on."""
    lingering: float = 0.02
    """How long the other end may take to see that a client has gone, in seconds."""

    async def open(self, service: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await self.link.open(self.host, self.ports[service])


async def ended(writer: asyncio.StreamWriter) -> None:
    """Close a stream, and wait for it; how it ended does not matter here."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def until(link: LiveLink, reached: Callable[[LinkState], bool], seconds: float = 10) -> None:
    """Wait for a state of the link's."""
    there = asyncio.Event()
    stop = link.subscribe(lambda state: there.set() if reached(state) else None)
    try:
        if not reached(link.state):
            async with asyncio.timeout(seconds):
                await there.wait()
    finally:
        stop()


async def echoes(rig: Rig, text: bytes) -> bool:
    reader, writer = await rig.open(target.ECHO)
    writer.write(text)
    try:
        return await reader.readexactly(len(text)) == text
    finally:
        await ended(writer)


async def all_of_it(reader: asyncio.StreamReader) -> tuple[int, str]:
    """What comes to the end: its size, and its SHA-256."""
    heard, size = hashlib.sha256(), 0
    while data := await reader.read(1 << 18):
        heard.update(data)
        size += len(data)
    return size, heard.hexdigest()


class LinkContract:
    """Each promise is a test."""

    async def test_what_is_sent_comes_back(self, rig: Rig) -> None:
        reader, writer = await rig.open(target.ECHO)
        for text in (b"one", b"two" * 1000):
            writer.write(text)
            assert await reader.readexactly(len(text)) == text
        await ended(writer)

    async def test_a_half_close_reaches_the_server_and_its_answer_the_client(self, rig: Rig) -> None:
        if not rig.half_close:
            pytest.skip("a half-close does not pass through containerd's port-forward")
        reader, writer = await rig.open(target.SINK)
        writer.write(b"end\nall of it")
        writer.write_eof()
        size, digest = (await reader.read()).split()
        assert (int(size), digest.decode()) == (9, hashlib.sha256(b"all of it").hexdigest())
        await ended(writer)

    async def test_the_server_closes_first(self, rig: Rig) -> None:
        reader, writer = await rig.open(target.CLOSER)
        assert await reader.read() == b"bye"
        await ended(writer)

    async def test_a_hundred_megabytes_arrive_whole_in_either_direction(self, rig: Rig) -> None:
        blocks = 100 * 16
        digest = hashlib.sha256()
        reader, writer = await rig.open(target.SINK)
        writer.write(b"%d\n" % (blocks << 16))
        for number in range(blocks):
            data = target.block(number)
            digest.update(data)
            writer.write(data)
            await writer.drain()
        assert (await reader.read()).decode() == f"{blocks << 16} {digest.hexdigest()}"
        await ended(writer)

        reader, writer = await rig.open(target.SOURCE)
        writer.write(b"%d\n" % blocks)
        assert await all_of_it(reader) == (blocks << 16, digest.hexdigest())
        await ended(writer)

    async def test_a_client_that_does_not_read_stops_the_server_and_nobody_else(self, rig: Rig) -> None:
        reader, writer = await rig.open(target.SOURCE)
        writer.transport.pause_reading()
        writer.write(b"%d\n" % (64 * 16))
        try:
            for number in range(20):
                assert await echoes(rig, b"still there %d" % number)
        finally:
            writer.transport.abort()
            del reader

    async def test_a_server_that_does_not_read_stops_the_client(self, rig: Rig) -> None:
        reader, writer = await rig.open(target.SILENT)
        assert await reader.readline()
        stopped = False
        for _ in range(64 * 16):
            writer.write(bytes(1 << 16))
            try:
                async with asyncio.timeout(1):
                    await writer.drain()
            except TimeoutError:
                stopped = True
                break
        assert stopped
        writer.transport.abort()

    async def test_a_thousand_connections_at_once(self, rig: Rig) -> None:
        count = 1000
        with needs.open_files(2 * count + 200):
            opened = [await rig.open(target.ECHO) for _ in range(10)]
            opened += await asyncio.gather(*(rig.open(target.ECHO) for _ in range(count - 10)))

            async def once(number: int) -> bool:
                reader, writer = opened[number]
                text = b"%d" % number
                writer.write(text)
                return await reader.readexactly(len(text)) == text

            assert all(await asyncio.gather(*(once(number) for number in range(count))))
            for _, writer in opened:
                await ended(writer)

    async def test_a_refused_port_is_an_error_at_once(self, rig: Rig) -> None:
        began = time.monotonic()
        if rig.late_refusal:
            reader, writer = await rig.link.open(rig.host, rig.refused_port)
            with pytest.raises(ConnectionError):
                if not await reader.read():
                    raise ConnectionResetError
            await ended(writer)
        else:
            with pytest.raises(OpenError) as refused:
                await rig.link.open(rig.host, rig.refused_port)
            assert refused.value.refusal is Refusal.REFUSED
            assert refused.value.exit_code == 3
        assert time.monotonic() - began < 5
        assert await echoes(rig, b"the link itself is well")

    async def test_an_unknown_host_is_an_error_of_its_own(self, rig: Rig) -> None:
        with pytest.raises(OpenError) as unknown:
            await rig.link.open(rig.unknown_host, 80)
        assert unknown.value.refusal is Refusal.UNKNOWN_HOST
        assert rig.unknown_host in str(unknown.value)

    async def test_a_cancelled_client_leaves_nothing_open(self, rig: Rig) -> None:
        async def count() -> int:
            reader, writer = await rig.open(target.COUNTER)
            number = int(await reader.readline())
            writer.transport.abort()
            return number

        async def hang() -> None:
            reader, writer = await rig.open(target.COUNTER)
            try:
                await reader.readline()
                waiting.set()
                await reader.read()
            finally:
                writer.transport.abort()

        waiting = asyncio.Event()
        task = asyncio.create_task(hang())
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # Cancelled while it is being opened.
        opening = asyncio.create_task(rig.open(target.COUNTER))
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        async with asyncio.timeout(10):
            # The other side's count; no event of it reaches here.
            while await count() > 1:  # noqa: ASYNC110
                await asyncio.sleep(rig.lingering)

    async def test_a_lost_link_comes_back_and_what_opened_meanwhile_works(self, rig: Rig) -> None:
        phases: list[Phase] = []
        gap = asyncio.Event()

        def heard(state: object) -> None:
            phases.append(rig.link.state.phase)
            if rig.link.state.phase is not Phase.CONNECTED:
                gap.set()

        stop = rig.link.subscribe(heard)
        reader, writer = await rig.open(target.ECHO)
        writer.write(b"x")
        await reader.readexactly(1)
        await rig.cut()
        # What was open is gone, and its client is told.
        async with asyncio.timeout(20):
            with contextlib.suppress(OSError):
                assert await reader.read() == b""
        await ended(writer)
        async with asyncio.timeout(20):
            await gap.wait()
            assert rig.link.state.phase is not Phase.CONNECTED
            assert await echoes(rig, b"opened in the gap")
        assert rig.link.state.phase is Phase.CONNECTED
        assert Phase.RECONNECTING in phases
        stop()
