"""A gate before the API server: what passes it can be cut, for one client and no other.

A relay of TCP connections on the loopback, in a thread with an event loop of its own, so that the test's
loop has no part in it. It sees TLS and changes nothing: the client's kubeconfig names the gate as its
server and the real name for the certificate. It works with any cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, Literal
from urllib.parse import urlsplit

Mode = Literal["open", "refuse", "silent"]
CHUNK = 1 << 18


class Gate:
    """Open at first; `refuse()` and `silence()` close it, `open()` opens it. Safe from any thread."""

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self.target = (parts.hostname or "127.0.0.1", parts.port or 443)
        self.mode: Mode = "open"
        self.passed = 0  # connections so far
        self.port = 0
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="gate", daemon=True)
        self.listener: asyncio.Server | None = None
        self.open_connections: set[asyncio.StreamWriter] = set()
        self.flowing = asyncio.Event()

    @property
    def server(self) -> str:
        """The URL for a kubeconfig."""
        return f"https://127.0.0.1:{self.port}"

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=10)

    def start(self) -> None:
        """Listen, from now until `close`."""
        self.thread.start()
        self.run(self._open())

    def close(self) -> None:
        """End every connection and the thread."""
        self.run(self._refuse())
        self.run(self._cancel())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def open(self) -> None:
        """Let everything pass. What waited in silence goes on."""
        self.run(self._open())

    def refuse(self) -> None:
        """Reset every connection and refuse new ones, as a host does whose API server is down."""
        self.run(self._refuse())

    def silence(self) -> None:
        """Keep connections open, take new ones, and pass nothing on: a network that delivers no more."""
        self.run(self._silence())

    def sever(self) -> None:
        """Reset every connection; new ones are taken. What a restarted API server or a load balancer does."""
        self.run(self._sever())

    @contextlib.contextmanager
    def closed(self, seconds: float, mode: Literal["refuse", "silent"] = "refuse") -> Iterator[None]:
        """Cut now; open again after `seconds`, or at the end of the context, whichever is first."""
        if mode == "refuse":
            self.refuse()
        else:
            self.silence()
        timer = threading.Timer(seconds, self.open)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            self.open()

    async def _open(self) -> None:
        self.mode = "open"
        self.flowing.set()
        if self.listener is None:
            # The same port each time: the client's kubeconfig names it.
            self.listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self.listener.sockets[0].getsockname()[1]

    async def _silence(self) -> None:
        await self._open()
        self.mode = "silent"
        self.flowing.clear()

    async def _refuse(self) -> None:
        self.mode = "refuse"
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        await self._sever()

    async def _sever(self) -> None:
        for writer in list(self.open_connections):
            taken = writer.get_extra_info("socket")
            if taken is not None and taken.fileno() >= 0:
                # Closed with no time to linger, a socket sends a reset in place of an orderly end.
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        if self.mode != "silent":
            self.flowing.set()

    async def _cancel(self) -> None:
        tasks = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.passed += 1
        self.open_connections.add(writer)
        try:
            await self.flowing.wait()
            there_reader, there_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            self.open_connections.discard(writer)
            return
        self.open_connections.add(there_writer)
        try:
            await asyncio.gather(self._pump(reader, there_writer), self._pump(there_reader, writer))
        except OSError:
            pass
        finally:
            for each in (writer, there_writer):
                self.open_connections.discard(each)
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            await self.flowing.wait()
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
