"""Services on the host's network: forwards that give way, where volumes lie, and the service's own ports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from devloop.net import onhost
from devloop.net.forward import Forwards
from devloop.net.mounts import Bind
from devloop.net.onhost import VOLUMES, HostInner, OnHost
from devloop.net.ports import Rewritten
from devloop.net.publish import Gate, loopback_listeners
from devloop.net.router import HostLoopback, RefusedError
from devloop.relay import Target

pytestmark = pytest.mark.slow


def unchanged(env: Mapping[str, str]) -> Rewritten:
    return Rewritten(dict(env), {}, ())


def read(path: str) -> str | None:
    return Path(path).read_text() if Path(path).exists() else None


class Echo:
    """Says whatever it hears."""

    def __init__(self) -> None:
        self.port = 0

    async def __aenter__(self) -> Echo:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(100):
                writer.write(data)
            writer.close()

        self._server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def route(self) -> Target:
        return HostLoopback(self.port)


async def said(port: int, host: str = "127.0.0.1") -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"hello")
    writer.write_eof()
    data = await reader.read()
    writer.close()
    await writer.wait_closed()
    return data


@pytest.fixture
async def forwards() -> AsyncIterator[Forwards]:
    made = Forwards(lambda line: None)
    yield made
    await made.close()


async def test_a_forward_takes_connections_at_once(forwards: Forwards) -> None:
    async with Echo() as echo:
        port = forwards.open("api", 80, echo.route)
        assert forwards.open("api", 80, echo.route) == forwards.port("api", 80) == port
        with socket.create_connection(("127.0.0.1", port), timeout=1):  # before the loop has run at all
            pass
        assert await said(port) == b"hello"


async def test_a_released_port_is_free_and_its_connections_go_on(forwards: Forwards) -> None:
    async with Echo() as echo:
        port = forwards.open("api", 80, echo.route)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"before")
        assert await reader.readexactly(6) == b"before"
        forwards.release("api", 80)
        assert forwards.port("api", 80) is None
        taken = loopback_listeners(port)  # raises if it is not free
        writer.write(b"after")
        assert await reader.readexactly(5) == b"after"
        for sock in taken:
            sock.close()
        writer.close()
        await writer.wait_closed()
        # One that is released before it has begun to accept leaves nothing either.
        again = forwards.open("api", 80, echo.route)
        forwards.release("api", 80)
        await asyncio.sleep(0)
        for sock in loopback_listeners(again):
            sock.close()


async def test_spared_ports_are_not_taken(forwards: Forwards) -> None:
    async with Echo() as echo:
        free = loopback_listeners(0)
        port = free[0].getsockname()[1]
        for sock in free:
            sock.close()
        assert forwards.open("a", port, echo.route, spared={port}) != port
        assert forwards.open("b", port, echo.route) == port
        at = forwards.open("c", port, echo.route, address="127.77.1.2")
        assert (at, await said(port, "127.77.1.2")) == (port, b"hello")
        with pytest.raises(OSError, match="in use"):
            forwards.open("d", port, echo.route, address="127.77.1.2")


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[OnHost]:
    made = OnHost("api", tmp_path / "volumes", unchanged, lambda line: None, hold=5)
    yield made
    await made.close()


async def test_volumes_lie_below_a_folder_and_paths_lead_there(service: OnHost, tmp_path: Path) -> None:
    first, second, inner = (tmp_path / name for name in ("first", "second", "inner"))
    for each in (first, second, inner):
        each.mkdir()
        (each / "name").write_text(each.name)
    env = {"FILE": "/data/name", "INNER": "/data/sub/name", "OTHER": "/srv/name"}
    assert service.environment(env) == env
    assert service.notes == ()
    assert await service.mount([Bind(str(first), "/data"), Bind(str(inner), "/data/sub")]) == {}
    found = service.environment(env)
    assert found["OTHER"] == "/srv/name" and found[VOLUMES] == str(tmp_path / "volumes")
    assert read(found["FILE"]) == "first"
    assert read(found["INNER"]) == "inner"
    assert [each.name for each in first.iterdir()] == ["name"]  # nothing was put into a volume
    assert "/data, /data/sub" in service.notes[-1]
    # A process that runs sees what is mounted later.
    await service.mount([Bind(str(second), "/data")], ["/data/sub"])
    assert read(found["FILE"]) == "second"
    assert read(found["INNER"]) is None
    assert service.environment(env)["INNER"].endswith("/volumes/data/sub/name")


async def test_a_file_can_be_a_volume_and_what_is_not_possible_is_told(service: OnHost, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("content")
    assert await service.mount([Bind(str(file), "/etc/app/config")]) == {}
    assert read(service.environment({"A": "/etc/app/config"})["A"]) == "content"
    (tmp_path / "volumes" / "block").write_text("")
    assert "/block/x" in await service.mount([Bind(str(file), "/block/x")])


async def test_connections_wait_for_it_while_it_reloads(service: OnHost) -> None:
    async with Echo() as echo:
        service.set_gate(Gate.HELD)
        waiting = asyncio.create_task(service.publisher.open(echo.port))
        await asyncio.sleep(0)
        assert not waiting.done()
        service.set_gate(Gate.OPEN)
        sock = await waiting
        sock.close()
        service.set_gate(Gate.CLOSED)
        with pytest.raises(RefusedError):
            await service.publisher.open(echo.port)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
async def test_what_it_listens_on_is_known(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onhost.sys, "platform", platform)
    inner = HostInner()
    try:
        async with Echo() as echo:
            sock = await inner.connect(echo.port)
            sock.close()
            assert any(found.port == echo.port for found in inner.listeners())
        with pytest.raises(ConnectionRefusedError):
            await inner.connect(echo.port)
        assert not any(found.port == echo.port for found in inner.listeners())
        assert inner.not_accepted(echo.port) == frozenset()
    finally:
        inner.close()
