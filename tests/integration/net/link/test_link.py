"""Namespace, proxy, router, SSH channel, target: what holds for a socket holds for the whole way."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket

import pytest

from tests import needs
from tests.integration.net.conftest import SYSTEM_PYTHON, until
from tests.integration.net.link.conftest import FIRST, Way
from tests.integration.remote import target

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
MANY = 1000
CONNECT = f"""
import hashlib, resource, select, socket, struct, sys
def connect(service):
    return socket.create_connection(("10.96.0.1", {FIRST} + service), timeout=20)
def rest(s):
    parts = []
    while part := s.recv(1 << 20): parts.append(part)
    return b"".join(parts)
ECHO, SINK, SOURCE, CLOSER, SILENT, COUNTER = range(6)
"""


async def python(way: Way, script: str) -> str:
    return await way.pod.python(CONNECT + script)


async def test_half_closes_and_all_the_bytes(way: Way) -> None:
    digest = hashlib.sha256()
    for number in range(160):
        digest.update(target.block(number))
    said = await python(
        way,
        """
s = connect(SINK)
s.sendall(b"end\\n")
digest = hashlib.sha256()
for number in range(160):
    data = hashlib.sha256(number.to_bytes(8, "big")).digest() * 2048
    s.sendall(data)
s.shutdown(socket.SHUT_WR)
print(rest(s).decode())
s = connect(SOURCE)
s.sendall(b"160\\n")
print(hashlib.sha256(rest(s)).hexdigest())
""",
    )
    assert said.split() == [str(160 << 16), digest.hexdigest(), digest.hexdigest()]
    await until(lambda: not len(way.pod.proxy))


async def test_a_server_that_speaks_first_and_closes(way: Way) -> None:
    """What comes at once, before anybody listens to it, is not lost; many times, because it is a race."""
    said = await python(way, "print(sum(rest(connect(CLOSER)) == b'bye' for _ in range(200)))")
    assert said == "200"
    await until(lambda: not len(way.pod.proxy))


async def test_what_is_refused_is_reset_and_told(way: Way) -> None:
    said = await python(
        way,
        f"""
try: print(connect({target.REFUSED}).recv(1))
except ConnectionResetError: print("reset")  # at once, or while it is still connecting
""",
    )
    assert said == "reset"
    assert len(way.pod.lines) == 1
    assert f"can't connect to 10.96.0.1:{FIRST + target.REFUSED}: connection refused" in way.pod.lines[0]


async def test_a_client_that_resets_is_gone_on_the_other_side(way: Way) -> None:
    said = await python(
        way,
        """
def count():
    s = connect(COUNTER)
    return int(s.recv(10)), s
first, s = count()
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
s.close()
while count()[0] > 1: pass
print(first)
""",
    )
    assert said == "1"


async def test_a_server_that_resets_is_seen(way: Way, listener: socket.socket) -> None:
    running = asyncio.create_task(
        python(
            way,
            """
s = socket.create_connection(("10.96.0.1", 80), timeout=20)
s.sendall(b"x")
try: print(s.recv(1))
except ConnectionResetError: print("reset")
""",
        )
    )
    loop = asyncio.get_running_loop()
    connection, _ = await loop.sock_accept(listener)
    with connection:
        assert await loop.sock_recv(connection, 10) == b"x"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert await running == ("reset" if way.resets else "b''")


async def test_a_thousand_connections_at_once(way: Way) -> None:
    script = f"""
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
socks = [connect(ECHO) for _ in range({MANY})]
for n, s in enumerate(socks): s.sendall(b"%06d" % n)
print(sum(s.recv(6, socket.MSG_WAITALL) == b"%06d" % n for n, s in enumerate(socks)), flush=True)
input()
"""
    with needs.open_files(2 * MANY + 200), contextlib.ExitStack() as sockets:  # which are made once it may go on
        go_on, hold, out, into = (sockets.enter_context(each) for _ in range(2) for each in socket.socketpair())
        running = await way.pod.start(
            SYSTEM_PYTHON, "-I", "-c", CONNECT + script, stdin=hold.fileno(), out=into.fileno()
        )
        into.close()  # so that the end of the script is the end of what it says
        out.setblocking(False)
        assert (await asyncio.get_running_loop().sock_recv(out, 100)).strip() == str(MANY).encode()
        assert len(way.pod.proxy) == MANY
        go_on.sendall(b"\n")
        assert await running.code == 0
    await until(lambda: not len(way.pod.proxy))


async def test_who_does_not_read_stops_who_writes_and_nobody_else(way: Way) -> None:
    """Into a server that reads nothing, and out of one while its client reads nothing."""
    said = await python(
        way,
        """
def echoes():
    s = connect(ECHO)
    s.sendall(b"there")
    return s.recv(5, socket.MSG_WAITALL) == b"there"
into = connect(SILENT)
assert into.recv(6) == b"hello\\n"
into.setblocking(False)
sent, data = 0, bytes(65536)
while select.select([], [into], [], 1)[1]: sent += into.send(data)
out = connect(SOURCE)
out.sendall(b"%d\\n" % (64 * 16))
print(sent < 64 << 20, all(echoes() for _ in range(20)), len(rest(out)) == 64 << 20)
""",
    )
    assert said == "True True True"
