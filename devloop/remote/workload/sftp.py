"""SFTP into a container, over one `pods/exec`: SSH on the command's standard input and output."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from devloop.agent.tasks import background
from devloop.errors import RemoteError

from . import far_end
from .cluster import Cluster, ExecStream

if TYPE_CHECKING:
    import asyncssh

START_SECONDS = 20
GREETING_BYTES = 256 << 10
"""The server's key is the first line, and what a stream gives at once may come with it."""


@asynccontextmanager
async def connect(cluster: Cluster, pod: str, container: str) -> AsyncIterator[asyncssh.SSHClientConnection]:
    """An SSH connection to an SFTP server that runs in the container while the context lasts.

    The exec channel is what proves both sides: the server's key comes over it, and the client's goes with
    the command. Raises RemoteError.
    """
    import asyncssh  # late: it takes some 230 ms

    key = asyncssh.generate_private_key("ssh-ed25519")
    public = key.export_public_key().decode().strip()
    source = inspect.getsource(far_end)
    call = f"{source}\nasyncio.run(serve({public!r}))"
    stream = await cluster.open_exec(pod, container, ["python3", "-c", call, far_end.MARK])
    try:
        first = b""
        try:
            async with asyncio.timeout(START_SECONDS):
                while b"\n" not in first:
                    if not (data := await stream.receive()):
                        raise RemoteError(f"the SFTP server does not start: {stream.errors()}", where=f"pod {pod}")
                    first += data
                    if len(first) > GREETING_BYTES:
                        raise RemoteError("what answers is no SFTP server", where=f"pod {pod}")
        except TimeoutError:
            raise RemoteError("the SFTP server does not start in time", where=f"pod {pod}") from None
        host_key, _, rest = first.partition(b"\n")
        tunnel = _Tunnel(stream, rest)
        try:
            connection = await asyncssh.connect(
                "devloop-files",
                tunnel=tunnel,
                known_hosts=asyncssh.import_known_hosts(f"* {host_key.decode()}"),
                client_keys=[key],
                username="devloop",
                agent_path=None,
                config=None,
                compression_algs=["none"],
                encryption_algs=["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"],
                login_timeout=START_SECONDS,
            )
        except (OSError, asyncssh.Error) as problem:
            raise RemoteError(f"no SFTP: {problem}", where=f"pod {pod}") from problem
        try:
            yield connection
        finally:
            connection.abort()
            await tunnel.closed()
    finally:
        await stream.close()


class _Tunnel:
    """What asyncssh takes as `tunnel`: it makes the one connection over a stream that is there."""

    def __init__(self, stream: ExecStream, first: bytes) -> None:
        self._stream = stream
        self._first = first
        self._tasks: list[asyncio.Task[None]] = []

    async def create_connection(self, factory: Any, host: str, port: int) -> tuple[Any, Any]:
        """As asyncssh's own connections have it."""
        session = factory()
        out: asyncio.Queue[bytes | None] = asyncio.Queue()
        session.connection_made(_Transport(out))
        self._tasks = [
            background(self._send(out), name="sftp out"),
            background(self._receive(session), name="sftp in"),
        ]
        return None, session

    def close(self) -> None:
        """The stream is closed by who has opened it."""

    async def wait_closed(self) -> None:
        """Likewise."""

    async def closed(self) -> None:
        """End both directions."""
        for each in self._tasks:
            each.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send(self, out: asyncio.Queue[bytes | None]) -> None:
        while (data := await out.get()) is not None:
            while not out.empty() and len(data) < 1 << 17:
                more = out.get_nowait()
                if more is None:
                    break
                data += more
            await self._stream.send(data)

    async def _receive(self, session: Any) -> None:
        problem: Exception | None = None
        try:
            data = self._first or await self._stream.receive()
            while data:
                session.data_received(data)
                data = await self._stream.receive()
        except Exception as lost:
            problem = lost
        session.connection_lost(problem)


class _Transport:
    """The transport that asyncssh writes to."""

    def __init__(self, out: asyncio.Queue[bytes | None]) -> None:
        self._out = out
        self._closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """asyncssh asks for the addresses; there are none."""
        return ("127.0.0.1", 0) if name in ("peername", "sockname") else default

    def write(self, data: bytes) -> None:
        self._out.put_nowait(bytes(data))

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True
        self._out.put_nowait(None)

    def abort(self) -> None:
        self.close()

    def pause_reading(self) -> None:
        """SFTP asks for no more than it takes."""

    def resume_reading(self) -> None:
        """Likewise."""
