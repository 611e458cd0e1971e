"""Where a door's connections lead, past the policies of its pod, nobody else's do: with a real Envoy."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from devloop.agent import envoy
from devloop.agent.certificates import Termination
from devloop.agent.gateway import Gateway
from devloop.agent.plan import PortPlan, ServicePlan
from devloop.agent.protocols import Protocol
from tests.certificates import Authority, client_context, server_context
from tests.integration.remote.envoy_here import program
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
HERE, POD, OTHER = "127.0.0.1", "127.0.0.2", "127.0.0.3"
CA = Authority()
PAIR = CA.sign("web", "web")


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if await reader.readline():
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi")
    writer.close()


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("d")


@asynccontextmanager
async def listening(
    folder: Path, protocol: Protocol, original: ssl.SSLContext | None, tls: Termination | None, address: str
) -> AsyncIterator[int]:
    server = await asyncio.start_server(answers, HERE, 0, ssl=original)
    port = free_port()
    pods = ((HERE, server.sockets[0].getsockname()[1]),)
    plan = ServicePlan("web", (PortPlan(80, port, protocol, pods, tls=tls),), pod="0a", clients=(POD, "fd00::7"))
    gateway = Gateway(folder, program(), lambda _: None, folder / "m")
    try:
        await gateway.apply(envoy.files([plan], str(folder), address=address, memory=str(folder / "m")))
        yield port
    finally:
        await gateway.close()
        server.close()


async def asked(port: int, source: str, tls: ssl.SSLContext | None) -> bytes:
    """The answer; nothing if there is none."""
    try:
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection(HERE, port, local_addr=(source, 0), ssl=tls)
            writer.write(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            return answer[-2:]
    except (OSError, ssl.SSLError):
        return b""


@pytest.mark.parametrize("address", [HERE, "::"])
@pytest.mark.parametrize("protocol", ["http", "tcp", "detect", "https", "ended"])
async def test_a_listener_of_a_pod_takes_connections_of_that_pod_and_of_nobody_else(
    folder: Path, protocol: str, address: str
) -> None:
    speaks: Protocol = "https" if protocol == "ended" else protocol  # type: ignore[assignment]
    encrypted = speaks == "https"
    original = server_context(folder, PAIR) if encrypted else None
    tls = Termination(PAIR.certificate, PAIR.key) if protocol == "ended" else None
    async with listening(folder, speaks, original, tls, address) as port:
        shown = client_context(folder, CA.certificate) if encrypted else None
        if shown is not None:
            shown.check_hostname = False
        assert await asked(port, POD, shown) == b"hi"
        assert [await asked(port, each, shown) for each in (HERE, OTHER)] == [b"", b""]
