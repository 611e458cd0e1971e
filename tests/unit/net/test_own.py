"""Ports of the loopback that devloop listens on: whom they serve, and what web pages from elsewhere get."""

from __future__ import annotations

import ast
import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import devloop
from devloop.net import own
from devloop.net.forward import Forwards
from devloop.net.publish import Publisher
from devloop.net.rebinding import Names
from devloop.net.seldom import MOST, Seldom
from devloop.places import LINUX
from devloop.relay import Target
from tests.unit.net.fakes import FakeInside

GOOD = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
BAD = b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """What a port leads to: it keeps what it hears, and says what it is told to."""

    def __init__(self) -> None:
        self.heard = b""
        self.greeting = b""
        self.port = 0

    async def came(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.greeting)
        while data := await reader.read(65536):
            self.heard += data
            writer.write(ANSWER * data.count(b"Host: localhost") or data)
        writer.close()

    async def connect(self, side: asyncio.Protocol) -> Any:
        return (await asyncio.get_running_loop().create_connection(lambda: side, "127.0.0.1", self.port))[0]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    listening = await asyncio.start_server(made.came, "127.0.0.1", 0)
    made.port = listening.sockets[0].getsockname()[1]
    yield made
    listening.close()


Ask = Callable[..., Awaitable[bytes]]


@pytest.fixture
async def ask(server: Server) -> AsyncIterator[Ask]:
    said: list[str] = []
    spared: list[Target] = []
    waits = asyncio.Event()
    waits.set()

    async def route() -> Target:
        await waits.wait()
        return server

    forwards = Forwards(said.append, names=Names(), spared=lambda target: target in spared)
    strict = Forwards(said.append, names=Names())
    ports = {True: await forwards.add("api", 0, route), False: await strict.add("api", 0, route)}

    async def asked(*requests: bytes, local: bool = False, fronts: bool = False, late: bool = False) -> bytes:
        """All that is said to these, one after the other; each waits for an answer."""
        spared[:] = [server] if local else []
        (waits.clear if late else waits.set)()
        reader, writer = await asyncio.open_connection("127.0.0.1", ports[fronts])
        found = b""
        async with asyncio.timeout(20):
            for request in requests:
                writer.write(request)
                if late:
                    asyncio.get_running_loop().call_later(0.05, waits.set)
                found += await reader.read(65536)
            writer.write_eof()
            found += await reader.read()
        writer.close()
        return found

    asked.said = said  # type: ignore[attr-defined]
    yield asked
    await forwards.close()
    await strict.close()


@pytest.mark.parametrize("fronts", [False, True], ids=["a dependency", "a service of the project"])
@pytest.mark.parametrize("late", [False, True], ids=["", "the link is slow"])
async def test_a_page_that_has_its_name_lead_here_gets_nothing(
    ask: Ask, server: Server, fronts: bool, late: bool
) -> None:
    answer = await ask(BAD, fronts=fronts, late=late)
    assert answer.startswith(b"HTTP/1.1 421 ") and b"allowed_hosts" in answer
    assert server.heard == b""
    assert any("evil.test" in each for each in ask.said)  # type: ignore[attr-defined]


async def test_a_second_request_on_the_same_connection_neither(ask: Ask, server: Server) -> None:
    answer = await ask(GOOD, BAD)
    assert answer.startswith(ANSWER + b"HTTP/1.1 421 ")
    assert server.heard == GOOD


async def test_a_large_body_does_not_take_the_refusal_with_it(ask: Ask, server: Server) -> None:
    head = b"POST / HTTP/1.1\r\nHost: evil.test\r\nContent-Length: 4000000\r\n\r\n"
    assert (await ask(head + bytes(4_000_000))).startswith(b"HTTP/1.1 421 ")
    assert server.heard == b""


async def test_what_is_local_takes_any_name_as_without_devloop(ask: Ask, server: Server) -> None:
    for late in (False, True):
        await ask(BAD, fronts=True, local=True, late=late)
    assert server.heard == BAD * 2
    assert not (await ask(BAD, local=True)).startswith(BAD)  # a dependency's port is one of the cluster's


async def test_a_server_that_speaks_first_and_other_protocols_pass(ask: Ask, server: Server) -> None:
    server.greeting = b"220 mail.test ESMTP\r\n"
    said = b"EHLO evil.test\r\n"
    assert await ask(said[:4], said[4:], fronts=True) == server.greeting + said
    assert server.heard == said
    assert (await ask(BAD)).count(b"Host") == 0  # and a page that speaks to it has said nothing
    assert server.heard == said


async def test_nothing_is_held_back_of_what_may_be_no_request(ask: Ask, server: Server) -> None:
    assert await ask(b"ruok") == b"ruok"  # ZooKeeper: a word without an end of its line


def test_every_listener_of_this_machine_is_made_in_one_place() -> None:
    """`own_relays` sees to who comes. The proxy's socket is in a service's namespace."""
    root = Path(devloop.__file__).parent
    calls = {
        str(file.relative_to(root))
        for file in root.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Relays"
    }
    assert calls == {"net/own.py", "net/proxy.py"}


async def test_what_is_refused_is_told_and_names_without_end_are_not() -> None:
    said: list[str] = []
    tell = Seldom(said.append)
    for number in range(1000):
        tell(f"{number // 2}.evil.test")
    assert said == [f"{number}.evil.test" for number in range(MOST)]
    assert len(tell._told) == MOST


@pytest.mark.skipif(not LINUX, reason="other systems do not tell whose a connection is")
async def test_published_ports_serve_their_own_user(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    inside, said = FakeInside(), list[str]()
    inside.open[80] = ("127.0.0.1", server.port)
    publisher = Publisher("api", inside, said.append)
    try:
        port = (await publisher.publish(80)).host_port
        for stranger in (True, False):
            if stranger:
                monkeypatch.setattr(own, "mine", lambda: frozenset({os.geteuid() + 1}))
            else:
                monkeypatch.undo()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            answer = b""
            try:
                async with asyncio.timeout(10):
                    writer.write(b"hello")
                    answer = await reader.read(100)
            except ConnectionError:
                pass
            writer.close()
            assert answer == (b"" if stranger else b"hello")
        assert "may not" in said[0]
    finally:
        await publisher.close()
