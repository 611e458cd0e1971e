"""A port on the loopback serves its own user."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from devloop.net import own, peers
from devloop.net.forward import Forwards
from devloop.net.peers import user_of
from devloop.places import LINUX
from devloop.relay import Target

pytestmark = pytest.mark.skipif(not LINUX, reason="other systems do not tell whose a connection is")

Way = Callable[[tuple[str, int], tuple[str, int]], int | None]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(30)
        yield made


@pytest.mark.parametrize("mapped", [False, True], ids=["IPv4", "IPv4 from a socket of IPv6"])
@pytest.mark.parametrize("way", [peers._by_netlink, peers._by_tables])
def test_whose_a_connection_is(listener: socket.socket, mapped: bool, way: Way) -> None:
    host, port = listener.getsockname()
    try:
        client = socket.create_connection((f"::ffff:{host}" if mapped else host, port))
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with client:
        taken, peer = listener.accept()
        with taken:
            assert way(peer, taken.getsockname()) == os.geteuid()
            assert way((host, port), taken.getpeername()) == os.geteuid()  # beside the socket that listens there
            assert way((host, port), (host, 1)) is None
    assert way(("127.0.0.1", 1), (host, port)) is None


def test_it_takes_no_longer_where_there_are_many(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_by_tables", None)  # they have each socket of the machine
    with socket.create_connection(listener.getsockname()):
        taken, peer = listener.accept()
        with taken:
            assert user_of(peer, taken.getsockname()) == os.geteuid()


def test_without_sock_diag_the_tables_tell(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_SOCK_DIAG", 4711)
    with socket.create_connection(listener.getsockname()):
        taken, peer = listener.accept()
        with taken:
            assert user_of(peer, taken.getsockname()) == os.geteuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user: run this as root")
def test_another_user_is_told_apart(listener: socket.socket) -> None:
    # What the other user may not read is imported before.
    code = "import os,socket,sys; ''.encode('idna'); os.setuid(65534); s=socket.socket(); "
    code += "s.connect(('127.0.0.1', int(sys.argv[1]))); s.recv(1)"
    with subprocess.Popen([sys.executable, "-c", code, str(listener.getsockname()[1])]):
        taken, peer = listener.accept()
        with taken:
            assert user_of(peer, taken.getsockname()) == 65534


async def test_a_forward_breaks_the_connection_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    asked = 0

    async def route() -> Target:
        nonlocal asked
        asked += 1
        raise OSError("no route")

    forwards = Forwards(said.append)
    try:
        port = await forwards.add("db", 0, route)
        for stranger in (True, False):
            if stranger:
                monkeypatch.setattr(own, "mine", lambda: frozenset({os.geteuid() + 1}))
            else:
                monkeypatch.undo()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                async with asyncio.timeout(10):
                    assert await reader.read() == b""
            except ConnectionError:
                pass
            writer.close()
            assert asked == (0 if stranger else 1)
        assert "may not" in said[0] and "no route" in said[1]
    finally:
        await forwards.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user: run this as root")
async def test_a_service_of_root_s_that_has_dropped_its_rights_is_no_stranger() -> None:
    """nginx's workers in a container where all is root's."""
    said: list[str] = []
    asked = asyncio.Event()

    async def route() -> Target:
        asked.set()
        raise OSError("no route")

    code = "import os,socket,sys; ''.encode('idna'); os.setuid(65534); "
    code += "s=socket.socket(); s.connect(('127.0.0.1', int(sys.argv[1]))); s.recv(1)"
    forwards = Forwards(said.append)
    assert not peers.works_here(65534)
    try:
        port = await forwards.add("db", 0, route)
        service = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(port))
        async with asyncio.timeout(30):
            await asked.wait()
            await service.wait()
    finally:
        await forwards.close()
    assert not any("may not" in each for each in said)
