"""Publishing and holding, on the host's own sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from devloop.errors import ServiceError
from devloop.net import publish
from devloop.net.publish import Gate, Publisher
from devloop.net.router import RefusedError
from devloop.relay import Relays
from tests.unit.net.fakes import FakeInside

GET = b"GET / HTTP/1.1\r\n\r\n"
POST = b"POST / HTTP/1.1\r\n\r\n"


class Process:
    """The service: it accepts when it is told to, and ends its connections in the way that is asked for."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.open: list[socket.socket] = []

    async def accept(self, read: bytes = b"") -> socket.socket:
        """A connection, after it has sent this."""
        loop = asyncio.get_running_loop()
        sock, _ = await loop.sock_accept(self.listener)
        self.open.append(sock)
        got = b""
        while len(got) < len(read):
            got += await loop.sock_recv(sock, len(read) - len(got))
        assert got == read
        return sock

    async def answer(self, read: bytes, text: bytes) -> None:
        sock = await self.accept(read)
        await asyncio.get_running_loop().sock_sendall(sock, text)
        sock.close()

    def end(self, *, reset: bool = False) -> None:
        """As the kernel ends a process' connections: with a reset where something was not read."""
        for sock in self.open:
            if reset:
                with contextlib.suppress(OSError):  # closed already
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        self.listener.close()


class Bench:
    def __init__(self) -> None:
        self.inside = FakeInside()
        self.lines: list[str] = []
        self.publisher = Publisher("api", self.inside, self.lines.append, hold=5)
        self.processes: list[Process] = []

    def start(self, port: int = 80) -> Process:
        process = Process()
        self.processes.append(process)
        self.inside.open[port] = process.listener.getsockname()
        return process

    async def client(self, port: int = 80) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", (await self.publisher.publish(port)).host_port))


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self, request: bytes = b"") -> bytes:
        self.writer.write(request)
        try:
            return await self.reader.read()
        finally:
            self.writer.close()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.publisher.close()
    for process in bench.processes:
        process.end()


# --- Waiting ---


async def test_held_connections_do_not_try(bench: Bench) -> None:
    bench.start()
    bench.publisher.set_gate(Gate.HELD)
    waiting = [asyncio.create_task(bench.publisher.open(80)) for _ in range(5)]
    await asyncio.sleep(0.05)
    assert bench.inside.tries == 0
    bench.publisher.set_gate(Gate.OPEN)
    for sock in await asyncio.gather(*waiting):
        sock.close()


async def test_closing_refuses_what_waits(bench: Bench) -> None:
    waiting = [asyncio.create_task(bench.publisher.open(80)) for _ in range(5)]
    await asyncio.sleep(0.02)
    bench.publisher.set_gate(Gate.CLOSED)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, RefusedError) for result in results)


async def test_one_looks_for_all_that_wait(bench: Bench) -> None:
    waiting = [asyncio.create_task(bench.publisher.open(80)) for _ in range(50)]
    await asyncio.sleep(0.05)
    assert bench.inside.tries == 50  # one each, and none in between
    bench.start()
    for sock in await asyncio.gather(*waiting):
        sock.close()
    assert bench.inside.tries == 100


async def test_a_connection_that_is_reset_while_it_is_made_is_tried_again(bench: Bench) -> None:
    """The old process ends between the kernel's handshake and our noticing of it: nothing was sent."""
    bench.start()
    bench.inside.errors = [ConnectionResetError(), BrokenPipeError()]
    (await bench.publisher.open(80)).close()
    assert bench.inside.tries == 3


async def test_a_connection_that_was_being_made_when_the_gate_closed_is_made_anew(bench: Bench) -> None:
    """It would lead to the old process, which has been asked to end."""
    old = bench.start()
    bench.inside.release = asyncio.Event()
    opening = asyncio.create_task(bench.publisher.open(80))
    await asyncio.sleep(0)
    bench.publisher.set_gate(Gate.HELD)
    bench.inside.release.set()
    assert await asyncio.get_running_loop().sock_recv(await old.accept(), 1) == b""
    assert not opening.done()
    new = bench.start()
    bench.publisher.set_gate(Gate.OPEN)
    with await opening as sock:
        assert sock.getpeername() == new.listener.getsockname()


async def test_a_service_that_listens_on_ipv6_alone_is_found(bench: Bench) -> None:
    bench.inside.open_6[80] = bench.start(81).listener.getsockname()
    (await bench.publisher.open(80)).close()
    assert bench.inside.addresses == ["127.0.0.1", "::1"]


# --- Repeating ---


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("sent", [b"", b"GE", GET])
@pytest.mark.parametrize("late", [False, True])
async def test_what_may_be_repeated_goes_to_the_new_process(bench: Bench, sent: bytes, reset: bool, late: bool) -> None:
    old = bench.start()
    client = await bench.client()
    client.writer.write(sent)
    await old.accept(sent)
    bench.publisher.set_gate(Gate.HELD)
    if not late:
        old.end(reset=reset)
    new = bench.start()
    bench.publisher.set_gate(Gate.OPEN)
    if late:  # however late the end is noticed
        old.end(reset=reset)
    answering = asyncio.create_task(new.answer(GET, b"new"))
    assert await client.answer(GET[len(sent) :]) == b"new"
    await answering


@pytest.mark.parametrize("request_", [GET, b"", POST])
async def test_an_end_without_a_reload_is_the_services_own(bench: Bench, request_: bytes) -> None:
    bench.publisher.set_gate(Gate.HELD)
    bench.publisher.set_gate(Gate.OPEN)
    process = bench.start()
    client = await bench.client()
    client.writer.write(request_)
    await process.accept(request_)
    process.open[0].close()
    assert await client.answer() == b""
    assert bench.inside.tries == 1


@pytest.mark.parametrize("reset", [False, True])
async def test_what_the_old_process_has_accepted_is_not_repeated(bench: Bench, reset: bool) -> None:
    old = bench.start()
    client = await bench.client()
    client.writer.write(POST)
    await old.accept(POST)
    bench.publisher.set_gate(Gate.HELD)
    old.end(reset=reset)
    bench.start()
    bench.publisher.set_gate(Gate.OPEN)
    with pytest.raises(ConnectionResetError) if reset else contextlib.nullcontext():
        assert await client.answer() == b""
    assert bench.inside.tries == 1


@pytest.mark.parametrize("accepted", [False, True])
async def test_what_it_had_not_accepted_is(bench: Bench, accepted: bool) -> None:
    """The look at its queue is taken before it ends. What it accepts and reads after that ends in good order."""
    old = bench.start()
    client = await bench.client()
    client.writer.write(POST)
    connection = await old.accept(POST)
    bench.inside.unaccepted = {connection.getpeername()[1]}
    bench.publisher.set_gate(Gate.HELD)
    old.end(reset=not accepted)
    new = bench.start()
    bench.publisher.set_gate(Gate.OPEN)
    if accepted:
        assert await client.answer() == b""
        assert bench.inside.tries == 1
    else:
        answering = asyncio.create_task(new.answer(POST, b"new"))
        assert await client.answer() == b"new"
        await answering


# --- Publishing ---


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> list[socket.socket]:
    """Every socket that was made to listen on the host's loopback."""
    made: list[socket.socket] = []
    make = publish.loopback_listeners

    def listeners(port: int) -> list[socket.socket]:
        found = make(port)
        made.extend(found)
        return found

    monkeypatch.setattr(publish, "loopback_listeners", listeners)
    return made


async def test_publishing_twice_is_one(bench: Bench) -> None:
    first = await bench.publisher.publish(8080)
    assert await bench.publisher.publish(8080) == first
    assert bench.publisher.published == (first,)


async def test_another_port_of_the_hosts_replaces_the_first(bench: Bench, listening: list[socket.socket]) -> None:
    await bench.publisher.publish(8080)
    first = tuple(listening)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    assert (await bench.publisher.publish(8080, free)).host_port == free
    assert [sock.fileno() for sock in first] == [-1] * len(first)


async def test_cancelled_while_it_publishes_leaves_nothing(bench: Bench, listening: list[socket.socket]) -> None:
    publishing = asyncio.create_task(bench.publisher.publish(8080))
    await asyncio.sleep(0)
    assert listening and not publishing.done()
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    assert all(sock.fileno() == -1 for sock in listening)
    assert bench.publisher.published == ()


async def test_closing_wins_over_what_is_being_published(bench: Bench, listening: list[socket.socket]) -> None:
    publishing = asyncio.create_task(bench.publisher.publish(8080))
    await asyncio.sleep(0)
    assert listening and not publishing.done()
    await bench.publisher.close()
    assert all(sock.fileno() == -1 for sock in listening)
    with pytest.raises(ServiceError, match="not published"):
        await publishing
    with pytest.raises(ServiceError, match="not published"):
        await bench.publisher.publish(8080)
    assert bench.publisher.published == ()


async def test_following_ends_with_the_publisher(bench: Bench, listening: list[socket.socket]) -> None:
    bench.start()
    following = asyncio.create_task(bench.publisher.follow())
    await asyncio.sleep(0)
    assert listening
    await bench.publisher.close()
    bench.start(81)
    await following
    assert all(sock.fileno() == -1 for sock in listening)
    assert bench.lines == []


async def test_sockets_that_fail_to_listen_take_the_others_with_them() -> None:
    async def route(relay: object) -> None: ...

    relays = Relays(route, lambda relay, error: None)  # type: ignore[arg-type]
    socks = [*publish.loopback_listeners(0), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
    with pytest.raises(ValueError, match="Stream Socket"):
        await relays.listen(*socks)
    assert all(sock.fileno() == -1 for sock in socks)
