"""Bytes: half-close, backpressure, resets, many connections, reloads."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from devloop.errors import ServiceError
from devloop.net.publish import Gate, loopback_listeners
from devloop.net.router import Dial, ToService
from devloop.relay import Relay, Relays, Target
from tests import needs
from tests.integration.net.conftest import DEADLINE, SYSTEM_PYTHON, Cluster, until
from tests.integration.net.scripts import CONNECT, ECHO, HTTP

pytestmark = pytest.mark.slow

MANY = 1000
SILENT = """
import socket, time
listener = socket.create_server(("127.0.0.1", 8080))
taken = [listener.accept()[0]]
taken[0].recv(1000)
time.sleep(60)
"""


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


class Host:
    """A server of the host's at which the router sends connections to 10.96.0.1 and 2001:db8::1."""

    def __init__(self) -> None:
        self.servers: list[asyncio.Server] = []
        self.port = 0

    async def open(self, cluster: Cluster) -> None:
        sockets = loopback_listeners(0)
        self.port = sockets[0].getsockname()[1]
        self.servers = [await asyncio.start_server(echo, sock=sock, backlog=2000) for sock in sockets]
        cluster.router.targets["10.96.0.1", 80] = Dial("127.0.0.1", self.port)
        cluster.router.targets["2001:db8::1", 80] = Dial("::1", self.port)

    def close(self) -> None:
        for server in self.servers:
            server.close()


@pytest.mark.parametrize("address", ["10.96.0.1", "2001:db8::1"])
async def test_out_and_back_with_half_close(cluster: Cluster, address: str) -> None:
    host, pod = Host(), await cluster.pod()
    await host.open(cluster)
    try:
        assert await pod.python(CONNECT, address, "80") == "hello"
        await until(lambda: not len(pod.proxy))
    finally:
        host.close()


async def test_what_is_refused_is_reset_and_told(cluster: Cluster) -> None:
    pod = await cluster.pod()
    assert await pod.python(CONNECT, "10.96.0.99", "80") == "ConnectionResetError"
    assert pod.lines == ["nothing is at 10.96.0.99:80"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        cluster.router.targets["10.96.0.98", 80] = Dial("127.0.0.1", free.getsockname()[1])
        assert await pod.python(CONNECT, "10.96.0.98", "80") == "ConnectionResetError"


async def test_resets_are_passed_on_both_ways(cluster: Cluster) -> None:
    pod = await cluster.pod()
    loop = asyncio.get_running_loop()
    sock = loopback_listeners(0)
    cluster.router.targets["10.96.0.1", 80] = Dial("127.0.0.1", sock[0].getsockname()[1])
    linger = "s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))"
    running = await pod.start(
        SYSTEM_PYTHON, "-c",
        f"import socket, struct; s = socket.create_connection(('10.96.0.1', 80)); s.sendall(b'x'); s.recv(1); {linger}",
    )  # fmt: skip
    conn, _ = await loop.sock_accept(sock[0])
    assert await loop.sock_recv(conn, 10) == b"x"
    await loop.sock_sendall(conn, b"y")
    with pytest.raises(ConnectionResetError):
        await loop.sock_recv(conn, 10)
    conn.close()
    assert await running.code == 0
    running = await pod.start(
        SYSTEM_PYTHON, "-c",
        "import socket, sys; s = socket.create_connection(('10.96.0.1', 80)); s.sendall(b'x')\n"
        "try: s.recv(1)\nexcept ConnectionResetError: sys.exit(7)",
    )  # fmt: skip
    conn, _ = await loop.sock_accept(sock[0])
    assert await loop.sock_recv(conn, 10) == b"x"
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    conn.close()
    assert await running.code == 7
    for listener in sock:
        listener.close()


async def test_a_slow_reader_stops_the_writer(cluster: Cluster) -> None:
    pod = await cluster.pod()
    loop = asyncio.get_running_loop()
    sock = loopback_listeners(0)
    cluster.router.targets["10.96.0.1", 80] = Dial("127.0.0.1", sock[0].getsockname()[1])
    script = """
import socket, sys
s = socket.create_connection(("10.96.0.1", 80)); s.setblocking(False)
sent, data = 0, bytes(65536)
import select
while select.select([], [s], [], 1)[1]: sent += s.send(data)
print(sent, flush=True)
s.setblocking(True); s.shutdown(1); s.recv(1)
"""
    running = asyncio.create_task(pod.python(script))
    conn, _ = await loop.sock_accept(sock[0])
    await asyncio.sleep(2.5)  # nothing is read: the writer inside has to find out that it can't go on
    total = 0
    while data := await loop.sock_recv(conn, 1 << 20):
        total += len(data)
    conn.close()
    assert total == int(await running)
    assert total < 64 << 20
    for listener in sock:
        listener.close()


async def test_a_thousand_connections_at_once(cluster: Cluster) -> None:
    host, pod = Host(), await cluster.pod()
    await host.open(cluster)
    before = open_files()
    script = f"""
import resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
socks = [socket.create_connection(("10.96.0.1", 80), timeout=20) for _ in range({MANY})]
for n, s in enumerate(socks): s.sendall(b"%06d" % n)
print(sum(s.recv(6, socket.MSG_WAITALL) == b"%06d" % n for n, s in enumerate(socks)), flush=True)
input()
"""
    try:
        with needs.open_files(3 * MANY + 200), contextlib.ExitStack() as sockets:  # which are made once it may go on
            go_on, hold, out, into = (sockets.enter_context(each) for _ in range(2) for each in socket.socketpair())
            running = await pod.start(SYSTEM_PYTHON, "-c", script, stdin=hold.fileno(), out=into.fileno())
            into.close()  # so that the end of the script is the end of what it says
            out.setblocking(False)
            assert (await asyncio.get_running_loop().sock_recv(out, 100)).strip() == str(MANY).encode()
            assert len(pod.proxy) == MANY
            go_on.sendall(b"\n")
            assert await running.code == 0
        await until(lambda: not len(pod.proxy) and open_files() <= before + 2)
    finally:
        host.close()


async def get(port: int, address: str = "127.0.0.1", method: str = "GET") -> str:
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(f"{method} / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and body, answer
        return body.decode()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_published_on_both_loopbacks(cluster: Cluster) -> None:
    one, two = await cluster.pod("one"), await cluster.pod("two")
    first = await one.publisher.publish(8080)
    second = await two.publisher.publish(8080)
    assert first.host_port != second.host_port
    await one.serve(HTTP % ("one", 8080), 8080)
    await two.serve(HTTP % ("two", 8080), 8080)
    for address in ("127.0.0.1", "::1"):
        assert (await get(first.host_port, address)).startswith("one ")
        assert (await get(second.host_port, address)).startswith("two ")
    with pytest.raises(ServiceError, match="is taken"):
        await two.publisher.publish(8081, first.host_port)
    await one.publisher.unpublish(8080)
    with pytest.raises(ConnectionRefusedError):
        await get(first.host_port)


@pytest.mark.parametrize(("address", "alone"), [("::1", False), ("::", True)])
async def test_a_service_that_listens_in_ipv6_alone_is_reached(cluster: Cluster, address: str, alone: bool) -> None:
    """As Node does at `localhost`, and nginx with `listen [::]:8080`."""
    family = (
        "http.server.HTTPServer.address_family = socket.AF_INET6\n"
        f"Server.server_bind = lambda self: (self.socket.setsockopt(41, 26, {alone}), "
        "http.server.HTTPServer.server_bind(self))\n"
    )
    program = (HTTP % ("api", 8080)).replace('Server(("",', f'import socket\n{family}Server(("{address}",')
    pod = await cluster.pod()
    published = await pod.publisher.publish(8080)
    await pod.serve(program, 8080)
    for host in ("127.0.0.1", "::1"):
        assert (await get(published.host_port, host)).startswith("api ")


async def test_whatever_it_listens_on_is_published(cluster: Cluster) -> None:
    pod = await cluster.pod()
    news: asyncio.Queue[tuple[int, ...]] = asyncio.Queue()
    following = asyncio.create_task(
        pod.publisher.follow(lambda published: news.put_nowait(tuple(p.port for p in published)))
    )
    try:
        running = await pod.serve(HTTP % ("api", 18081), 18081)
        assert await asyncio.wait_for(news.get(), DEADLINE) == (18081,)
        assert (await get(pod.publisher.published[0].host_port)).startswith("api ")
        running.signal(signal.SIGKILL)
        assert await asyncio.wait_for(news.get(), DEADLINE) == ()
    finally:
        following.cancel()


async def test_a_connection_waits_for_its_service(cluster: Cluster) -> None:
    pod = await cluster.pod()
    publication = await pod.publisher.publish(8080)
    asking = asyncio.create_task(get(publication.host_port))
    await asyncio.sleep(0.2)
    assert not asking.done()
    await pod.serve(HTTP % ("late", 8080), 8080)
    assert (await asking).startswith("late ")


async def test_a_connection_does_not_wait_for_ever(cluster: Cluster) -> None:
    pod = await cluster.pod()
    publication = await pod.publisher.publish(8080)
    pod.publisher.hold = 0.2
    start = time.monotonic()
    with pytest.raises(ConnectionResetError):
        await get(publication.host_port)
    assert time.monotonic() - start >= 0.2
    assert "waited 0.2 s for api" in pod.lines[0]
    pod.publisher.set_gate(Gate.CLOSED)
    with pytest.raises(ConnectionResetError):
        await get(publication.host_port)
    assert "not running" in pod.lines[1]


@pytest.mark.parametrize("when", ["waiting", "asked"])
async def test_a_connection_goes_along_when_its_service_moves_elsewhere(cluster: Cluster, when: str) -> None:
    """It was on its way to the process here, which has not seen it or has not answered: it asks the other one."""
    here, there = await cluster.pod(), await cluster.pod("there")
    await there.serve(HTTP % ("there", 8080), 8080)
    moved = False

    async def route(relay: Relay) -> Target:
        return ToService((there if moved else here).publisher, 8080)

    relays = Relays(route, lambda relay, error: here.lines.append(str(error)))
    sockets = loopback_listeners(0)
    port = sockets[0].getsockname()[1]
    await relays.listen(*sockets)
    try:
        if when == "asked":
            silent = await here.serve(SILENT, 8080)
        asking = asyncio.create_task(get(port))
        await until(lambda: len(relays) > 0)
        if when == "asked":
            await until(lambda: all(each.target.transport is not None for each in relays._relays))
        assert not asking.done()
        moved = True
        here.publisher.set_gate(Gate.CLOSED)
        if when == "asked":
            silent.signal(signal.SIGKILL)
        assert (await asyncio.wait_for(asking, DEADLINE)).startswith("there ")
        assert here.lines == []
    finally:
        await relays.close()


@pytest.mark.parametrize("way", ["host", "service"])
async def test_no_connection_fails_while_it_reloads(cluster: Cluster, way: str) -> None:
    """50 clients, one connection after the other, while the service is replaced three times by SIGKILL."""
    pod = await cluster.pod()
    publication = await pod.publisher.publish(8080)
    port = publication.host_port
    if way == "service":
        # As another local service's proxy does it.
        async def route(relay: Relay) -> Target:
            return ToService(pod.publisher, 8080)

        relays = Relays(route, lambda relay, error: pod.lines.append(str(error)))
        sockets = loopback_listeners(0)
        port = sockets[0].getsockname()[1]
        for sock in sockets:
            await relays.listen(sock)
    running = await pod.serve(HTTP % ("api", 8080), 8080)
    stop = asyncio.Event()
    answers: list[str] = []

    async def client() -> None:
        while not stop.is_set():
            answers.append(await get(port))

    def more() -> Callable[[], bool]:
        seen = len(answers)
        return lambda: len(answers) >= seen + 100

    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(client())
        for _ in range(3):
            await until(more())
            pod.publisher.set_gate(Gate.HELD)
            running.signal(signal.SIGKILL)
            await running.code
            running = await pod.start(SYSTEM_PYTHON, "-c", HTTP % ("api", 8080))
            pod.publisher.set_gate(Gate.OPEN)
        await until(more())
        stop.set()
    assert len(set(answers)) == 4
    if way == "service":
        await relays.close()


async def test_kept_connections_outlive_a_reload(cluster: Cluster) -> None:
    """20 connections that are never made anew, while the service is replaced three times by SIGKILL; idle ones too."""
    pod = await cluster.pod()
    port = (await pod.publisher.publish(8080)).host_port
    running = await pod.serve(HTTP % ("api", 8080), 8080)
    stop = asyncio.Event()
    answers: list[str] = []
    kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        answers.append((await reader.readexactly(int(head.split(b"Content-Length: ")[1].split()[0]))).decode())

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not stop.is_set():
            await ask(reader, writer)

    try:
        for each in kept:
            await ask(*each)
        async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
            for each in kept[:10]:
                group.create_task(client(*each))
            for _ in range(3):
                pod.publisher.set_gate(Gate.HELD)
                running.signal(signal.SIGKILL)
                await running.code
                running = await pod.start(SYSTEM_PYTHON, "-c", HTTP % ("api", 8080))
                pod.publisher.set_gate(Gate.OPEN)
                before = len(answers)
                await until(lambda before=before: len(answers) >= before + 50)
            stop.set()
        for each in kept:
            await ask(*each)
    finally:
        for _, writer in kept:
            writer.close()
    assert len(set(answers)) == 4
    assert pod.lines == []


async def test_only_what_may_be_repeated_is_repeated(cluster: Cluster) -> None:
    """A POST that the old process has accepted is not given to the new one."""
    pod = await cluster.pod()
    publication = await pod.publisher.publish(8080)
    running = await pod.serve(
        "import socket, time; s = socket.create_server(('', 8080)); c = s.accept()[0]; time.sleep(100)", 8080
    )
    accepted = asyncio.create_task(get(publication.host_port, method="POST"))
    await until(lambda: len(pod.publisher._published[8080][1]) and not pod.inside.not_accepted(8080))
    waiting = asyncio.create_task(get(publication.host_port, method="POST"))
    await until(lambda: pod.inside.not_accepted(8080))
    pod.publisher.set_gate(Gate.HELD)
    running.signal(signal.SIGKILL)
    await running.code
    await pod.serve((HTTP % ("new", 8080)).replace("do_GET", "do_POST"), 8080)
    pod.publisher.set_gate(Gate.OPEN)
    with pytest.raises(ConnectionResetError):
        await accepted
    assert (await waiting).startswith("new ")


async def test_echo_of_a_service_by_another(cluster: Cluster) -> None:
    from devloop.net.router import ToService

    web, api = await cluster.pod("web"), await cluster.pod("api")
    await api.serve(ECHO % ("127.0.0.1", 8080), 8080)
    cluster.router.targets["10.96.0.7", 80] = ToService(api.publisher, 8080)
    assert await web.python(CONNECT, "10.96.0.7", "80") == "hello"
