"""How many requests connections carry, by what this machine's kernel counts: real clients, and the commands that pods
are asked by."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from devloop.agent import diag, sockets
from devloop.agent.request_rate import LEAST_SECONDS, Compared, RequestRate
from devloop.attach.tables import ways
from tests import needs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

PER_SECOND = 20
"""Of each client."""
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """HTTP/1.1, in more packets than one."""
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(HEAD)
            writer.write(bytes(100_000))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _ask(client: Streams) -> None:
    reader, writer = client
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.readexactly(len(HEAD) + 100_000)


async def _ask_for(client: Streams, seconds: float) -> int:
    """At its rate. How many."""
    began, number = time.monotonic(), 0
    while time.monotonic() < began + seconds:
        await _ask(client)
        number += 1
        await asyncio.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))
    return number


@asynccontextmanager
async def clients(number: int, bound: str = "127.0.0.1") -> AsyncIterator[tuple[int, list[Streams]]]:
    """A server's port, and connections to it that were each used once. "::" is for clients of IPv4, too."""
    try:
        family, both = socket.AF_INET6 if ":" in bound else socket.AF_INET, bound == "::"
        sock = socket.create_server((bound, 0), family=family, dualstack_ipv6=both)
    except OSError as problem:
        needs.missing(f"nothing can listen on {bound}: {problem.strerror}")
    server = await asyncio.start_server(_answer, sock=sock)
    port = sock.getsockname()[1]
    made: list[Streams] = []
    try:
        for _ in range(number):
            made.append(await asyncio.open_connection("127.0.0.1" if both else bound, port))
            await _ask(made[-1])
        yield port, made
    finally:
        for _, writer in made:
            writer.close()
        server.close()


def _only(folder: Path, *programs: str) -> dict[str, str]:
    """The environment of an image that has nothing else."""
    for each in programs:
        (folder / each).symlink_to(sys.executable if each == "python3" else needs.program(each))
    return {"PATH": str(folder)}


IMAGES = {
    "ss": ("sh", "cat", "head", "ss"),
    "python": ("sh", "cat", "head", "timeout", "python3"),
    "python alone": ("python3",),
}


async def printed(port: int, env: dict[str, str]) -> sockets.Network:
    """What the first command prints that the image has."""
    for way in ways([port]):
        program = shutil.which(way[0], path=env["PATH"])
        if program is not None:
            ran = await asyncio.create_subprocess_exec(
                program, *way[1:], env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            return sockets.read((await ran.communicate())[0].decode())
    raise AssertionError("the image has none")


@pytest.mark.parametrize(
    ("image", "bound"),
    [("ss", "127.0.0.1"), ("ss", "::"), ("ss", "::1"), ("python", "::"), ("python alone", "::1")],
)
async def test_a_known_rate_is_told_and_an_idle_one(tmp_path: Path, image: str, bound: str) -> None:
    env = _only(tmp_path, *IMAGES[image])
    rate = RequestRate[sockets.Carried]()
    times: list[float] = []

    async def look(port: int) -> Compared | None:
        network = await printed(port, env)
        assert network.at is not None, "it counts"
        times.append(network.at)
        held = [each for each in network.connections if each.port == port]
        carried = {each: each.packets for each in network.carried if each.port == port}
        assert len(held) == len(carried) == 3
        return rate.look(network.at, carried, len(held))

    async with clients(3, bound) as (port, (one, other, idle)):
        assert await look(port) is None
        asked = sum(await asyncio.gather(_ask_for(one, 1.2), _ask_for(other, 1.2)))
        told = await look(port)
        assert told is not None
        assert (told.known, told.held) == (3, 3)
        assert told.rate * (times[1] - times[0]) == pytest.approx(asked)
        await asyncio.sleep(LEAST_SECONDS + 0.1)  # nothing is asked for as long as two looks have to be apart
        assert await look(port) == Compared(0, 3, 3)
        await _ask(idle)


async def test_an_image_without_both_has_its_connections_counted(tmp_path: Path) -> None:
    env = _only(tmp_path, "sh", "cat", "head")
    async with clients(2) as (port, _):
        network = await printed(port, env)
        assert sum(each.port == port for each in network.connections) == 2
        assert (network.carried, network.at) == ((), None)


async def test_what_a_door_sees_is_the_same() -> None:
    rate = RequestRate[bytes]()
    with diag.opened() as sock:

        def look(port: int) -> Compared | None:
            found = diag.connections(sock, {port})
            carried = {each.identity: each.packets for each in found if each.packets is not None}
            return rate.look(time.monotonic(), carried, len(found))

        async with clients(2) as (port, (one, _)):
            began = time.monotonic()
            assert look(port) is None
            asked = await _ask_for(one, 1.2)
            told = look(port)
            assert told is not None and (told.known, told.held) == (2, 2)
            assert told.rate == pytest.approx(asked / (time.monotonic() - began), rel=0.1)
