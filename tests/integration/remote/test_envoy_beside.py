"""Envoy in a container of its own: neither end takes the other with it, and what was told is there again by itself."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from devloop.agent import envoy, gateway, outage
from devloop.agent.gateway import Gateway, GatewayError
from devloop.agent.objects import is_swapped
from devloop.agent.paths import services
from devloop.agent.plan import PortPlan, ServicePlan
from devloop.agent.runner import UNREAD_BYTES, Runner
from tests.ports import free_port
from tests.waiting import until, until_so

from .envoy_here import HERE, NAME, Beside, Local, a_rig, program, serving

pytestmark = pytest.mark.slow


@pytest.fixture
def beside() -> Iterator[Beside]:
    program()
    folder = Path(tempfile.mkdtemp(prefix="devloop-b-"))  # short: names of unix sockets are
    made = Beside(folder)
    made.start()
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)


async def counts(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Requests, one after the other, each answered with its number on this connection."""
    number = 0
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while await reader.readuntil(b"\r\n\r\n"):
            number += 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)


class Client:
    """One connection that stays."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def ask(self) -> bytes:
        async with asyncio.timeout(5):
            self._writer.write(b"GET / HTTP/1.1\r\nHost: api\r\n\r\n")
            head = await self._reader.readuntil(b"\r\n\r\n")
            await self._reader.readexactly(1)
            return head.split(b"\r\n")[0]


@asynccontextmanager
async def client(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(HERE, port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


async def answered(port: int) -> bool:
    try:
        async with client(port) as each:
            return await each.ask() == b"HTTP/1.1 200 OK"
    except (OSError, asyncio.IncompleteReadError):
        return False


async def eventually(port: int, seconds: float = 10) -> None:
    await until_so(lambda: answered(port), seconds)


def plan(original: int, *ports: int) -> list[ServicePlan]:
    made = (PortPlan(80 + index, port, "http", ((HERE, original),)) for index, port in enumerate(ports))
    return [ServicePlan("api", tuple(made))]


async def test_an_envoy_or_its_container_that_ends_is_back_with_its_listeners(beside: Beside) -> None:
    lines: list[str] = []
    found = Gateway(beside.folder, program(), lines.extend, runner=beside.socket)
    port = free_port()
    async with serving(counts) as original:
        await found.apply(envoy.files(plan(original, port), str(beside.folder), address=HERE))
        assert await answered(port) and not found.away
        await until(lambda: bool(lines))
        [one] = beside.envoys()
        os.kill(one, signal.SIGKILL)
        await until(lambda: found.away > 0)
        await eventually(port)
        assert not found.away and beside.envoys() != [one]
        beside.kill()
        await until(lambda: found.away > 0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gateway, "TAKEN_SECONDS", 0.1)
            with pytest.raises((GatewayError, TimeoutError)):
                await found.apply(envoy.files(plan(original, port, free_port()), str(beside.folder), address=HERE))
        beside.start()
        await eventually(port)
        # What could not be told is told again, and is there then.
        more = free_port()
        await found.apply(envoy.files(plan(original, port, more), str(beside.folder), address=HERE))
        assert await answered(more) and not found.away
        await found.close()


async def test_an_agent_that_ends_leaves_envoy_and_its_clients_and_the_next_one_takes_them_up(beside: Beside) -> None:
    port, more = free_port(), free_port()
    async with serving(counts) as original:
        files = envoy.files(plan(original, port), str(beside.folder), address=HERE)
        first = Gateway(beside.folder, program(), lambda _: None, runner=beside.socket)
        await first.apply(files)
        before = beside.envoys()
        async with client(port) as stays:
            assert await stays.ask() == b"HTTP/1.1 200 OK"
            await first.close()
            assert await stays.ask() == b"HTTP/1.1 200 OK"
            assert await answered(port)
            lines: list[str] = []
            second = Gateway(beside.folder, program(), lines.extend, runner=beside.socket)
            await second.start()
            assert await stays.ask() == b"HTTP/1.1 200 OK"
            await until(lambda: bool(lines))
            await second.apply(files)
            await second.apply(envoy.files(plan(original, port, more), str(beside.folder), address=HERE))
            assert await stays.ask() == b"HTTP/1.1 200 OK"
            assert await answered(more)
            await second.apply(envoy.files([], str(beside.folder)))
        assert beside.envoys() == before, "the same process all the while"
        await second.close()


async def test_files_that_can_not_be_read_are_written_anew_for_another_envoy(beside: Beside) -> None:
    port = free_port()
    async with serving(counts) as original:
        files = envoy.files(plan(original, port), str(beside.folder), address=HERE)
        first = Gateway(beside.folder, program(), lambda _: None, runner=beside.socket)
        await first.apply(files)
        before = beside.envoys()
        await first.close()
        (beside.folder / "cds.json").write_text("{")
        second = Gateway(beside.folder, program(), lambda _: None, runner=beside.socket)
        await second.apply(files)
        await eventually(port)
        assert beside.envoys() not in ([], before)
        await second.close()


async def test_after_sigterm_envoy_serves_until_the_agent_has_left(beside: Beside) -> None:
    port = free_port()
    async with serving(counts) as original:
        found = Gateway(beside.folder, program(), lambda _: None, runner=beside.socket)
        await found.apply(envoy.files(plan(original, port), str(beside.folder), address=HERE))
        assert beside.process is not None
        beside.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        while time.monotonic() - began < 0.3:
            assert await answered(port)
        assert beside.process.poll() is None
        await found.close()
        async with asyncio.timeout(5):
            assert await asyncio.to_thread(beside.process.wait) == 0
        assert not await answered(port)


async def test_where_nothing_is_attached_there_is_no_envoy(beside: Beside) -> None:
    await until(lambda: beside.socket.exists())
    assert beside.envoys() == []
    assert beside.socket.stat().st_mode & 0o777 == 0o600
    assert beside.process is not None
    beside.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(5):
        assert await asyncio.to_thread(beside.process.wait) == 0


async def test_an_agent_that_does_not_read_keeps_nothing_waiting(beside: Beside) -> None:
    """What is dropped is whole lines, and what is kept of them is bounded."""

    class Stuck:
        size = 0
        said = b""

        def get_write_buffer_size(self) -> int:
            return self.size

        def write(self, data: bytes) -> None:
            self.said += data[5:]
            self.size += len(data)

    runner, stuck = Runner("envoy", beside.folder), Stuck()
    stuck.transport = stuck  # type: ignore[attr-defined]
    runner._agent = stuck  # type: ignore[assignment]
    line = b"x" * 99
    for _ in range(2 * UNREAD_BYTES // 100):
        runner.pipe_data_received(1, line[:50])
        runner.pipe_data_received(1, line[50:] + b"\n")
    assert UNREAD_BYTES <= stuck.size < UNREAD_BYTES + 1000
    assert set(stuck.said.split(b"\n")) == {line, b""}


async def test_nobody_is_told_that_they_are_attached_while_it_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "BACK_SECONDS", 0.3)

    async def says(name: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nServer: %s\r\nContent-Length: 1\r\n\r\nx" % name)

    async def server(port: int) -> bytes:
        try:
            async with asyncio.timeout(2):
                reader, writer = await asyncio.open_connection(HERE, port)
                writer.write(b"GET / HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                writer.close()
                return head.lower().partition(b"server: ")[2].split(b"\r")[0]
        except (OSError, asyncio.IncompleteReadError):
            return b""

    async def comes(port: int, name: bytes) -> None:
        async def is_there() -> bool:
            return await server(port) == name

        await until_so(is_there)

    async with (
        serving(lambda *given: says(b"original", *given)) as original,
        serving(lambda *given: says(b"local", *given)) as local,
        a_rig(monkeypatch, original, "http", beside=True) as rig,
    ):
        assert rig.beside is not None
        await rig.attach(Local(local))
        await comes(rig.proxy.port, b"local")
        attached = copy.deepcopy(rig.service)
        rig.beside.kill()
        await until(lambda: rig.session.away == outage.WHY)
        await until(lambda: not is_swapped(rig.service))
        assert await server(rig.proxy.port) == b"original"
        rig.beside.start()
        await until(lambda: rig.session.away == "")
        # As an engine does it then.
        rig.api.put(f"{services('space')}/{NAME}", attached)
        await comes(rig.proxy.port, b"local")
