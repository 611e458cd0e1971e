"""A developer's slow line: a long answer of a local service takes its time, and is nobody's sign of death."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from devloop.agent import packets
from devloop.agent.unsent import UNSENT_BYTES, bound_unsent, unacknowledged
from devloop.attach.session import Session
from devloop.remote.ssh import connect
from devloop.remote.sshcarrier import SshCarrier
from tests.waiting import until

from .envoy_here import HERE, Local, a_rig, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
BYTES_PER_SECOND = 200_000
STEP = 8192
SIZE = 1_000_000


@asynccontextmanager
async def slow_line(port: int, buffer: int = 1 << 20) -> AsyncIterator[int]:
    """A way to a port that takes `BYTES_PER_SECOND` up, with a modem's `buffer` before it, and all down."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    socks: list[socket.socket] = []

    async def pump(one: socket.socket, other: socket.socket, seconds: float) -> None:
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(one, STEP):
                await loop.sock_sendall(other, data)
                await asyncio.sleep(seconds)
        other.close()

    async def accept(listener: socket.socket) -> None:
        while True:
            here, _ = await loop.sock_accept(listener)
            there = socket.socket()
            there.setblocking(False)
            socks.extend((here, there))
            await loop.sock_connect(there, (HERE, port))
            for pair in ((here, there, STEP / BYTES_PER_SECOND), (there, here, 0.0)):
                tasks.add(asyncio.create_task(pump(*pair)))

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        listener.bind((HERE, 0))
        listener.listen()
        listener.setblocking(False)
        accepting = asyncio.create_task(accept(listener))
        try:
            yield listener.getsockname()[1]
        finally:
            for each in (accepting, *tasks):
                each.cancel()
            await asyncio.gather(accepting, *tasks, return_exceptions=True)
            for sock in socks:
                sock.close()


async def test_a_long_answer_by_a_slow_uplink_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    async def long(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % SIZE)
            for _ in range(SIZE // 10_000):
                writer.write(bytes(10_000))
                await writer.drain()

    async with (
        serving(long) as here,
        a_rig(monkeypatch, 1, "http") as rig,
        slow_line(int(rig.options["port"])) as port,
    ):
        carrier = SshCarrier(await connect(HERE, where="here", **{**rig.options, "port": port}), "agent", "here")
        rig.session = Session(carrier, lambda *_: None)
        await rig.session.open()
        await rig.attach(Local(here))
        reader, writer = await asyncio.open_connection(HERE, rig.proxy.port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert len(await reader.read(-1)) == SIZE
        writer.close()
        await rig.session.close()
        carrier.abort("over")


async def test_a_question_behind_bulk_that_moves_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keepalive's: 1.5 s and twice more, while what stands before it takes longer."""
    async with (
        serving(lambda reader, writer: _sink(reader)) as sink,
        a_rig(monkeypatch, 1, "http") as rig,
        slow_line(int(rig.options["port"]), buffer=1 << 14) as port,
    ):
        options = {**rig.options, "port": port}
        carrier = SshCarrier(await connect(HERE, where="here", **options), "agent", "here")
        connection = carrier.connection
        transport, _ = await carrier.connect(asyncio.Protocol, HERE, sink)
        connection.set_keepalive(0.2, 2)
        transport.write(bytes(SIZE))
        size = transport.get_write_buffer_size
        await until(lambda: not size() and packets._state(connection).asked, 30)
        await until(lambda: carrier.over or not unacknowledged(connection._transport), 30)
        assert not carrier.over
        carrier.abort("over")


async def _sink(reader: asyncio.StreamReader) -> None:
    while await reader.read(1 << 16):
        pass


async def test_little_waits_in_the_kernel_before_it_is_sent() -> None:
    with (
        socket.create_server((HERE, 0)) as listener,
        socket.create_connection(listener.getsockname()) as sock,
        listener.accept()[0],
    ):
        sock.setblocking(False)
        bound_unsent(sock)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 64 << 20:
                sent += sock.send(bytes(1 << 16))
        unsent = int.from_bytes(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 148)[144:148], "little")
        assert unsent < 2 * UNSENT_BYTES
