"""SSH between devloop's packets and asyncssh's own: both ends speak the same, whatever comes in between."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import asyncssh
import pytest

from devloop.agent import packets
from devloop.agent.forward import Connection, TcpChannel

pytestmark = pytest.mark.slow
QUICK = "aes128-gcm@openssh.com"

# A server that knows nothing of devloop: it answers each connection with what it was sent.
PLAIN = """
import asyncio, sys, asyncssh
class Server(asyncssh.SSHServer):
    def begin_auth(self, username): return False
    def connection_requested(self, *_):
        async def echo(reader, writer):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.close()
        return echo
async def main():
    key = asyncssh.generate_private_key("ssh-ed25519")
    made = await asyncssh.create_server(
        Server, "127.0.0.1", 0, server_host_keys=[key], encryption_algs=[sys.argv[1]], rekey_bytes=sys.argv[2]
    )
    print(made.get_port(), flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


class Developer(asyncssh.SSHServer):
    """The agent's end, for anybody."""

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.connection = Connection(conn)

    def begin_auth(self, username: str) -> bool:
        return False

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        return self.connection.forward(dest_host, dest_port)


class Echo(asyncio.Protocol):
    """Answers with what it was sent, no faster than that is taken."""

    def __init__(self, open: dict[Echo, asyncio.Future[None]]) -> None:
        self.open = open

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.open[self] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open.pop(self).set_result(None)


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """Its port."""
    open: dict[Echo, asyncio.Future[None]] = {}
    server = await asyncio.get_running_loop().create_server(lambda: Echo(open), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for each in list(open):
            each.transport.abort()
        await asyncio.gather(*open.values())


@asynccontextmanager
async def ours(cipher: str, rekey: str) -> AsyncIterator[int]:
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.create_server(
        Developer, "127.0.0.1", 0, server_host_keys=[key], encryption_algs=[cipher], rekey_bytes=rekey
    )
    async with server:
        yield server.get_port()


@asynccontextmanager
async def plain(cipher: str, rekey: str) -> AsyncIterator[int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PLAIN, cipher, rekey, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield int(await process.stdout.readline())
    finally:
        process.kill()
        await process.wait()
        await process.stdout.read()


class Session(asyncssh.SSHTCPSession[bytes]):
    """One channel, with a digest of what came."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.size = 0
        self.kinds: set[type] = set()
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.room = asyncio.Event()
        self.room.set()

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        self.digest.update(data)
        self.size += len(data)
        self.kinds.add(type(data))

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(exc)

    def pause_writing(self) -> None:
        self.room.clear()

    def resume_writing(self) -> None:
        self.room.set()


async def converse(connection: asyncssh.SSHClientConnection, port: int, sizes: list[int]) -> Session:
    """Send pieces of these sizes, and take the same back."""
    session, sent = Session(), hashlib.sha256()
    channel: Any = TcpChannel.of(connection)
    await channel.ask(session, "127.0.0.1", port)
    for number, size in enumerate(sizes):
        piece = bytearray(random.Random(number).randbytes(size))
        sent.update(piece)
        channel.write(piece)
        piece[:] = bytes(len(piece))  # it is ours again
        await session.room.wait()
    channel.write_eof()
    async with asyncio.timeout(60):
        assert await session.ended is None
    assert session.size == sum(sizes)
    assert session.digest.digest() == sent.digest()
    return session


SIZES = [1, 2, 15, 16, 17, 1000, 32 * 1024, 128 * 1024 - 1, 128 * 1024, 128 * 1024 + 1, 3_000_000, 7]
OPTIONS: dict[str, Any] = {"known_hosts": None, "username": "dev", "config": None, "client_keys": None}


@pytest.mark.parametrize("server", [ours, plain])
@pytest.mark.parametrize("rekey", ["1G", "300K"])
@pytest.mark.parametrize("cipher", [QUICK, "chacha20-poly1305@openssh.com", "aes256-ctr"])
async def test_all_that_is_sent_arrives(server: Callable[..., Any], rekey: str, cipher: str) -> None:
    options = {**OPTIONS, "encryption_algs": [cipher]}
    async with echo() as port, server(cipher, rekey) as ssh, asyncssh.connect("127.0.0.1", ssh, **options) as made:
        await asyncio.gather(*(converse(made, port, SIZES[at:] + SIZES[:at]) for at in range(0, 12, 3)))


async def test_bulk_is_not_copied() -> None:
    async with (
        echo() as port,
        ours(QUICK, "1G") as ssh,
        asyncssh.connect("127.0.0.1", ssh, encryption_algs=QUICK, **OPTIONS) as connection,
    ):
        session = await converse(connection, port, [1 << 20] * 8)
    assert memoryview in session.kinds


class Pieces:
    """A `tunnel=` of asyncssh's that hands on what comes in pieces of this size, from one buffer for all."""

    def __init__(self, size: int, spoil: bool = False) -> None:
        self.size = size
        self.spoil = spoil

    async def create_connection(self, factory: Callable[[], Any], host: str, port: int) -> tuple[Any, Any]:
        pieces = self

        class Cut(asyncio.Protocol):
            def __init__(self) -> None:
                self.inner = factory()
                self.heard = 0

            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.inner.connection_made(transport)

            def data_received(self, data: bytes) -> None:
                buffer = bytearray(pieces.size)
                for at in range(0, len(data), pieces.size):
                    part = data[at : at + pieces.size]
                    buffer[: len(part)] = part
                    self.heard += len(part)
                    if pieces.spoil and self.heard > 100_000:
                        buffer[0] ^= 1
                    self.inner.data_received(memoryview(buffer)[: len(part)])

            def eof_received(self) -> None:
                self.inner.eof_received()

            def pause_writing(self) -> None:
                self.inner.pause_writing()

            def resume_writing(self) -> None:
                self.inner.resume_writing()

            def connection_lost(self, exc: Exception | None) -> None:
                self.inner.connection_lost(exc)

        transport, cut = await asyncio.get_running_loop().create_connection(Cut, host, port)
        return transport, cut.inner

    def close(self) -> None: ...

    async def wait_closed(self) -> None: ...


@pytest.mark.parametrize("size", [1, 3, 21, 4096, 131_073])
async def test_in_whatever_pieces_it_comes(size: int) -> None:
    sizes = [1, 100, 40_000] if size == 1 else SIZES
    async with echo() as port, ours(QUICK, "1G") as ssh:
        tunnel: Any = Pieces(size)
        async with asyncssh.connect("127.0.0.1", ssh, tunnel=tunnel, **OPTIONS) as connection:
            await converse(connection, port, sizes)


async def test_a_changed_packet_ends_the_connection() -> None:
    async with echo() as port, ours(QUICK, "1G") as ssh:
        tunnel: Any = Pieces(4096, spoil=True)
        connection = await asyncssh.connect("127.0.0.1", ssh, tunnel=tunnel, **OPTIONS)
        session = Session()
        channel: Any = TcpChannel.of(connection)
        await channel.ask(session, "127.0.0.1", port)
        channel.write(os.urandom(400_000))
        async with asyncio.timeout(10):
            assert isinstance(await session.ended, asyncssh.MACError)
            await connection.wait_closed()
        assert session.size < 150_000  # nothing of the packet that was changed


async def test_commands_beside_bulk() -> None:
    """What is no TcpChannel is asyncssh's own, in order with the rest."""

    async def shout(process: asyncssh.SSHServerProcess[str]) -> None:
        process.stdout.write((await process.stdin.read()).upper())
        process.exit(3)

    key = asyncssh.generate_private_key("ssh-ed25519")

    class Both(Developer):
        def session_requested(self) -> Any:
            return asyncssh.SSHServerProcess(shout, None, 3, False)

    server = await asyncssh.create_server(Both, "127.0.0.1", 0, server_host_keys=[key])
    async with echo() as port, server, asyncssh.connect("127.0.0.1", server.get_port(), **OPTIONS) as connection:
        bulk = asyncio.create_task(converse(connection, port, [500_000] * 10))
        for _ in range(10):
            ran = await connection.run("x", input="word " * 30_000, check=False)
            assert ran.exit_status == 3
            assert cast(str, ran.stdout) == "WORD " * 30_000
        await bulk


async def test_an_exception_that_is_kept_is_no_harm() -> None:
    """Its traceback holds what was being read when it was raised."""
    kept: list[Exception] = []

    class Asked(asyncssh.SSHServerSession[str]):
        def exec_requested(self, command: str) -> bool:
            try:
                raise OSError(command)
            except OSError as problem:
                kept.append(problem)
            return False

    class Keeper(Developer):
        def session_requested(self) -> Any:
            return Asked()

    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.create_server(Keeper, "127.0.0.1", 0, server_host_keys=[key], encryption_algs=[QUICK])
    async with server, asyncssh.connect("127.0.0.1", server.get_port(), **OPTIONS) as connection:
        for _ in range(3):
            with pytest.raises(asyncssh.ChannelOpenError):
                await connection.run("something")
        assert not connection.is_closed()
    assert len(kept) == 3


async def test_silence_is_noticed() -> None:
    async with echo() as port, ours(QUICK, "1G") as ssh:
        options = {**OPTIONS, "keepalive_interval": 0.2, "keepalive_count_max": 2}
        connection: Any = await asyncssh.connect("127.0.0.1", ssh, **options)
        session = Session()
        channel: Any = TcpChannel.of(connection)
        await channel.ask(session, "127.0.0.1", port)
        connection._transport.pause_reading()
        async with asyncio.timeout(20):
            assert isinstance(await session.ended, asyncssh.ConnectionLost)


@pytest.mark.parametrize(("heard", "asks"), [(99.0, True), (99.5, False), (100.0, False)])
def test_who_has_said_something_is_not_asked_for_a_sign_of_life(
    heard: float, asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loop:
        later: float | None = None

        def time(self) -> float:
            return 100.0

        def call_later(self, delay: float, callback: object) -> None:
            self.later = delay

    class Quiet:
        _transport = None
        _keepalive_interval = 1.0
        _keepalive_timer_callback = None

        def __init__(self) -> None:
            self._loop = Loop()

    asked: list[object] = []
    monkeypatch.setattr(packets, "_keepalive", asked.append)
    connection = Quiet()
    packets._state(connection).heard = heard
    packets._keepalive_timer_callback(connection)
    assert bool(asked) is asks
    assert connection._loop.later == (None if asks else heard + 1 - 100)


def test_buffers_are_used_again_when_nobody_looks_at_them() -> None:
    buffers = packets.Buffers(64, 2)
    first = buffers.take()
    view = memoryview(first)[3:9]
    second = buffers.take()
    assert second is not first
    assert buffers.take() is second
    held = memoryview(second)
    third = buffers.take()
    assert third is not first
    assert third is not second
    view.release()
    assert buffers.take() is first
    held.release()
    assert len(first) == len(second) == len(third) == 64
