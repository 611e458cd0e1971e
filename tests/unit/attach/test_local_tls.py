"""An upload to a local service whose handshake takes its time: a debugger has stopped it, or it starts."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from devloop.attach.local_tls import WAITING_BYTES, Identity, TlsEnd
from tests.certificates import Authority, server_context
from tests.waiting import until

PIECE = b"x" * 16_384
SENT = 8 << 20


class Local:
    """A local service at a port of this machine."""

    async def connect(self, factory: Callable[[], Any], port: int) -> tuple[Any, Any]:
        return await asyncio.get_running_loop().create_connection(factory, "127.0.0.1", port)


class Upload(asyncio.Protocol):
    """As the relay: writes as long as it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.lost = asyncio.Event()

    def pause_writing(self) -> None:
        self.may.clear()

    def resume_writing(self) -> None:
        self.may.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


class Slow:
    """Accepts, and begins its TLS when it is told to."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.goes_on = asyncio.Event()
        self.received = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.goes_on.wait()
        try:
            await writer.start_tls(self.context)
            while data := await reader.read(1 << 16):
                self.received += len(data)
        except OSError:
            pass
        finally:
            writer.transport.abort()


@pytest.mark.parametrize("ends_well", [True, False])
async def test_an_upload_waits_where_it_is_during_a_handshake(tmp_path: Path, ends_well: bool) -> None:
    name = "api"
    slow = Slow(server_context(tmp_path, Authority().sign(name, name)))
    server = await asyncio.start_server(slow.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    end = TlsEnd(cast(Any, Local()), lambda port, why: None)
    end.ports = {port: Identity(name)}
    transport, upload = await end.connect(Upload, port)
    written = 0
    while written < SENT and upload.may.is_set():
        transport.write(PIECE)
        written += len(PIECE)
    assert written <= WAITING_BYTES + len(PIECE)
    if ends_well:
        slow.goes_on.set()
        async with asyncio.timeout(30):
            while written < SENT:
                await upload.may.wait()
                transport.write(PIECE)
                written += len(PIECE)
            await until(lambda: slow.received == written)
        transport.abort()
    else:
        slow.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # it has no certificate
        slow.goes_on.set()
    async with asyncio.timeout(30):
        await upload.lost.wait()
    server.close()
