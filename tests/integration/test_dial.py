"""Connections to addresses: on both event loops, and with no thread."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from devloop.dial import dial
from tests.ports import free_port

ALONE = """
import asyncio, socket, sys, threading
import psutil, uvloop
from devloop.agent import forward
from devloop.dial import dial

async def main():
    port = int(sys.argv[1])
    sock = socket.socket()
    sock.setblocking(False)
    await dial(sock, ("127.0.0.1", port))
    sock.close()
    far = await forward.dial("127.0.0.1", port)
    far.transport.abort()
    print(psutil.Process().num_threads())

uvloop.run(main())
"""


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as made:
        made.setblocking(False)
        yield made


async def test_connects(sock: socket.socket, listening: int) -> None:
    await dial(sock, ("127.0.0.1", listening))
    assert sock.getpeername() == ("127.0.0.1", listening)


async def test_is_refused(sock: socket.socket) -> None:
    with pytest.raises(ConnectionRefusedError):
        await dial(sock, ("127.0.0.1", free_port()))


async def test_waits_and_can_be_given_up(sock: socket.socket) -> None:
    # A listener whose queue is full takes no more, and says nothing.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        with socket.create_connection(address):
            task = asyncio.create_task(dial(sock, address))
            await asyncio.sleep(0.05)
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not asyncio.get_running_loop().remove_writer(sock), "nobody waits for it any more"


def test_asks_no_thread(listening: int) -> None:
    """Names that no resolver answers hold all of uvloop's threads, and what needs no name must not wait for them."""
    pytest.importorskip("uvloop")
    done = subprocess.run([sys.executable, "-c", ALONE, str(listening)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
