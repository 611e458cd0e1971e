"""A POST that its local process leaves unanswered, with the kernel's own sockets: who has read of it, and who gets it.

The connections are those of an attachment: the relay, the service's gate, and the kernel's word on its queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from devloop.agent.turns import LOST
from devloop.attach.relay import Far, Near
from devloop.engine.local_end import Local
from devloop.net.onhost import HostInner
from devloop.net.publish import Gate, Publisher
from tests.waiting import until

BODY = b"x" * 8192
POST = b"POST /orders HTTP/1.1\r\nhost: x\r\ncontent-length: 8192\r\n\r\n" + BODY
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Envoy(asyncio.Transport):
    """The channel."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.over = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def is_closing(self) -> bool:
        return self.over

    def close(self) -> None:
        self.over = True

    def abort(self) -> None:
        self.over = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def can_write_eof(self) -> bool:
        return False


class Bench:
    def __init__(self, publisher: Publisher, local: Local, port: int) -> None:
        self.publisher = publisher
        self.local = local
        self.port = port
        self.envoy = Envoy()

    def listen(self) -> socket.socket:
        """A process of the service's."""
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", self.port))
        made.listen()
        made.setblocking(False)
        self.port = made.getsockname()[1]
        return made

    async def post(self) -> Far:
        async def connect(factory: Any) -> tuple[asyncio.Transport, Near]:
            return cast(tuple[asyncio.Transport, Near], await self.local.connect(factory, self.port))

        far = Far(connect, lambda: None)
        await far.join()
        far.connection_made(self.envoy)
        far.data_received(POST)  # in one piece, as Envoy sends it
        return far


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    inner = HostInner()
    publisher = Publisher("api", inner, lambda line: None)

    async def ports() -> Publisher:
        return publisher

    async def end() -> None: ...

    try:
        yield Bench(publisher, Local(ports, end), 0)
    finally:
        await publisher.close()
        inner.close()


async def accepted(process: socket.socket) -> socket.socket:
    return (await asyncio.get_running_loop().sock_accept(process))[0]


@pytest.mark.parametrize("reload", [False, True])
async def test_what_was_read_in_part_is_given_to_nobody_else(reload: bool) -> None:
    async with bench() as rig:
        old = rig.listen()
        far = await rig.post()
        connection = await accepted(old)
        assert await asyncio.get_running_loop().sock_recv(
            connection, 4096
        )  # as Go's net/http does; the order is placed
        if reload:
            rig.publisher.set_gate(Gate.HELD)
        connection.close()  # the kernel resets it: half is unread
        old.close()
        with rig.listen() as new:
            if reload:
                rig.publisher.set_gate(Gate.OPEN)
            await until(lambda: rig.envoy.over)
            assert rig.envoy.sent == LOST
            with contextlib.suppress(BlockingIOError):
                new.accept()[0].close()
                pytest.fail("the next process was given it as well")
        far.connection_lost(None)


async def test_what_nobody_accepted_is_the_next_process() -> None:
    async with bench() as rig:
        old = rig.listen()
        far = await rig.post()
        rig.publisher.set_gate(Gate.HELD)
        old.close()
        with rig.listen() as new:
            rig.publisher.set_gate(Gate.OPEN)
            with await accepted(new) as connection:
                got = b""
                while len(got) < len(POST):
                    got += await asyncio.get_running_loop().sock_recv(connection, 65536)
                assert got == POST
                connection.sendall(OK)
                await until(lambda: rig.envoy.sent == OK)
        far.connection_lost(None)
